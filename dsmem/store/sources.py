"""What an object was made from: a text that names the request, and local files whose change is seen by stat.

A plain source is the real path of one file; a table's begins with `dataset:`, that of a checkpoint in many files with
`checkpoint:`, and canonical JSON follows. Every text in it that begins with `/` is a local file, a directory, or a
pattern: no library is asked what they mean.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from dsmem.errors import SourceMissing
from dsmem.files import FileIdentity

PREFIX = "dataset:"
CHECKPOINT = "checkpoint:"
_PLACES = ("path", "data_dir", "data_files")
_STATE = "state.json"
"""A directory that holds it was written by save_to_disk; caches of `.map` lie beside the data there."""
_BITS = (1 << 63) - 1


def is_request(source: str) -> bool:
    """Whether it names a request by a text, and is not the path of one file."""
    return source.startswith((PREFIX, CHECKPOINT))


def checkpoint(path: str, files: Sequence[str]) -> str:
    """The source of a checkpoint in many files: its directory or its index, and the files that these alone don't tell.

    All are real paths.
    """
    record = {"data_files": list(files), "path": path}
    return CHECKPOINT + json.dumps(record, separators=(",", ":"), ensure_ascii=False)


@lru_cache(maxsize=256)
def local_paths(source: str) -> tuple[str, ...]:
    """The local files, directories and patterns that a source names; () for data that lies elsewhere."""
    if not is_request(source):
        return (source,)
    try:
        record = json.loads(source.removeprefix(PREFIX).removeprefix(CHECKPOINT))
    except (ValueError, RecursionError):
        return ()
    if not isinstance(record, dict):
        return ()
    texts = (text for place in _PLACES for text in _texts(record.get(place)))
    return tuple(dict.fromkeys(text for text in texts if text.startswith("/")))


def label(source: str) -> str:
    """How people know a source: the path where it is one, a hub's name where it is that."""
    paths = local_paths(source)
    if source.startswith(CHECKPOINT):
        return paths[0] if paths else source
    if len(paths) == 1:
        return paths[0]
    if paths:
        return f"{paths[0]} and {len(paths) - 1} more"
    try:
        record = json.loads(source.removeprefix(PREFIX))
        name, split, revision = record.get("name"), record.get("split"), record.get("revision")
        text = f"hf:{record['path']}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return source
    detail = (name or "") + (f"/{split}" if split else "")
    return text + (f":{detail}" if detail else "") + (f"@{revision}" if revision else "")


def identity(source: str, *, revision: str = "") -> FileIdentity:
    """Of a source that names a request, as it is now.

    It changes with the size, mtime or inode of any local file, or their number.

    For data elsewhere it is fixed by the `revision` that was found there. It is never that of a plain file (dev 0).
    Raises SourceMissing when a file is not there, or a pattern matches none.
    """
    known = hashlib.blake2b(f"{source}\0{revision}".encode("utf-8", "surrogateescape"), digest_size=8)
    size_bytes = mtime_ns = 0
    for path in expand(local_paths(source)):
        status = _stat(path)
        facts = f"{path}\0{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}\n"
        known.update(facts.encode("utf-8", "surrogateescape"))
        size_bytes += status.st_size
        mtime_ns = max(mtime_ns, status.st_mtime_ns)
    return FileIdentity(0, int.from_bytes(known.digest(), "little") & _BITS, size_bytes, mtime_ns, 0)


def expand(paths: Sequence[str]) -> Iterator[str]:
    """The files that these paths mean, directories walked and patterns matched, in a fixed order."""
    for path in paths:
        if os.path.isdir(path):
            yield from _walk(path)
        elif not glob.has_magic(path) or os.path.lexists(path):
            yield path
        else:
            found = sorted(one for one in glob.iglob(path, recursive=True) if os.path.isfile(one))
            if not found:
                raise SourceMissing(f"{path}: no file matches")
            yield from found


def _walk(directory: str) -> Iterator[str]:
    for parent, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        saved = _STATE in names
        for name in sorted(names):
            if name.startswith(".") or (saved and (name.startswith(("cache-", "tmp")) or name.endswith(".lock"))):
                continue
            yield os.path.join(parent, name)


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise SourceMissing(f"{path}: no such file") from exc


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _each(value.values())
    elif isinstance(value, list):
        yield from _each(value)


def _each(values: Iterable[object]) -> Iterator[str]:
    for one in values:
        yield from _texts(one)
