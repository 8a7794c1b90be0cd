"""Objects: what lies in the store, what each was made from, whether two are the same, and how one is removed."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from dsmem import files, proc
from dsmem.arrays import header
from dsmem.arrays.header import Header
from dsmem.arrays.longheader import LongHeader
from dsmem.errors import DamagedObject, DsmemError, InUse, NotPinned
from dsmem.proc import Holder, Holders
from dsmem.store import directories, leases, names, refs
from dsmem.store.refs import Provenance
from dsmem.store.root import Store

PROVENANCE_KEY = "dsmem.provenance"
KIND_KEY = "dsmem.kind"
"""In `__metadata__`, of files that are not 'arrays'."""
TRASH_PREFIX = ".trash-"
MODE = 0o400
"""Of a published object."""
_SAYS = (PROVENANCE_KEY, header.DATA_BYTES_KEY, KIND_KEY)
_LONG_BYTES = 1 << 20
"""Of a header: one that is shorter is parsed as a whole."""
_COMPARE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Object:
    """One entry of the store; `damaged` says why it is none that can be attached."""

    name: str
    size_bytes: int
    dev: int
    ino: int
    """Of the file, or of a directory's anchor."""
    made_s: float
    """Seconds since 1970."""
    provenance: Provenance | None
    damaged: str | None = None
    kept: bool = False
    """Never evicted, and cleaned only when it is named."""
    kind: str = "arrays"
    """'arrays' and 'checkpoint' are files, 'dataset' is a directory."""
    inodes: frozenset[tuple[int, int]] = frozenset()
    """The files (dev, ino) that only a process which holds this object maps or locks."""


@dataclass(frozen=True, slots=True)
class Held:
    """Who holds which object, as far as /proc shows."""

    by_name: dict[str, tuple[Holder, ...]]
    """Every object that was asked for."""
    complete: bool
    """Every process of this user could be read."""


def holders(found: Collection[Object]) -> Held:
    """Who maps or locks each of them, or any file of a directory that no other shares; this process included."""
    seen = proc.holders({inode for one in found for inode in one.inodes})
    return Held({one.name: _merged(seen, one.inodes) for one in found}, seen.complete)


def _merged(seen: Holders, inodes: Collection[tuple[int, int]]) -> tuple[Holder, ...]:
    by_pid = {holder.pid: holder for inode in inodes for holder in seen.by_file[inode]}
    return tuple(by_pid[pid] for pid in sorted(by_pid))


def listed(store: Store) -> set[str]:
    """The name of every entry of the store that is not hidden, whatever it is."""
    try:
        with os.scandir(store.objects) as entries:
            return {entry.name for entry in entries if not entry.name.startswith(".")}
    except FileNotFoundError:
        return set()


def scan(store: Store, wanted: Collection[str] | None = None) -> Iterator[Object]:
    """Every entry that is not hidden, by name, the damaged ones too; or those wanted, if they are there."""
    for name in sorted(listed(store) if wanted is None else wanted):
        try:
            status = os.lstat(store.object_path(name))
        except FileNotFoundError:
            continue
        try:
            found = _inspect(store, name, status)
        except NotPinned:  # removed meanwhile
            continue
        yield found


def _inspect(store: Store, name: str, status: os.stat_result) -> Object:
    if stat.S_ISDIR(status.st_mode):
        return _inspect_directory(store, name, status)
    found = replace(_bare(name, status, status.st_blocks * 512), kept=is_kept(status))
    if names.split(name) is None:
        return replace(found, damaged="not a name that dsmem gives")
    try:
        metadata, data_bytes = _said_of(store, name)
        provenance = Provenance.load(metadata[PROVENANCE_KEY])
    except KeyError:
        return replace(found, damaged="it does not say what it was made from")
    except NotPinned:
        raise
    except (DsmemError, ValueError) as exc:
        return replace(found, damaged=str(exc))
    if metadata.get(header.DATA_BYTES_KEY) != str(data_bytes):
        return replace(found, damaged="its size is not the one it was published with")
    kind = metadata.get(KIND_KEY, found.kind)
    return replace(found, size_bytes=status.st_size, provenance=provenance, kind=kind)


def _said_of(store: Store, name: str) -> tuple[Mapping[str, str], int]:
    """What an object says of itself, and the bytes of its tensors, whose entries are JSON; a long one is not kept."""
    fd = leases.open_object(store.object_path(name), name)
    try:
        found = _long(fd)
        if found is None:
            parsed = header_of(fd, name)
            return parsed.metadata, parsed.data_bytes
        return {key: found.text(key) for key in _SAYS if key in found.places}, found.data_bytes
    finally:
        os.close(fd)


def _long(fd: int) -> LongHeader | None:
    """A long header, looked at as a whole; None where it is short, or not as dsmem writes it."""
    if int.from_bytes(os.pread(fd, 8, 0), "little") <= _LONG_BYTES:
        return None
    try:
        found = LongHeader(fd)
        for _ in found.entries():
            pass
        found.end()
    except (DamagedObject, ValueError, RecursionError):
        return None
    return found


def _bare(name: str, status: os.stat_result, size_bytes: int) -> Object:
    inode = (status.st_dev, status.st_ino)
    return Object(name, size_bytes, *inode, status.st_mtime, None, inodes=frozenset({inode}))


def _inspect_directory(store: Store, name: str, status: os.stat_result) -> Object:
    path = store.object_path(name)
    found = replace(_bare(name, status, status.st_blocks * 512), kind="dataset")
    if names.split(name) is None:
        return replace(found, damaged="not a name that dsmem gives")
    try:
        contents = directories.contents(path)
        found = replace(
            _bare(name, contents.anchor, contents.size_bytes),
            kept=is_kept(contents.anchor),
            kind="dataset",
            inodes=contents.inodes,
        )
        anchor = directories.read_anchor(path)
        directories.check(path, anchor)
    except DamagedObject as exc:
        if not files.names_inode(path, status):
            raise NotPinned(f"{name} was removed while it was looked at", target=name) from exc
        return replace(found, damaged=str(exc))
    return replace(found, kind=anchor.kind, provenance=anchor.provenance)


def read_header(store: Store, name: str) -> Header:
    """The header of an object, checked against its size; raises NotPinned or DamagedObject."""
    fd = leases.open_object(store.object_path(name), name)
    try:
        return header_of(fd, name)
    finally:
        os.close(fd)


def header_of(fd: int, name: str) -> Header:
    """The header of an open object."""
    size = os.fstat(fd).st_size
    start = os.pread(fd, 8, 0)
    length = min(int.from_bytes(start, "little"), header.MAX_HEADER_BYTES, size)
    try:
        return header.parse(memoryview(os.pread(fd, 8 + length, 0)), size)
    except DamagedObject as exc:
        raise DamagedObject(f"{name}: {exc}", name=name) from exc


def with_key(store: Store, key: str) -> list[str]:
    """Names of the objects with that key, whatever their stem."""
    with os.scandir(store.objects) as entries:
        return sorted(entry.name for entry in entries if (names.split(entry.name) or ("", ""))[1] == key)


def same(fd: int, other: int) -> bool:
    """Whether two sealed objects hold the same, byte by byte, whatever they were made from."""
    try:
        starts = _same_words(fd, other) or _same_meaning(fd, other)
    except DamagedObject:
        return False
    if starts is None:
        return False
    data_bytes = os.fstat(fd).st_size - starts[0]
    return all(
        os.pread(fd, _COMPARE_BYTES, starts[0] + offset) == os.pread(other, _COMPARE_BYTES, starts[1] + offset)
        for offset in range(0, data_bytes, _COMPARE_BYTES)
    )


def _same_words(fd: int, other: int) -> tuple[int, int] | None:
    """Where the tensors of two objects begin whose headers are the same text, but for what they were made from."""
    try:
        one, two = LongHeader(fd), LongHeader(other)
    except (ValueError, RecursionError):
        return None
    if one.data_bytes != two.data_bytes or not one.is_written_as(two, but=PROVENANCE_KEY):
        return None
    return one.data_start, two.data_start


def _same_meaning(fd: int, other: int) -> tuple[int, int] | None:
    """The same of headers that say the same, as other versions write it; each is taken into memory for it."""
    one, two = header_of(fd, "the new object"), header_of(other, "the old object")
    if one.data_bytes != two.data_bytes or _without_provenance(one) != _without_provenance(two):
        return None
    return one.data_start, two.data_start


def is_same(store: Store, fd: int, name: str) -> bool:
    """Whether the object of that name is there and holds what the sealed object `fd` holds."""
    try:
        other = leases.open_object(store.object_path(name), name)
    except (NotPinned, DamagedObject):
        return False
    try:
        return same(fd, other)
    finally:
        os.close(other)


def _without_provenance(parsed: Header) -> tuple[dict[str, object], dict[str, str]]:
    tensors = {name: entry for name, entry in parsed.raw.items() if name != "__metadata__"}
    return tensors, {key: value for key, value in parsed.metadata.items() if key != PROVENANCE_KEY}


def is_kept(status: os.stat_result) -> bool:
    """Whether an object is marked to be kept: the sticky bit, which means nothing else on a file in Linux."""
    return bool(status.st_mode & stat.S_ISVTX)


def keep(store: Store, name: str, *, kept: bool) -> None:
    """Mark an object to be kept, or no longer; raises NotPinned or DamagedObject."""
    fd = leases.open_object(store.object_path(name), name)
    try:
        os.fchmod(fd, MODE | stat.S_ISVTX if kept else MODE)
    finally:
        os.close(fd)


def remove(store: Store, name: str, *, force: bool = False, spare_kept: bool = False) -> bool:
    """Remove an object and the refs to it; False when it is gone already, or kept and to be spared.

    Raises InUse when someone holds a lease; with `force` the name goes all the same, the memory with the last holder.
    """
    path = store.object_path(name)
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    is_directory = stat.S_ISDIR(status.st_mode)
    lock_path = f"{path}/{directories.ANCHOR}" if is_directory else path
    if not _is_file(lock_path):  # nothing that can be leased
        if not _take_away(path, status):
            return False
        refs.drop_to(store, {name})
        return True
    try:
        fd = os.open(lock_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not files.try_lock(fd, exclusive=True) and not force:
            raise InUse(f"{name} is in use", names=[name])
        if not files.names_inode(lock_path, os.fstat(fd)) or (spare_kept and is_kept(os.fstat(fd))):
            return False
        if is_directory and not force:
            _check_unmapped(path, name)
        # The refs first: once the name is free, whoever pins the same again writes a ref that must stay.
        refs.drop_to(store, {name})
        return _take_away(path, status)
    except NotPinned:  # another process has removed it by force
        return False
    finally:
        os.close(fd)


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _check_unmapped(path: str, name: str) -> None:
    """Raise InUse when a process maps a data file: what was derived from a table and sent to it holds no lease."""
    contents = directories.contents(path)
    anchor = (contents.anchor.st_dev, contents.anchor.st_ino)
    seen = proc.holders(contents.inodes - {anchor})
    pids = sorted({holder.pid for found in seen.by_file.values() for holder in found})
    if pids:
        raise InUse(f"{name} is in use by {', '.join(map(str, pids))}", names=[name], pids=pids)


def _take_away(path: str, status: os.stat_result) -> bool:
    """The name goes at once, a directory's files after it; False when another process was faster."""
    if not stat.S_ISDIR(status.st_mode):
        return files.unlink_if_there(path)
    parent, _, name = path.rpartition("/")
    trash = f"{parent}/{TRASH_PREFIX}{name}-{status.st_ino:x}"
    try:
        os.rename(path, trash)
    except FileNotFoundError:
        return False
    with suppress(OSError):  # a sweep of another process may be at it; what stays, the next one takes
        directories.delete(trash)
    return True


def find(store: Store, name: str) -> str:
    """The object that a user's name means: a full name, a name given with --name, or a stem that only one can be.

    Raises NotPinned, or Ambiguous with all that it could be (`dsmem.errors`).
    """
    from dsmem.errors import Ambiguous

    if "/" not in name and names.split(name) is not None and os.path.exists(store.object_path(name)):
        return name
    given = refs.find_name(store, name)
    if given is not None and os.path.exists(store.object_path(given.object)):
        return given.object
    candidates = [found.name for found in scan(store) if (names.split(found.name) or ("",))[0] == name]
    if len(candidates) > 1:
        current = {ref.object for ref in refs.all_refs(store)}
        candidates = [one for one in candidates if one in current] or candidates
    if len(candidates) > 1:
        listed = ", ".join(candidates)
        raise Ambiguous(f"{name!r} could be any of: {listed}", candidates=candidates)
    if not candidates:
        raise NotPinned(f"nothing called {name!r} is in the store", target=name)
    return candidates[0]
