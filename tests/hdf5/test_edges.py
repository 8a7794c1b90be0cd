"""Chunks at the edge that a writer left without filters; what was never written, of types with gaps."""

from __future__ import annotations

import base64
import ctypes
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t

import dsmem
from dsmem.arrays import attributes
from dsmem.hdf5 import edges
from dsmem.hdf5.datasets import Item, inspect

_DONT_FILTER_PARTIAL_CHUNKS = 2
"""H5Dpublic.h."""
PADDED = np.dtype({"names": ["x", "y"], "formats": ["u1", "<f8"], "offsets": [3, 16], "itemsize": 40})


def leave_edges_unfiltered(plist: Any) -> None:
    """H5Pset_chunk_opts, which h5py lacks, of the library that h5py has loaded."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    loaded = {line.split()[-1] for line in lines if "/libhdf5" in line and "_hl" not in line}
    library = max(loaded, key=lambda path: "/h5py" in path)  # other packages of the tests bring their own
    call = ctypes.CDLL(library).H5Pset_chunk_opts
    call.argtypes = [ctypes.c_int64, ctypes.c_uint]
    assert call(plist.id, _DONT_FILTER_PARTIAL_CHUNKS) >= 0


def write(path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], filters: str, *, unfiltered: bool) -> None:
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk(chunks)
    if "shuffle" in filters:
        plist.set_shuffle()
    if "gzip" in filters:
        plist.set_deflate(4)
    if "fletcher32" in filters:
        plist.set_fletcher32()
    if unfiltered:
        leave_edges_unfiltered(plist)
    with h5py.File(path, "w", libver="latest") as file:
        identifier = h5d.create(file.id, b"x", h5t.STD_I32LE, h5s.create_simple(shape), plist)
        h5py.Dataset(identifier)[...] = np.arange(np.prod(shape), dtype="<i4").reshape(shape)


def look_at(path: Path) -> Item:
    with h5py.File(path) as file:
        return inspect(file["x"].id, "x", path.stat().st_size, allow=["oversized"])


@pytest.mark.parametrize("unfiltered", [True, False])
@pytest.mark.parametrize("filters", ["shuffle", "gzip", "shuffle gzip", "fletcher32", "gzip fletcher32"])
@pytest.mark.parametrize(
    ("shape", "chunks"), [((103,), (10,)), ((20, 13), (10, 5)), ((23, 20), (10, 5)), ((30, 7, 11), (10, 7, 4))]
)
def test_edges_equal_h5py(
    tmp_path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], filters: str, unfiltered: bool
) -> None:
    path = tmp_path / "edges.h5"
    write(path, shape, chunks, filters, unfiltered=unfiltered)
    dsmem.pin(path, verify=True)
    with dsmem.attach(path) as ours, h5py.File(path) as theirs:
        assert np.array_equal(ours["x"][()], theirs["x"][()])
    expected = "h5py" if unfiltered or filters == "shuffle" else "chunked"
    assert look_at(path).tier == expected


def test_without_partial_chunks_nothing_is_in_doubt(tmp_path: Path) -> None:
    path = tmp_path / "edges.h5"
    write(path, (100, 20), (10, 5), "shuffle", unfiltered=True)
    assert look_at(path).tier == "chunked"


def test_edges_that_were_never_written_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "edges.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", (103, 25), "<i4", chunks=(10, 10), compression="gzip")
        dataset[:10, 20:] = np.arange(50).reshape(10, 5)  # one of the twelve at the edge
    assert look_at(path).tier == "chunked"


@pytest.mark.parametrize("unfiltered", [True, False])
def test_a_chunk_at_the_edge_is_found_behind_many_that_were_never_written(tmp_path: Path, unfiltered: bool) -> None:
    path = tmp_path / "sparse.h5"
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk((2, 5))
    plist.set_deflate(4)
    if unfiltered:
        leave_edges_unfiltered(plist)
    with h5py.File(path, "w", libver="latest") as file:
        dataset = h5py.Dataset(h5d.create(file.id, b"x", h5t.STD_I32LE, h5s.create_simple((2000, 13)), plist))
        dataset[:100, :10] = 1
        dataset[1990:, 10:] = 1
    assert look_at(path).tier == ("h5py" if unfiltered else "chunked")
    dsmem.pin(path, verify=True)


class Counted:
    """A DatasetID that counts what is asked of it."""

    def __init__(self, dataset_id: Any) -> None:
        self._dataset_id = dataset_id
        self.asked: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.asked[name] += 1
        return getattr(self._dataset_id, name)


@pytest.mark.parametrize("rows", [(0, 1600), (0, 1605), (1600, 1605), (0, 0)])
def test_the_index_is_walked_over_no_more_than_once(tmp_path: Path, rows: tuple[int, int]) -> None:
    """h5py does so for each chunk that it is asked for: where many are missing, that took longer than reading all."""
    shape, chunks = (1605, 800), (16, 2)
    with h5py.File(tmp_path / "many.h5", "w") as file:
        dataset = file.create_dataset("x", shape, "u1", chunks=chunks, compression="gzip")
        dataset[slice(*rows)] = 1
        counted = Counted(dataset.id)
        assert edges.may_be_unfiltered(counted, shape, chunks, 1) == (rows == (0, 0))
    assert counted.asked["get_chunk_info_by_coord"] + counted.asked["chunk_iter"] <= 1


def test_a_grid_of_very_many_chunks_is_not_gone_through(tmp_path: Path) -> None:
    path = tmp_path / "many.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (500_000_000, 3), "u1", chunks=(1, 2), compression="gzip")
    assert look_at(path).tier == "h5py"


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (np.dtype(np.longdouble), np.longdouble(1) / 3),
        (np.dtype(np.clongdouble), np.clongdouble(1j) / 3),
        (PADDED, np.zeros((), PADDED)),
    ],
    ids=["long double", "complex long double", "compound with gaps"],
)
def test_fill_values_of_padded_types(tmp_path: Path, dtype: np.dtype[Any], value: Any) -> None:
    """`verify` compares every byte with h5py's, those between the values too."""
    path = tmp_path / "padded.h5"
    with h5py.File(path, "w") as file:
        for number in range(20):
            dataset = file.create_dataset(f"{number}", (100,), dtype, chunks=(10,), fillvalue=value)
            dataset[:10] = np.ones(10, dtype)
    assert not dsmem.pin(path, verify=True).already


@pytest.mark.skipif(np.finfo(np.longdouble).nmant != 63, reason="a long double of other machines has no gap")
@pytest.mark.parametrize("value", [np.longdouble(1) / 3, np.clongdouble(1j) / 3])
def test_what_lies_beyond_a_long_double_is_not_recorded(value: Any) -> None:
    """It would be what was in this process's memory before, and differ each time."""
    recorded = attributes.to_json(value)
    assert isinstance(recorded, dict)
    raw = np.frombuffer(base64.b64decode(recorded["data"]), np.uint8).reshape(-1, 16)
    assert not raw[:, 10:].any()
    assert attributes.from_json(recorded) == value


def test_items_of_no_bytes_in_the_values_of_a_filter(tmp_path: Path) -> None:
    path = tmp_path / "hostile.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "x", data=np.arange(1024, dtype="<i4"), chunks=(1024,), **hdf5plugin.Bitshuffle(cname="lz4")
        )
        values = file["x"].id.get_create_plist().get_filter(0)[2]
    raw = path.read_bytes()
    packed = np.array(values, "<u4").tobytes()
    at = raw.index(packed)
    changed = np.array([*values[:2], 0, *values[3:]], "<u4").tobytes()
    path.write_bytes(raw[:at] + changed + raw[at + len(packed) :])
    with pytest.raises(dsmem.BadSource, match=r"/x: the chunk at \(0,\) can't be decoded"):
        dsmem.pin(path)
