"""One long document to an engine in pieces, cut where that changes nothing.

A cut is taken where encoding what is left and right of it apart gives what encoding both together gives, looked at in a
window of text on both sides. Text that can't be cut is encoded whole, up to MOST_WHOLE_BYTES.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dsmem import units
from dsmem.errors import BadDocument, BadSource, EngineDiffers

if TYPE_CHECKING:
    from dsmem.tokens.engines import Engine, Ids

LONG_BYTES = 8 << 20
"""A longer document is fed in pieces of about this size."""
MOST_WHOLE_BYTES = 64 << 20
_READ_BYTES = 4 << 20
_WINDOW_BYTES = 1 << 10
_REACH_BYTES = 1 << 20
"""How far back from the end of what is held a cut is looked for."""
_TRIES = 24
_CUTS = (
    re.compile(rb"(?<=[^\s]\n)(?=[^\s])"),
    re.compile(rb"(?<=[^\s\x80-\xff])(?= [^\s\x80-\xff])"),
    re.compile(rb"(?<=[\x21-\x7f])(?=[\x21-\x7f])"),
)
"""Best first: after a line end between characters that are no spaces; before a single space; between two characters."""


@dataclass(frozen=True, slots=True)
class Comparing:
    """How a long document is compared with the reference: around each cut and before its end, or every piece, too."""

    reference: Engine
    whole: bool
    """At the speed of the reference."""


def feed(
    engine: Engine, read: Callable[[int], bytes], *, path: str, place: str, comparing: Comparing | None = None
) -> Iterator[Ids]:
    """The ids of one document, whose UTF-8 `read(size)` gives piece by piece and b"" at the end.

    Raises BadDocument (not UTF-8), BadSource (more than MOST_WHOLE_BYTES without a place to cut), EngineDiffers.
    """
    held = b""
    done_bytes, line = 0, 1
    while True:
        data = read(_READ_BYTES)
        held += data
        if len(held) < LONG_BYTES and data:
            continue
        cut = len(held) if not data else find_cut(engine, held)
        if cut is None:
            if len(held) > MOST_WHOLE_BYTES:
                raise BadSource(
                    f"{path}{place and f':{place}'}: no place to cut this document in the "
                    f"{units.format_bytes(len(held))} after {units.format_bytes(done_bytes)}: whatever was tried, "
                    f"{engine.name} encodes the text otherwise in pieces; whole, at most "
                    f"{units.format_bytes(MOST_WHOLE_BYTES)} are encoded"
                )
            continue
        if cut:
            text = decoded(held[:cut], path=path, place=place, line=line)
            ids = engine.encode([text])[0]
            if comparing is not None:
                reference = comparing.reference
                # Around the cut the engine gives together what it gives apart: so does the reference, if it agrees.
                alike = _same(engine, reference, "".join(_around(held, cut) or ()))
                if alike and comparing.whole:
                    alike = bool(np.array_equal(ids, reference.encode([text])[0]))
                if not alike:
                    raise EngineDiffers(
                        f"{path}{place and f':{place}'}: the engine and {reference.name}, the reference, "
                        f"differ in bytes {done_bytes} to {done_bytes + cut} of this document, or right behind them",
                        path=path,
                        place=place,
                    )
            yield ids
        line += held.count(b"\n", 0, cut)
        done_bytes += cut
        held = held[cut:]
        if not data:
            return


def decoded(data: bytes, *, path: str, place: str = "", line: int = 1) -> str:
    """UTF-8 that begins in that line of a document; raises BadDocument, which names the line if no place is given."""
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        where = place or str(line + data.count(b"\n", 0, exc.start))
        reason = f"not UTF-8: byte 0x{data[exc.start]:02x}"
        raise BadDocument(f"{path}:{where}: {reason}", path=path, place=where) from exc


def find_cut(engine: Engine, held: bytes) -> int | None:
    """The last place where this text may be cut, of those that are tried; None if there is none."""
    begin = max(len(held) - _REACH_BYTES, 1)
    end = max(len(held) - _WINDOW_BYTES, begin)
    for pattern in _CUTS:
        candidates = [match.start() for match in pattern.finditer(held, begin, end)][-_TRIES:]
        for cut in reversed(candidates):
            if _changes_nothing(engine, held, cut):
                return cut
    return None


def _changes_nothing(engine: Engine, held: bytes, cut: int) -> bool:
    texts = _around(held, cut)
    if texts is None:
        return False  # what is not UTF-8 is told when it is encoded
    ids, lengths = engine.encode(["".join(texts), *texts])
    return bool(np.array_equal(ids[: lengths[0]], ids[lengths[0] :]))


def _same(engine: Engine, reference: Engine, text: str) -> bool:
    return bool(np.array_equal(engine.encode([text])[0], reference.encode([text])[0]))


def _around(held: bytes, cut: int) -> tuple[str, str] | None:
    """Some text left and right of a cut; None where it is not UTF-8."""
    begin, end = max(cut - _WINDOW_BYTES, 0), min(cut + _WINDOW_BYTES, len(held))
    # A cut is between ASCII characters or beside one; the window's own ends may lie inside others.
    left = held[begin:cut].lstrip(_CONTINUATION) if begin else held[:cut]
    try:
        return left.decode(), _whole(held[cut:end]).decode()
    except UnicodeDecodeError:
        return None


_CONTINUATION = bytes(range(0x80, 0xC0))


def _whole(data: bytes) -> bytes:
    """Without a character that is cut off at the end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        needs = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
        return data if needs <= back else data[:-back]
    return data
