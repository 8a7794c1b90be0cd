"""An object while it is filled: a file without a name, which gets one only when it is whole (link(2) from O_TMPFILE).

Killed at any moment, nothing is left: the kernel frees what has no name. Without O_TMPFILE the file has a hidden name
and an exclusive lock; `sweep` removes those whose lock is free.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType

from dsmem import files, proc, settings, units
from dsmem.errors import NoSpace
from dsmem.store import budget, hugepages, objects, space, writing
from dsmem.store.budget import NOTHING, Evicted
from dsmem.store.hugepages import Extents
from dsmem.store.root import Store

HIDDEN_PREFIX = ".draft-"
_log = logging.getLogger(__name__)


class Draft:
    """An unnamed file of the store; `write` may be called from many threads for ranges that do not overlap.

    On a mount with huge pages (`in_place`) it is filled through a map (`view`), which gets them. Elsewhere they are
    taken one by one (`take`); on the 4 KiB pages that remain write(2) is the faster way, and never a SIGBUS.
    """

    def __init__(self, store: Store | None, *, fd: int = -1) -> None:
        """A draft in the store; without a store, memory of this process alone, which is never published.

        `fd`: one that another process has made and will publish; it is filled here, and never closed.
        """
        self._store = store
        self._hidden: str | None = None
        self._map: mmap.mmap | None = None
        self._map_address = 0
        self._size_bytes = 0
        self._reserved = (0, 0)
        self._mapping = threading.Lock()
        self.in_place = False
        self._in_memory = True
        self._claim: budget.Claim | None = None
        self.published = False
        mount = store.file_system() if store is not None else None
        if store is None or mount is None:
            self.fd = files.above_standard(os.memfd_create("dsmem-preload", os.MFD_CLOEXEC))
        else:
            is_asked = settings.read().huge_pages != "never"
            self.in_place = is_asked and mount.fstype == "tmpfs" and proc.huge_pages(mount) != "never"
            self._in_memory = mount.fstype in ("tmpfs", "ramfs")
            self.fd = files.above_standard(self._open(store)) if fd < 0 else fd
        self._extents = Extents(self.fd, self._place) if hugepages.can_be_taken(mount) else None

    def _open(self, store: Store) -> int:
        with space.translated(store):
            try:
                return os.open(store.objects, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            except OSError as exc:
                if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                    raise
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
            while True:
                self._hidden = f"{store.objects}/{HIDDEN_PREFIX}{secrets.token_hex(8)}"
                fd = os.open(self._hidden, flags, 0o600)
                if files.try_lock(fd, exclusive=True) and files.names_inode(self._hidden, os.fstat(fd)):
                    return fd
                os.close(fd)  # a sweep took it for an abandoned one, before it was locked

    def make_room(self, need_bytes: int, budget_bytes: int | None, beside_bytes: int = 0) -> None:
        """See that the object will fit, under a budget by evicting others (`evicted`); raises NoSpace.

        `beside_bytes`: of memory that whoever fills it will take beside it.
        """
        assert self._store is not None
        if _log.isEnabledFor(logging.INFO):
            _log.info("%s needed in the store%s", units.format_bytes(need_bytes), space.payer(self._store))
        if budget_bytes is None:
            space.require(self._store, need_bytes, beside_bytes)
            return
        self._claim = budget.Claim(self._store, self.fd, budget_bytes)
        self._claim.take(need_bytes, need_bytes + space.BOOKKEEPING_BYTES, beside_bytes)

    def make_more_room(self, need_bytes: int) -> None:
        """See that it will fit, under the same budget, when it grows past what room was made for; raises NoSpace."""
        unwritten = max(need_bytes - os.fstat(self.fd).st_blocks * 512, 0)
        if self._claim is not None:
            self._claim.take(need_bytes, unwritten)
        elif self._store is not None:
            space.require(self._store, unwritten)
        elif unwritten > (free_bytes := proc.memory_available()):
            raise NoSpace(
                f"{units.format_bytes(unwritten)} needed, {units.format_bytes(free_bytes)} of memory free",
                need_bytes=unwritten,
                free_bytes=free_bytes,
                limit="memory of this machine",
            )

    @property
    def evicted(self) -> Evicted:
        """What had to go for it."""
        return self._claim.evicted if self._claim is not None else NOTHING

    def allocate(self, size_bytes: int) -> None:
        """Set the size of the file, or set it anew; what was written so far stays."""
        self._unmap()
        try:
            os.ftruncate(self.fd, size_bytes)
        except OSError as exc:
            raise self.translated(exc, size_bytes) from exc
        self._size_bytes = size_bytes
        self._reserved = (0, 0)
        if self._extents is not None:
            self._extents.resize(size_bytes)
        if self.in_place and size_bytes:
            self._map = writing.mapped(self.fd, size_bytes)

    def take(self, offset: int, size_bytes: int) -> bool:
        """Have huge pages for these bytes where they can be had; whether all have: then `reserved` is faster than
        `write`. Raises NoSpace.
        """
        if self.in_place:
            return True
        try:
            return self._extents is not None and self._extents.take(offset, size_bytes)
        except OSError as exc:
            raise self.translated(exc) from exc

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes at an offset, also past the allocated size; raises NoSpace when the file system is full."""
        self.take(offset, len(data))
        try:
            if not self.in_place or offset + len(data) > self._size_bytes:
                files.pwrite_full(self.fd, data, offset)
            else:
                self.view(offset, len(data))[:] = data
        except OSError as exc:
            raise self.translated(exc, offset + len(data)) from exc

    def write_pieces(self, offset: int, pieces: Sequence[bytearray]) -> None:
        """Write bytes that lie in many places, one after the other; raises NoSpace."""
        if self.in_place:
            self.write(offset, memoryview(b"".join(pieces)))
            return
        self.take(offset, sum(map(len, pieces)))
        try:
            writing.pwrite_pieces(self.fd, pieces, offset)
        except OSError as exc:
            raise self.translated(exc) from exc

    def view(self, offset: int, size_bytes: int) -> memoryview:
        """Writable memory of the object itself, populated: storing into it can't raise SIGBUS. Only when `in_place`."""
        assert self._map is not None
        try:
            return writing.populated(self._map, offset, size_bytes)
        except OSError as exc:
            raise self.translated(exc) from exc

    def reserved(self, offset: int, size_bytes: int) -> memoryview:
        """Writable memory of the object itself that is there for certain: storing into it can't raise SIGBUS."""
        if self.in_place:
            return self.view(offset, size_bytes)
        self.take(offset, size_bytes)
        try:
            os.posix_fallocate(self.fd, offset, size_bytes)
            return memoryview(self._whole())[offset : offset + size_bytes]
        except OSError as exc:
            raise self.translated(exc, offset + size_bytes) from exc

    def reserved_on(self, offset: int, size_bytes: int) -> memoryview:
        """`reserved`, for ranges that overlap, with ascending ends: what an earlier one had is not asked for again.

        Each look at a page that is there takes its time, too. From one thread.
        """
        begin, end = self._reserved
        if not begin <= offset <= end:
            begin = end = offset
        if offset + size_bytes > end:
            self.reserved(end, offset + size_bytes - end)
            self._reserved = (begin, offset + size_bytes)
        return memoryview(self._whole())[offset : offset + size_bytes]

    def read_from(
        self,
        fd: int,
        source_offset: int,
        offset: int,
        size_bytes: int,
        block_bytes: int,
        at_block: Callable[[memoryview], object],
    ) -> int:
        """Read from another file straight into the object's huge pages, each block handed on while it is in the cache.

        Returns how many bytes that were: up to the first block without huge pages, or that the file does not fill. The
        kernel takes the page faults: memory that can't be had is EFAULT, not SIGBUS; nothing is populated before. Each
        is taken when it is filled: its zeros are in the cache then. What is done between two blocks holds up the other
        threads: little is.
        """
        if not self.in_place and self._extents is None:
            return 0
        done, target = 0, None
        try:
            while done < size_bytes:
                at = offset + done
                end = min(at + block_bytes - at % block_bytes, offset + size_bytes)
                if self._extents is not None and not self._extents.take(at, end - at):
                    break
                if target is None:
                    target = memoryview(self._whole())
                block = target[at:end]
                if files.pread_full(fd, block, source_offset + done) < len(block):
                    break
                at_block(block)
                done += len(block)
        except OSError as exc:
            raise self.translated(exc) from exc
        return done

    def _whole(self) -> mmap.mmap:
        """A map of all of it, made when it is first asked for."""
        with self._mapping:
            if self._map is None:
                access = mmap.PROT_READ | mmap.PROT_WRITE
                self._map = hugepages.mapped(self.fd, self._size_bytes, flags=mmap.MAP_SHARED, prot=access)
                self._map_address = hugepages.address_of(self._map)
            return self._map

    def _place(self) -> int:
        """Where the map of all of it begins."""
        self._whole()
        return self._map_address

    def translated(self, exc: OSError, end: int = 0) -> OSError:
        """NoSpace for the errors that mean so (EFAULT from a map that can't grow), others as they are.

        `end`: where the bytes that found no room were to end, where that is past the allocated size.
        """
        if exc.errno == errno.EFBIG:
            return space.file_too_large(max(self._size_bytes, end))
        if exc.errno not in (errno.ENOSPC, errno.EFAULT, errno.EDQUOT, errno.ENOMEM) or isinstance(exc, NoSpace):
            return exc
        if self._store is None:
            return NoSpace(f"no memory for {self._size_bytes} bytes", need_bytes=self._size_bytes)
        written = os.fstat(self.fd).st_blocks * 512
        return space.no_space(self._store, max(self._size_bytes, end) - written)

    def is_same(self, name: str) -> bool:
        """Whether the object of that name is there and holds the same, byte by byte."""
        assert self._store is not None
        return objects.is_same(self._store, self.fd, name)

    def publish(self, name: str) -> bool:
        """Give the file its name, read-only from now on; False when an object of that name is there already.

        Until it is closed the draft holds a lease on what it has published. Raises NoSpace when it has become larger
        than the room that was made for it, and a budget leaves no more.
        """
        if self._store is None:
            raise ValueError("a draft without a store has no place to be published")
        self._unmap()
        if self._claim is not None:
            self._claim.take(os.fstat(self.fd).st_size, 0)
        os.fchmod(self.fd, objects.MODE)
        if not self._in_memory:
            os.fsync(self.fd)
        directory = os.open(self._store.objects, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if self._hidden is None:
                files.try_lock(self.fd, exclusive=False)  # nobody else can have it open: it has no name yet
                # An unnamed file is linked through /proc; without dst_dir_fd Python's os.link fails with EXDEV.
                os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=directory, follow_symlinks=True)
            else:
                os.link(self._hidden, name, dst_dir_fd=directory, follow_symlinks=False)
                files.try_lock(self.fd, exclusive=False)  # from exclusive to shared: others may attach
        except FileExistsError:
            return False
        finally:
            os.close(directory)
        self.published = True
        return True

    def _unmap(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None

    def close(self) -> None:
        """Give up what is not published: its memory comes back now, even if an error's traceback holds the map."""
        if self.fd < 0:
            return
        if self._store is not None and not self.published:
            os.ftruncate(self.fd, 0)
        if self._hidden is not None:
            files.unlink_if_there(self._hidden)
        # After an error a traceback may still hold views of the map; it is freed with the last of them.
        with suppress(BufferError):
            self._unmap()
        os.close(self.fd)
        self.fd = -1
        if self._claim is not None:
            self._claim.close()

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
