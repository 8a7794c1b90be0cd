"""Refs: garbage, links and lies in the refs directory lead nowhere, and never stand in the way."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import assert_reads_as_h5py, settle, write_sample
from stores import refuse

import dsmem
from dsmem.store import objects, refs
from dsmem.store.refs import Provenance
from dsmem.store.root import make_store
from dsmem.store.sweep import sweep


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return settle(write_sample(tmp_path / "data.h5"))


@pytest.fixture
def ref(path: Path, store_root: Path) -> Path:
    """The ref file of the pinned path."""
    dsmem.pin(path)
    (found,) = (store_root / "refs").iterdir()
    return found


def lying(**changes: object) -> Callable[[bytes], bytes]:
    """A change of the record."""

    def change(text: bytes) -> bytes:
        return json.dumps({**json.loads(text), **changes}).encode()

    return change


def lying_provenance(**changes: Any) -> Callable[[bytes], bytes]:
    def change(text: bytes) -> bytes:
        record = json.loads(text)
        record["provenance"] = json.dumps({**json.loads(record["provenance"]), **changes})
        return json.dumps(record).encode()

    return change


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda text: b"",
    "cut": lambda text: text[:-1],
    "garbage": lambda text: os.urandom(500),
    "not a table": lambda text: b"[1]",
    "nested": lambda text: b"[" * 100_000,
    "long": lambda text: text + b" " * (2 << 20),
    "big number": lambda text: b"1" * 5000,
    "points outside": lying(object="../../../etc/passwd"),
    "absolute": lying(object="/etc/passwd"),
    "parent": lying(object=".."),
    "itself": lying(object="."),
    "nothing": lying(object=""),
    "zero byte": lying(object="a\0-0123456789abcdef"),
    "surrogate": lying(object="a\ud800-0123456789abcdef"),
    "too long": lying(object="a" * 5000 + "-0123456789abcdef"),
    "a number": lying(object=7),
    "no name": lying(name=None),
    "a given name": lying(name="other"),
    "provenance is no text": lying(provenance={}),
    "another source": lying_provenance(source="/etc/passwd"),
    "source is a surrogate": lying_provenance(source="\ud800"),
    "infinite time": lying_provenance(created_ns=float("inf")),
    "no time": lying_provenance(created_ns=float("nan")),
    "identity": lying_provenance(identity=[1, 2, 3]),
    "identity of texts": lying_provenance(identity=["1"] * 5),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_ref_is_as_none(how: str, path: Path, ref: Path, store_root: Path) -> None:
    ref.write_bytes(BROKEN[how](ref.read_bytes()))
    with pytest.raises(dsmem.NotPinned):
        dsmem.attach(path)
    with dsmem.File(path) as file:
        assert file.source == "h5py"
    pinned = dsmem.pin(path)
    assert pinned.already, "the object tells what it was made from"
    with dsmem.attach(path) as file:
        assert_reads_as_h5py(file, path)
    assert objects.remove(make_store(), pinned.name)
    assert os.listdir(store_root / "objects") == []


@pytest.mark.parametrize("kind", ["symlink", "dangling", "pipe", "directory"])
def test_a_ref_that_is_no_file(kind: str, path: Path, ref: Path, store_root: Path) -> None:
    """Also a link to a good ref: what others may write is not followed."""
    elsewhere = store_root.parent / "ref"
    ref.rename(elsewhere)
    if kind == "symlink":
        ref.symlink_to(elsewhere)
    elif kind == "dangling":
        ref.symlink_to("/nowhere")
    elif kind == "pipe":
        os.mkfifo(ref)
    else:
        ref.mkdir()
    with pytest.raises(dsmem.NotPinned):
        dsmem.attach(path)
    if kind == "directory":
        ref.rmdir()
    assert dsmem.pin(path).already
    with dsmem.attach(path) as file:
        assert_reads_as_h5py(file, path)
    assert elsewhere.is_file()


def test_a_ref_to_an_object_that_is_gone(path: Path, ref: Path, store_root: Path) -> None:
    (found,) = (store_root / "objects").iterdir()
    found.unlink()
    with pytest.raises(dsmem.NotPinned):
        dsmem.attach(path)
    other = settle(write_sample(path.with_name("other.h5"), seed=1))
    dsmem.pin(other)
    assert not ref.exists(), "swept"
    assert dsmem.pin(path).already is False


def test_a_copied_ref_leads_nowhere_else(path: Path, ref: Path, store_root: Path) -> None:
    """A ref counts under its own file name only: one source's never serves another."""
    other = settle(write_sample(path.with_name("other.h5"), seed=1))
    copied = store_root / "refs" / refs.source_file(str(other), "")
    copied.write_bytes(ref.read_bytes())
    with pytest.raises(dsmem.NotPinned):
        dsmem.attach(other)
    dsmem.pin(other)
    with dsmem.attach(other) as file:
        assert_reads_as_h5py(file, other)


def test_sweeping_puts_everything_right(path: Path, ref: Path, store_root: Path) -> None:
    (store_root / "locks" / "of nobody").write_bytes(b"")
    (store_root / "objects" / ".draft-0000").write_bytes(b"x" * 4096)
    (store_root / "objects" / ".trash-0000").mkdir()
    (store_root / "objects" / ".trash-0000" / "file").write_bytes(b"x")
    for name, age_s in ((".tmp-old", 120), (".tmp-new", 0)):
        (store_root / "refs" / name).write_bytes(b"{")
        os.utime(store_root / "refs" / name, (time.time() - age_s,) * 2)
    ref.unlink()
    sweep(make_store())
    assert refuse(store_root) == ["refs/.tmp-new"]
    (store_root / "refs" / ".tmp-new").unlink()
    assert ref.exists()
    with dsmem.attach(path) as file:
        assert_reads_as_h5py(file, path)


def test_sweeping_leaves_what_is_being_worked_on(store_root: Path) -> None:
    import fcntl

    make_store()
    for one in (store_root / "locks" / "held", store_root / "objects" / ".draft-held"):
        one.write_bytes(b"")
        fd = os.open(one, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        sweep(make_store())
        assert one.exists()
        os.close(fd)
        sweep(make_store())
        assert not one.exists()


@pytest.mark.parametrize("directory", ["locks", "objects", "refs"])
@pytest.mark.parametrize("kind", ["symlink", "pipe", "directory"])
def test_strays_do_not_stand_in_the_way(
    directory: str, kind: str, path: Path, store_root: Path, expected_leftovers: set[str]
) -> None:
    """Hidden ones, which sweeping looks at."""
    make_store()
    expected_leftovers.add(f"{directory}/*")
    for name in (".draft-x", ".tmp-x", ".trash-x", "x"):
        stray = store_root / directory / name
        if kind == "symlink":
            stray.symlink_to("/etc/passwd")
        elif kind == "pipe":
            os.mkfifo(stray)
        else:
            stray.mkdir()
    dsmem.pin(path)
    with dsmem.attach(path) as file:
        assert_reads_as_h5py(file, path)
    assert Path("/etc/passwd").is_file()


def test_a_newer_ref_is_not_replaced_by_an_older_object(path: Path, ref: Path) -> None:
    """A changed file has two generations; sweeping never brings the old one back."""
    old = dsmem.attach(path).object_name
    write_sample(path, seed=5)
    new = dsmem.pin(settle(path)).name
    assert new != old
    sweep(make_store())
    with dsmem.attach(path) as file:
        assert file.object_name == new
        assert_reads_as_h5py(file, path)


def test_removing_an_object_removes_the_refs_to_it(path: Path, store_root: Path) -> None:
    copy = path.with_name("copy.h5")
    copy.write_bytes(path.read_bytes())
    settle(copy)
    kept = settle(write_sample(path.with_name("kept.h5"), seed=1))
    name = dsmem.pin(path, name="given").name
    assert dsmem.pin(copy).name == name
    dsmem.pin(kept)
    assert len(list(refs.all_refs(make_store()))) == 4
    assert objects.remove(make_store(), name)
    assert [one.provenance.source for one in refs.all_refs(make_store())] == [str(kept)]
    assert objects.remove(make_store(), name) is False
    assert refs.find_name(make_store(), "given") is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_provenance_is_whole_or_a_value_error(ref: Path, data: st.DataObject) -> None:
    (found,) = refs.all_refs(make_store())
    record = json.loads(found.provenance.dump())
    assert Provenance.load(found.provenance.dump()) == found.provenance
    key = data.draw(st.sampled_from(sorted(record)))
    record[key] = data.draw(JSON)
    try:
        loaded = Provenance.load(json.dumps(record))
    except ValueError:
        return
    assert replace(loaded, **{key: getattr(found.provenance, key)}) == found.provenance
    assert Provenance.load(loaded.dump()) == loaded
    assert refs.source_file(loaded.source, loaded.selection)
