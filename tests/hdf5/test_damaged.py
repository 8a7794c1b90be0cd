"""Files damaged in one known way each: what the fuzzing found once, kept as small tests."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import fuzzing
import h5py
import numpy as np
import pytest

import dsmem
from dsmem.arrays import dtypes
from dsmem.hdf5 import opening, scan
from dsmem.hdf5.chunkindex import read_table

CHUNK_BYTES = 16


def chunked(path: Path) -> tuple[bytearray, int]:
    """A file with chunks of 4 items at 0, 4 and 8, and where the B-tree's key of the second lies."""
    with h5py.File(path, "w", libver="earliest") as file:
        file.create_dataset("x", data=np.arange(12, dtype="<i4"), chunks=(4,))
    content = bytearray(path.read_bytes())
    return content, content.index(struct.pack("<IIQQ", CHUNK_BYTES, 0, 4, 0))


def test_two_chunks_of_one_place_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    content, key = chunked(path)
    struct.pack_into("<Q", content, key + 8, 0)
    path.write_bytes(content)
    with pytest.raises(dsmem.BadSource, match="/x can't be read as HDF5: its chunk index is damaged: there are two"):
        dsmem.pin(path)


def test_a_chunk_between_others_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    content, key = chunked(path)
    struct.pack_into("<Q", content, key + 8, 5)
    path.write_bytes(content)
    with pytest.raises(dsmem.BadSource):
        dsmem.pin(path)


@pytest.mark.parametrize("address", [2**63 - 1, 2**63 - 20, 1 << 40])
def test_a_chunk_beyond_the_file_is_an_error(tmp_path: Path, address: int) -> None:
    path = tmp_path / "x.h5"
    content, key = chunked(path)
    struct.pack_into("<Q", content, key + 24, address)
    path.write_bytes(content)
    with pytest.raises(dsmem.BadSource):
        dsmem.pin(path)


@pytest.mark.parametrize("untrusted", [False, True])
def test_a_chunk_of_no_bytes_is_an_error(tmp_path: Path, untrusted: bool) -> None:
    """At a whole page of the file, where a buffer for it would begin at its own beginning."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file.create_dataset("x", data=np.arange(2048, dtype="<i4"), chunks=(2048,))
        info = file["x"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    key = content.index(struct.pack("<IIQQQ", info.size, 0, 0, 0, info.byte_offset))
    struct.pack_into("<I", content, key, 0)
    struct.pack_into("<Q", content, key + 24, 4096)
    path.write_bytes(content)
    with pytest.raises(dsmem.BadSource, match=r"the chunk at \(0,\) can't be decoded: 0 bytes stored instead of 8192"):
        dsmem.pin(path, untrusted=untrusted)


def many_chunks(path: Path) -> tuple[bytearray, int]:
    """A file with 50 chunks of 4 items, and where the first key of its B-tree's one node lies."""
    with h5py.File(path, "w", libver="earliest") as file:
        file.create_dataset("x", data=np.arange(200, dtype="<i4"), chunks=(4,))
    content = bytearray(path.read_bytes())
    return content, content.index(struct.pack("<IIQQ", CHUNK_BYTES, 0, 0, 0))


ENTRY_BYTES = 32
"""Of a version 1 B-tree of chunks of one axis: size, mask, corner (of the item, too), address."""


def test_keys_out_of_order_are_an_error(tmp_path: Path) -> None:
    """HDF5 lists all these chunks, and finds some of them no more: what is between the two that changed places."""
    path = tmp_path / "x.h5"
    content, begin = many_chunks(path)
    one, other = (slice(begin + n * ENTRY_BYTES, begin + (n + 1) * ENTRY_BYTES) for n in (20, 30))
    content[one], content[other] = content[other], content[one]
    path.write_bytes(content)
    with h5py.File(path) as file:
        assert (file["x"][()] != np.arange(200)).any()
    with pytest.raises(dsmem.BadSource, match=r"/x can't be read as HDF5: .* does not find the chunk at \(\d+,\)"):
        dsmem.pin(path)


def test_chunks_told_in_any_order_are_read(tmp_path: Path) -> None:
    """Where HDF5 finds each of them, an index may list them as it likes."""
    path = tmp_path / "x.h5"
    content, _ = many_chunks(path)
    path.write_bytes(content)
    with h5py.File(path) as file:
        dataset = file["x"]
        infos = [dataset.id.get_chunk_info(n) for n in range(dataset.id.get_num_chunks())]

        class Reversed:
            read_direct_chunk = dataset.id.read_direct_chunk

            def chunk_iter(self, keep: Any) -> None:
                for info in reversed(infos):
                    keep(info)

        there = read_table(dataset.id, (200,), (4,), len(content))
        back = read_table(Reversed(), (200,), (4,), len(content))
    assert back.offsets.tolist() == there.offsets.tolist()
    assert back.sizes.tolist() == there.sizes.tolist() == [16] * 50


def test_a_key_damaged_where_it_is_not_listed(tmp_path: Path) -> None:
    """The corner within the item, always 0: HDF5 lists the chunk as ever, and reads zeros in its place."""
    path = tmp_path / "x.h5"
    content, begin = many_chunks(path)
    struct.pack_into("<Q", content, begin + 20 * ENTRY_BYTES + 16, 1 << 20)
    path.write_bytes(content)
    with h5py.File(path) as file:
        assert file["x"][78:86].tolist() == [78, 79, 0, 0, 0, 0, 84, 85]
    checks: list[dict[str, Any]] = [{}, {"untrusted": True}, {"verify": True}]
    for options in checks:
        with pytest.raises(dsmem.BadSource, match=r"/x can't be read as HDF5: .* does not find the chunk at \(80,\)"):
            dsmem.pin(path, **options)


def test_the_end_of_an_index_node_lowered(tmp_path: Path) -> None:
    """The key behind the last chunk: HDF5 looks nowhere for what lies beyond it."""
    path = tmp_path / "x.h5"
    content, begin = many_chunks(path)
    struct.pack_into("<Q", content, begin + 50 * ENTRY_BYTES + 8, 176)
    path.write_bytes(content)
    with h5py.File(path) as file:
        assert not file["x"][196:].any()
    checks: list[dict[str, Any]] = [{}, {"untrusted": True}, {"verify": True}]
    for options in checks:
        with pytest.raises(dsmem.BadSource, match=r"/x can't be read as HDF5: .* does not find the chunk at \(\d+,\)"):
            dsmem.pin(path, **options)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("maxshape", [(64, 60), (None, 60), (None, None)], ids=repr)
@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("rows", [7, 64])
def test_every_chunk_is_found(tmp_path: Path, libver: str, maxshape: Any, compression: str | None, rows: int) -> None:
    path, looks = tmp_path / "x.h5", []
    with h5py.File(path, "w", libver=libver) as file:
        made = file.create_dataset("x", (64, 60), "<i4", chunks=(8, 9), maxshape=maxshape, compression=compression)
        made[:rows, 11:] = np.arange(rows * 49).reshape(rows, 49)
    with h5py.File(path) as file:
        given = (file["x"].id, (64, 60), (8, 9), path.stat().st_size)
        table = read_table(*given, looked=lambda: looks.append(1))
        np.testing.assert_array_equal(table.offsets, read_table(*given).offsets)
    assert looks == [1]


def layered(path: Path, layers: int) -> int:
    """A file whose chunk index has so many layers, each of 64 entries that all lead to the next; returns its size."""
    with h5py.File(path, "w", libver="earliest") as file:
        file.create_dataset("x", data=np.ones(64 * layers, np.uint8), chunks=(1,))
    content = bytearray(path.read_bytes())
    found = [place for place in range(len(content)) if content[place : place + 5] == b"TREE\x01"]
    nodes = sorted(found, key=lambda place: -content[place + 5])
    for level, (node, below) in enumerate(zip(nodes, [*nodes[1:], 0], strict=True)):
        content[node + 5] = len(nodes) - 1 - level
        for entry in range(struct.unpack_from("<H", content, node + 6)[0] if below else 0):
            struct.pack_into("<Q", content, node + 24 + entry * ENTRY_BYTES + 24, below)
    path.write_bytes(content)
    return len(content)


def test_a_chunk_index_in_layers_is_an_error(tmp_path: Path) -> None:
    """Walking all ways through it would take years."""
    path = tmp_path / "x.h5"
    assert layered(path, 12) < 64 << 10
    message = "its chunk index is damaged: it lists more than the 768 chunks that there can be"
    with pytest.raises(dsmem.BadSource, match=f"/x can't be read as HDF5: {message}"):
        dsmem.pin(path)
    with pytest.raises(dsmem.BadSource, match=message):
        dsmem.explain(path)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("chunks", [(1, 1), (2, 1)], ids=repr)
def test_more_chunks_than_a_file_can_have_are_refused(tmp_path: Path, verify: bool, chunks: tuple[int, ...]) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (1, 1 << 29), "u1", chunks=chunks, maxshape=(None, 1 << 29))
        file["y"] = np.arange(3)
    with pytest.raises(dsmem.Unsupported) as caught:
        dsmem.pin(path, verify=verify)
    (refusal,) = caught.value.refusals
    assert refusal.allow == "oversized"
    assert refusal.reason.startswith("536,870,912 chunks declared in a file of ")
    (explained,) = dsmem.explain(path).refused
    assert explained == refusal


def test_many_chunks_that_were_never_written(tmp_path: Path) -> None:
    """A band of them is filled at once."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        made = file.create_dataset("x", (1 << 20, 2), "<i2", chunks=(1, 2), fillvalue=-7)
        made[700_000] = 5
    dsmem.pin(path)
    with dsmem.attach(path) as found:
        read = found["x"][()]
    assert read[700_000].tolist() == [5, 5]
    assert (read == -7).sum() == read.size - 2


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"scaleoffset": 0}, {}])
@pytest.mark.parametrize("dtype", ["<f4", [("a", "<i4"), ("b", "S3")]], ids=["numbers", "compounds"])
def test_a_fill_value_that_is_never_written(tmp_path: Path, options: dict[str, Any], dtype: Any) -> None:
    path = tmp_path / "x.h5"
    fill = np.array((-1, b"abc") if isinstance(dtype, list) else -1, dtype)
    options = {} if isinstance(dtype, list) and "scaleoffset" in options else options
    with h5py.File(path, "w") as file:
        made = file.create_dataset("x", (100, 64), dtype, chunks=(10, 64), fillvalue=fill, fill_time="never", **options)
        made[:20] = np.ones((20, 64), dtype)
        expected = made[()]
    dsmem.pin(path, verify=True)
    with dsmem.attach(path) as found:
        assert found["x"][()].tobytes() == expected.tobytes() != b""
        assert found["x"].fillvalue == fill


def test_a_file_whose_root_is_a_dataset_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file["x"] = np.arange(4)
        address = h5py.h5o.get_info(file["x"].id).addr
    content = bytearray(path.read_bytes())
    struct.pack_into("<Q", content, 64, address)  # of the root's symbol table entry, in a version 0 superblock
    path.write_bytes(content)
    with pytest.raises(dsmem.BadSource, match="its root is not a group"):
        dsmem.pin(path)


def test_a_damaged_chunk_index_does_not_crash_hdf5(tmp_path: Path) -> None:
    """HDF5 2.0.0 crashes where it is asked for all about such an object (h5o.get_info), not where it reads it."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("x", data=np.zeros((4, 4)), chunks=(2, 2), maxshape=(None, None))
    content = bytearray(path.read_bytes())
    index = content.index(b"BTHD")
    struct.pack_into("<Q", content, content.index(struct.pack("<Q", index)), 0)
    fuzzing.mend_checksums(content)
    path.write_bytes(content)
    with pytest.raises(dsmem.BadSource):
        dsmem.pin(path)
    with dsmem.File(path) as file:
        assert file.source == "h5py"
        with pytest.raises(OSError, match="read data"):
            file["x"][()]


def test_an_enum_with_names_that_are_not_utf8(tmp_path: Path) -> None:
    metadata = {"enum": {b"\x80red": 0, "blü": 1}}
    found = dtypes.from_json(dtypes.to_json(np.dtype("u1", metadata=metadata)))
    assert dict(found.metadata or {}) == metadata


def test_a_virtual_dataset_that_may_grow_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["a"] = np.arange(4, dtype="<i4")
        layout = h5py.VirtualLayout(shape=(4,), dtype="<i4", maxshape=(None,))
        layout[:] = h5py.VirtualSource(".", "a", shape=(4,))
        file.create_virtual_dataset("v", layout)
    dsmem.pin(path)
    with dsmem.attach(path) as ours, h5py.File(path, "r") as theirs:
        assert ours["v"].maxshape == theirs["v"].maxshape == (None,)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "x.h5: /a can't be read in the memory that there is: MemoryError"),
        (
            RuntimeError("Can't read data (image null after H5MM_realloc())"),
            "x.h5: /a can't be read in the memory that",
        ),
        (
            OSError("Can't read data (memory allocation failed for raw data chunk)"),
            "x.h5: /a can't be read in the memory",
        ),
        (OSError("Can't read data (inflate() failed)"), "x.h5: /a can't be read as HDF5: Can't read data"),
    ],
)
def test_a_file_is_not_accused_where_memory_ran_out(error: Exception, says: str) -> None:
    with pytest.raises(dsmem.BadSource) as caught, opening.translated("x.h5", "/a"):
        raise error
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize("untrusted", [False, True])
def test_more_links_than_an_object_counts_are_an_error(tmp_path: Path, untrusted: bool) -> None:
    """Each would become a dataset of its own, with memory of its own."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file["x"] = np.arange(10)
        for i in range(200):
            file[f"link{i}"] = file["x"]
    content = bytearray(path.read_bytes())
    count = content.index(struct.pack("<I", 201))  # of version 1, in the prefix of the object's header
    struct.pack_into("<I", content, count, 1)
    path.write_bytes(content)
    with pytest.raises(dsmem.BadSource, match="several links lead to what it says has one"):
        dsmem.pin(path, untrusted=untrusted)
    with dsmem.File(path) as file:
        assert file.source == "h5py"
        assert file["link7"] == file["x"]


@pytest.mark.parametrize("untrusted", [False, True])
@pytest.mark.parametrize("mappable", [False, True])
@pytest.mark.parametrize("shape", ["circle", "diamonds"])
def test_groups_with_more_links_than_they_count_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, mappable: bool, untrusted: bool
) -> None:
    """A circle would be followed for ever, and thirty groups that are each linked twice 2^30 times."""
    monkeypatch.setattr(scan, "_FIRST_CHECK", 100)
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        below = file.create_group("g")
        for _ in range(30 if shape == "diamonds" else 1):
            above, below = below, below.create_group("left")
            above["right"] = below
        if shape == "circle":
            del above["right"]
            below["again"] = above
        file.create_dataset("x", data=np.arange(10), **({} if mappable else {"chunks": (5,)}))
    content = bytearray(path.read_bytes())
    words = range(0, len(content), 8)
    counts = [at for at in words if content[at : at + 2] == b"\1\0" and content[at + 3 : at + 8] == b"\0\2\0\0\0"]
    assert len(counts) == (30 if shape == "diamonds" else 1)
    for at in counts:  # object headers of version 1: version, reserved, messages, then the count
        struct.pack_into("<I", content, at + 4, 1)
    path.write_bytes(content)
    with pytest.raises(dsmem.BadSource, match="several links lead to what it says has one"):
        dsmem.pin(path, untrusted=untrusted)
    if not untrusted:
        with dsmem.File(path) as file:
            assert file.source == "h5py"
            np.testing.assert_array_equal(file["x"], np.arange(10))
