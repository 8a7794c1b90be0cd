"""Directory objects as a builder makes them, with plain files for data: no library that reads tables is needed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from dsmem.files import FileIdentity
from dsmem.progress import Progress, ignore
from dsmem.store.obtain import Filled, Obtained, Request, obtain_as
from dsmem.store.root import Store, make_store
from dsmem.store.staging import DirectoryDraft

FILES = {"data-00000.arrow": b"a" * 9000, "train/data-00000.arrow": b"b" * 5000}


def source_of(path: Path) -> str:
    return "dataset:" + json.dumps({"data_files": {"train": [str(path)]}, "path": "json"})


def request_for(path: Path, number: int = 0) -> Request:
    return Request(source_of(path), FileIdentity(0, number, 1, 2, 3), "", "rows")


def fill(draft: DirectoryDraft, files: Mapping[str, bytes] = FILES) -> Filled:
    """What a builder does."""
    draft.make_room(sum(map(len, files.values())), None)
    digest = hashlib.md5()
    for name, data in files.items():
        target = Path(draft.path) / name
        target.parent.mkdir(exist_ok=True)
        try:
            target.write_bytes(data)
        except OSError as exc:
            raise draft.translated(exc, len(data)) from exc
        digest.update(name.encode() + data)
    return Filled(f"md5:{digest.hexdigest()}", "md5:", lambda made: draft.seal(made, kind="dataset", facts={"rows": 7}))


def make(path: Path, files: Mapping[str, bytes] = FILES, *, number: int = 0, progress: Progress = ignore) -> Obtained:
    """The object for a source, made or found."""
    return obtain_as(
        DirectoryDraft, make_store(), request_for(path, number), lambda draft, _: fill(draft, files), progress
    )


def data_of(store: Store, name: str) -> dict[str, bytes]:
    """The data files of an object."""
    root = Path(store.object_path(name))
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != "anchor"
    }


def hidden(store: Store) -> list[str]:
    return sorted(name for name in os.listdir(store.objects) if name.startswith("."))
