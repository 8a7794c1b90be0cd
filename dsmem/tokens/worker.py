"""A worker of `dsmem tokenize` (`python -m`): pieces, and later their places, on standard input; on standard output how
many bytes each became, and its record when it has its place."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count
from queue import PriorityQueue
from typing import TYPE_CHECKING, Any

from dsmem import helpers
from dsmem.errors import DsmemError
from dsmem.tokens import crew
from dsmem.tokens.pieces import Piece

if TYPE_CHECKING:
    from dsmem.tokens.engines import Engine
    from dsmem.tokens.parts import Made

_log = logging.getLogger(__name__)
_REPORT_BYTES = 16 << 20
_PLACE = b'{"place"'


def main(arguments: Sequence[str]) -> None:
    """Serve one parent: its pid."""
    helpers.end_with_parent(int(arguments[0]))
    crew.ignore_interrupts()
    # What it will need, while the parent still looks at the input.
    import orjson  # noqa: F401
    import xxhash  # noqa: F401

    from dsmem.tokens.encoding import Encoder
    from dsmem.tokens.recipe import Recipe

    lines = _Lines()
    # The parent must never wait for us to read while we wait for it to read.
    threading.Thread(target=lines.listen, daemon=True).start()
    expected = lines.get()
    if not expected:
        return
    engine = _engine(**json.loads(expected))
    said = json.loads(lines.get() or "{}")
    if "added" in said:
        crew.say("fitting", _fitting(engine, said["added"]))
        said = json.loads(lines.get() or "{}")
    if not said:
        return  # nothing was left to do
    recipe = Recipe.load(said)
    if engine is not None and engine.name != recipe.engine:
        engine = None
    encoder: Encoder | None = None
    report = _Report()
    made: dict[int, Made] = {}
    while line := lines.get():
        told = json.loads(line)
        number = told.get("place", told.get("number"))
        try:
            if number in made:
                crew.say("done", asdict(made[number].place(told["at"])))
                del made[number]
            else:
                encoder = encoder or Encoder(recipe, engine)
                made[number] = encoder.encode(Piece.load(told), report)
                report.flush()
                crew.say("made", {"number": number, "size_bytes": made[number].size_bytes})
        except (DsmemError, OSError, MemoryError) as exc:
            crew.say("failed", {**crew.described(exc), "number": number, "was_made": number in made})


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


def _fitting(engine: Engine | None, added: dict[str, int]) -> dict[str, str] | None:
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


class _Lines:
    """Lines of standard input, those that tell places before others: what waits for its place takes memory."""

    def __init__(self) -> None:
        self._waiting: PriorityQueue[tuple[int, int, bytes]] = PriorityQueue()

    def listen(self) -> None:
        """Take all lines, in a thread."""
        numbers = count()
        for line in sys.stdin.buffer:
            self._waiting.put((0 if line.startswith(_PLACE) else 1, next(numbers), line))
        self._waiting.put((2, 0, b""))

    def get(self) -> bytes:
        """The next; b"" after all others."""
        return self._waiting.get()[2]


class _Report:
    """Tells the parent of bytes done, not too often."""

    def __init__(self) -> None:
        self._held_bytes = 0

    def __call__(self, done_bytes: int) -> None:
        self._held_bytes += done_bytes
        if self._held_bytes >= _REPORT_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._held_bytes:
            crew.say("progress", self._held_bytes)
        self._held_bytes = 0


if __name__ == "__main__":
    main(sys.argv[1:])
