"""Workers that encode pieces: processes that never outlive this one, forked by a fresh one (`dsmem.tokens.nursery`).

What is said is lines of JSON, through two pipes for each: a recipe and pieces to a worker, reports and records from it.
The parts themselves go through files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from selectors import EVENT_READ, DefaultSelector
from typing import IO, TYPE_CHECKING, Any

from dsmem.errors import WorkerLost
from dsmem.tokens import failures
from dsmem.tokens.parts import Record
from dsmem.tokens.pieces import Piece
from dsmem.tokens.places import Places
from dsmem.tokens.recipe import VERIFY_EVERY
from dsmem.tokens.starting import Nursery, send

if TYPE_CHECKING:
    from dsmem.tokens.encoding import Report
    from dsmem.tokens.engines import EngineName
    from dsmem.tokens.recipe import Recipe

_AHEAD = 2
"""Pieces that a worker has been told to encode and has not."""
_IN_FLIGHT = 4
"""Those, and parts that wait for their place."""


class Crew:
    """The workers of a nursery, which goes on to be whoever's it is."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery
        self._ready = DefaultSelector()
        self._workers: list[_Worker] = []
        for number, (requests, answers) in enumerate(nursery.ends):
            worker = _Worker(number, nursery, requests, answers)
            self._ready.register(answers, EVENT_READ, worker)
            self._workers.append(worker)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._ready.close()

    @property
    def size(self) -> int:
        """How many workers."""
        return len(self._workers)

    def keep(self, count: int) -> None:
        """No more than so many: the rest end, and have had nothing to do."""
        for number, (requests, answers) in enumerate(self._nursery.ends):
            if count <= number < self.size:
                self._ready.unregister(answers)
                requests.close()
        del self._workers[count:]

    def ask_fitting(self, added: Mapping[str, int]) -> None:
        """Ask for what `fitting` tells; `added` are the ids that the reference gives to added tokens."""
        self._nursery.send({"added": added})

    def fitting(self) -> EngineName | None:
        """The engine that workers have loaded; None if there is none, or it fits other ids.

        Raises WorkerLost.
        """
        kind, value = self._nursery.hear()
        assert kind == "fitting", kind
        name: EngineName | None = value
        return name

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
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Iterator[Record]:
        """Records as parts are finished, in no particular order; `places` is told of each part that is counted.

        `compare` encodes by the reference, if the recipe says that workers can ask for it; `meanwhile` is called once,
        when workers have something to do.

        Of several errors the one of the earliest piece is raised, whoever meets it first. Raises what encoding raises,
        WorkerLost, SourceChanged (a part that was placed elsewhere).
        """
        for worker in self._workers:
            worker.send(recipe.dump())
        failed: tuple[int, Exception] | None = None
        self._feed(pieces)
        meanwhile()
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


class _Worker:
    def __init__(self, number: int, nursery: Nursery, requests: IO[bytes], answers: IO[bytes]) -> None:
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
        send(self._requests, value)

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
