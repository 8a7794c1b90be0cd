"""Where the workers of `dsmem tokenize` come from: it loads once what all of them need, and forks them.

An engine takes longer to load than a part to encode. Through a socket it is told what to load, gets the descriptors of
each worker's requests and answers, and is asked whether what it loaded fits; it answers, and says how workers ended.
What workers do goes through pipes of their own. It is a fork of the command line, or a fresh process (`python -m`).
"""

from __future__ import annotations

import gc
import json
import logging
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dsmem import helpers, malloc
from dsmem.errors import DsmemError

if TYPE_CHECKING:
    import subprocess

    from dsmem.tokens.engines import Engine, EngineName

_log = logging.getLogger(__name__)
_OWN_THREADS = "/proc/self/task"
_GOING_S = 0.05
_LARGE_BYTES = {"tokenizer.json": 4 << 20, "tiktoken": 1 << 20}
"""Of a file with some 70,000 tokens."""


def main(arguments: Sequence[str]) -> None:
    """A fresh process: the pid of its parent; the socket is its standard input."""
    helpers.ignore_interrupts()
    serve(int(arguments[0]), socket.socket(fileno=0))


def serve(parent: int, control: socket.socket) -> None:
    """Serve one parent, by its pid, until all workers have ended."""
    helpers.end_with_parent(parent)
    _have_stderr()
    libraries = threading.Thread(target=_import_all)
    libraries.start()  # before there is anything to load; engines load without Python's lock
    lines = _Lines(control)
    expected = lines.hear()
    if expected is None:
        return
    engine = _engine(**expected["load"])
    reference = _reference(engine, **expected["load"]) if expected["compare"] else None
    libraries.join()
    if expected["tables"]:
        import dsmem.tokens.arrowfiles  # noqa: F401

    if engine is not None and engine.name == "fastokens":
        _warm(engine, expected["load"]["located"], expected["processes"])
    malloc.give_back()  # two thirds of what loading takes
    alone = _is_alone()
    gc.freeze()  # else the first collection of each worker would copy every page that it looks at
    numbers: dict[int, int] = {}
    fresh: list[subprocess.Popen[bytes]] = []  # kept: who drops one that has not ended is warned
    for number in range(expected["processes"]):
        requests, answers = lines.take_descriptors()
        if alone:
            pid = _fork(requests, answers, control, engine, reference, tables=expected["tables"])
        else:
            fresh.append(_start(requests, answers))
            pid = fresh[-1].pid
        numbers[pid] = number
        os.close(requests)
        os.close(answers)
    if (asked := lines.hear()) is not None:
        _say(control, "fitting", _fitting(engine, asked["added"]))
    while numbers:
        pid, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        _say(control, "ended", {"worker": numbers.pop(pid), "code": code})


class _Lines:
    """What the parent says, as lines of JSON, and the pairs of descriptors that come with empty ones."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._rest = b""
        self._descriptors: deque[list[int]] = deque()

    def hear(self) -> Any:
        """The next line that is not empty; None after all others."""
        while True:
            line, end, rest = self._rest.partition(b"\n")
            if not end:
                if not self._receive():
                    return None
                continue
            self._rest = rest
            if line:
                return json.loads(line)

    def take_descriptors(self) -> list[int]:
        """The next pair; ends the process where the parent is gone."""
        while not self._descriptors:
            if not self._receive():
                sys.exit(1)
        return self._descriptors.popleft()

    def _receive(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 2, socket.MSG_CMSG_CLOEXEC)
        self._rest += data
        if descriptors:
            self._descriptors.append(descriptors)
        return bool(data)


def _say(control: socket.socket, kind: str, value: object) -> None:
    control.sendall(json.dumps({kind: value}).encode() + b"\n")


def _have_stderr() -> None:
    """Where it is closed, what is opened next would get its number, and with it what libraries print."""
    try:
        os.fstat(2)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        if null != 2:
            os.close(null)


def _import_all() -> None:
    from dsmem.tokens import worker

    worker.prepare()


def _is_alone() -> bool:
    """Whether this process has one thread. The kernel shows one that has been joined for some milliseconds more."""
    until = time.monotonic() + _GOING_S
    while len(os.listdir(_OWN_THREADS)) > 1:
        if time.monotonic() > until:
            return False
        time.sleep(0.0005)
    return True


def _fork(
    requests: int,
    answers: int,
    control: socket.socket,
    engine: Engine | None,
    reference: Engine | None,
    *,
    tables: bool,
) -> int:
    """A worker that reads and writes these descriptors, all that is loaded here in it; its pid."""
    from dsmem.tokens import worker

    here = os.getpid()

    def work() -> None:
        helpers.end_with_parent(here)
        control.close()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)  # whatever a library prints: standard output is the parent's
        if tables:
            # Here, while the parent looks at the input: it starts threads, and a fork takes none along.
            import pyarrow.parquet  # noqa: F401
        worker.run(requests, answers, engine, reference)

    pid = os.fork()
    if not pid:
        helpers.end_after(work)
    return pid


def _start(requests: int, answers: int) -> subprocess.Popen[bytes]:
    """A worker in a process of its own: an engine would wait for threads that a fork has not taken along."""
    from dsmem.tokens import worker

    return helpers.start(worker.__name__, stdin=requests, stdout=answers)


def _engine(located: dict[str, Any], engine: str, parse_special: bool) -> Engine | None:
    """What will most likely be asked for; None where it can't be loaded: the parent finds out why."""
    from dsmem.tokens import engines
    from dsmem.tokens.vocabularies import Located

    place = Located(**located)
    try:
        return engines.load(place, engines.likely(place, engine), parse_special=parse_special)
    except (engines.Unfit, DsmemError, OSError) as exc:
        _log.info("not loaded ahead: %s", exc)
        return None


def _reference(ahead: Engine | None, located: dict[str, Any], engine: str, parse_special: bool) -> Engine | None:
    """What the engine is compared with, where that is another: each worker that loaded it would have up to 200 MiB."""
    from dsmem.tokens import engines
    from dsmem.tokens.vocabularies import Located

    name = engines.reference_of(Located(**located))
    return None if ahead is None or ahead.name == name else _engine(located, name, parse_special)


def _warm(engine: Engine, located: dict[str, Any], processes: int) -> None:
    """Let it make what it makes when it first encodes, 11 MiB with 32,768 tokens and 44 with 200,000, where that is
    much in all workers, which then share it: in a thread, with which ends what each has for itself. It takes 0.2 to
    0.3 s, as it would take each worker."""
    from dsmem.tokens import renewing

    if renewing.are_many(processes) or os.stat(located["path"]).st_size > _LARGE_BYTES[located["kind"]]:
        first = threading.Thread(target=engine.encode, args=(renewing.FIRST,))
        first.start()
        first.join()


def _fitting(engine: Engine | None, added: Mapping[str, int]) -> EngineName | None:
    """The engine; None if there is none, or if it contradicts the reference about these ids."""
    from dsmem.tokens import engines

    if engine is None:
        return None
    try:
        engines.check_added(engine, added)
    except engines.Unfit as exc:
        _log.info("not %s: %s", engine.name, exc)
        return None
    return engine.name


if __name__ == "__main__":
    main(sys.argv[1:])
