"""The store's root directory: where it lies, and that it is ours alone.

`objects/` holds immutable objects, `refs/` small JSON files that lead to them, `locks/` the locks of those who load.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

from dsmem import files, proc, settings
from dsmem.errors import UnsafeRoot
from dsmem.proc import Mount

SHARED_MEMORY = "/dev/shm"
_PAUSE_S = 0.001
_STAYS = (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS)
"""Why a directory can't be removed: something is in it, it is a mount point, or the one above it is not ours."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Store:
    """Paths of one store; that the root is ours was checked when this was made."""

    root: str
    mount: Mount | None = field(default=None, compare=False, repr=False)
    """The mount that it lies on, where that is known already: see `file_system`."""

    def file_system(self) -> Mount:
        """The mount that the store lies on."""
        return self.mount if self.mount is not None else proc.mount_of(self.root)

    @property
    def objects(self) -> str:
        """Directory of objects."""
        return f"{self.root}/objects"

    @property
    def refs(self) -> str:
        """Directory of refs."""
        return f"{self.root}/refs"

    @property
    def locks(self) -> str:
        """Directory of loaders' locks."""
        return f"{self.root}/locks"

    def object_path(self, name: str) -> str:
        """Where an object of that name lies."""
        return f"{self.objects}/{name}"


def open_store(root: str | None = None) -> Store | None:
    """The store if it is there, None if nothing has made it yet; raises UnsafeRoot for one that isn't ours alone."""
    path = root if root is not None else default_root()
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as exc:
        raise UnsafeRoot(f"the store's root {path} can't be reached: {exc.strerror}", root=path) from exc
    _check(path, status)
    return Store(path)


def make_store(root: str | None = None, *, mount: Mount | None = None) -> Store:
    """The store, made (mode 0700) if it is not there; raises UnsafeRoot, for a network file system too.

    `mount` is where it lies, for those who know.
    """
    path = root if root is not None else default_root()
    while True:
        _make_root(path)
        try:
            return _completed(path, mount)
        except FileNotFoundError as exc:
            if not (exc.filename == path or str(exc.filename).startswith(f"{path}/")):
                raise
            _log.debug("%s: the empty store was removed while it was made; once more", exc.filename)


def _make_root(path: str) -> None:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.mkdir(path, 0o700)
    except OSError as exc:
        if exc.errno == errno.EEXIST and exc.filename == path:
            return
        if exc.errno == errno.ENOSPC:
            raise
        raise UnsafeRoot(f"the store's root {path} can't be made: {exc.strerror}", root=path) from exc


def _completed(path: str, mount: Mount | None) -> Store:
    _check(path, os.lstat(path))
    mount = mount if mount is not None else proc.mount_of(path)
    if proc.is_network_fs(mount.fstype):
        raise UnsafeRoot(
            f"{path} is on {mount.fstype}, where locks do not hold; the store needs a local disk", root=path
        )
    store = Store(path, mount)
    for directory in (store.objects, store.refs, store.locks):
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError as exc:
            if not stat.S_ISDIR(os.lstat(directory).st_mode):
                raise UnsafeRoot(f"{directory} in the store is not a directory", root=path) from exc
    return store


@contextmanager
def occupied(store: Store) -> Iterator[None]:
    """The store's directories are there, and `remove_empty` leaves them, while something is put into them."""
    fd = occupy(store)
    try:
        yield
    finally:
        os.close(fd)


def occupy(store: Store) -> int:
    """The same until the descriptor is closed."""
    while True:
        make_store(store.root, mount=store.mount)
        fd = _open_root(store)
        if fd is None:
            continue
        if files.try_lock(fd, exclusive=False) and files.names_inode(store.root, os.fstat(fd)):
            make_store(store.root, mount=store.mount)
            return fd
        os.close(fd)
        time.sleep(_PAUSE_S)


def remove_empty(store: Store) -> bool:
    """Remove the store's directories where nothing is in them; False when something stays.

    Whoever puts something in keeps them (`occupied`); whoever only makes them (`make_store`) makes them anew.
    """
    fd = _open_root(store)
    if fd is None:
        return True
    try:
        if not files.try_lock(fd, exclusive=True) or not files.names_inode(store.root, os.fstat(fd)):
            return False
        for directory in (store.objects, store.locks, store.refs, store.root):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                continue
            except OSError as exc:
                if exc.errno not in _STAYS:
                    raise
                _log.debug("%s stays: %s", directory, exc.strerror)
                return False
    finally:
        os.close(fd)
    return True


def _open_root(store: Store) -> int | None:
    try:
        return os.open(store.root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def default_root() -> str:
    """DSMEM_ROOT, else /dev/shm/dsmem-<uid>, else (no usable /dev/shm) a cache directory, with a warning."""
    configured = settings.read().root
    if configured is not None:
        return os.path.abspath(configured)
    path = f"{SHARED_MEMORY}/dsmem-{os.geteuid()}"
    if os.path.isdir(path) or os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        return path
    fallback = str(settings.cache_directory() / "store")
    _warn_once(fallback)
    return fallback


@cache
def _warn_once(fallback: str) -> None:
    _log.warning("%s is missing or read-only: the store lies in %s, on a disk", SHARED_MEMORY, fallback)


def _check(path: str, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise UnsafeRoot(f"the store's root {path} is a symlink", root=path)
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafeRoot(f"the store's root {path} is not a directory", root=path)
    if status.st_uid != os.geteuid():
        raise UnsafeRoot(f"the store's root {path} belongs to uid {status.st_uid}, not to {os.geteuid()}", root=path)
    if status.st_mode & 0o022:
        raise UnsafeRoot(
            f"the store's root {path} can be written by others (mode {status.st_mode & 0o777:o})", root=path
        )
