"""SIGKILL at every step of making and removing a directory object: what stays is swept, and nothing half is named."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from children import started
from directory_objects import FILES, data_of, hidden, make
from dying import die, dying_after

from dsmem import files
from dsmem.store import directories, objects, refs
from dsmem.store.root import Store, make_store
from dsmem.store.staging import DirectoryDraft
from dsmem.store.sweep import sweep


def patch(owner: object, name: str, how: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None) -> None:
    """In a child that dies of it."""
    setattr(owner, name, die if how is None else how(getattr(owner, name)))


STEPS: dict[str, Callable[[], None]] = {
    "before the directory": lambda: patch(DirectoryDraft, "_made"),
    "when it is there, not locked": lambda: patch(os, "mkdir", _dying_after_a_draft),
    "when it is locked": lambda: patch(DirectoryDraft, "_made", dying_after),
    "half written": lambda: patch(Path, "write_bytes", dying_after),
    "before the anchor": lambda: patch(DirectoryDraft, "seal"),
    "after the anchor": lambda: patch(DirectoryDraft, "seal", dying_after),
    "read-only": lambda: patch(directories, "seal", dying_after),
    "before the rename": lambda: patch(os, "rename"),
    "after the rename": lambda: patch(os, "rename", dying_after),
    "before the ref": lambda: patch(refs, "write"),
    "after the ref": lambda: patch(refs, "write", dying_after),
    "before unlocking": lambda: patch(files, "unlink_if_there"),
}
PUBLISHED = {"after the rename", "before the ref", "after the ref", "before unlocking"}


def _dying_after_a_draft(original: Callable[..., Any]) -> Callable[..., Any]:
    def patched(path: Any, *args: Any, **kwargs: Any) -> None:
        original(path, *args, **kwargs)
        if "/.draft-" in str(path):
            die()

    return patched


@pytest.mark.parametrize("step", STEPS)
def test_killed_while_it_is_made(step: str, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    store = make_store()

    def child_body() -> None:
        STEPS[step]()
        make(source)

    with started(child_body) as child:
        assert os.WTERMSIG(child.wait()) == signal.SIGKILL
    assert [one.damaged for one in objects.scan(store)] == ([None] if step in PUBLISHED else [])
    again = make(source)
    # Of what was killed between the rename and the ref, the next loader's sweep has rebuilt the ref.
    assert again.loaded == (step not in PUBLISHED)
    assert data_of(store, again.ref.object) == FILES
    again.lease.map.close()
    sweep(store)
    assert hidden(store) == [] and os.listdir(store.locks) == []
    assert len(list(refs.all_refs(store))) == 1


REMOVAL: dict[str, Callable[[], None]] = {
    "before the rename": lambda: patch(os, "rename"),
    "after the rename": lambda: patch(os, "rename", dying_after),
    "half deleted": lambda: patch(files, "unlink_if_there", _dying_after_a_data_file),
    "after all": lambda: patch(directories, "delete", dying_after),
}


def _dying_after_a_data_file(original: Callable[..., Any]) -> Callable[..., Any]:
    def patched(path: str) -> bool:
        gone: bool = original(path)
        if path.endswith(".arrow"):
            die()
        return gone

    return patched


@pytest.mark.parametrize("step", REMOVAL)
def test_killed_while_it_is_removed(step: str, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    store = make_store()
    made = make(source)
    made.lease.map.close()

    def child_body() -> None:
        REMOVAL[step]()
        objects.remove(store, made.ref.object)

    with started(child_body) as child:
        assert os.WTERMSIG(child.wait()) == signal.SIGKILL
    assert [one.damaged for one in objects.scan(store)] == ([None] if step == "before the rename" else [])
    sweep(store)
    assert hidden(store) == []
    again = make(source)
    assert again.loaded == (step != "before the rename")
    assert data_of(store, again.ref.object) == FILES
    again.lease.map.close()


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Twenty loaders killed after random times: the store holds whole objects or none, and no memory is lost."""
    store = make_store()
    source = tmp_path / "rows.jsonl"
    files_of = {f"{number}.arrow": os.urandom(300_000) for number in range(10)}
    body = partial(_make_and_remove, source, files_of)
    for number in range(20):
        with started(body) as child:
            time.sleep(0.002 * number)
            child.kill()
        assert [one for one in objects.scan(store) if one.damaged] == []
    sweep(store)
    assert hidden(store) == []
    for one in list(objects.scan(store)):
        objects.remove(store, one.name)
    assert _bytes_below(store) == 0


def _make_and_remove(source: Path, files_of: dict[str, bytes]) -> None:
    while True:
        made = make(source, files_of)
        made.lease.map.close()
        objects.remove(make_store(), made.ref.object)


def _bytes_below(store: Store) -> int:
    return sum(path.stat().st_size for path in Path(store.objects).rglob("*") if path.is_file())
