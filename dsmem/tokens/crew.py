"""Workers that encode pieces: fresh processes that never outlive this one.

What is said is lines of JSON: a recipe and pieces to a worker's standard input, reports and records from its output.
The parts themselves go through files.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from selectors import EVENT_READ, DefaultSelector
from typing import TYPE_CHECKING, Any

from dsmem import helpers
from dsmem.errors import BadDocument, BadSource, DsmemError, EngineDiffers, WorkerLost, WrongIds
from dsmem.tokens.parts import Record
from dsmem.tokens.pieces import Piece
from dsmem.tokens.places import Places
from dsmem.tokens.recipe import VERIFY_EVERY

if TYPE_CHECKING:
    from dsmem.tokens.encoding import Report
    from dsmem.tokens.engines import EngineName
    from dsmem.tokens.recipe import Recipe
    from dsmem.tokens.vocabularies import Located

_AHEAD = 2
"""Pieces that a worker has been told to encode and has not."""
_IN_FLIGHT = 4
"""Those, and parts that wait for their place."""
_PATIENCE_S = 5.0


_ONE_THREAD = {
    "FASTOKENS_BPE_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Workers are as many as there are CPUs: threads of engines beside them would only take turns with them."""


class Crew:
    """Started at once, told what to do when that is known: workers import while the parent still looks at the input."""

    def __init__(self, processes: int) -> None:
        self._stack = ExitStack()
        self._ready = self._stack.enter_context(DefaultSelector())
        self._workers: list[_Worker] = []
        try:
            for _ in range(processes):
                worker = _Worker(self._stack)
                self._ready.register(worker.answers, EVENT_READ, worker)
                self._workers.append(worker)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def expect(self, located: Located, engine: str, *, parse_special: bool) -> None:
        """Let workers load what they will most likely be told to use, while the parent looks at it, too."""
        for worker in self._workers:
            worker.send({"located": asdict(located), "engine": engine, "parse_special": parse_special})

    def fitting(self, added: Mapping[str, int]) -> tuple[EngineName, str] | None:
        """Name and version of the engine that workers have loaded; None if there is none, or it fits other ids.

        `added` are the ids that the reference gives to added tokens. Raises WorkerLost.
        """
        worker = self._workers[0]
        worker.send({"added": added})
        while not (told := worker.collect()):
            pass
        ((kind, value),) = told
        assert kind == "fitting", told
        return None if value is None else (value["name"], value["version"])

    def run(self, recipe: Recipe, pieces: Iterator[Piece], places: Places, report: Report) -> Iterator[Record]:
        """Records as parts are finished, in no particular order; `places` is told of each part that is counted.

        Of several errors the one of the earliest piece is raised, whoever meets it first. Raises what encoding raises,
        WorkerLost, SourceChanged (a part that was placed elsewhere).
        """
        for worker in self._workers:
            worker.send(recipe.dump())
        failed: tuple[int, Exception] | None = None
        self._feed(pieces)
        while busy := [worker for worker in self._workers if worker.in_flight]:
            if failed is not None and all(worker.first > failed[0] for worker in busy):
                raise failed[1]
            for number, start_bytes in places.known():
                worker = next(worker for worker in busy if number in worker.in_flight)
                worker.send({"place": number, "at": start_bytes})
            for key, _ in self._ready.select():
                worker = key.data
                for kind, value in worker.collect():
                    if kind == "progress":
                        report(value)
                    elif kind == "made":
                        worker.ahead -= 1
                        places.count(value["number"], value["size_bytes"])
                    elif kind == "done":
                        record = Record(**value)
                        piece = worker.in_flight.pop(record.number)
                        if piece.is_spool:
                            os.unlink(piece.path)
                        yield record
                    else:
                        piece = worker.in_flight.pop(value["number"])
                        worker.ahead -= not value["was_made"]
                        if failed is None or piece.number < failed[0]:
                            failed = piece.number, _error(value)
            if failed is None:
                self._feed(pieces)
        if failed is not None:
            raise failed[1]

    def _feed(self, pieces: Iterator[Piece]) -> None:
        """Pieces in turn, so that those which workers are at lie near each other: parts wait for those before them."""
        hungry = [worker for worker in self._workers if worker.is_hungry]
        while hungry:
            for worker in sorted(hungry, key=lambda worker: worker.ahead):
                piece = next(pieces, None)
                if piece is None:
                    return
                if piece.number % VERIFY_EVERY == 0 and self._workers[0] in hungry:
                    worker = self._workers[0]  # one that compares: the others load no reference
                worker.take(piece)
            hungry = [worker for worker in hungry if worker.is_hungry]


class _Worker:
    def __init__(self, stack: ExitStack) -> None:
        environment = {**helpers.environment(), **_ONE_THREAD}
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment.setdefault(name, "1")
        self._process = subprocess.Popen(
            helpers.command("dsmem.tokens.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
        )
        stack.callback(self._stop)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests = self._process.stdin
        self.answers = self._process.stdout
        self.in_flight: dict[int, Piece] = {}
        self.ahead = 0
        self._rest = b""

    @property
    def first(self) -> int:
        """The number of the first piece that it has not finished."""
        return min(self.in_flight)

    @property
    def is_hungry(self) -> bool:
        return self.ahead < _AHEAD and len(self.in_flight) < _IN_FLIGHT

    def send(self, value: object) -> None:
        try:
            data = memoryview(json.dumps(value).encode() + b"\n")
            while data:
                data = data[self._requests.write(data) or 0 :]
        except BrokenPipeError:
            return  # it is dead: `collect` finds its answers at an end

    def take(self, piece: Piece) -> None:
        self.in_flight[piece.number] = piece
        self.ahead += 1
        self.send(piece.dump())

    def collect(self) -> Sequence[tuple[str, Any]]:
        data = os.read(self.answers.fileno(), 1 << 16)
        if not data:
            code = self._process.wait(_PATIENCE_S)
            raise WorkerLost(
                f"a worker ended ({helpers.ending(code)}) while it encoded {self.in_flight[self.first].shown}"
                if self.in_flight
                else f"a worker ended ({helpers.ending(code)})"
            )
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [next(iter(json.loads(line).items())) for line in lines]

    def _stop(self) -> None:
        self._requests.close()
        self.answers.close()
        self._process.kill()
        self._process.wait()


def _error(value: dict[str, Any]) -> Exception:
    kind, message, facts = value["kind"], value["message"], value["facts"]
    if kind == "OSError":
        return OSError(facts["errno"], message, facts["filename"])
    if kind == BadDocument.__name__:
        return BadDocument(message, path=facts["path"], place=facts["place"], fields=facts["fields"])
    if kind == EngineDiffers.__name__:
        return EngineDiffers(message, path=facts["path"], place=facts["place"])
    if kind == WrongIds.__name__:
        return WrongIds(message)
    return BadSource(message)


def described(error: Exception) -> dict[str, Any]:
    """An error that encoding raises, as JSON."""
    if isinstance(error, OSError) and error.errno is not None:
        facts: dict[str, Any] = {"errno": error.errno, "filename": error.filename}
        return {"kind": "OSError", "message": error.strerror or str(error), "facts": facts}
    facts = {name: getattr(error, name, "") for name in ("path", "place", "fields")}
    message = str(error) if isinstance(error, DsmemError) else f"{type(error).__name__}: {error}"
    return {"kind": type(error).__name__, "message": message, "facts": facts}


def ignore_interrupts() -> None:
    """In a worker: the parent decides what becomes of an interrupt."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def say(kind: str, value: object) -> None:
    """In a worker: one line to the parent."""
    sys.stdout.write(json.dumps({kind: value}) + "\n")
    sys.stdout.flush()
