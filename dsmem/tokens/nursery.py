"""Where the workers of `dsmem tokenize` come from (`python -m`): it loads once what all of them need, and forks them.

An engine takes longer to load than a part to encode. On standard input it is told what to load and asked whether that
fits; on standard output it answers, and says how each worker ended. What workers do goes through pipes of their own.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dsmem import helpers
from dsmem.errors import DsmemError

if TYPE_CHECKING:
    from dsmem.tokens.engines import Engine

_log = logging.getLogger(__name__)
_OWN_THREADS = "/proc/self/task"
_GOING_S = 0.05
_fresh: list[subprocess.Popen[bytes]] = []
"""Kept: who drops one that has not ended is warned."""


def main(arguments: Sequence[str]) -> None:
    """Serve one parent: its pid, then for each worker the descriptors of its requests and of its answers."""
    parent, *descriptors = map(int, arguments)
    helpers.end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what becomes of an interrupt
    libraries = threading.Thread(target=_import_all)
    expected = sys.stdin.buffer.readline()
    if not expected:
        return
    libraries.start()  # engines load without Python's lock
    engine = _engine(**json.loads(expected))
    libraries.join()
    from dsmem.tokens import worker

    alone = _is_alone()
    gc.freeze()  # else the first collection of each worker would copy every page that it looks at
    numbers: dict[int, int] = {}
    while descriptors:
        requests, answers, *descriptors = descriptors
        start = _fork if alone else _start_fresh
        numbers[start(requests, answers, descriptors, engine)] = len(numbers)
        os.close(requests)
        os.close(answers)
    if asked := sys.stdin.buffer.readline():
        worker.say(sys.stdout.buffer, "fitting", _fitting(engine, json.loads(asked)["added"]))
    while numbers:
        pid, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        worker.say(sys.stdout.buffer, "ended", {"worker": numbers.pop(pid), "code": code})


def _import_all() -> None:
    import importlib.metadata  # noqa: F401 - tells an engine's version

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


def _fork(requests: int, answers: int, others: Sequence[int], engine: Engine | None) -> int:
    """A worker that reads and writes these descriptors, all that is loaded here in it; its pid."""
    from dsmem.tokens import worker

    here = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        helpers.end_with_parent(here)
        for descriptor in others:
            os.close(descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)  # whatever a library prints: standard output is the parent's
        worker.run(requests, answers, engine)
    finally:
        os._exit(1)  # nothing of what this process was before


def _start_fresh(requests: int, answers: int, others: Sequence[int], engine: Engine | None) -> int:
    """The same, a process of its own: an engine would wait for threads that a fork has not taken along."""
    from dsmem.tokens import worker

    process = subprocess.Popen(helpers.command(worker.__name__), stdin=requests, stdout=answers)
    _fresh.append(process)
    return process.pid


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


def _fitting(engine: Engine | None, added: Mapping[str, int]) -> dict[str, str] | None:
    """What the engine is; None if there is none, or if it contradicts the reference about these ids."""
    from dsmem.tokens import engines

    if engine is None:
        return None
    try:
        engines.check_added(engine, added)
    except engines.Unfit as exc:
        _log.info("not %s: %s", engine.name, exc)
        return None
    return {"name": engine.name, "version": engine.version}


if __name__ == "__main__":
    main(sys.argv[1:])
