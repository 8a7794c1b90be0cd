"""The process from which workers of `dsmem tokenize` come (`dsmem.tokens.nursery`), seen from the one that starts it.

Little is imported here: it is started first, and loads an engine while the rest of this process is still imported. The
command line forks it before it imports anything else (`ahead`); for whoever calls the library it is a fresh process.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any, Protocol

from dsmem import helpers
from dsmem.errors import WorkerLost

if TYPE_CHECKING:
    from dsmem.tokens.vocabularies import Located

HERE_BYTES = 24 << 20
"""Up to so much input this process is done before others have started."""
_PATIENCE_S = 5.0
_NOT_INPUTS = ("-o", "--out", "--tokenizer")
_FOR_ENGINES = {
    "FASTOKENS_BPE_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "FASTOKENS_INPUT_CACHE": "0",
    "FASTOKENS_SEGMENT_CACHE": "0",
}
"""Workers are as many as there are CPUs: threads of engines beside them would only take turns with them. Nor is memory
bounded by what fastokens keeps of whole texts, which never come again."""
_ONE_IF_UNSAID = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class _Process(Protocol):
    """What `subprocess.Popen` and `helpers.Fork` have in common."""

    def kill(self) -> None: ...
    def poll(self) -> int | None: ...
    def wait(self) -> int: ...


class Nursery:
    """It, and this side's ends of the pipes of each worker: requests and answers."""

    def __init__(self, *, forked: bool = False) -> None:
        """Start it: a fresh process, or, where this one has a single thread and little in it, a fork."""
        self.ends: list[tuple[IO[bytes], IO[bytes]]] = []
        self._ended: dict[int, int] = {}
        self._rest = b""
        self._stack = ExitStack()
        self._stack.callback(self._close_ends)
        self._control, theirs = (_beyond(end) for end in socket.socketpair())
        self._stack.callback(self._control.close)
        try:
            self._process = _fork(self._control, theirs) if forked else _start(theirs)
        except BaseException:
            self._stack.close()
            raise
        finally:
            theirs.close()
        self._stack.callback(self._stop)

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def expect(
        self,
        located: Located,
        engine: str,
        *,
        parse_special: bool,
        processes: int,
        tables: bool = False,
        compare: bool = False,
    ) -> None:
        """Let it load what workers will most likely be told to use, and fork so many; `tables`: they import what reads
        those; `compare`: they encode by the reference, too."""
        what = {"located": asdict(located), "engine": engine, "parse_special": parse_special}
        self.send({"load": what, "tables": tables, "compare": compare, "processes": processes})
        for _ in range(processes):
            theirs: list[int] = []
            try:
                requests, told = _pipe()
                theirs.append(requests)
                here: IO[bytes] = os.fdopen(told, "wb", 0)
                self._stack.callback(here.close)
                said, answers = _pipe()
                theirs.append(answers)
                self.ends.append((here, os.fdopen(said, "rb", 0)))
                with suppress(BrokenPipeError):  # it is dead, which its answers will tell
                    socket.send_fds(self._control, [b"\n"], theirs)
            finally:
                for descriptor in theirs:
                    os.close(descriptor)

    def send(self, value: object) -> None:
        """One line."""
        with suppress(BrokenPipeError):
            self._control.sendall(json.dumps(value).encode() + b"\n")

    def hear(self) -> tuple[str, Any]:
        """The next line; raises WorkerLost."""
        while b"\n" not in self._rest:
            data = b""
            with suppress(ConnectionResetError):  # it is dead, and has not read all
                data = self._control.recv(1 << 16)
            if not data:
                raise WorkerLost(f"the process that starts workers ended ({self._ending()})")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        ((kind, value),) = json.loads(line).items()
        return kind, value

    def ending_of(self, worker: int) -> str:
        """How that worker ended, which it has."""
        self._control.shutdown(socket.SHUT_WR)  # it may still wait for a question
        while worker not in self._ended:
            try:
                _, value = self.hear()
            except WorkerLost:
                return self._ending()  # which ended all of them
            self._ended[value["worker"]] = value["code"]
        return helpers.ending(self._ended[worker])

    def dismiss(self) -> None:
        """There is nothing more to do: end all, while the caller goes on."""
        self._process.kill()  # and the kernel the workers with it

    def _ending(self) -> str:
        until = time.monotonic() + _PATIENCE_S
        while (code := self._process.poll()) is None:
            if time.monotonic() > until:
                return "which has not ended"
            time.sleep(0.005)
        return helpers.ending(code)

    def _stop(self) -> None:
        """End it, and with it the workers, wherever they are."""
        self._close_requests()
        self._process.kill()
        self._process.wait()
        # Until a worker has ended, it may write to the parts. A child that this process forked meanwhile may hold the
        # other end of its pipe as well: that is not waited for.
        until = time.monotonic() + _PATIENCE_S
        for _, answers in self.ends:
            while select.select([answers], [], [], max(0.0, until - time.monotonic()))[0]:
                if not os.read(answers.fileno(), 1 << 16):
                    break

    def _close_ends(self) -> None:
        self._close_requests()
        for _, answers in self.ends:
            answers.close()

    def _close_requests(self) -> None:
        for requests, _ in self.ends:
            requests.close()


_started_ahead: ContextVar[Nursery | None] = ContextVar("a nursery that was started ahead", default=None)


@contextmanager
def ahead(arguments: Sequence[str]) -> Iterator[None]:
    """Inside, `nursery` finds one that was forked here, if `dsmem tokenize ARGUMENTS` will most likely want one.

    For a process that has a single thread, and has imported nothing yet that could have others.
    """
    if not any(map(_is_large, _inputs(arguments))):
        yield
        return
    with Nursery(forked=True) as started:
        token = _started_ahead.set(started)
        try:
            yield
        finally:
            _started_ahead.reset(token)


def nursery() -> Nursery:
    """The one that was started ahead, for who asks first, or a fresh process."""
    started = _started_ahead.get()
    _started_ahead.set(None)
    return started or Nursery()


def _inputs(arguments: Sequence[str]) -> Iterator[str]:
    """What may be inputs among the arguments: options are parsed later, by what is imported later."""
    before = ""
    for argument in arguments:
        if not argument.startswith("-") and before not in _NOT_INPUTS:
            yield argument
        before = argument


def _is_large(path: str) -> bool:
    with suppress(OSError, ValueError):
        return os.stat(path).st_size > HERE_BYTES
    return False


def _start(theirs: socket.socket) -> _Process:
    import subprocess

    threads = {**dict.fromkeys(_ONE_IF_UNSAID, "1"), **helpers.environment(), **_FOR_ENGINES}
    return helpers.start("dsmem.tokens.nursery", stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=threads)


def _fork(ours: socket.socket, theirs: socket.socket) -> _Process:
    parent = os.getpid()

    def work() -> None:
        ours.close()
        os.environ.update({**dict.fromkeys(_ONE_IF_UNSAID, "1"), **os.environ, **_FOR_ENGINES})
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        from dsmem.tokens import nursery

        nursery.serve(parent, theirs)

    return helpers.Fork(work)


def _pipe() -> tuple[int, int]:
    """As os.pipe(), of descriptors beyond the standard ones: who started us may have closed those."""
    ends = os.pipe()
    beyond = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3) if end < 3 else end for end in ends]
    for end in ends:
        if end < 3:
            os.close(end)
    return beyond[0], beyond[1]


def _beyond(end: socket.socket) -> socket.socket:
    """The same, of a descriptor beyond the standard ones."""
    if end.fileno() >= 3:
        return end
    with end:
        return socket.socket(fileno=fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3))


def send(requests: IO[bytes], value: object) -> None:
    """One line, whole; nothing where nobody reads any more."""
    try:
        data = memoryview(json.dumps(value).encode() + b"\n")
        while data:
            data = data[requests.write(data) or 0 :]
    except BrokenPipeError:
        return  # it is dead: its answers are at an end
