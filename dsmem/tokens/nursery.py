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
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dsmem import helpers
from dsmem.errors import DsmemError

if TYPE_CHECKING:
    from dsmem.tokens.engines import Engine

_log = logging.getLogger(__name__)
_OWN_THREADS = "/proc/self/task"


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

    gc.freeze()  # else the first collection of each worker would copy every page that it looks at
    numbers: dict[int, int] = {}
    while descriptors:
        requests, answers, *descriptors = descriptors
        numbers[_start(requests, answers, descriptors, engine)] = len(numbers)
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


def _start(requests: int, answers: int, others: Sequence[int], engine: Engine | None) -> int:
    """A worker that reads and writes these descriptors, which are closed here; its pid."""
    from dsmem.tokens import worker

    here = os.getpid()
    fresh = helpers.command(worker.__name__)
    threads = len(os.listdir(_OWN_THREADS))
    pid = os.fork()
    if pid:
        os.close(requests)
        os.close(answers)
        return pid
    code = 1
    try:
        helpers.end_with_parent(here)
        for descriptor in others:
            os.close(descriptor)
        if threads > 1:  # an engine would wait for threads that a fork has not taken along
            os.dup2(requests, 0)
            os.dup2(answers, 1)
            os.execv(fresh[0], fresh)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)  # whatever a library prints: standard output is the parent's
        with open(requests, "rb") as told, open(answers, "wb") as said:
            worker.serve(told, said, engine)
        code = 0
    except SystemExit:
        pass
    except BaseException:  # noqa: BLE001 - what a process says that ends by an error
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)  # nothing of what this process was before


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
