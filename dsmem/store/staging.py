"""A directory object while it is filled: under a hidden name in `objects/`, locked, and renamed when it is whole.

Killed at any moment, a hidden directory stays whose lock is free; `sweep` deletes it. Its lock is on the directory
itself: there is no moment at which it is there, ours, and can't be told from an abandoned one.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Mapping
from types import TracebackType

from dsmem import files
from dsmem.errors import NoSpace
from dsmem.store import budget, directories, space
from dsmem.store.budget import NOTHING, Evicted
from dsmem.store.directories import ANCHOR, Anchor
from dsmem.store.draft import HIDDEN_PREFIX
from dsmem.store.refs import Provenance
from dsmem.store.root import Store

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
"""What rename(2) says when something has the name already."""


class DirectoryDraft:
    """A hidden directory (`path`) of the store that becomes an object, or goes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._in_memory = store.file_system().fstype in ("tmpfs", "ramfs")
        self._claim: budget.Claim | None = None
        self._anchor_fd = -1
        self.published = False
        with space.translated(store):
            self.path, self._fd = self._made()
            try:
                flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
                self._anchor_fd = os.open(f"{self.path}/{ANCHOR}", flags, 0o600)
            except BaseException:
                self.close()
                raise

    def _made(self) -> tuple[str, int]:
        while True:
            path = f"{self._store.objects}/{HIDDEN_PREFIX}{secrets.token_hex(8)}"
            os.mkdir(path, 0o700)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:  # a sweep took it for an abandoned one, before it was locked
                continue
            if files.try_lock(fd, exclusive=True) and files.names_inode(path, os.fstat(fd)):
                return path, fd
            os.close(fd)

    def make_room(self, need_bytes: int, budget_bytes: int | None) -> None:
        """See that so many bytes more will fit, under a budget by evicting others (`evicted`); raises NoSpace."""
        written = sum(directories.file_sizes(self.path).values())
        if budget_bytes is None:
            space.require(self._store, max(need_bytes - written, 0))
            return
        if self._claim is None:
            self._claim = budget.Claim(self._store, self._anchor_fd, budget_bytes)
        self._claim.take(need_bytes, max(need_bytes - written, 0) + space.BOOKKEEPING_BYTES)

    @property
    def evicted(self) -> Evicted:
        """What had to go for it."""
        return self._claim.evicted if self._claim is not None else NOTHING

    def translated(self, exc: OSError, need_bytes: int = 0) -> OSError:
        """NoSpace for the errors that mean so, others as they are; `need_bytes`: what is still to be written."""
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM) or isinstance(exc, NoSpace):
            return exc
        return space.no_space(self._store, max(need_bytes, space.BOOKKEEPING_BYTES))

    def seal(self, provenance: Provenance, *, kind: str, facts: Mapping[str, object]) -> None:
        """Write the anchor, which ends the filling."""
        sizes = directories.file_sizes(self.path)
        data = Anchor(provenance, kind, sizes, facts).dump()
        with space.translated(self._store):
            os.ftruncate(self._anchor_fd, 0)
            files.pwrite_full(self._anchor_fd, memoryview(data), 0)

    def is_same(self, name: str) -> bool:
        """Whether the object of that name is there and holds the same."""
        return directories.same(self.path, self._store.object_path(name))

    def publish(self, name: str) -> bool:
        """Give it its name, read-only from now on; False when something of that name is there already.

        Until it is closed the draft holds a lease on what it has published. Raises NoSpace as `Draft.publish` does.
        """
        if self._claim is not None:
            self._claim.take(sum(directories.file_sizes(self.path).values()), 0)
        if not self._in_memory:
            _sync(self.path)
        directories.seal(self.path)
        files.try_lock(self._anchor_fd, exclusive=False)  # nobody else has it open
        try:
            os.rename(self.path, self._store.object_path(name))
        except OSError as exc:
            if exc.errno not in _TAKEN:
                raise
            return False
        self.published = True
        return True

    def close(self) -> None:
        """Delete what is not published, and let go."""
        if self._fd < 0:
            return
        if not self.published:
            directories.delete(self.path)
        for fd in (self._anchor_fd, self._fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._anchor_fd = -1
        if self._claim is not None:
            self._claim.close()

    def __enter__(self) -> DirectoryDraft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _sync(path: str) -> None:
    for parent, _, names in os.walk(path):
        for each in (parent, *(os.path.join(parent, name) for name in names)):
            fd = os.open(each, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
