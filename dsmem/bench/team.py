"""Processes that load or attach the same data at once, as training processes do, and the memory they take together."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

from dsmem import helpers, proc, settings
from dsmem.bench import told
from dsmem.bench.sources import Source
from dsmem.errors import DsmemError

Way = Literal["preload", "attach"]
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""glibc, mallopt(3): else it keeps arrays below 32 MiB after they are freed, and they count as what came before."""


class WorkerFailed(DsmemError, RuntimeError):
    """A process of a team failed or died."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one process did."""

    ready_s: float
    """Until it had the arrays."""
    read_s: float
    """Then, until it had read every byte of them."""
    digest: str
    """Of everything that it read."""


@dataclass(frozen=True, slots=True)
class Held:
    """What several processes did at once, and what that took."""

    way: Way
    answers: tuple[Answer, ...]
    pss_bytes: int
    """PSS of the processes together, while they held the data."""
    baseline_bytes: int
    """PSS of the same processes together before: interpreter and libraries."""

    @property
    def data_pss_bytes(self) -> int:
        """What the data took, in all processes together."""
        return self.pss_bytes - self.baseline_bytes


class Team:
    """Running processes; each request is about the store that is this process's when it is made."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self._processes = processes

    @contextmanager
    def holding(self, way: Way, source: Source, *, processes: int) -> Iterator[Held]:
        """Let the first `processes` load or attach everything and read it; they drop it at the end."""
        members = self._processes[:processes]
        baseline_bytes = _pss_bytes(members)
        try:
            answers = _ask(
                members, {"do": way, "path": source.path, "names": source.names, "root": settings.read().root}
            )
            yield Held(way, answers, _pss_bytes(members), baseline_bytes)
        finally:
            if all(member.poll() is None for member in members):
                _ask(members, {"do": "drop"})

    def warm_up(self, source: Source) -> None:
        """Let all load and attach something small, so that imports count neither as time nor as data."""
        ways: tuple[Way, ...] = ("preload", "attach")
        for way in ways:
            with self.holding(way, source, processes=len(self._processes)):
                continue


@contextmanager
def team(processes: int) -> Iterator[Team]:
    """Start that many; at the end, or when this process dies in whatever way, they end too."""
    with ExitStack() as stack:
        environ = {**helpers.environment(), **_GIVE_BACK}
        started = [told.started("dsmem.bench.worker", environ=environ) for _ in range(processes)]
        yield Team([stack.enter_context(one) for one in started])


def _ask(members: Sequence[subprocess.Popen[bytes]], request: dict[str, object]) -> tuple[Answer, ...]:
    """Send to all, then collect: they work at once. Every one is heard before a failure is raised."""
    line = json.dumps(request).encode() + b"\n"
    for member in members:
        assert member.stdin is not None
        try:
            member.stdin.write(line)
            member.stdin.flush()
        except BrokenPipeError as exc:
            raise _death(member) from exc
    heard = [_hear(member) for member in members]
    for answer in heard:
        if isinstance(answer, WorkerFailed):
            raise answer
    return tuple(answer for answer in heard if isinstance(answer, Answer))


def _hear(member: subprocess.Popen[bytes]) -> Answer | WorkerFailed:
    assert member.stdout is not None
    line = member.stdout.readline()
    if not line:
        return _death(member)
    answer = json.loads(line)
    if "error" in answer:
        return WorkerFailed(f"process {member.pid} failed: {answer['error']}")
    return Answer(**answer)


def _death(member: subprocess.Popen[bytes]) -> WorkerFailed:
    code = member.wait()
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    return WorkerFailed(f"process {member.pid} {how} before it answered")


def _pss_bytes(members: Sequence[subprocess.Popen[bytes]]) -> int:
    total = 0
    for member in members:
        try:
            total += proc.memory_of(member.pid).pss_bytes
        except ProcessLookupError as exc:
            raise _death(member) from exc
    return total
