"""A file or a directory that is written under a hidden name beside its place, and takes the place when it is whole.

Killed at any moment, what was there is there under its name, or, where the file system can't exchange two names in one
call, beside it as `.dsmem-….old-NAME`. The hidden thing stays, its lock free: whoever writes next in that directory
removes it, or gives it its name back. The lock is on the thing itself, so that what is being written is never taken for
left; on network file systems, where locks do not hold, nothing is touched.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dsmem import files, proc
from dsmem.errors import OutputExists

_HIDDEN = re.compile(r"\.dsmem-[0-9a-f]{16}\.(?:part|old-(?P<name>.+))", re.DOTALL)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
"""renameat2(2)."""
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
"""What link and rename say of a name that something else took meanwhile."""
_CANNOT_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_log = logging.getLogger(__name__)


@contextmanager
def staged(path: str, *, directory: bool, force: bool) -> Iterator[str]:
    """The hidden place; what is written there takes the path at the end, or goes. Raises OutputExists, OSError."""
    parent = os.path.dirname(path)
    sweep(parent)
    hidden, fd = _made(parent, directory)
    try:
        yield hidden
        for one in [os.path.join(hidden, file) for file in os.listdir(hidden)] if directory else []:
            files.sync(one)
        files.sync(hidden)
        if force and os.path.lexists(path) and (directory or os.path.isdir(path)):
            _replace(hidden, path)
        elif force or directory:
            os.rename(hidden, path)
        else:
            os.link(hidden, path)  # unlike rename it refuses a name that was taken meanwhile
        files.sync(parent)
    except OSError as exc:
        if exc.errno in _TAKEN:
            raise OutputExists(f"{path} exists", path=path) from exc
        raise
    finally:
        _remove(hidden)
        os.close(fd)


def sweep(directory: str) -> None:
    """Remove what killed processes of this user left there half-written; what they had moved aside gets its name back.

    Where the name is taken, by what was to replace it, what was moved aside goes, too.
    """
    if not _can_lock(directory):
        return
    try:
        with os.scandir(directory) as entries:
            found = [(entry.path, match) for entry in entries if (match := _HIDDEN.fullmatch(entry.name))]
    except PermissionError as exc:
        _log.info("not swept: %s", exc)
        return
    for path, match in found:
        try:
            fd = os.open(path, os.O_RDONLY | _FLAGS)
        except OSError as exc:  # a link, another user's, or gone meanwhile
            _log.info("left alone: %s", exc)
            continue
        try:
            status = os.fstat(fd)
            if status.st_uid == os.geteuid() and files.try_lock(fd, exclusive=True) and files.names_inode(path, status):
                _sweep_one(path, None if match["name"] is None else os.path.join(directory, match["name"]))
        finally:
            os.close(fd)


def _sweep_one(path: str, before: str | None) -> None:
    """`before`: the name that it had, if it was whole."""
    if before is not None and not os.path.lexists(before):
        _log.warning("%s is there again: a killed process was about to replace it", before)
        os.rename(path, before)
    else:
        _log.info("removing %s, which a killed process left", path)
        _remove(path)


def _made(parent: str, directory: bool) -> tuple[str, int]:
    """A new, locked, empty place, and the descriptor that holds the lock."""
    while True:
        path = os.path.join(parent, f".dsmem-{secrets.token_hex(8)}.part")
        try:
            if directory:
                os.mkdir(path)
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
            else:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)
        except FileNotFoundError:
            if not os.path.isdir(parent):
                raise
            continue  # a sweep took it for one that was left, before it was locked
        if not _can_lock(parent):
            return path, fd  # nobody sweeps there
        if files.try_lock(fd, exclusive=True) and files.names_inode(path, os.fstat(fd)):
            return path, fd
        os.close(fd)


def _can_lock(directory: str) -> bool:
    """NFS keeps locks of directories to one machine, CIFS keeps the writer itself out."""
    return not proc.is_network_fs(proc.mount_of(directory or ".").fstype)


def _replace(hidden: str, path: str) -> None:
    """A directory can't be replaced by rename(2): the two change places, and what was there goes with the hidden name.

    Where the file system can't do that in one call, what was there steps aside first; killed before the other has the
    name, the next sweep gives it back.
    """
    if _exchange(hidden, path):
        return
    aside = f"{hidden.removesuffix('.part')}.old-{os.path.basename(path)}"
    with _locked(path):
        os.rename(path, aside)
        try:
            os.rename(hidden, path)
        except BaseException:
            os.rename(aside, path)
            raise
        os.rename(aside, hidden)  # from here on it is half-written, as it is to go


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Keeps sweeps away from it, also under other names."""
    try:
        fd = os.open(path, os.O_RDONLY | _FLAGS)
    except OSError as exc:  # a link, or one that may not be read: a sweep can't open it either
        _log.info("not locked: %s", exc)
        yield
        return
    try:
        if _can_lock(os.path.dirname(path)):
            files.try_lock(fd, exclusive=True)
        yield
    finally:
        os.close(fd)


def _exchange(one: str, other: str) -> bool:
    """Whether the two names changed places; False where that can't be done. Raises OSError."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:  # a libc without it
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    error = ctypes.get_errno()
    if error in _CANNOT_EXCHANGE:
        return False
    raise OSError(error, os.strerror(error), other)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)
