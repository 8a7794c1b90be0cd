"""Objects that are none: truncated, garbage, empty, links, pipes. DamagedObject, and never a crash or wrong shapes."""

from __future__ import annotations

import json
import os
import resource
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from children import call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import settle, write_sample

import dsmem
from dsmem.store import objects
from dsmem.store.root import Store, make_store

GARBAGE = "garbage-0123456789abcdef"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = write_sample(tmp_path / "data.h5", 1)
    with h5py.File(path, "a") as file:
        file["compound"] = np.array([(1, 2.5, b"abc")], [("i", "<i4"), ("f", ">f8"), ("s", "S3")])
        file["ragged"] = np.array([np.arange(3), np.arange(1)], h5py.vlen_dtype(np.int32))
        file["enum"] = np.array([0, 1], h5py.enum_dtype({"a": 0, "b": 1}))
        file["null"] = h5py.Empty("f4")
        file["alias"] = file["images"]
        file["soft"] = h5py.SoftLink("/group/heatmaps")
        file["strings"] = np.array([b"ab", b"c"])
        file["enum"].attrs["list"] = [1, 2, 3]
    return settle(path)


@pytest.fixture
def pinned(path: Path, store_root: Path) -> Path:
    """The object's path."""
    return store_root / "objects" / dsmem.pin(path).name


def rewrite(object_path: Path, data: bytes) -> None:
    object_path.unlink()
    object_path.write_bytes(data)
    object_path.chmod(0o400)


def assert_damaged(*targets: str | Path) -> None:
    for target in targets:
        with pytest.raises(dsmem.DamagedObject) as caught:
            dsmem.attach(target)
        assert caught.value.name
        assert caught.value.name in str(caught.value)


def test_truncated_at_any_length(path: Path, pinned: Path) -> None:
    whole = pinned.read_bytes()
    header_bytes = 8 + struct.unpack_from("<Q", whole)[0]
    for length in {0, 1, 7, 8, 9, 100, header_bytes - 1, header_bytes, header_bytes + 1, len(whole) - 1, 4096, 8192}:
        rewrite(pinned, whole[:length])
        assert_damaged(path, pinned.name)
        assert [one.damaged is not None for one in objects.scan(make_store())] == [True]
        with dsmem.File(path) as file:
            assert file.source == "h5py"
            assert pinned.name in file.why
    rewrite(pinned, whole + b"\0")
    assert_damaged(path, pinned.name)


def test_a_damaged_object_is_replaced_by_the_next_pin(path: Path, pinned: Path, store_root: Path) -> None:
    """What the error tells to do: clean it, pin again. Another path to the same content is not led to it."""
    whole = pinned.read_bytes()
    rewrite(pinned, whole[:-1])
    other = path.with_name("other.h5")
    other.write_bytes(path.read_bytes())
    again = dsmem.pin(settle(other))
    assert again.name != pinned.name
    with dsmem.attach(other) as file:
        assert file["alias"].shape == file["images"].shape
    assert objects.remove(make_store(), pinned.name)
    with pytest.raises(dsmem.NotPinned):
        dsmem.attach(path)
    assert dsmem.pin(path).already is False
    with dsmem.attach(path) as file:
        assert file.digest == again.algo + ":" + again.digest


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        b"\0",
        b"\0" * 8,
        b"\0" * 4096,
        b"\xff" * 4096,
        bytes(range(256)) * 16,
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 1 << 63) + b"{}",
        struct.pack("<Q", 99_000_000) + b"{}",
        struct.pack("<Q", 40_000) + b"[" * 40_000,
        struct.pack("<Q", 60_000) + b'{"a":' * 12_000,
        struct.pack("<Q", 20) + b'{"__metadata__": [1]',
        struct.pack("<Q", 25) + b'{"__metadata__": {"a":1}}',
        struct.pack("<Q", 5000) + b"9" * 5000,
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_garbage_with_an_objects_name(data: bytes, store_root: Path) -> None:
    make_store()
    (store_root / "objects" / GARBAGE).write_bytes(data)
    assert_damaged(GARBAGE)
    assert_damaged("garbage")
    (found,) = objects.scan(make_store())
    assert found.damaged
    assert objects.remove(make_store(), GARBAGE)
    assert not os.listdir(store_root / "objects")


def test_a_header_that_claims_much_is_not_believed(store_root: Path) -> None:
    """A sparse file of 1 TiB whose header claims 100 MB: refused at once, in little memory."""
    make_store()
    huge = store_root / "objects" / GARBAGE
    with open(huge, "wb") as file:
        file.write(struct.pack("<Q", 100_000_000) + b'{"')
        file.truncate(1 << 40)

    def look() -> int:
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert_damaged(GARBAGE)
        assert [one.damaged is not None for one in objects.scan(make_store())] == [True]
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib

    began = time.monotonic()
    assert call(look) < 50_000
    assert time.monotonic() - began < 5


def stray(kind: str) -> Callable[[Path], None]:
    def fill(directory: Path) -> None:
        directory.mkdir()
        (directory / "file").write_bytes(b"x")

    kinds: dict[str, Callable[[Path], None]] = {
        "symlink to a file": lambda one: one.symlink_to("/etc/passwd"),
        "symlink to nothing": lambda one: one.symlink_to("/nowhere"),
        "symlink to itself": lambda one: one.symlink_to(one.name),
        "pipe": lambda one: os.mkfifo(one),
        "directory": lambda one: one.mkdir(),
        "full directory": fill,
    }
    return kinds[kind]


@pytest.mark.parametrize(
    "kind", ["symlink to a file", "symlink to nothing", "symlink to itself", "pipe", "directory", "full directory"]
)
def test_what_is_no_file(kind: str, path: Path, pinned: Path, store_root: Path) -> None:
    """With an object's name, or with none: nothing hangs, follows it, or stumbles over it; cleaning removes it."""
    pinned.unlink()
    stray(kind)(pinned)
    stray(kind)(store_root / "objects" / "no name of ours")
    assert_damaged(path)
    if kind not in ("symlink to nothing", "symlink to itself"):
        assert_damaged(pinned.name)
    assert [one.damaged is not None for one in objects.scan(make_store())] == [True, True]
    with dsmem.File(path) as file:
        assert file.source == "h5py"
    other = settle(write_sample(path.with_name("other.h5"), seed=3))
    dsmem.pin(other)
    with dsmem.attach(other) as file:
        assert file.source == "pinned"
    for one in list(objects.scan(make_store())):
        if one.damaged:
            assert objects.remove(make_store(), one.name)
    assert dsmem.pin(path).already is False
    assert Path("/etc/passwd").is_file()
    assert sorted(os.listdir(store_root / "objects")) == sorted([pinned.name, str(dsmem.attach(other).object_name)])


def read_everything(file: dsmem.ArrayFile) -> Iterator[tuple[str, Any]]:
    """All that one can ask for."""
    yield "attrs", dict(file.attrs)
    for name in list(file):
        node = file.get(name)
        yield f"{name} repr", repr(node)
    found: dict[str, Any] = {}
    file.visititems(lambda name, node: found.setdefault(name, node) and None)
    for name, node in found.items():
        yield f"{name} attrs", dict(node.attrs)
        if isinstance(node, h5py.Group) or not hasattr(node, "shape"):
            continue
        yield f"{name} info", (node.shape, node.dtype, node.chunks, node.maxshape, node.compression, node.fillvalue)
        value = node[()]
        yield name, value
        if isinstance(value, np.ndarray) and value.dtype.kind != "O":
            assert value.shape == (*node.shape, *(node.dtype.subdtype or (None, ()))[1])
            yield f"{name} sum", value.tobytes()[:100]
        if node.shape:
            yield f"{name} first", node[:1]


def survive(pinned_name: str) -> None:
    """Either everything reads, or it is DamagedObject."""
    try:
        with dsmem.attach(pinned_name) as file:
            for _ in read_everything(file):
                pass
    except dsmem.DamagedObject:
        return


def damaged_header(whole: bytes, change: Callable[[Any], None]) -> bytes:
    """The object with its header changed and sealed again, its size the same."""
    (length,) = struct.unpack_from("<Q", whole)
    table = json.loads(whole[8 : 8 + length])
    change(table)
    text = json.dumps(table, separators=(",", ":")).encode()
    return struct.pack("<Q", length) + text.ljust(length) + whole[8 + length :]


FUZZ = settings(
    max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
DTYPES = ["f4", "|V4", "<M8[s]", "<U1000000000", "|S" + "9" * 30, "|O", "i4,i4", "(1000000,1000000)u1"]
RECIPES = [{"vlen": "str"}, {"array": "|u1", "shape": [1 << 30, 1 << 30]}, {"array": "|u1", "shape": [-1]}]
NUMBERS = [-1, 0, 1, 2, 1 << 40, 1 << 70, 1.5, float("inf"), float("nan")]
VALUES = st.sampled_from(
    [
        None,
        True,
        "",
        "x",
        "\0",
        "../..",
        "\ud800",
        [],
        {},
        [[]],
        {"fields": [], "itemsize": 0},
        *NUMBERS,
        *DTYPES,
        *RECIPES,
    ]
)


@FUZZ
@given(data=st.data())
def test_any_bytes_of_the_header_may_change(pinned: Path, data: st.DataObject) -> None:
    whole = pinned.read_bytes()
    (length,) = struct.unpack_from("<Q", whole)
    used = 8 + len(whole[8 : 8 + length].rstrip())
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, used - 1))] = data.draw(st.sampled_from(b'0129"{}[]:,\\eE-.+ntu\x00\xff'))
    try:
        rewrite(pinned, bytes(changed))
        survive(pinned.name)
    finally:
        rewrite(pinned, whole)


@FUZZ
@given(data=st.data())
def test_any_value_of_the_header_may_change(pinned: Path, data: st.DataObject) -> None:
    """Valid JSON of the wrong kind, in the tensors' table, the tree and the attributes."""
    whole = pinned.read_bytes()

    def change(table: Any) -> None:
        inside = data.draw(st.sampled_from(["table", "dsmem.tree", "dsmem.attributes", "dsmem.provenance"]))
        part = table if inside == "table" else json.loads(table["__metadata__"][inside])
        alter(part)
        if inside != "table":
            table["__metadata__"][inside] = json.dumps(part)

    def alter(part: Any) -> None:
        while True:
            keys = list(part) if isinstance(part, dict) else list(range(len(part)))
            if not keys:
                return
            key = data.draw(st.sampled_from(keys))
            below = part[key]
            if isinstance(below, dict | list) and below and data.draw(st.integers(0, 3)):
                part = below
                continue
            what = data.draw(st.sampled_from(["replace", "drop", "swap"]))
            if what == "replace":
                part[key] = data.draw(VALUES)
            elif what == "drop":
                del part[key]
            else:
                other = data.draw(st.sampled_from(keys))
                part[key], part[other] = part[other], part[key]
            return

    try:
        rewrite(pinned, damaged_header(whole, change))
        survive(pinned.name)
        assert len(list(objects.scan(make_store()))) == 1
    finally:
        rewrite(pinned, whole)


def test_the_object_itself_survives_the_attacks(path: Path, pinned: Path) -> None:
    """The harness reads what is there: an untouched object gives no DamagedObject."""
    with dsmem.attach(path) as file, h5py.File(path, "r") as plain:
        seen = dict(read_everything(file))
        assert set(plain) <= {name.partition(" ")[0] for name in seen}
        assert np.array_equal(seen["group/heatmaps"], plain["group/heatmaps"][()])
    rewrite(pinned, damaged_header(pinned.read_bytes(), lambda table: None))
    with dsmem.attach(pinned.name) as file:
        assert set(dict(read_everything(file))) == set(seen)
    assert isinstance(make_store(), Store)
