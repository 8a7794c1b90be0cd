"""Workers that encode pieces: processes that never outlive this one, forked by a fresh one (`dsmem.tokens.nursery`).

What is said is lines of JSON, through two pipes for each: a recipe and pieces to a worker, reports and records from it.
The parts themselves go through files.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from selectors import EVENT_READ, DefaultSelector
from typing import IO, TYPE_CHECKING, Any

from dsmem import helpers
from dsmem.errors import WorkerLost
from dsmem.tokens import failures
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
    """Started at once, told what to do when that is known: all is loaded while the parent still looks at the input."""

    def __init__(self, processes: int) -> None:
        self._stack = ExitStack()
        self._ready = self._stack.enter_context(DefaultSelector())
        self._workers: list[_Worker] = []
        try:
            self._nursery = _Nursery(self._stack, processes)
            for number, (requests, answers) in enumerate(self._nursery.ends):
                worker = _Worker(number, self._nursery, requests, answers)
                self._ready.register(answers, EVENT_READ, worker)
                self._workers.append(worker)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def expect(self, located: Located, engine: str, *, parse_special: bool) -> None:
        """Let it be loaded what workers will most likely be told to use, while the parent looks at it, too."""
        self._nursery.send({"located": asdict(located), "engine": engine, "parse_special": parse_special})

    def fitting(self, added: Mapping[str, int]) -> tuple[EngineName, str] | None:
        """Name and version of the engine that workers have loaded; None if there is none, or it fits other ids.

        `added` are the ids that the reference gives to added tokens. Raises WorkerLost.
        """
        self._nursery.send({"added": added})
        kind, value = self._nursery.hear()
        assert kind == "fitting", kind
        return None if value is None else (value["name"], value["version"])

    def dismiss(self) -> None:
        """There is nothing more to do: workers end while the parent goes on."""
        self._nursery.dismiss()

    def run(
        self,
        recipe: Recipe,
        pieces: Iterator[Piece],
        places: Places,
        report: Report,
        compare: Callable[[str], list[int]] | None = None,
    ) -> Iterator[Record]:
        """Records as parts are finished, in no particular order; `places` is told of each part that is counted.

        `compare` encodes by the reference, if the recipe says that workers can ask for it.

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
                    elif kind == "compare":
                        assert compare is not None
                        worker.send({"compared": compare(value)})
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
                            failed = piece.number, failures.again(value)
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


class _Nursery:
    """The process that forks the workers, and this side's ends of their pipes: requests and answers of each."""

    def __init__(self, stack: ExitStack, processes: int) -> None:
        self.ends: list[tuple[IO[bytes], IO[bytes]]] = []
        self._ended: dict[int, int] = {}
        self._dismissed = False
        self._rest = b""
        environment = {**helpers.environment(), **_ONE_THREAD}
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment.setdefault(name, "1")
        stack.callback(self._close_ends)
        theirs: list[int] = []
        try:
            for _ in range(processes):
                requests, told = os.pipe()
                theirs.append(requests)
                here: IO[bytes] = os.fdopen(told, "wb", 0)
                said, answers = os.pipe()
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
        stack.callback(self._stop)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout

    def send(self, value: object) -> None:
        """One line."""
        _send(self._requests, value)

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
        """Let all end by themselves."""
        self._dismissed = True
        self._close_requests()

    def _ending(self) -> str:
        return helpers.ending(self._process.wait(_PATIENCE_S))

    def _stop(self) -> None:
        """End it, and with it the workers, wherever they are."""
        self._close_requests()
        self._requests.close()
        if self._dismissed:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE_S)
        self._process.kill()
        self._process.wait()
        self._answers.close()
        for _, answers in self.ends:
            while os.read(answers.fileno(), 1 << 16):
                pass  # until it has ended, it may write to the parts

    def _close_ends(self) -> None:
        self._close_requests()
        for _, answers in self.ends:
            answers.close()

    def _close_requests(self) -> None:
        for requests, _ in self.ends:
            requests.close()


class _Worker:
    def __init__(self, number: int, nursery: _Nursery, requests: IO[bytes], answers: IO[bytes]) -> None:
        self._number = number
        self._nursery = nursery
        self._requests = requests
        self._answers = answers
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
        _send(self._requests, value)

    def take(self, piece: Piece) -> None:
        self.in_flight[piece.number] = piece
        self.ahead += 1
        self.send(piece.dump())

    def collect(self) -> Sequence[tuple[str, Any]]:
        data = os.read(self._answers.fileno(), 1 << 16)
        if not data:
            ending = self._nursery.ending_of(self._number)
            raise WorkerLost(
                f"a worker ended ({ending}) while it encoded {self.in_flight[self.first].shown}"
                if self.in_flight
                else f"a worker ended ({ending})"
            )
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [next(iter(json.loads(line).items())) for line in lines]


def _send(requests: IO[bytes], value: object) -> None:
    try:
        data = memoryview(json.dumps(value).encode() + b"\n")
        while data:
            data = data[requests.write(data) or 0 :]
    except BrokenPipeError:
        return  # it is dead: its answers are at an end
