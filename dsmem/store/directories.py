"""Objects that are directories: what lies in one, and that it is whole.

`anchor`, a small JSON file, says what the others are; leases are locks on it. It is never hard-linked, while a data
file may belong to several generations. Directories are 0500, files 0400; a name in `objects/` leads to a whole one.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dsmem import files
from dsmem.errors import DamagedObject, NotPinned, UnsafeRoot
from dsmem.store.refs import Provenance

ANCHOR = "anchor"
MODE, FILE_MODE = 0o500, 0o400
VERSION = 1
_LIMIT_BYTES = 16 << 20
_COMPARE_BYTES = 1 << 20
_BLOCK_BYTES = 512
"""The unit of st_blocks, stat(2)."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """What an object that is a directory says of itself."""

    provenance: Provenance
    kind: str
    """'dataset'."""
    sizes: Mapping[str, int]
    """Relative path → bytes, of every file but the anchor."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """Of those who made it; JSON, never read by the store."""

    def dump(self) -> bytes:
        """As JSON."""
        record = {"version": VERSION, "kind": self.kind, "sizes": dict(self.sizes), "facts": dict(self.facts)}
        return json.dumps({**record, "provenance": self.provenance.dump()}).encode()

    @classmethod
    def load(cls, data: bytes) -> Anchor:
        """The inverse of `dump`; raises ValueError."""
        try:
            record = json.loads(data)
            if record["version"] != VERSION:
                raise ValueError(f"its layout is version {record['version']}")
            kind, sizes, facts = record["kind"], record["sizes"], record["facts"]
            provenance = Provenance.load(record["provenance"])
        except (KeyError, TypeError, RecursionError, UnicodeDecodeError) as exc:
            raise ValueError("its anchor is not the one of an object") from exc
        if not isinstance(kind, str) or not isinstance(sizes, dict) or not isinstance(facts, dict):
            raise ValueError("its anchor is not the one of an object")
        for path, size in sizes.items():
            if type(size) is not int or path.startswith("/") or ".." in path.split("/") or not path:
                raise ValueError(f"its anchor names a file it can't have: {path!r}")
        return cls(provenance, kind, sizes, facts)


@dataclass(frozen=True, slots=True)
class Contents:
    """The files of one directory, by stat alone."""

    anchor: os.stat_result
    data: tuple[os.stat_result, ...]

    @property
    def size_bytes(self) -> int:
        """Of all files; one that several generations share counts in each."""
        return self.anchor.st_size + sum(one.st_size for one in self.data)

    @property
    def share_bytes(self) -> int:
        """The same, but a shared file's bytes are divided among those that share it."""
        return self.anchor.st_size + sum(one.st_size // max(one.st_nlink, 1) for one in self.data)

    @property
    def own_bytes(self) -> int:
        """Memory that comes back when this object alone is removed."""
        return sum(one.st_blocks * _BLOCK_BYTES for one in (self.anchor, *self.data) if one.st_nlink == 1)

    @property
    def inodes(self) -> frozenset[tuple[int, int]]:
        """Files (dev, ino) by which a process is seen to hold this object: not those that another one shares."""
        return frozenset((one.st_dev, one.st_ino) for one in (self.anchor, *self.data) if one.st_nlink == 1)


def contents(path: str) -> Contents:
    """What lies in a directory; raises DamagedObject without an anchor, NotPinned when it goes meanwhile."""
    name = os.path.basename(path)
    anchor, data = None, []
    try:
        before = os.lstat(path)
        for relative, status in _walk(path):
            if relative == ANCHOR:
                anchor = status
            else:
                data.append(status)
    except FileNotFoundError as exc:
        raise NotPinned(f"{name} is not in the store", target=name) from exc
    except OSError as exc:
        raise DamagedObject(f"{name} in the store can't be read: {exc.strerror}", name=name) from exc
    if anchor is None and not files.names_inode(path, before):
        raise NotPinned(f"{name} was removed from the store", target=name)
    if anchor is None or not stat.S_ISREG(anchor.st_mode) or anchor.st_uid != os.geteuid():
        raise DamagedObject(f"{name} in the store is a directory without an anchor", name=name)
    return Contents(anchor, tuple(data))


def read_anchor(path: str) -> Anchor:
    """What an object says of itself; raises NotPinned or DamagedObject."""
    name = os.path.basename(path)
    try:
        return Anchor.load(files.read_own(f"{path}/{ANCHOR}", _LIMIT_BYTES))
    except FileNotFoundError as exc:
        if os.path.isdir(path) and not os.path.lexists(f"{path}/{ANCHOR}"):
            raise DamagedObject(f"{name} in the store is a directory without an anchor", name=name) from exc
        raise NotPinned(f"{name} is not in the store", target=name) from exc
    except (ValueError, UnsafeRoot, OSError) as exc:
        raise DamagedObject(f"{name} in the store is damaged: {exc}", name=name) from exc


def check(path: str, anchor: Anchor) -> None:
    """Raise DamagedObject unless every file has the size it was published with: a map of a shorter one would crash."""
    name = os.path.basename(path)
    for relative, size in anchor.sizes.items():
        try:
            status = os.stat(f"{path}/{relative}", follow_symlinks=False)
        except OSError as exc:
            raise DamagedObject(f"{name} in the store lacks {relative}: {exc.strerror}", name=name) from exc
        if not stat.S_ISREG(status.st_mode) or status.st_size != size or status.st_uid != os.geteuid():
            raise DamagedObject(f"{relative} of {name} in the store is not as it was published", name=name)


def same(path: str, other: str) -> bool:
    """Whether two directories hold the same files, byte by byte, but for what they were made from."""
    try:
        one, two = read_anchor(path), read_anchor(other)
        if (one.kind, one.sizes) != (two.kind, two.sizes):
            return False
        return all(_same_file(f"{path}/{relative}", f"{other}/{relative}") for relative in one.sizes)
    except (DamagedObject, NotPinned, FileNotFoundError):
        return False


def _same_file(path: str, other: str) -> bool:
    with Path(path).open("rb") as one, Path(other).open("rb") as two:
        if os.path.sameopenfile(one.fileno(), two.fileno()):
            return True
        while True:
            data = one.read(_COMPARE_BYTES)
            if data != two.read(_COMPARE_BYTES):
                return False
            if not data:
                return True


def file_sizes(path: str) -> dict[str, int]:
    """Relative path → bytes of all below a directory but the anchor, in order."""
    return {relative: status.st_size for relative, status in _walk(path) if relative != ANCHOR}


def seal(path: str) -> None:
    """Make all below read-only."""
    for parent, _, names in os.walk(path, topdown=False):
        for name in names:
            os.chmod(os.path.join(parent, name), FILE_MODE)
        os.chmod(parent, MODE)


def delete(path: str) -> None:
    """Delete a directory that nobody has by name any more; another process may be at it, too."""
    for parent, _, _ in os.walk(path):
        with suppress(FileNotFoundError):
            os.chmod(parent, 0o700)
    for parent, directories, names in os.walk(path, topdown=False):
        for name in names:
            files.unlink_if_there(os.path.join(parent, name))
        for name in directories:
            _rmdir(os.path.join(parent, name))
    _rmdir(path)


def _rmdir(path: str) -> None:
    """What is a link is no directory to walk into."""
    with suppress(FileNotFoundError):
        if os.path.islink(path):
            os.unlink(path)
        else:
            os.rmdir(path)


def _walk(path: str, below: str = "") -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(path) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, f"{below}{entry.name}/")
        else:
            yield f"{below}{entry.name}", entry.stat(follow_symlinks=False)
