"""A file or a directory that is written under a hidden name beside its place, and takes the place when it is whole.

Killed at any moment, what was there is there under its name, or, where the file system can't exchange two names in one
call, in `.dsmem-….old` beside it. What may be replaced is asked of what stands there at that moment. Hidden things
stay, their locks free: whoever writes next in that directory removes them, or gives what had stepped aside its name
back; where something else has that name by then, both are kept. The lock is on the hidden thing itself, so that what
is being written is never taken for left; on network file systems, where locks do not hold, nothing is touched.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from dsmem import files, proc
from dsmem.errors import OutputExists

_PART, _OLD, _KEPT = ".part", ".old", ".kept"
_HIDDEN = re.compile(r"\.dsmem-[0-9a-f]{16}\.(?:part|old)")
_AT_FDCWD = -100
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
"""renameat2(2)."""
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)
"""What rename says of a name that something else took meanwhile."""
_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_log = logging.getLogger(__name__)


@contextmanager
def staged(path: str, *, directory: bool, replaces: Callable[[str], bool] | None) -> Iterator[str]:
    """The hidden place; what is written there takes the path at the end, or goes. Raises OutputExists, OSError.

    replaces: whether what is at a path, under its own name or a hidden one, may go; None: nothing may.
    """
    parent = os.path.dirname(path)
    sweep(parent)
    hidden, fd = _made(parent, directory)
    try:
        yield hidden
        for one in [os.path.join(hidden, file) for file in os.listdir(hidden)] if directory else []:
            files.sync(one)
        files.sync(hidden)
        _publish(hidden, path, directory=directory, replaces=replaces)
        files.sync(parent)
    finally:
        try:
            # As long as something waits aside it tells the next sweep to give that its name back.
            if files.names_inode(hidden, os.fstat(fd)) and not os.path.lexists(_aside(hidden)):
                _remove(hidden)
        finally:
            os.close(fd)


def sweep(directory: str) -> None:
    """Remove what killed processes of this user left there half-written; what had stepped aside gets its name back."""
    if not _can_lock(directory):
        return
    try:
        with os.scandir(directory) as entries:
            found = sorted(entry.path for entry in entries if _HIDDEN.fullmatch(entry.name))
    except PermissionError as exc:
        _log.info("not swept: %s", exc)
        return
    for path in found:  # what stepped aside comes before what was to replace it
        try:
            fd = os.open(path, os.O_RDONLY | _FLAGS)
        except OSError as exc:  # a link, another user's, or gone meanwhile
            _log.info("left alone: %s", exc)
            continue
        try:
            status = os.fstat(fd)
            if status.st_uid == os.geteuid() and files.try_lock(fd, exclusive=True) and files.names_inode(path, status):
                _sweep_one(path)
        finally:
            os.close(fd)


def _sweep_one(path: str) -> None:
    """With its lock: no other sweep is at it. As long as something waits aside, what was to replace it stays, too."""
    hidden, aside = (path.removesuffix(_PART).removesuffix(_OLD) + suffix for suffix in (_PART, _OLD))
    if path == aside and os.path.lexists(hidden):
        try:
            _give_back(aside, directory=os.path.dirname(path))
        except OSError as exc:
            _log.warning("left alone: %s", exc)
    elif path == aside or not os.path.lexists(aside):
        _log.info("removing %s, which a killed process left", path)
        _remove(path)


def _made(parent: str, directory: bool) -> tuple[str, int]:
    """A new, locked, empty place, and the descriptor that holds the lock."""
    while True:
        path = os.path.join(parent, f".dsmem-{secrets.token_hex(8)}{_PART}")
        fd = _locked(path, parent, directory)
        if fd is not None:
            return path, fd


def _locked(path: str, parent: str, directory: bool) -> int | None:
    """Make it; the descriptor that holds its lock. None where a sweep took it for one that was left, before that."""
    try:
        if directory:
            os.mkdir(path)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
        else:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)
    except FileNotFoundError:
        if not os.path.isdir(parent):
            raise
        return None
    # Where locks do not hold nobody sweeps.
    if not _can_lock(parent) or (files.try_lock(fd, exclusive=True) and files.names_inode(path, os.fstat(fd))):
        return fd
    os.close(fd)
    return None


def _can_lock(directory: str) -> bool:
    """NFS keeps locks of directories to one machine, CIFS keeps the writer itself out."""
    return not proc.is_network_fs(proc.mount_of(directory or ".").fstype)


def _publish(hidden: str, path: str, *, directory: bool, replaces: Callable[[str], bool] | None) -> None:
    """Raises OutputExists where something else has, or took, the name."""
    try:
        if replaces and os.path.lexists(path) and (directory or os.path.isdir(path)):
            _replace(hidden, path, replaces)
        elif replaces and not directory:
            os.rename(hidden, path)
        else:
            _rename_to_free(hidden, path)
    except OSError as exc:
        if exc.errno in _TAKEN:
            raise OutputExists(f"{path} exists", path=path) from exc
        raise


def _replace(hidden: str, path: str, replaces: Callable[[str], bool]) -> None:
    """A directory can't be replaced by rename(2): the two change places, and what was there goes with the hidden name.

    Where the file system can't do that in one call, what was there steps aside first; killed before the other has the
    name, the next sweep gives it back. What may not go is seen before, and what came at the last moment after that.
    """
    _check(path, path, replaces)
    if _rename2(hidden, path, _RENAME_EXCHANGE):
        try:
            _check(hidden, path, replaces)
        except BaseException:
            _exchange_back(hidden, path)
            raise
        files.sync(os.path.dirname(path))
        _remove(hidden)
        return
    aside, parent = _aside(hidden), os.path.dirname(path)
    while (fd := _locked(aside, parent, directory=True)) is None:
        continue
    try:
        before = os.path.join(aside, os.path.basename(path))
        os.rename(path, before)
        _check(before, path, replaces)
        _rename_to_free(hidden, path)
    finally:
        try:
            if os.path.lexists(hidden):
                _give_back(aside, directory=parent)
            else:
                _remove(aside)
        finally:
            os.close(fd)


def _check(there: str, path: str, replaces: Callable[[str], bool]) -> None:
    if not replaces(there):
        raise OutputExists(f"{path} was taken meanwhile, by what is not replaced", path=path)


def _exchange_back(hidden: str, path: str) -> None:
    """What was there gets its name back, or, where that fails, one that no sweep touches."""
    try:
        _rename2(hidden, path, _RENAME_EXCHANGE)
    except OSError as exc:
        kept = _kept(hidden)
        _rename_to_free(hidden, kept)
        _log.warning("%s: what was there before is %s", exc, kept)


def _kept(hidden: str) -> str:
    """A name beside it that no sweep touches."""
    parent, name = os.path.split(hidden)
    return os.path.join(parent, name.removeprefix(".").removesuffix(_PART).removesuffix(_OLD) + _KEPT)


def _aside(hidden: str) -> str:
    """Where what is replaced waits, beside what replaces it."""
    return hidden.removesuffix(_PART) + _OLD


def _give_back(aside: str, *, directory: str) -> None:
    """What stepped aside gets its name back; where that is taken it is kept under one that no sweep touches."""
    try:
        for name in os.listdir(aside):
            before = os.path.join(directory, name)
            _rename_to_free(os.path.join(aside, name), before)
            _log.warning("%s is there again: it was about to be replaced", before)
        os.rmdir(aside)
    except FileExistsError as exc:
        kept = _kept(aside)
        os.rename(aside, kept)
        _log.warning("%s: what was there before is in %s", exc, kept)


def _rename_to_free(path: str, to: str) -> None:
    """Rename it to a name that nothing has; raises FileExistsError where something does.

    Where the file system can't promise that in one call, an empty directory that comes at that moment is replaced.
    """
    if _rename2(path, to, _RENAME_NOREPLACE):
        return
    if os.path.islink(path) or not os.path.isdir(path):
        os.link(path, to, follow_symlinks=False)
        os.unlink(path)
        return
    taken = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), to)
    if os.path.lexists(to):
        raise taken
    try:
        os.rename(path, to)
    except OSError as exc:
        if exc.errno in _TAKEN:
            raise taken from exc
        raise


def _rename2(path: str, to: str, how: int) -> bool:
    """renameat2(2), if that can be done; False where it can't. Raises OSError."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:  # a libc without it
        return False
    if renameat2(_AT_FDCWD, os.fsencode(path), _AT_FDCWD, os.fsencode(to), how) == 0:
        return True
    error = ctypes.get_errno()
    if error in _CANNOT:
        return False
    raise OSError(error, os.strerror(error), to)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)
