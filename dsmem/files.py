"""Files handled safely: no followed links, owners checked, names replaced whole, locks that the kernel keeps.

flock belongs to the open file description: it is shared by dup and fork, and the kernel drops it with the last of them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from dataclasses import dataclass
from typing import BinaryIO, cast

from dsmem.errors import BadSource, SourceMissing, UnsafeRoot

_SYNC_FILE_RANGE_WRITE = 2

LAST_STANDARD = 2
"""Standard input, output and error are the descriptors up to this one."""
_TIMESTAMP_GRAIN_S = 0.05
"""Kernels stamp files with a clock that ticks every 1–10 ms: an edit within one tick leaves mtime as it was."""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What changes when a file's content does, without reading it."""

    dev: int
    ino: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        """The identity in a stat result."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def as_list(self) -> list[int]:
        """Five integers, for JSON."""
        return [self.dev, self.ino, self.size_bytes, self.mtime_ns, self.ctime_ns]

    @classmethod
    def from_list(cls, values: object) -> FileIdentity:
        """The inverse of `as_list`; raises ValueError for anything else."""
        if not (isinstance(values, list) and len(values) == 5 and all(type(v) is int for v in values)):
            raise ValueError(f"not a file identity: {values!r}")
        return cls(*values)


def settled_identity(fd: int) -> FileIdentity:
    """The identity of an open file once its timestamps are old enough to betray every later edit (≤ 50 ms)."""
    while True:
        status = os.fstat(fd)
        age_s = time.time() - max(status.st_mtime, status.st_ctime)
        if not 0 <= age_s < _TIMESTAMP_GRAIN_S:
            return FileIdentity.of(status)
        time.sleep(_TIMESTAMP_GRAIN_S - age_s)


def copied_above_standard(fd: int) -> int:
    """The same open file under a number that no standard stream has, not inherited."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LAST_STANDARD + 1)


def above_standard(fd: int) -> int:
    """The descriptor, under another number if it took that of a standard stream that is closed.

    What is written to standard error, by any library, would be written to the file.
    """
    if fd > LAST_STANDARD:
        return fd
    try:
        return copied_above_standard(fd)
    finally:
        os.close(fd)


def open_own(path: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file of our own, never through a symlink; raises UnsafeRoot otherwise."""
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise UnsafeRoot(f"{path} is a symlink", root=path) from exc
        raise
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(fd)
        raise UnsafeRoot(f"{path} is not a regular file of uid {os.geteuid()}", root=path)
    return fd


def read_own(path: str, limit_bytes: int) -> bytes:
    """The bytes of a small file of our own; raises ValueError when it is larger than the limit."""
    fd = open_own(path)
    try:
        data = os.read(fd, min(os.fstat(fd).st_size, limit_bytes) + 1)  # a buffer of a MiB costs more than the file
    finally:
        os.close(fd)
    if len(data) > limit_bytes:
        raise ValueError(f"{path} is larger than {limit_bytes} bytes")
    return data


def open_regular(path: str) -> BinaryIO:
    """A file whose name was given or found, links followed, open for reading; raises SourceMissing, BadSource."""
    try:
        # Non-blocking: a FIFO of that name must not hang whoever looks.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise SourceMissing(f"{path}: no such file") from exc
    except OSError as exc:
        raise BadSource(f"{path} can't be read: {exc.strerror}") from exc
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise BadSource(f"{path} is no regular file")
    return cast(BinaryIO, os.fdopen(fd, "rb"))


def read_regular(path: str, limit_bytes: int) -> bytes:
    """The bytes of a small one; raises SourceMissing, and BadSource when it is larger than the limit."""
    with open_regular(path) as file:
        data = file.read(min(os.fstat(file.fileno()).st_size, limit_bytes) + 1)
    if len(data) > limit_bytes:
        raise BadSource(f"{path} is larger than {limit_bytes} bytes")
    return data


def write_atomic(path: str, data: bytes, *, public: bool = False) -> None:
    """Replace `path` whole: readers see the old bytes or the new ones. Killed: a `.tmp-*` stays.

    Its mode is 0600; `public`: that of the file which it replaces, or of any new file.
    """
    temporary = f"{os.path.dirname(path)}/.tmp-{os.getpid()}-{os.urandom(8).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o666 if public else 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            if public and os.path.exists(path):
                os.fchmod(fd, stat.S_IMODE(os.stat(path).st_mode))
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        unlink_if_there(temporary)
        raise


class NewFile:
    """A file beside its place that gets its name when it is whole. Killed before that, nothing is left of it.

    Where the file system has no unnamed files (O_TMPFILE) it has a hidden name meanwhile, which a kill leaves.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._directory = os.path.dirname(self.path)
        self._hidden: str | None = None
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            self.fd = above_standard(os.open(self._directory, os.O_TMPFILE | flags, 0o666))
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
            self._hidden = self._beside()
            made = os.open(self._hidden, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | flags, 0o666)
            self.fd = above_standard(made)

    def publish(self, *, replace: bool = False) -> None:
        """Write it to the disk and give it its name; raises FileExistsError unless it may replace what is there."""
        os.fsync(self.fd)
        if not replace:
            self._link(self.path)
        else:
            named = self._hidden or self._beside()
            if self._hidden is None:
                self._link(named)
            try:
                os.replace(named, self.path)
            except BaseException:
                unlink_if_there(named)
                raise
            self._hidden = None
        sync(self._directory)

    def close(self) -> None:
        """Give up what has no name yet."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._hidden is not None:
            unlink_if_there(self._hidden)
            self._hidden = None

    def _link(self, path: str) -> None:
        directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # An unnamed file is linked through /proc; without dst_dir_fd Python's os.link fails with EXDEV.
            source = self._hidden or f"/proc/self/fd/{self.fd}"
            os.link(source, os.path.basename(path), dst_dir_fd=directory, follow_symlinks=self._hidden is None)
        finally:
            os.close(directory)

    def _beside(self) -> str:
        return f"{self._directory}/.{os.getpid()}-{os.urandom(8).hex()}.part"  # its own name may be the longest

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def sync(path: str) -> None:
    """Wait until a file, or a directory's names, is on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def unlink_if_there(path: str) -> bool:
    """Whether there was something to unlink."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def try_lock(fd: int, *, exclusive: bool) -> bool:
    """Take a flock without waiting; False when another open file description holds a conflicting one."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def names_inode(path: str, status: os.stat_result) -> bool:
    """Whether the name still leads to the inode of `status`, itself and not through a link."""
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (status.st_dev, status.st_ino)


def pread_full(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill the buffer from `offset`; fewer bytes only at the end of the file."""
    done = os.preadv(fd, [buffer], offset)
    while 0 < done < len(buffer):
        more = os.preadv(fd, [buffer[done:]], offset + done)
        if more == 0:
            break
        done += more
    return done


def pwrite_full(fd: int, buffer: memoryview, offset: int) -> None:
    """Write all of the buffer at `offset`."""
    done = os.pwrite(fd, buffer, offset)
    while done < len(buffer):
        done += os.pwrite(fd, buffer[done:], offset + done)


def start_writing_out(fd: int, offset: int, size_bytes: int) -> None:
    """Let the kernel begin to write these bytes to the disk, without waiting: a later fsync, which tells of errors, is
    sooner done. Where the C library has no such call nothing happens."""
    import ctypes

    sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if sync_file_range is not None:
        sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(size_bytes), _SYNC_FILE_RANGE_WRITE)
