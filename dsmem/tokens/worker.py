"""A worker of `dsmem tokenize` (`python -m`): pieces on standard input, a record for each on standard output."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from dsmem import helpers
from dsmem.errors import DsmemError
from dsmem.tokens import crew
from dsmem.tokens.pieces import Piece

if TYPE_CHECKING:
    from dsmem.tokens.engines import Engine

_log = logging.getLogger(__name__)
_REPORT_BYTES = 16 << 20


def main(arguments: Sequence[str]) -> None:
    """Serve one parent: its pid."""
    helpers.end_with_parent(int(arguments[0]))
    crew.ignore_interrupts()
    # What it will need, while the parent still looks at the input.
    import orjson  # noqa: F401
    import xxhash  # noqa: F401

    from dsmem.tokens.encoding import Encoder, Recipe

    lines: SimpleQueue[bytes] = SimpleQueue()
    # The parent must never wait for us to read while we wait for it to read.
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    expected = lines.get()
    if not expected:
        return
    engine = _engine(**json.loads(expected))
    said = lines.get()
    if not said:
        return  # nothing was left to do
    encoder: Encoder | None = None
    recipe = Recipe.load(json.loads(said))
    if engine is not None and engine.name != recipe.engine:
        engine = None
    report = _Report()
    while line := lines.get():
        piece = Piece.load(json.loads(line))
        try:
            encoder = encoder or Encoder(recipe, engine)
            record = encoder.encode(piece, report)
        except (DsmemError, OSError, MemoryError) as exc:
            crew.say("failed", crew.described(exc))
            continue
        report.flush()
        crew.say("done", asdict(record))


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


def _listen(lines: SimpleQueue[bytes]) -> None:
    """Every line of standard input, and b"" at the end."""
    for line in sys.stdin.buffer:
        lines.put(line)
    lines.put(b"")


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
