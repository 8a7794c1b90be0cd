"""A full /dev/shm: what has no room fails with numbers, or goes to a second store on a disk, by setting."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from arrowtables import write_jsonl
from daemons import eventually
from stores import InTmpfs

import dsmem
from dsmem.config.resolve import resolve
from dsmem.server import control, lifecycle, overflow, places, status
from dsmem.server.places import Places
from dsmem.server.spec import Spec
from dsmem.store import objects, refs
from dsmem.store.root import Store, make_store

pytestmark = pytest.mark.usefixtures("hf_cache")
MIB = 1 << 20


def rows(path: Path, size_bytes: int) -> Spec:
    """A file of so many bytes of text."""
    write_jsonl(path, [{"id": number, "text": "x" * 1000} for number in range(size_bytes // 1000)])
    return Spec.parse(str(path))


@pytest.fixture
def served(tiny_tmpfs: InTmpfs) -> Callable[..., Any]:
    """Run a body in a child whose store is on a tmpfs of 4 MiB; the daemon that it starts ends with it."""

    def run(body: Callable[[Places, Path], Any]) -> Any:
        def inside(point: Path) -> Any:
            where = places.find(resolve())
            try:
                return body(where, point)
            finally:
                with suppress(dsmem.DsmemError):
                    lifecycle.stop(where)

        return tiny_tmpfs(inside)

    return run


def start(where: Places, **named: Spec) -> dict[str, Any]:
    """The datasets of the server, none of which is loading any more."""
    lifecycle.ensure_started(60, plan=replace(lifecycle.plan_of(resolve()), watch_s=0.05))
    for name, spec in named.items():
        control.ask({"op": "add", "name": name, "spec": spec.as_dict()}, where=where)
    return settled(where)


def settled(where: Places) -> dict[str, Any]:
    def loading() -> bool:
        return any(one["state"] in ("waiting", "loading") or one["refreshing"] for one in ask(where))

    eventually(lambda: not loading(), 60)
    return {one["name"]: one for one in ask(where)}


def ask(where: Places) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = control.ask({"op": "status"}, where=where)["datasets"]
    return found


def objects_in(root: Path | str) -> list[str]:
    return [one.name for one in objects.scan(Store(str(root)))]


def test_without_a_second_store_it_says_what_is_missing(served: Callable[..., Any], tmp_path: Path) -> None:
    small, large = rows(tmp_path / "small.jsonl", MIB // 2), rows(tmp_path / "large.jsonl", 8 * MIB)

    def body(where: Places, point: Path) -> None:
        found = start(where, small=small, large=large)
        assert found["small"]["state"] == "ready"
        assert found["large"]["state"] == "failed" and found["large"]["error"].startswith("NoSpace: ")
        assert "MiB" in found["large"]["error"]
        assert objects_in(point / "store") == [found["small"]["object"]]
        loaded: Any = dsmem.load_dataset("large")
        assert loaded.dsmem_source == "loaded" and len(loaded["train"]) == 8 * MIB // 1000
        shared: Any = dsmem.load_dataset("small")
        assert shared.dsmem_source == "shared"

    served(body)


def test_what_has_no_room_goes_to_a_disk(
    served: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    monkeypatch.setenv("DSMEM_OVERFLOW_DIR", str(disk))
    small, large = rows(tmp_path / "small.jsonl", MIB // 2), rows(tmp_path / "large.jsonl", 8 * MIB)

    def body(where: Places, point: Path) -> None:
        found = start(where, small=small, large=large)
        assert [found[name]["root"] for name in ("small", "large")] == [str(point / "store"), str(disk)]
        monkeypatch.delenv("DSMEM_OVERFLOW_DIR")  # clients are told by the first store
        shared: Any = dsmem.load_dataset("large", split="train")
        plain: Any = datasets.load_dataset("json", data_files=str(tmp_path / "large.jsonl"), split="train")
        assert shared.dsmem_source == "shared" and shared[-1] == plain[-1] and len(shared) == len(plain)
        assert [one.clients for one in status.status(where).datasets] == [(), (os.getpid(),)]
        lifecycle.stop(where)
        again: Any = dsmem.load_dataset("json", data_files=str(tmp_path / "large.jsonl"), split="train")
        assert again.dsmem_source == "shared"
        monkeypatch.setenv("DSMEM_OVERFLOW_DIR", str(disk))
        stopped = {one.name: one for one in status.status(places.find(resolve())).datasets}
        assert (stopped["large"].state, stopped["large"].root) == ("published", str(disk))
        del shared, again
        gc.collect()
        freed = lifecycle.release(places.find(resolve()))
        assert len(freed.freed) == 2 and objects_in(disk) == objects_in(point / "store") == []

    served(body)


def test_a_table_that_outgrows_the_store_leaves_it(
    served: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its later generations stay on the disk; the one in the store goes when its last reader ends."""
    disk = tmp_path / "disk"
    monkeypatch.setenv("DSMEM_OVERFLOW_DIR", str(disk))
    path = tmp_path / "a.jsonl"
    first = rows(path, MIB)

    def body(where: Places, point: Path) -> None:
        store = point / "store"
        assert start(where, a=first)["a"]["root"] == str(store)
        reader: Any = dsmem.load_dataset("a", split="train")
        rows(path, 8 * MIB)
        eventually(lambda: settled(where)["a"]["root"] == str(disk), 60)
        assert len(dsmem.load_dataset("a", split="train")) == 8 * MIB // 1000
        assert len(objects_in(store)) == 1 and len(reader) == MIB // 1000
        assert list(refs.all_refs(Store(str(store)))) == []
        del reader
        gc.collect()
        eventually(lambda: objects_in(store) == [], 60)
        rows(path, 2 * MIB)
        eventually(lambda: settled(where)["a"]["rows"] == 2 * MIB // 1000, 60)
        assert ask(where)[0]["root"] == str(disk)

    served(body)


def test_a_catalogue_that_can_not_be_written_stops_nothing(served: Callable[..., Any], tmp_path: Path) -> None:
    small = rows(tmp_path / "small.jsonl", MIB // 2)

    def body(where: Places, point: Path) -> None:
        lifecycle.ensure_started(60)
        with (point / "other").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        found = start(where, small=small)
        assert found["small"]["error"].startswith("NoSpace: ")
        (point / "other").unlink()
        control.ask({"op": "refresh"}, where=where)
        eventually(lambda: settled(where)["small"]["state"] == "ready")

    served(body)


@pytest.mark.parametrize("text", ["", "relative", "a\0b", "/" + "x" * 5000])
def test_a_note_that_makes_no_sense(text: str, expected_leftovers: set[str]) -> None:
    expected_leftovers.add("server/*")
    store = make_store()
    overflow.note(store, "/first")
    Path(store.root, "server/overflow").write_text(text)
    assert overflow.second(store) is None
