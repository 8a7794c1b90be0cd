"""Files of a checkpoint, open for the length of one read: regular files below its directory, and nothing else."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import stat
import threading
import zlib
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from dsmem import files, proc, residency
from dsmem.arrays import memory
from dsmem.arrays.memory import Pages
from dsmem.errors import BadSource, SourceMissing, UntrustedPickle

Io = Literal["auto", "pread", "mmap"]
_CRC_BLOCK_BYTES = 1 << 20
_MAP_NORESERVE = 0x4000
log = logging.getLogger(__name__)


def check_relative(path: str) -> None:
    """Raises UntrustedPickle for a path in a checkpoint's metadata that leads out of its directory.

    Raises BadSource for one that no file can have.
    """
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise BadSource(f"{path!r} can't be the name of a file")
    if os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == "..":
        raise UntrustedPickle(f"{path!r} leads out of the directory of the checkpoint", wants=(path,))


class Opened:
    """One file. Its descriptor is used by all threads with pread; the map is made when it is first asked for."""

    __slots__ = ("_io", "_local", "_lock", "_map", "_mapped", "fd", "path", "size_bytes")

    def __init__(self, path: str, io: Io, *, local: Callable[[], bool]) -> None:
        self.path = path
        self._io = io
        self._local = local
        self._lock = threading.Lock()
        self._map: mmap.mmap | None = None
        self._mapped: ctypes.c_char | None = None
        try:
            # Without O_NONBLOCK a named pipe would be waited for.
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise SourceMissing(f"{path}: no such file") from exc
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self.fd)
            raise BadSource(f"{path} is {'a directory' if stat.S_ISDIR(status.st_mode) else 'no regular file'}")
        self.size_bytes = status.st_size

    def read(self, buffers: list[memoryview], offset: int) -> None:
        """Fill the buffers one after the other from `offset`; raises BadSource at the end of the file."""
        need_bytes = sum(len(buffer) for buffer in buffers)
        done = os.preadv(self.fd, buffers, offset) if need_bytes else 0
        for buffer in buffers:  # what one call did not do: at most 2 GiB, or fewer after a signal
            if done >= len(buffer):
                done -= len(buffer)
            else:
                if files.pread_full(self.fd, buffer[done:], offset + done) != len(buffer) - done:
                    raise BadSource(f"{self.path} is truncated: it ends before byte {offset + len(buffer)}")
                done = 0
            offset += len(buffer)

    def copy(self, address: int, size_bytes: int, offset: int) -> None:
        """Bring bytes of the file to an address in memory, in the way that was asked for."""
        if self.preads:
            self.read([memory_at(address, size_bytes)], offset)
            return
        if offset + size_bytes > os.fstat(self.fd).st_size:  # behind the end a map kills the process
            raise BadSource(f"{self.path} is truncated: it ends before byte {offset + size_bytes}")
        start = self._address()
        if start is None:
            self._io = "pread"
            self.read([memory_at(address, size_bytes)], offset)
        else:
            ctypes.memmove(address, start + offset, size_bytes)
            # The pages stay in the cache, but are this process's no longer: else it would seem to hold the whole file.
            memory.advise(start + offset, size_bytes, mmap.MADV_DONTNEED)

    @property
    def preads(self) -> bool:
        """Whether large parts are brought by pread: asked for, or chosen now."""
        if self._io == "auto":
            # Cached pages of a local file are copied without a call into the kernel for each.
            self._io = "mmap" if self._local() and residency.is_cached(self.fd, 0, self.size_bytes) else "pread"
        return self._io == "pread"

    def copy_with_crc(self, address: int, size_bytes: int, offset: int) -> int:
        """`copy`, a few MiB at a time, so that the checksum is computed of what is still in the CPU's cache."""
        crc = 0
        for start in range(0, size_bytes, _CRC_BLOCK_BYTES):
            length = min(_CRC_BLOCK_BYTES, size_bytes - start)
            self.copy(address + start, length, offset + start)
            crc = zlib.crc32(memory_at(address + start, length), crc)
        return crc

    @property
    def way(self) -> Io:
        """How large parts are brought; "auto" while none was."""
        return self._io

    def _address(self) -> int | None:
        """Where the file is mapped; None where the system has no address space to give."""
        with self._lock:
            if self._map is None:
                # A private writable map, so that ctypes tells its address; nothing is written to it.
                flags, prot = mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
                try:
                    self._map = mmap.mmap(self.fd, self.size_bytes, flags=flags, prot=prot)
                except OSError as exc:
                    log.debug("%s is not mapped: %s", self.path, exc)
                    return None
                self._mapped = ctypes.c_char.from_buffer(self._map)
            assert self._mapped is not None
            return ctypes.addressof(self._mapped)

    def close(self) -> None:
        """Give back the descriptor and the map."""
        os.close(self.fd)
        self._mapped = None
        if self._map is not None:
            self._map.close()


class Directory:
    """The files of one read by name, opened when they are first needed, closed together."""

    def __init__(self, path: str, *, io: Io, pages: Pages | None = None) -> None:
        """`pages`: what is read goes to memory that is new, and they make it."""
        self.path = path
        self._io = io
        self._pages = pages
        self._files: dict[str, Opened | Exception] = {}
        self._lock = threading.Lock()
        self._network: bool | None = None

    def __enter__(self) -> Directory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self._files.values():
            if isinstance(one, Opened):
                one.close()
        self._files.clear()

    @property
    def ways(self) -> str:
        """How large parts were brought: 'mmap', 'pread', or both; 'pread' where there were none."""
        found = {one.way for one in self._files.values() if isinstance(one, Opened)} - {"auto"}
        return ", ".join(sorted(found)) or "pread"

    def is_local(self) -> bool:
        """Whether the directory lies on a file system of this machine."""
        if self._network is None:
            self._network = is_network(self.path)
        return not self._network

    def prepare(self, address: int, size_bytes: int) -> None:
        """A worker is about to fill this memory."""
        if self._pages is not None:
            self._pages.prepare(address, size_bytes)

    def open(self, name: str) -> Opened:
        """The file of that name; raises the same error each time it is asked for a file that can't be opened."""
        with self._lock:
            found = self._files.get(name)
            if found is None:
                try:
                    found = Opened(os.path.join(self.path, name), self._io, local=self.is_local)
                except Exception as exc:  # noqa: BLE001 - kept, and raised below
                    found = exc
                self._files[name] = found
        if isinstance(found, Exception):
            raise found
        return found


def memory_at(address: int, size_bytes: int) -> memoryview:
    """So many bytes of memory that something else keeps alive."""
    return memoryview((ctypes.c_char * size_bytes).from_address(address)).cast("B")


def is_network(path: str) -> bool:
    """Whether the path lies on a network file system."""
    return proc.is_network_fs(proc.mount_of(path).fstype)
