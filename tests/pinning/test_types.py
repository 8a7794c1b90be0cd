"""Everything an HDF5 file can hold, in every way of reading: equal to h5py, or refused by name."""

from __future__ import annotations

import errno
import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import zoo
from compare import assert_same_file
from ways import WAYS

import dsmem
from dsmem import proc
from dsmem.arrays import tree
from dsmem.store import hugepages

Built = dict[str, Path]
PAGE_BYTES = 4096


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """All files of the zoo."""
    directory = tmp_path_factory.mktemp("zoo")
    paths: Built = {}
    for name, builder in {**zoo.HELD, **{name: builder for name, (builder, _) in zoo.REFUSED.items()}}.items():
        paths[name] = directory / f"{name}.h5"
        with h5py.File(paths[name], "w", **zoo.OPTIONS[name]) as file:
            builder(file)
    return paths


@pytest.mark.parametrize("name", zoo.HELD)
def test_reads_what_h5py_reads(built: Built, name: str) -> None:
    for way, opened in WAYS.items():
        try:
            with opened(built[name]) as ours, h5py.File(built[name], "r") as theirs:
                assert_same_file(ours, theirs)
        except BaseException as exc:
            exc.add_note(f"read the way called {way}")
            raise


NOT_MAPPED = ("bfloat16", "filters", "fill_values", "variable_strings", "compact", "virtual_inside")


@pytest.mark.parametrize("name", NOT_MAPPED)
def test_h5py_reads_what_does_not_lie_as_it_is(built: Built, name: str) -> None:
    with dsmem.File(built[name]) as file:
        assert file.source == "h5py"


def test_contiguous_files_are_mapped(built: Built) -> None:
    for name in ("little_endian", "big_endian", "user_block_4096_contiguous", "names_not_utf8"):
        with dsmem.File(built[name]) as file:
            assert (name, file.source) == (name, "mapped"), file.why


@pytest.mark.parametrize("name", zoo.REFUSED)
def test_refused_by_name(built: Built, name: str) -> None:
    path, expected = built[name], zoo.REFUSED[name][1]
    refusing: list[Callable[[], object]] = [lambda: dsmem.pin(path), lambda: dsmem.File(path, preload=True)]
    for refuse in refusing:
        with pytest.raises(dsmem.Unsupported) as caught:
            refuse()
        reasons = {refusal.path: refusal.reason for refusal in caught.value.refusals}
        assert reasons.keys() == expected.keys()
        assert [path for path in expected if not re.search(expected[path], reasons[path])] == [], reasons
    with pytest.raises(dsmem.NotPinned):
        dsmem.attach(path)


@pytest.mark.parametrize("name", zoo.REFUSED)
def test_the_rest_of_a_refused_file_is_pinned(built: Built, name: str) -> None:
    path, expected = built[name], zoo.REFUSED[name][1]
    found = dsmem.pin(path, skip_unsupported=True, verify=True)
    assert {refusal.path for refusal in found.refused} == expected.keys()
    with dsmem.attach(found.name) as ours, h5py.File(path, "r") as theirs:
        assert_same_file(ours, theirs, without=expected)


@pytest.mark.parametrize("name", zoo.REFUSED)
def test_h5py_reads_a_refused_file(built: Built, name: str) -> None:
    unreadable = {"time_type": ["/@x"], "tagged_opaque": ["/@tagged"]}.get(name, [])
    with WAYS["as_it_lies"](built[name]) as ours, h5py.File(built[name], "r") as theirs:
        assert ours.source == "h5py"
        assert_same_file(ours, theirs, without=unreadable)


@pytest.mark.parametrize("name", ["external_links", "references", "virtual_outside"])
def test_only_lets_some_of_a_refused_file_through(built: Built, name: str) -> None:
    path = built[name]
    if name == "references":
        with pytest.raises(dsmem.Unsupported):  # an attribute of the root, which is above whatever is selected
            dsmem.pin(path, only=["ok"])
        return
    found = dsmem.pin(path, only=["*ok"])
    assert [dataset.path for dataset in found.datasets] == ["g/ok" if name == "external_links" else "ok"]


def selection(tmp_path: Path) -> Path:
    path = tmp_path / "selection.h5"
    with h5py.File(path, "w") as file:
        file["a/x"] = np.arange(3)
        file["a/y"] = np.arange(4.0)
        file["a/b/x"] = np.array(["t"], zoo.TEXT)
        file["c/z"] = np.arange(5)
        file["hard"] = file["a/x"]
        file["group"] = file["a"]
        file["soft"] = h5py.SoftLink("/a/x")
        file["dangling"] = h5py.SoftLink("/nowhere")
        file["away"] = h5py.SoftLink("/c/z")
        file["type"] = np.dtype("<f4")
        file["c"].attrs["ref"] = file["a/x"].ref
        h5py.h5t.STD_REF_OBJ.copy().commit(file.id, b"reference type")
        file["a"].attrs["kept"] = 1
        file["c"].attrs["gone"] = 1
    return path


@pytest.mark.parametrize(
    ("only", "datasets", "groups"),
    [
        (["a/x"], {"a/x"}, {"a"}),
        (["a"], {"a/x", "a/y", "a/b/x"}, {"a", "a/b"}),
        (["/a/"], {"a/x", "a/y", "a/b/x"}, {"a", "a/b"}),
        (["*/x"], {"a/x", "a/b/x"}, {"a", "a/b"}),
        (["a/[y]", "c/*"], {"a/y", "c/z"}, {"a", "c"}),
        (["hard"], {"hard"}, set()),
        (["a/x", "hard"], {"a/x", "hard"}, {"a"}),
    ],
)
def test_only(tmp_path: Path, only: list[str], datasets: set[str], groups: set[str]) -> None:
    path = selection(tmp_path)
    skip = "c" in groups
    found = dsmem.pin(path, only=only, skip_unsupported=skip)
    assert [refusal.path for refusal in found.refused] == (["/c@ref"] if skip else [])
    with dsmem.attach(found.name) as ours, h5py.File(path, "r") as theirs:
        names: list[str] = []
        ours.visit(names.append)
        aliases = {"hard"} if {"hard", "a/x"} <= datasets else set()
        assert set(names) == (datasets | groups) - aliases
        for name in datasets:
            np.testing.assert_array_equal(ours[name][()], theirs[name][()])
        for name in groups:
            expected = [key for key in theirs[name].attrs if key != "ref"]
            assert list(ours[name].attrs) == expected
        assert ("soft" in ours) == ("a/x" in datasets)
        assert "dangling" not in ours
        assert "type" not in ours
    with pytest.raises(dsmem.NotPinned, match=r"only in part"):
        dsmem.attach(path)


@pytest.mark.parametrize("name", zoo.HELD)
def test_its_datasets_are_told_alike_when_it_is_loaded_and_when_it_is_there(built: Built, name: str) -> None:
    loaded, there = dsmem.pin(built[name]), dsmem.pin(built[name])
    assert (loaded.already, there.already) == (False, True)
    assert loaded.datasets == there.datasets


@pytest.mark.parametrize("name", zoo.HELD)
def test_safetensors_opens_the_object(built: Built, name: str, store_root: Path) -> None:
    found = dsmem.pin(built[name])
    path = store_root / "objects" / found.name
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    start = 8 + length
    assert start % PAGE_BYTES == 0
    assert os.stat(path).st_mode & 0o777 == 0o400
    header.pop("__metadata__")
    offset = 0
    for entry in sorted(header.values(), key=lambda entry: tuple(entry["data_offsets"])):
        assert entry["data_offsets"][0] == offset, "a gap, or an overlap"
        offset = entry["data_offsets"][1]
    assert start + offset == len(raw)
    with safetensors.safe_open(path, "np") as file:
        assert set(file.keys()) == header.keys()
    with h5py.File(built[name], "r") as theirs:
        carried = _datasets(theirs)
    for where, dataset in carried.items():
        if name == "hard_links":
            continue  # any of the links may name the tensor
        entry = header[tree.tensor_name(where)]
        begin, end = entry["data_offsets"]
        if dataset.dtype.kind == "O":
            continue
        item = dataset.dtype.subdtype[0] if dataset.dtype.subdtype else dataset.dtype
        part = item.itemsize // (2 if item.kind == "c" else 1)
        align = min(part & -part, 16)
        assert (start + begin) % align == 0 or begin == end, where
        if end > begin and (end - begin) % PAGE_BYTES == 0:
            assert (start + begin) % PAGE_BYTES == 0, where


class _Kept:
    """What is needed of an h5py dataset once its file is closed."""

    def __init__(self, dataset: Any) -> None:
        self.dtype: np.dtype[Any] = dataset.dtype


def _datasets(file: Any) -> dict[str, _Kept]:
    found: dict[str, _Kept] = {}

    def visit(name: str | bytes, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.shape is not None:
            text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
            found[text] = _Kept(node)

    file.visititems(visit)
    return found


def test_plain_types_are_the_same_to_safetensors(tmp_path: Path, store_root: Path) -> None:
    path = tmp_path / "plain.h5"
    codes = ("|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8", "<c8")
    with h5py.File(path, "w") as file:
        for code in codes:
            data = zoo.sample(np.dtype(code)) if code != "|b1" else np.arange(12) % 3 == 0
            file[f"g/{code[1:]}"] = data.reshape(3, 4)
            file[f"packed {code[1:]}"] = data[0]
        file.create_dataset("chunked", data=np.arange(1000.0).reshape(10, 100), chunks=(3, 7), compression="gzip")
    found = dsmem.pin(path)
    tensors = safetensors.numpy.load_file(store_root / "objects" / found.name)
    with h5py.File(path, "r") as theirs:
        datasets = [f"g/{code[1:]}" for code in codes] + [f"packed {code[1:]}" for code in codes] + ["chunked"]
        assert tensors.keys() == set(datasets)
        for name in datasets:
            assert tensors[name].dtype == theirs[name].dtype, name
            assert tensors[name].shape == theirs[name].shape, name
            assert tensors[name].tobytes() == theirs[name][()].tobytes(), name


@pytest.mark.parametrize("name", ["whole_pages", "compounds", "filters", "variable_strings_many", "user_block_512"])
def test_filled_through_huge_pages(built: Built, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of filling on a mount with huge pages works, if slowly, on any tmpfs."""
    monkeypatch.setattr(proc, "huge_pages", lambda _: "always")
    with WAYS["pinned"](built[name]) as ours, h5py.File(built[name], "r") as theirs:
        assert_same_file(ours, theirs)


@pytest.mark.parametrize("name", ["whole_pages", "compounds", "filters", "variable_strings_many", "user_block_512"])
def test_filled_with_huge_pages_taken_one_by_one(built: Built, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where some can't be had: whatever the pages are, the bytes are the same."""
    monkeypatch.setattr(hugepages, "LEAST_BYTES", 0)
    monkeypatch.setattr(hugepages, "EXTENT_BYTES", 4096)  # small files have many of them then
    monkeypatch.setattr(hugepages, "can_be_taken", lambda mount: True)
    monkeypatch.setattr(proc, "free_huge_pages", lambda: 1 << 20)
    monkeypatch.setattr(hugepages, "_collapse", lambda fd, offset, place: errno.EAGAIN if offset % 12288 else 0)
    with WAYS["pinned"](built[name]) as ours, h5py.File(built[name], "r") as theirs:
        assert_same_file(ours, theirs)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_an_unlimited_axis_that_is_not_the_first(axis: int, compression: str | None, tmp_path: Path) -> None:
    """HDF5 2.0.0 tells places of such chunks wrong; some of them were never written."""
    path = tmp_path / "unlimited.h5"
    data = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    for written in (1.0, 0.6, 0.2):
        with h5py.File(path, "w", libver="latest") as file:
            largest = tuple(None if number == axis else extent + 1 for number, extent in enumerate(data.shape))
            dataset = file.create_dataset(
                "x", data.shape, data.dtype, maxshape=largest, chunks=(1, 1, 1), compression=compression, fillvalue=-1
            )
            for corner in np.ndindex(*data.shape):
                if (data[corner] * 7919 % 24) / 24 < written:
                    dataset[corner] = data[corner]
        for way in ("pinned", "preloaded"):
            with WAYS[way](path) as ours, h5py.File(path, "r") as theirs:
                assert_same_file(ours, theirs)


def test_notes_say_what_float_it_was(built: Built) -> None:
    with WAYS["pinned"](built["bfloat16"]) as file:
        assert "16-bit float" in (file["x"].info.note or "")


def test_hard_links_are_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "links.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(1 << 18, "u1")
        for i in range(10):
            file[f"link{i}"] = file["x"]
    found = dsmem.pin(path)
    assert found.size_bytes < 2 << 18
    with dsmem.attach(path) as ours:
        assert np.shares_memory(ours["x"][()], ours["link7"][()])


def test_a_read_error_is_reported_by_name(tmp_path: Path) -> None:
    path = tmp_path / "broken.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("good", data=np.arange(10))
        file.create_dataset("bad one", data=np.arange(1000), chunks=(1000,), fletcher32=True)
        offset = file["bad one"].id.get_chunk_info(0).byte_offset
    with open(path, "r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff")
    with pytest.raises(dsmem.BadSource, match="bad one"):
        dsmem.pin(path)
    with pytest.raises(dsmem.NotPinned):
        dsmem.attach(path)


def test_nothing_selected_lists_what_there_is(built: Built) -> None:
    with pytest.raises(dsmem.BadSource, match=r"it holds .*ok"):
        dsmem.pin(built["virtual_outside"], only=["nothing"])
    with pytest.raises(dsmem.BadSource, match="it holds "):
        dsmem.pin(built["names_not_utf8"], only=["nothing"])


@pytest.mark.parametrize("name", ["little_endian", "compounds", "variable_lengths", "array_items", "exact_bits"])
def test_pinned_arrays_are_aligned(built: Built, name: str) -> None:
    """As h5py's are; mapped ones lie as they do in the file."""
    with WAYS["pinned"](built[name]) as ours, h5py.File(built[name], "r") as theirs:

        def check(where: str, node: Any) -> None:
            if not isinstance(node, h5py.Dataset):
                return
            found, expected = ours[where][...], node[...]
            if isinstance(expected, np.ndarray) and expected.dtype.kind == "O":
                assert all(item.flags.aligned for item in found.ravel() if isinstance(item, np.ndarray)), where
            elif isinstance(expected, np.ndarray):
                assert found.flags.aligned or not expected.flags.aligned, where

        theirs.visititems(check)
