"""The process from which workers of `dsmem tokenize` come (`dsmem.tokens.nursery`), seen from the one that starts it.

Little is imported here: it is started first, and loads an engine while the rest of this process is still imported.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import time
from contextlib import ExitStack
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any

from dsmem import helpers
from dsmem.errors import WorkerLost

if TYPE_CHECKING:
    from dsmem.tokens.vocabularies import Located

_PATIENCE_S = 5.0
_ONE_THREAD = {
    "FASTOKENS_BPE_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Workers are as many as there are CPUs: threads of engines beside them would only take turns with them."""


class Nursery:
    """It, and this side's ends of the pipes of each worker: requests and answers."""

    def __init__(self, processes: int) -> None:
        self._stack = ExitStack()
        self.ends: list[tuple[IO[bytes], IO[bytes]]] = []
        try:
            self._start(processes)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, processes: int) -> None:
        self._ended: dict[int, int] = {}
        self._rest = b""
        environment = {**helpers.environment(), **_ONE_THREAD}
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment.setdefault(name, "1")
        self._stack.callback(self._close_ends)
        theirs: list[int] = []
        try:
            for _ in range(processes):
                requests, told = _pipe()
                theirs.append(requests)
                here: IO[bytes] = os.fdopen(told, "wb", 0)
                said, answers = _pipe()
                theirs.append(answers)
                self.ends.append((here, os.fdopen(said, "rb", 0)))
            self._process = subprocess.Popen(
                helpers.command("dsmem.tokens.nursery", *theirs),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                bufsize=0,
                pass_fds=theirs,
            )
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        self._stack.callback(self._stop)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout

    def expect(self, located: Located, engine: str, *, parse_special: bool) -> None:
        """Let it load what workers will most likely be told to use."""
        self.send({"located": asdict(located), "engine": engine, "parse_special": parse_special})

    def send(self, value: object) -> None:
        """One line."""
        send(self._requests, value)

    def hear(self) -> tuple[str, Any]:
        """The next line; raises WorkerLost."""
        while b"\n" not in self._rest:
            data = os.read(self._answers.fileno(), 1 << 16)
            if not data:
                raise WorkerLost(f"the process that starts workers ended ({self._ending()})")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        ((kind, value),) = json.loads(line).items()
        return kind, value

    def ending_of(self, worker: int) -> str:
        """How that worker ended, which it has."""
        self._requests.close()  # it may still wait for a question
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
        try:
            return helpers.ending(self._process.wait(_PATIENCE_S))
        except subprocess.TimeoutExpired:
            return "which has not ended"

    def _stop(self) -> None:
        """End it, and with it the workers, wherever they are."""
        self._close_requests()
        self._requests.close()
        self._process.kill()
        self._process.wait()
        self._answers.close()
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


def _pipe() -> tuple[int, int]:
    """As os.pipe(), of descriptors beyond the standard ones: who started us may have closed those."""
    ends = os.pipe()
    beyond = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3) if end < 3 else end for end in ends]
    for end in ends:
        if end < 3:
            os.close(end)
    return beyond[0], beyond[1]


def send(requests: IO[bytes], value: object) -> None:
    """One line, whole; nothing where nobody reads any more."""
    try:
        data = memoryview(json.dumps(value).encode() + b"\n")
        while data:
            data = data[requests.write(data) or 0 :]
    except BrokenPipeError:
        return  # it is dead: its answers are at an end
