"""Where a server's lock, socket, pid and log lie. There is one server for each store.

The lock on `daemon.lock` is the truth; what it holds, and the pid file, is information.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsmem import files, proc, settings
from dsmem.errors import UnsafeRoot, UsageError
from dsmem.store.root import SHARED_MEMORY, default_root

if TYPE_CHECKING:
    from dsmem.config.resolve import ServerSettings

LOCK, STARTING, SOCKET, PID = "daemon.lock", "starting.lock", "daemon.sock", "daemon.pid"
_LIMIT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Places:
    """Paths of one server."""

    root: str
    """The store whose server it is."""
    data_root: str
    """The store that holds its tables: the same one unless a data directory was named."""
    overflow_root: str | None
    """The store for the tables that have no room there; None = they fail."""
    directory: str
    """Of the lock and the socket."""
    pid: str
    log: str

    @property
    def data_roots(self) -> tuple[str, ...]:
        """The stores that hold its tables."""
        second = self.overflow_root
        return (self.data_root,) if second is None or second == self.data_root else (self.data_root, second)

    @property
    def lock(self) -> str:
        """Held exclusively by the daemon while it lives."""
        return f"{self.directory}/{LOCK}"

    @property
    def starting(self) -> str:
        """Held by whoever starts a daemon."""
        return f"{self.directory}/{STARTING}"

    @property
    def socket(self) -> str:
        """The control socket."""
        return f"{self.directory}/{SOCKET}"


def find(chosen: ServerSettings, *, environ: Mapping[str, str] = os.environ) -> Places:
    """The places that these settings and the environment mean; nothing is made.

    `$XDG_RUNTIME_DIR/dsmem`, else `server/` in the store; a store of its own (DSMEM_ROOT) has a directory of its own.
    """
    root = default_root()
    for data in (chosen.data_dir, chosen.overflow_dir):
        if data.value is not None and os.path.lexists(data.value) and not os.path.isdir(data.value):
            raise UsageError(f"{data.value} ({data.origin}) is a file; the data is a directory of Arrow files")
    usual = root == f"{SHARED_MEMORY}/dsmem-{os.geteuid()}"
    mark = "" if usual else hashlib.blake2b(os.fsencode(os.path.realpath(root)), digest_size=4).hexdigest()
    runtime = settings.runtime_directory(environ)
    directory = f"{root}/server" if runtime is None else (f"{runtime}/{mark}" if mark else runtime)
    log = settings.state_directory(environ) / (f"server-{mark}.log" if mark else "server.log")
    return Places(
        root=root,
        data_root=chosen.data_dir.value or root,
        overflow_root=chosen.overflow_dir.value,
        directory=directory,
        pid=chosen.pid_file.value or f"{directory}/{PID}",
        log=chosen.log_file.value or str(log),
    )


def make_directory(path: str) -> None:
    """A directory of our own, mode 0700; raises UnsafeRoot when it is a symlink, another's, or open to others."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        status = os.lstat(path)
    except OSError as exc:
        raise UnsafeRoot(f"{path} can't be made: {exc.strerror}", root=path) from exc
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise UnsafeRoot(f"{path} is not a directory of uid {os.geteuid()} that only it can write to", root=path)


@dataclass(frozen=True, slots=True)
class Daemon:
    """What a daemon writes into its lock file."""

    pid: int
    start_time: int
    """In clock ticks since boot: with the pid, a name that is never used twice."""

    @classmethod
    def me(cls) -> Daemon:
        """This process."""
        return cls(os.getpid(), proc.process_start_time(os.getpid()))

    def dump(self) -> bytes:
        """As JSON."""
        return json.dumps({"pid": self.pid, "start_time": self.start_time}).encode()

    def lives(self) -> bool:
        """Whether that very process lives; another one that got its pid does not count."""
        try:
            return proc.process_start_time(self.pid) == self.start_time
        except (ProcessLookupError, PermissionError):
            return False


def holder(places: Places) -> Daemon | None:
    """Who holds the lock; None when nobody does. Raises UnsafeRoot when the lock is not a file of ours.

    Looking takes a shared lock for an instant: a daemon that starts tries again. A holder that has not yet written who
    it is has pid 0.
    """
    try:
        fd = files.open_own(places.lock)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if files.try_lock(fd, exclusive=False):
            return None
        data = os.pread(fd, _LIMIT_BYTES, 0)
    finally:
        os.close(fd)
    try:
        record = json.loads(data)
        pid, start_time = record["pid"], record["start_time"]
        if type(pid) is not int or type(start_time) is not int or pid < 1:
            raise ValueError("not a daemon")
    except (ValueError, KeyError, TypeError, RecursionError):
        return Daemon(0, 0)
    return Daemon(pid, start_time)
