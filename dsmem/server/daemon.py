"""The daemon: one loop over sockets, children and a clock. It imports nothing heavy and never blocks on a disk.

The lock comes first and goes last. Killing it at any moment harms no reader: they map objects that it only names.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

from dsmem import files
from dsmem.errors import DsmemError, UnsafeRoot, UsageError
from dsmem.server import catalogue, control, frames, logs, overflow, places
from dsmem.server.listening import Listener
from dsmem.server.places import Daemon, Places
from dsmem.server.plan import Plan
from dsmem.server.records import state_of
from dsmem.server.requests import Requests
from dsmem.server.shelf import Shelf
from dsmem.server.watching import Watcher
from dsmem.store.root import Store, make_store, occupy

_LOCK_S = 2.0
_TICK_S = 1.0
_PID_BYTES = 32
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_log = logging.getLogger("dsmem.server.daemon")  # not __main__, which it is when `spawn` starts it


class AlreadyRuns(DsmemError, RuntimeError):
    """Another daemon (`pid`; 0 = not known yet) holds the lock."""

    def __init__(self, message: str, *, pid: int = 0) -> None:
        super().__init__(message)
        self.pid = pid


def serve(plan: Plan, *, ready: Callable[[], None] = lambda: None, stderr: int | None = None) -> str:
    """Serve until a signal or a request ends it; returns why it ended. `ready` is called when clients are answered.

    `stderr` is where children write. Raises AlreadyRuns, UnsafeRoot, UsageError, OSError.
    """
    with ExitStack() as held:
        for root in {plan.places.root, *plan.places.data_roots}:
            held.callback(os.close, occupy(make_store(root)))
        places.make_directory(plan.places.directory)
        lock = held.enter_context(_locked(plan.places))
        for directory in {plan.places.directory, catalogue.directory(Store(plan.places.data_root))}:
            _sweep(directory)
        held.enter_context(_pid_file(plan.places.pid))
        selector = held.enter_context(selectors.DefaultSelector())
        return _Server(plan, lock, selector, stderr).run(ready)


class _Server:
    def __init__(self, plan: Plan, lock: int, selector: selectors.BaseSelector, stderr: int | None) -> None:
        self._plan, self._where, self._lock, self._selector = plan, plan.places, lock, selector
        self._began = time.monotonic()
        self._ending = ""
        self._news: list[tuple[Callable[[str], None], str]] = []
        self._guard = threading.Lock()
        self._wake, self._waker = socket.socketpair()
        for end in (self._wake, self._waker):
            end.setblocking(False)
        selector.register(self._wake, selectors.EVENT_READ, self._woken)
        self._requests = Requests(facts=self._facts, stop=self._stop, root=self._where.data_root)
        overflow_root = self._where.overflow_root
        if overflow_root is not None:
            overflow.note(make_store(self._where.data_root), overflow_root)
        self._shelf = Shelf(
            make_store(self._where.data_root),
            selector,
            second=make_store(overflow_root) if overflow_root is not None else None,
            loader=plan.loader,
            stderr=stderr,
            settled=self._requests.settled,
        )
        self._requests.serve(self._shelf)
        self._listener = Listener(self._where, selector, self._requests.handle)
        self._watcher = Watcher(
            self._where.data_roots,
            snapshot=self._shelf.snapshot,
            changed=partial(self._changed, self._shelf.refresh),
            gone=partial(self._changed, self._shelf.gone),
            watch_s=plan.watch_s,
            hub_s=plan.hub_s,
        )

    def run(self, ready: Callable[[], None]) -> str:
        """The loop."""
        try:
            with self._signals():
                _log.info("pid %d serves %s on %s", os.getpid(), self._where.data_root, self._where.socket)
                ready()  # who asks now is answered by the first turn, when the datasets are known
                self._shelf.resume(self._plan.datasets)
                self._watcher.start()
                while not self._ending:
                    self._turn()
        finally:
            _log.info("ending: %s", self._ending or "an error")
            self._shelf.close()
            self._watcher.stop()
            self._listener.close()
            self._selector.unregister(self._wake)
            self._wake.close()
            self._waker.close()
        return self._ending

    def _turn(self) -> None:
        now = time.monotonic()
        due = min(now + _TICK_S, self._listener.next_deadline(), self._requests.next_deadline())
        for key, events in self._selector.select(max(due - now, 0)):
            # What came before in this turn may have closed it, and its number may already be another's.
            if self._selector.get_map().get(key.fd) == key:
                key.data(events)
        self._requests.expire()
        self._listener.expire()
        if not self._ending and not files.names_inode(self._where.lock, os.fstat(self._lock)):
            self._ending = "its lock file was removed: another server may be there"

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the loop, wherever they arrive; only the main thread can say so."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = [signal.signal(one, self._signalled) for one in _SIGNALS]
        wakeup = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for one, handler in zip(_SIGNALS, before, strict=True):
                signal.signal(one, handler)

    def _signalled(self, number: int, frame: object) -> None:
        self._ending = signal.Signals(number).name

    def _stop(self) -> None:
        self._ending = "it was asked to"

    def _facts(self) -> dict[str, object]:
        records = self._shelf.records()
        return {
            "pid": os.getpid(),
            "root": self._where.data_root,
            "overflow_root": self._where.overflow_root,
            "socket": self._where.socket,
            "pid_file": self._where.pid,
            "log": self._where.log,
            "uptime_s": time.monotonic() - self._began,
            "status": state_of(records),
            "datasets": [record.as_dict() for record in records],
            "settings": [list(row) for row in self._plan.settings],
            "requests": self._requests.count,
        }

    def _changed(self, act: Callable[[str], None], names: list[str]) -> None:
        """The watcher's thread says what is to be done about these datasets."""
        with self._guard:
            self._news += [(act, name) for name in names]
        with suppress(BlockingIOError):
            self._waker.send(b"!")

    def _woken(self, events: int) -> None:
        with suppress(BlockingIOError):
            self._wake.recv(4096)
        with self._guard:
            news, self._news = self._news, []
        for act, name in news:
            if self._shelf.get(name) is not None:
                act(name)


@contextmanager
def _locked(where: Places) -> Iterator[int]:
    """The daemon's lock, with our pid and start time in it; raises AlreadyRuns.

    Whoever looks for a daemon has the lock for an instant, so it is tried again until it says who it is.
    """
    deadline = time.monotonic() + _LOCK_S
    while True:
        fd = files.open_own(where.lock, os.O_RDWR | os.O_CREAT)
        try:
            if files.try_lock(fd, exclusive=True):
                if files.names_inode(where.lock, os.fstat(fd)):
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, Daemon.me().dump(), 0)
                    try:
                        yield fd
                    finally:
                        if files.names_inode(where.lock, os.fstat(fd)):
                            files.unlink_if_there(where.lock)
                    return
            elif (running := places.holder(where)) is not None and (running.pid or time.monotonic() > deadline):
                raise AlreadyRuns(f"a server runs already: pid {running.pid or 'unknown'}", pid=running.pid)
        finally:
            os.close(fd)
        time.sleep(0.002)


def _sweep(directory: str) -> None:
    """Remove the half-written files of a daemon that was killed; we hold its lock."""
    with suppress(FileNotFoundError), os.scandir(directory) as entries:
        for path in [entry.path for entry in entries if entry.name.startswith(".tmp-")]:
            files.unlink_if_there(path)


@contextmanager
def _pid_file(path: str) -> Iterator[None]:
    """Our pid in a file; raises UsageError rather than write over one that holds something else."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    if _pid_in(path) is None:
        raise UsageError(f"{path} holds something that is not a pid; name another file: --pid-file")
    files.write_atomic(path, b"%d\n" % os.getpid())
    try:
        yield
    finally:
        if _pid_in(path) == os.getpid():
            files.unlink_if_there(path)


def _pid_in(path: str) -> int | None:
    """0 where there is no file, or an empty one; None for what is no pid."""
    try:
        held = files.read_own(path, _PID_BYTES).strip()
    except FileNotFoundError:
        return 0
    except (UnsafeRoot, ValueError, IsADirectoryError):
        return None
    return int(held) if held.isdigit() else (None if held else 0)


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)), where it started us."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect("\0" + address[1:] if address[0] == "@" else address)
            channel.send(state.encode())
    except OSError as exc:
        _log.warning("systemd could not be told %s: %s", state, exc)


def main(arguments: Sequence[str]) -> int:
    """What `lifecycle.start` starts: the plan comes by a socket, the word that clients are answered goes back by it."""
    channel = socket.socket(fileno=int(arguments[0]))
    channel.set_inheritable(False)
    decoder, record = frames.Decoder(frames.ANSWER_BYTES), None
    while record is None:
        part = channel.recv(1 << 16)
        if not part:
            return 1
        record = decoder.feed(part)
    if os.fork():
        os._exit(0)  # who started us waits for this process, not for the daemon
    os.setsid()

    def tell(message: dict[str, object]) -> None:
        with channel, suppress(OSError):  # who started us may be gone: the daemon is there all the same
            channel.sendall(frames.encode(message))

    try:
        plan = Plan.from_dict(record)
        logger = logging.getLogger("dsmem")
        logger.addHandler(logs.RotatingFile(plan.places.log))
        logger.setLevel(plan.log_level.upper())
        stderr = logs.open_log(plan.places.log)
        for fd in (1, 2):
            os.dup2(stderr, fd)
        serve(plan, ready=lambda: tell({"ok": True, "pid": os.getpid()}), stderr=stderr)
    except Exception as exc:  # noqa: BLE001 - the edge of this process: it is logged and told
        _log.error("no server could be started: %s", exc) if isinstance(exc, DsmemError) else _log.exception("the end")
        tell({**control.report(exc), "pid": getattr(exc, "pid", 0)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
