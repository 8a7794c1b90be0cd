"""The reading interface against h5py.File: the same answers, the same errors, and arrays that are shared memory."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import zoo
from compare import assert_same_dtype, assert_same_outcome, assert_same_value
from ways import WAYS

import dsmem
from dsmem.pinning.arrayfile import ArrayFile

ZERO_COPY = ("as_it_lies", "pinned", "preloaded")
TORCH_CODES = {
    "?": torch.bool, "<u1": torch.uint8, "<i1": torch.int8, "<i2": torch.int16, "<i4": torch.int32, "<i8": torch.int64,
    "<u2": torch.uint16, "<u4": torch.uint32, "<u8": torch.uint64, "<f2": torch.float16, "<f4": torch.float32,
    "<f8": torch.float64, "<c8": torch.complex64, "<c16": torch.complex128,
}  # fmt: skip


def write(path: Path) -> Path:
    """Contiguous data of several types."""
    with h5py.File(path, "w") as file:
        file["g/x"] = np.arange(60, dtype="<i4").reshape(3, 4, 5)
        file["g/big"] = np.arange(10, dtype=">f8")
        file["g/sub/y"] = np.linspace(0, 1, 7, dtype="<f4")
        file["scalar"] = 5.5
        file["pair"] = np.array([(1, 2.5), (3, 4.5)], [("a", "<i4"), ("b", "<f8")])
        file["s"] = np.array([b"ab", b"c"], "S4")
        file["flags"] = np.arange(9) % 2 == 0
        file["empty"] = np.zeros((0, 3), "<f4")
        file["null"] = h5py.Empty("<f4")
        file["soft"] = h5py.SoftLink("/g/x")
        file["dangling"] = h5py.SoftLink("/nowhere")
        file["hard"] = file["g"]
        file["type"] = np.dtype("<f4")
        file["g"].attrs["unit"] = "m"
    return path


def write_text(path: Path) -> Path:
    """Variable-length data, chunked data and the rest that can't be mapped."""
    write(path)
    with h5py.File(path, "a") as file:
        file["text"] = np.array([["a", "é"], ["", "ccc"]], zoo.TEXT)
        file["utf8"] = np.array(["é".encode(), b"b"], h5py.string_dtype("utf-8", 4))
        file["word"] = "one"
        file.create_dataset("ascii", data=[b"a", b"bc"], dtype=zoo.ASCII)
        lists = file.create_dataset("lists", shape=(3,), dtype=h5py.vlen_dtype("<i4"))
        lists[1] = np.arange(3)
        file.create_dataset("packed", data=np.arange(100.0).reshape(20, 5), chunks=(3, 5), compression="gzip")
        arrays = file.create_dataset("arrays", shape=(4,), dtype=np.dtype(("<i2", (2,))))
        arrays[...] = np.arange(8).reshape(4, 2)
    return path


Opened = dict[str, tuple[ArrayFile, Any]]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """One file, open in every way, beside h5py's."""
    path = write_text(tmp_path_factory.mktemp("both") / "data.h5")
    with (
        ExitStack() as stack,
        pytest.MonkeyPatch.context() as patched,
        tempfile.TemporaryDirectory(prefix="dsmem-test-", dir="/dev/shm") as above,
        h5py.File(path, "r") as theirs,
    ):
        patched.setenv("DSMEM_ROOT", f"{above}/store")
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield {way: (stack.enter_context(open_(path)), theirs) for way, open_ in WAYS.items()}


@pytest.fixture(params=ZERO_COPY)
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ArrayFile]:
    with WAYS[request.param](write(tmp_path / "data.h5")) as file:
        assert file.source in ("pinned", "mapped", "preloaded")
        yield file


KEYS: list[tuple[str, list[Any]]] = [
    (
        "g/x",
        [
            (),
            ...,
            0,
            -1,
            2,
            slice(1, 3),
            (0, slice(None), 2),
            (..., 1),
            (slice(None, None, 2), 3),
            [0, 2],
            (1, [0, 3]),
            np.array([True, False, True]),
            np.arange(60).reshape(3, 4, 5) % 2 == 0,
            np.int64(1),
            (slice(None), [], 0),
            (0, 0, 0),
            slice(5, 2),
            (..., slice(1, 3)),
            3,
            -4,
            (0, 0, 0, 0),
            [2, 1],
            [0, 0],
            None,
            1.5,
            "a",
            slice(None, None, -1),
            ([0], [1]),
            np.array([True]),
            (..., ...),
            [[0]],
            [5],
        ],
    ),
    ("g/big", [slice(2, 8, 3), [1, 5], 3, np.arange(10) > 4]),
    ("scalar", [(), ..., 0, slice(None), "x"]),
    ("pair", [(), 0, "a", ("a", "b"), ("b", 1), (slice(0, 1), "a"), "c", [0, 1]]),
    ("s", [(), 0, slice(1)]),
    ("flags", [(), 3, [1, 2], slice(0, 9, 4)]),
    ("empty", [(), ..., slice(None), 0, (slice(None), 1)]),
    ("null", [(), ..., 0, slice(None)]),
    ("text", [(), 0, (1, 1), (slice(None), 0), [0], (0, [0, 1]), ..., (0, slice(1, 1)), 5]),
    ("word", [(), ..., 0]),
    ("lists", [(), 0, 1, slice(1, 3), [1, 2]]),
    ("packed", [(), 3, slice(4, 9), [1, 7], (slice(None), 2), 20, (3, 3)]),
    ("arrays", [(), 0, slice(1, 3), ..., [0, 2], (0, 0), 4]),
]


@pytest.mark.parametrize("way", WAYS)
def test_keys(opened: Opened, way: str) -> None:
    ours, theirs = opened[way]
    for name, keys in KEYS:
        for key in keys:
            assert_same_outcome(partial(item, ours, name, key), partial(item, theirs, name, key), f"{name}[{key!r}]")


def item(file: Any, name: str, key: Any) -> Any:
    return file[name][key]


READS: dict[str, Callable[[Any], Any]] = {
    "asstr": lambda f: f["text"].asstr()[()],
    "asstr of one": lambda f: f["text"].asstr()[1, 1],
    "asstr of a scalar": lambda f: f["word"].asstr()[()],
    "asstr of fixed": lambda f: f["s"].asstr()[:],
    "asstr of fixed utf8": lambda f: f["utf8"].asstr()[:],
    "asstr of one fixed": lambda f: f["utf8"].asstr()[0],
    "asstr of ascii": lambda f: f["ascii"].asstr()[:],
    "asstr latin1": lambda f: f["text"].asstr("latin-1")[()],
    "asstr of errors": lambda f: f["text"].asstr("ascii", errors="replace")[()],
    "asstr that fails": lambda f: f["text"].asstr("ascii")[()],
    "asstr of numbers": lambda f: f["g/x"].asstr(),
    "asstr length": lambda f: len(f["text"].asstr()),
    "asstr iteration": lambda f: [list(row) for row in f["text"].asstr()],
    "asstr shape": lambda f: f["text"].asstr().shape,
    "asstr dtype": lambda f: f["text"].asstr().dtype,
    "asstr array": lambda f: np.asarray(f["text"].asstr()),
    "astype": lambda f: f["g/x"].astype("<f8")[1],
    "astype one": lambda f: f["g/x"].astype("<f8")[1, 2, 3],
    "astype narrow": lambda f: f["g/x"].astype("u1")[...],
    "astype the same": lambda f: f["g/x"].astype("<i4")[0],
    "astype big": lambda f: f["g/big"].astype("<f4")[2:5],
    "astype big integers": lambda f: f["g/big"].astype("<i2")[2:5],
    "astype dtype": lambda f: f["g/x"].astype("<f8").dtype,
    "astype shape": lambda f: f["g/x"].astype("<f8").shape,
    "astype size": lambda f: f["g/x"].astype("<f8").size,
    "astype ndim": lambda f: f["g/x"].astype("<f8").ndim,
    "astype array": lambda f: np.asarray(f["g/x"].astype("<f8")),
    "astype scalar": lambda f: f["scalar"].astype("<f4")[()],
    "astype length": lambda f: len(f["g/x"].astype("<f8")),
    "astype of bool": lambda f: f["flags"].astype("?")[:],
    "fields one": lambda f: f["pair"].fields("a")[:],
    "fields one item": lambda f: f["pair"].fields("a")[1],
    "fields list": lambda f: f["pair"].fields(["b", "a"])[:],
    "fields list item": lambda f: f["pair"].fields(["b"])[0],
    "fields unknown": lambda f: f["pair"].fields("c")[:],
    "fields of numbers": lambda f: f["g/x"].fields("c")[:],
    "fields dtype": lambda f: f["pair"].fields("a").dtype,
    "fields length": lambda f: len(f["pair"].fields(["b", "a"])),
    "iteration": lambda f: list(f["g/x"]),
    "iteration of text": lambda f: [row.tolist() for row in f["text"]],
    "iteration of a scalar": lambda f: list(f["scalar"]),
    "len": lambda f: len(f["g/x"]),
    "len method": lambda f: f["g/x"].len(),
    "len of a scalar": lambda f: len(f["scalar"]),
    "len of null": lambda f: len(f["null"]),
    "asarray": lambda f: np.asarray(f["g/x"]),
    "asarray float": lambda f: np.asarray(f["g/x"], dtype="<f4"),
    "asarray scalar": lambda f: np.asarray(f["scalar"]),
    "asarray text": lambda f: np.asarray(f["text"]),
    "sum": lambda f: np.sum(f["g/x"]),
    "array of a copy": lambda f: np.array(f["g/x"]),
    "contains": lambda f: [
        n in f for n in ("g", "g/x", "/g/x", "g/", "g//x", "./g", ".", "/", "", "nope", "g/nope", "soft")
    ],
    "contains bytes": lambda f: [b"g" in f, b"nope" in f],
    "contains links": lambda f: ["dangling" in f, "dangling/x" in f, "g/x/y" in f, "hard/sub/y" in f],
    "contains from a group": lambda f: [n in f["g"] for n in ("x", "/g/x", "g", "sub/y", "/")],
    "contains number": lambda f: 3 in f,
    "contains none": lambda f: None in f,
    "missing": lambda f: f["nope"],
    "missing below": lambda f: f["g/nope/deeper"],
    "missing below data": lambda f: f["g/x/y"],
    "missing empty": lambda f: f[""],
    "dangling": lambda f: f["dangling"],
    "not a name": lambda f: f[3],
    "not a name in get": lambda f: f.get(3),
    "get": lambda f: f.get("nope"),
    "get default": lambda f: f.get("nope", 7),
    "get dangling": lambda f: f.get("dangling"),
    "get link of nothing": lambda f: f.get("nope", 7, getlink=True),
    "get class of nothing": lambda f: f.get("nope", 7, getclass=True),
    "get link class": lambda f: [
        f.get(n, getclass=True, getlink=True) for n in ("soft", "dangling", "hard", "g", "g/x", "/g/x")
    ],
    "get link target": lambda f: [f.get(n, getlink=True).path for n in ("soft", "dangling")],
    "names": lambda f: [f[n].name for n in ("/", "g", "g/", "/g/x", "g//x", "./g/x", "hard/x", "g/sub/y", "soft")],
    "relative names": lambda f: [f["g"]["x"].name, f["hard"]["sub"]["y"].name, f["g"]["/scalar"].name],
    "parents": lambda f: [f[n].parent.name for n in ("/", "g", "g/x", "g/sub/y", "hard/x")],
    "files": lambda f: [f[n].file.name for n in ("/", "g", "g/x")],
    "own file": lambda f: [f[n].file == f for n in ("/", "g", "g/x")],
    "equality": lambda f: [
        f["g"] == f["g"],
        f["g"] == f["hard"],
        f["g/x"] == f["soft"],
        f["g/x"] == f["g/big"],
        f["g"] == f["/"],
        f["/"] == f,
        f == f["/"],
        f["g"] != f["hard"],
        f["g"] == 3,
    ],
    "hash": lambda f: [len({f["g"], f["hard"], f["/g"]}), len({f["g/x"], f["soft"], f["hard/x"]}), len({f, f["/"]})],
    "keys": lambda f: list(f.keys()),
    "keys of a group": lambda f: list(f["g"].keys()),
    "reversed": lambda f: list(reversed(f["g"])),
    "reversed keys": lambda f: list(reversed(f["g"].keys())),
    "items": lambda f: [(name, None if node is None else node.name) for name, node in f.items()],
    "values": lambda f: [None if node is None else node.name for node in f.values()],
    "key views": lambda f: ["g" in f.keys(), "nope" in f.keys(), len(f.keys()), len(f.items()), len(f.values())],  # noqa: SIM118
    "item views": lambda f: [
        ("g", f["g"]) in f.items(),
        ("g", f["scalar"]) in f.items(),
        f["g"] in f.values(),
        ("no", 1) in f.items(),
    ],
    "len of a group": lambda f: [len(f), len(f["g"])],
    "truth": lambda f: [bool(f), bool(f["g"]), bool(f["scalar"]), bool(f["empty"]), bool(f["null"])],
    "attribute": lambda f: f["g"].attrs["unit"],
    "attribute missing": lambda f: f["g"].attrs["nope"],
    "attribute get": lambda f: [f["g"].attrs.get("nope"), f["g"].attrs.get("nope", 3), f["g"].attrs.get("unit")],
    "attribute contains": lambda f: [
        "unit" in f["g"].attrs,
        "nope" in f["g"].attrs,
        len(f["g"].attrs),
        list(f["g"].attrs.items()),
    ],
    "named type": lambda f: f["type"].dtype,
    "mode": lambda f: f.mode,
    "filename": lambda f: os.path.basename(f.filename) if "/" in f.filename else "data.h5",
    "open scalar float": lambda f: float(f["scalar"][()]),
    "ndim and size": lambda f: [
        f["g/x"].ndim,
        f["g/x"].size,
        f["g/x"].nbytes,
        f["scalar"].size,
        f["scalar"].ndim,
        f["null"].size,
    ],
    "nbytes of null": lambda f: f["null"].nbytes,
}


@pytest.mark.parametrize("way", WAYS)
def test_reads(opened: Opened, way: str) -> None:
    ours, theirs = opened[way]
    failed: dict[str, str] = {}
    for what, read in READS.items():
        try:
            if what.endswith("dtype"):
                assert_same_dtype(read(ours), read(theirs), what)
            else:
                assert_same_outcome(partial(joined, read, ours), partial(joined, read, theirs), what)
        except Exception as exc:  # noqa: BLE001 - all are wanted, not the first
            failed[what] = repr(exc)
    assert failed == {}


def joined(read: Callable[[Any], Any], file: Any) -> Any:
    """What is read; a list of arrays as one array."""
    found = read(file)
    return np.asarray(found) if isinstance(found, list) and found and isinstance(found[0], np.ndarray) else found


def test_what_h5py_refuses_to_write_is_refused(opened: Opened) -> None:
    ours: Any = opened["pinned"][0]
    with pytest.raises(TypeError):
        ours["g/x"][0] = 1
    with pytest.raises(TypeError):
        ours["new"] = 1


@pytest.mark.parametrize("way", WAYS)
def test_visiting(opened: Opened, way: str) -> None:
    ours, theirs = opened[way]
    for start in ("/", "g", "g/sub"):
        found: list[Any] = []
        expected: list[Any] = []
        assert ours[start].visit(found.append) is None
        theirs[start].visit(expected.append)
        assert found == expected
        found, expected = [], []
        ours[start].visititems(lambda name, node, seen=found: seen.append((name, node.name)))
        theirs[start].visititems(lambda name, node, seen=expected: seen.append((name, node.name)))
        assert found == expected
    calls: list[str] = []

    def stop(name: str, node: Any) -> str | None:
        calls.append(name)
        return f"found {name}" if name == "g/sub" else None

    assert ours.visititems(stop) == "found g/sub"
    stopped = list(calls)
    calls.clear()
    assert theirs.visititems(stop) == "found g/sub"
    assert stopped == calls
    assert ours.visit(lambda name: 0) == 0, "0 is not None: it stops"


@pytest.mark.parametrize("way", WAYS)
def test_read_direct(opened: Opened, way: str) -> None:
    ours, theirs = opened[way]
    for dtype in ("<i4", "<f8", ">i2"):
        for name, source, target, shape in (
            ("g/x", None, None, (3, 4, 5)),
            ("g/x", np.s_[1], None, (4, 5)),
            ("g/x", np.s_[:, 2, 1:3], np.s_[1:4], (5, 2)),
            ("packed", np.s_[3:5], np.s_[2:4], (6, 5)),
        ):
            found, expected = np.zeros(shape, dtype), np.zeros(shape, dtype)
            ours[name].read_direct(found, source, target)
            theirs[name].read_direct(expected, source, target)
            assert_same_value(found, expected, f"{name} {source} {target}")


BASIC: list[Any] = [(), ..., 0, slice(1, 3), (slice(None), 2), (0, 1), (..., slice(1, 3)), slice(None, None, 2)]
COPIES: list[Any] = [[0, 2], np.array([True, False, True]), (0, [1, 2])]


def test_basic_keys_share_memory_and_others_copy(shared: ArrayFile) -> None:
    dataset = shared["g/x"]
    whole = dataset[()]
    for key in BASIC:
        assert np.shares_memory(dataset[key], whole), key
    for key in COPIES:
        assert not np.shares_memory(dataset[key], whole), key
    assert np.shares_memory(np.asarray(dataset), whole)
    assert not np.shares_memory(np.array(dataset), whole)
    assert not np.shares_memory(np.asarray(dataset, dtype="<f8"), whole)
    with pytest.raises(ValueError, match="copy"):
        np.asarray(dataset, dtype="<f8", copy=False)
    assert all(np.shares_memory(row, whole) for row in dataset)


def test_arrays_are_read_only(shared: ArrayFile) -> None:
    array = shared["g/x"][()]
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    with pytest.raises(ValueError, match="read-only"):
        np.add(array, 1, out=array)
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.view(np.uint8).flags.writeable = True
    pair = shared["pair"][0]
    with pytest.raises(ValueError, match="read-only"):
        pair["a"] = 5
    copied = shared["g/x"][[0, 1]]
    copied[...] = 7


@pytest.mark.parametrize("way", WAYS)
def test_close(tmp_path: Path, way: str) -> None:
    path = write_text(tmp_path / "data.h5")
    file = WAYS[way](path)
    group, dataset, packed = file["g"], file["g/x"], file["packed"]
    array = dataset[1:]
    expected = array.copy()
    assert file
    assert group
    file.close()
    file.close()
    assert not file
    assert not group
    assert not dataset
    np.testing.assert_array_equal(array, expected)
    closed: list[Callable[[], object]] = [
        lambda: file["g"],
        lambda: list(file),
        lambda: "g" in file,
        lambda: file.get("g"),
        lambda: list(group),
        lambda: file.attrs["x"],
        lambda: group.attrs["unit"],
        lambda: dataset[0],
        lambda: packed[0],
        lambda: file.visit(print),
        lambda: file.torch("g/x"),
    ]
    for use in closed:
        with pytest.raises(ValueError):
            use()
    assert "closed" in repr(file)
    with pytest.raises(ValueError), file:
        file["g"]


@pytest.mark.parametrize("way", WAYS)
def test_context_manager(tmp_path: Path, way: str) -> None:
    with WAYS[way](write(tmp_path / "data.h5")) as file:
        array = file["g/x"][()]
        assert file
    assert not file
    assert array[2, 3, 4] == 59


@pytest.mark.parametrize("way", WAYS)
def test_pickle(tmp_path: Path, way: str) -> None:
    path = write_text(tmp_path / "data.h5")
    with WAYS[way](path) as file:
        node: Any
        for node in (file, file["g"], file["g/x"], file["text"], file["packed"], file["type"], file["/"]):
            again = pickle.loads(pickle.dumps(node))
            assert again.name == node.name
            assert type(again) is type(node)
            with again.file as other:
                assert other.filename == file.filename
                if way not in ("through_h5py", "through_h5py_alone"):
                    assert other.source == file.source
                if hasattr(node, "shape"):
                    assert_same_value(again[()], node[()], node.name)
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer)['g/x'][1, 1, 1])"
    with WAYS[way](path) as file:
        done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(file), capture_output=True, check=True)
    assert done.stdout.strip() == b"26"


def test_a_pickle_outlives_the_object(tmp_path: Path) -> None:
    path = write(tmp_path / "data.h5")
    with WAYS["pinned"](path) as file, WAYS["named"](path) as by_name:
        pickled, pickled_by_name = pickle.dumps(file), pickle.dumps(by_name)
    _clean()
    with pickle.loads(pickled) as again:
        assert again.source == "mapped"
        assert again["g/x"][0, 0, 1] == 1
    with pytest.raises(dsmem.NotPinned):
        pickle.loads(pickled_by_name)


def _clean() -> None:
    from dsmem.store import objects
    from dsmem.store.root import open_store

    store = open_store()
    assert store is not None
    for name in os.listdir(store.objects):
        objects.remove(store, name, force=True)


def write_numbers(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        for code in TORCH_CODES:
            data = zoo.sample(np.dtype(code)) if code != "?" else np.arange(12) % 5 == 0
            file[code.strip("<")] = data.reshape(3, 4)
        file["scalar"] = 1.5
        file["none"] = np.zeros((0, 3), "<f4")
        file["big"] = np.arange(3, dtype=">i4")
        file["s"] = np.array([b"a"])
        file["null"] = h5py.Empty("<f4")
        file["pair"] = np.zeros(3, [("a", "<i4")])
        file["group/x"] = np.arange(3)
        file["soft"] = h5py.SoftLink("/group/x")
    return path


@pytest.mark.parametrize("way", WAYS)
def test_torch(tmp_path: Path, way: str) -> None:
    path = write_numbers(tmp_path / "data.h5")
    before = path.read_bytes()
    with WAYS[way](path) as file:
        for code, dtype in TORCH_CODES.items():
            name = code.strip("<")
            expected = file[name][()].copy()
            tensor = file.torch(name)
            assert tensor.dtype is dtype
            assert tuple(tensor.shape) == expected.shape
            assert tensor.numpy().tobytes() == expected.tobytes(), name
            tensor.view(torch.uint8 if dtype is not torch.bool else torch.bool)[...] = 1
            assert file[name][()].tobytes() == expected.tobytes(), "writing to the tensor is private"
        assert file.torch("scalar").shape == ()
        assert file.torch("none").shape == (0, 3)
        assert file.torch("soft").tolist() == [0, 1, 2]
        for name in ("big", "s", "null", "pair", "group"):
            with pytest.raises(TypeError):
                file.torch(name)
        with pytest.raises(KeyError):
            file.torch("nope")
        kept = file.torch("group/x")
        with dsmem.File(path) as other:
            kept[0] = 99
            assert other["group/x"][0] == 0
    assert kept.tolist() == [99, 1, 2]
    assert path.read_bytes() == before


def test_a_tensor_outlives_close_and_removal(tmp_path: Path) -> None:
    path = write_numbers(tmp_path / "data.h5")
    file = WAYS["pinned"](path)
    early = file.torch("f4")
    _clean()
    late = file.torch("f8")
    file.close()
    del file
    with h5py.File(path, "r") as theirs:
        assert early.numpy().tobytes() == theirs["f4"][()].tobytes()
        assert late.numpy().tobytes() == theirs["f8"][()].tobytes()
    early[...] = 1
    late[...] = 2


def test_nothing_is_open_in_a_pinned_or_mapped_file(tmp_path: Path) -> None:
    path = write(tmp_path / "data.h5")
    before = h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE)
    for way in ("as_it_lies", "pinned"):
        with WAYS[way](path) as file:
            assert file["g/x"][0, 0, 0] == 0
            open_files = [os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors()]
            assert open_files.count(str(path)) <= (1 if way == "as_it_lies" else 0), "only the map's own descriptor"
            assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) == before


def _descriptors() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]


@pytest.mark.parametrize("way", WAYS)
def test_read_in_a_forked_child(tmp_path: Path, way: str) -> None:
    path = write_text(tmp_path / "data.h5")
    with WAYS[way](path) as file:
        packed = file["packed"]
        pid = os.fork()
        if pid == 0:
            right = packed[19, 4] == 99.0 and file["g/x"][2, 3, 4] == 59 and file["text"][0, 1] == "é".encode()
            os._exit(0 if right else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert packed[19, 4] == 99.0


@pytest.mark.parametrize("way", ZERO_COPY)
def test_whole_numbers_once_it_was_read(tmp_path: Path, way: str) -> None:
    """Samples that are asked for again take a shorter way."""
    path = write(tmp_path / "data.h5")
    with WAYS[way](path) as file, h5py.File(path) as theirs:
        ours, expected = file["g/x"], theirs["g/x"]
        for key in (0, -1, -3, 3, -4, 2**31, 2**63, 2**64 - 1, -(2**63) - 1, 2**70, True):
            assert ours[0].shape == (4, 5)
            assert_same_outcome(partial(ours.__getitem__, key), partial(expected.__getitem__, key), str(key))
