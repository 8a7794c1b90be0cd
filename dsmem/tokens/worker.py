"""A worker of `dsmem tokenize`: it is told pieces, and later their places; it says how many bytes each became, and its
record when it has its place.

What is said is lines of JSON. Workers are forked where all they need is loaded (`dsmem.tokens.nursery`); where that
can't be, each is a fresh process (`python -m`).
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from queue import Empty, PriorityQueue, SimpleQueue
from typing import IO, TYPE_CHECKING, NoReturn

from dsmem import helpers
from dsmem.errors import DsmemError
from dsmem.tokens import failures
from dsmem.tokens.pieces import Piece

if TYPE_CHECKING:
    from dsmem.tokens.engines import Engine
    from dsmem.tokens.parts import Made

_REPORT_BYTES = 16 << 20
_IDLE_S = 0.1
"""Without a request, before what is held for the next is given back: others may still work for long."""
_PLACE = b'{"place"'
_COMPARED = b'{"compared"'


def main(arguments: Sequence[str]) -> None:
    """A fresh process: the pid of its parent; requests on standard input, answers on standard output."""
    helpers.end_with_parent(int(arguments[0]))
    helpers.ignore_interrupts()
    prepare()
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints
    run(0, answers, None)


def run(requests: int, answers: int, engine: Engine | None, reference: Engine | None = None) -> NoReturn:
    """Serve by these descriptors, and end this process at once: a thread reads requests until the parent ends them."""
    told, said = os.fdopen(requests, "rb", closefd=False), os.fdopen(answers, "wb", closefd=False)
    helpers.end_after(lambda: serve(told, said, engine, reference))


def prepare() -> None:
    """Import what a worker will need, while the parent still looks at the input."""
    import orjson  # noqa: F401
    import xxhash  # noqa: F401

    import dsmem.tokens.encoding
    import dsmem.tokens.recipe  # noqa: F401


def say(answers: IO[bytes], kind: str, value: object) -> None:
    """One line to the parent."""
    answers.write(json.dumps({kind: value}).encode() + b"\n")
    answers.flush()


def serve(requests: IO[bytes], answers: IO[bytes], engine: Engine | None, reference: Engine | None = None) -> None:
    """Make parts until the requests end, by that of the two which the recipe names, if either is."""
    from dsmem.tokens import renewing
    from dsmem.tokens.encoding import Encoder
    from dsmem.tokens.recipe import Recipe

    parent = _Parent(requests, answers)
    # The parent must never wait for us to read while we wait for it to read.
    threading.Thread(target=parent.listen, daemon=True).start()
    told = parent.hear()
    if not told:
        return  # nothing was left to do
    recipe = Recipe.load(json.loads(told))
    renewing.hold_little(recipe.workers)
    if engine is not None and engine.name != recipe.engine:
        engine, reference = reference if reference is not None and reference.name == recipe.engine else None, None
    encoder: Encoder | None = None
    report = _Report(parent)
    made: dict[int, Made] = {}
    while line := parent.hear(encoder.rest if encoder is not None else None):
        told = json.loads(line)
        number = told.get("place", told.get("number"))
        try:
            if number in made:
                parent.say("done", asdict(made[number].place(told["at"])))
                del made[number]
            else:
                encoder = encoder or Encoder(recipe, engine, reference=reference, ask=parent.encode)
                piece = Piece.load(told)
                if piece.kind in ("parquet", "arrow"):
                    from dsmem.tokens import tables

                    tables.hold_little()
                made[number] = encoder.encode(piece, report)
                report.flush()
                parent.say("made", {"number": number, "size_bytes": made[number].size_bytes})
        except (DsmemError, OSError, MemoryError) as exc:
            parent.say("failed", {**failures.described(exc), "number": number, "was_made": number in made})


class _Parent:
    """What it says, lines that tell places before others: what waits for its place takes memory."""

    def __init__(self, requests: IO[bytes], answers: IO[bytes]) -> None:
        self._requests = requests
        self._answers = answers
        self._waiting: PriorityQueue[tuple[int, int, bytes]] = PriorityQueue()
        self._compared: SimpleQueue[bytes] = SimpleQueue()

    def listen(self) -> None:
        """Take all lines, in a thread."""
        numbers = count()
        try:
            for line in self._requests:
                if line.startswith(_COMPARED):
                    self._compared.put(line)
                else:
                    self._waiting.put((0 if line.startswith(_PLACE) else 1, next(numbers), line))
        finally:
            self._waiting.put((2, 0, b""))
            self._compared.put(b"")

    def hear(self, rest: Callable[[], None] | None = None) -> bytes:
        """The next line, b"" after all others; `rest` is done where that takes long."""
        if rest is not None:
            with suppress(Empty):
                return self._waiting.get(timeout=_IDLE_S)[2]
            rest()
        return self._waiting.get()[2]

    def say(self, kind: str, value: object) -> None:
        """One line."""
        say(self._answers, kind, value)

    def encode(self, text: str) -> list[int]:
        """The ids of the reference, which the parent has loaded."""
        self.say("compare", text)
        answer = self._compared.get()
        if not answer:
            sys.exit(1)  # nobody waits for this part any more
        ids: list[int] = json.loads(answer)["compared"]
        return ids


class _Report:
    """Tells the parent of bytes done, not too often."""

    def __init__(self, parent: _Parent) -> None:
        self._parent = parent
        self._held_bytes = 0

    def __call__(self, done_bytes: int) -> None:
        self._held_bytes += done_bytes
        if self._held_bytes >= _REPORT_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._held_bytes:
            self._parent.say("progress", self._held_bytes)
        self._held_bytes = 0


if __name__ == "__main__":
    main(sys.argv[1:])
