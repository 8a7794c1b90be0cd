"""One long document to an engine in pieces, cut where that changes nothing.

A cut must be a seam (`dsmem.tokens.seams`: no token reaches across it, whatever comes later), and what is right of it
must give the same ids behind a little of what is left of it (the lead) and behind all of that, from the last cut on.
Every piece is encoded behind its lead, whose ids are left out then: whatever a tokenizer puts before a text or takes
from its begin befalls the lead. Text that can't be cut is encoded whole, up to MOST_WHOLE_BYTES. What is given to an
engine at once is bounded by the memory that this takes: up to 60 bytes for a byte of text, and up to 280 by Hugging
Face's tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dsmem import units
from dsmem.errors import BadDocument, BadSource, EngineDiffers

if TYPE_CHECKING:
    from dsmem.tokens.engines import Engine, Ids

Read = Callable[[int], bytes]
Place = str | Callable[[], str]
"""Of a document in its file, '' if it is all of it; lines are counted when it is told."""
LONG_BYTES = 1 << 20
"""A longer document is fed in pieces of about this size."""
MOST_WHOLE_BYTES = 8 << 20
_REFERENCE_BYTES, _MOST_REFERENCE_BYTES = 160 << 10, 2 << 20
"""The same for Hugging Face's tokenizers."""
MOST_COMPARED_BYTES = 512 << 10
"""A document up to this is compared in one piece."""
_COMPARED_BYTES = 450 << 10
"""A piece for the reference of one that is longer; not the engine's pieces, so a cut is looked at from both sides."""
_READ_BYTES = 1 << 20
_WINDOW_BYTES = 1 << 10
_BETWEEN_BYTES = 4 << 20
"""Of text between two cuts that are compared: the reference takes as long for what lies around one as an engine for
some 100 KiB."""
_REACHES = (4 << 10, 64 << 10, 1 << 20)
"""How far back from the end of what is held a cut is looked for, then, and then in steps of the last."""
_TRIES = 24


@dataclass(slots=True)
class Comparing:
    """How a long document is compared with the reference: around cuts and before its end, or all of it, in pieces
    of the reference's own."""

    reference: Engine
    all: bool
    """At the speed of the reference."""


class NoCut(BadDocument):
    """More text than is encoded whole, and no place to cut it."""


def long_bytes(engine: Engine) -> int:
    """Longer text is fed to this engine in pieces."""
    return min(LONG_BYTES, _REFERENCE_BYTES) if engine.name == "tokenizers" else LONG_BYTES


def is_longer(text: str, size: int) -> bool:
    """Whether the UTF-8 of a text has more bytes than that."""
    return len(text) > size or (4 * len(text) > size and not text.isascii() and len(text.encode()) > size)


def feed(engine: Engine, read: Read, *, path: str, place: Place, comparing: Comparing | None = None) -> Iterator[Ids]:
    """The ids of one document, whose UTF-8 `read(size)` gives piece by piece and b"" at the end.

    Raises BadDocument (not UTF-8, or NoCut), BadSource (the reference has no place to cut), EngineDiffers.
    """
    piece_bytes = long_bytes(engine)
    pieces = _Pieces(engine, piece_bytes, path=path, place=place, advice="; make more than one document of it")
    compared = None if comparing is None else _Compared(comparing, path=path, place=place)
    since_bytes = _BETWEEN_BYTES  # the first is compared
    while True:
        data = read(min(_READ_BYTES, piece_bytes // 4))
        ids = pieces.push(data)
        since_bytes += len(data)
        if compared is not None:
            if pieces.seam is not None and (since_bytes >= _BETWEEN_BYTES or not data):
                compared.look_around(engine, pieces.seam)
                since_bytes = 0
            compared.push(data, ids)
        if ids is not None:
            yield ids
        if not data:
            return


def compare(engine: Engine, text: str, ids: Ids, *, path: str, place: Place, comparing: Comparing) -> None:
    """Compare a document that the engine has encoded whole, and that is too long for the reference to: all of it in
    pieces, or the first piece and what lies before the end.

    Raises EngineDiffers, BadSource (all of it, and no place to cut).
    """
    read = reading(text)
    compared = _Compared(comparing, path=path, place=place)
    if comparing.all:
        mine: Ids | None = ids
        while data := read(_COMPARED_BYTES):
            compared.push(data, mine)
            mine = None
        compared.push(b"", None)
        return
    pieces = _Pieces(comparing.reference, _COMPARED_BYTES, path=path, place=place)
    theirs: Ids | None = None
    with suppress(NoCut):  # then what lies before the end is all that is compared
        while theirs is None and (data := read(_COMPARED_BYTES)):
            theirs = pieces.push(data)
    if theirs is not None:
        compared.settle(ids[: len(theirs)], theirs)
    compared.look_around(engine, text[-2 * _WINDOW_BYTES :])


def reading(text: str) -> Read:
    """`read(size)` over the UTF-8 of a text: a character for each byte, or four, so less than `size` or all of it."""
    at = 0
    is_ascii = text.isascii()

    def read(size: int) -> bytes:
        nonlocal at
        count = size if is_ascii else max(size // 4, 1)
        data = text[at : at + count].encode()
        at += count
        return data

    return read


def reading_bytes(data: memoryview) -> Read:
    """The same over bytes that are UTF-8 already."""
    at = 0

    def read(size: int) -> bytes:
        nonlocal at
        at += size
        return bytes(data[at - size : at])

    return read


class _Pieces:
    """Text comes, and ids go out."""

    def __init__(self, engine: Engine, piece_bytes: int, *, path: str, place: Place, advice: str = "") -> None:
        self._engine = engine
        self._piece_bytes = self._try_bytes = piece_bytes
        is_reference = engine.name == "tokenizers"
        self._most_bytes = min(MOST_WHOLE_BYTES, _MOST_REFERENCE_BYTES) if is_reference else MOST_WHOLE_BYTES
        self._path, self._place, self._advice = path, place, advice
        self._coming: list[bytes] = []
        self._coming_bytes = 0
        self._lead, self._lead_tokens = "", 0
        self._done_bytes, self._line = 0, 1
        self._searched = 0
        """Up to there what is held can be cut nowhere."""
        self.seam: str | None = None
        """Of the last push: what lies around its cut; all that was left, at the end."""

    def push(self, data: bytes) -> Ids | None:
        """The ids of what is cut off, or at the end, b"", of all the rest."""
        self._coming.append(data)
        self._coming_bytes += len(data)
        self.seam = None
        if data and self._coming_bytes < self._try_bytes:
            return None
        held = b"".join(self._coming)
        self._coming = [held]
        if not data:
            self.seam = self._text(held)[-2 * _WINDOW_BYTES :]
            return self._encode(held)
        found = self._cut(held, self._searched if len(held) <= self._most_bytes else 0)
        self._searched = max(len(held) - 2 * _WINDOW_BYTES, 0)
        if found is None:
            if len(held) > self._most_bytes:
                self._text(_whole(held))  # that is not UTF-8 is told first
                where = said(self._place)
                raise NoCut(
                    f"{named(self._path, where)}: no place to cut this document in the "
                    f"{units.format_bytes(len(held))} after {units.format_bytes(self._done_bytes)}: whatever was "
                    f"tried, {self._engine.name} might encode the text otherwise in pieces; whole, it is given "
                    f"{units.format_bytes(self._most_bytes)} at most{self._advice}",
                    path=self._path,
                    place=where,
                )
            self._try_bytes = min(2 * len(held), max(self._most_bytes, len(held) + 1))
            return None
        cut, ids = found
        self._searched = 0
        self._try_bytes = self._piece_bytes
        self._line += int(np.count_nonzero(np.frombuffer(held, np.uint8, cut) == _LINE_END))  # faster than held.count
        self._done_bytes += cut
        self._coming, self._coming_bytes = [held[cut:]], len(held) - cut
        return ids

    def _text(self, data: bytes) -> str:
        return decoded(data, path=self._path, place=self._place, line=self._line)

    def _encode(self, data: bytes) -> Ids:
        return self._engine.encode([self._lead + self._text(data)])[0][self._lead_tokens :]

    def _cut(self, held: bytes, begin: int) -> tuple[int, Ids] | None:
        """The last place, from `begin` on, where what is held may be cut, and the ids of what is left of it."""
        ids: Ids | None = None
        for cut, lead, right in places(self._engine, held, begin):
            if ids is None:
                ids = self._encode(_whole(held))
            own, near = _split(self._engine, [lead, lead + _whole(held[cut:]).decode()])
            behind = _behind(own, near, ids)
            if behind is not None:
                self._lead, self._lead_tokens, self.seam = lead, len(own), lead + right
                return cut, ids[: len(ids) - len(behind)]
        return None


class _Compared:
    """The ids of an engine beside those of the reference."""

    def __init__(self, comparing: Comparing, *, path: str, place: Place) -> None:
        self._comparing = comparing
        self._path, self._place = path, place
        self._mine: list[Ids] = []
        self._theirs: list[Ids] = []
        self._tokens = 0
        self._pieces: _Pieces | None = None
        if comparing.all:
            advice = "; --verify 16 compares what lies around cuts and before the end"
            self._pieces = _Pieces(comparing.reference, _COMPARED_BYTES, path=path, place=place, advice=advice)

    def look_around(self, engine: Engine, text: str) -> None:
        """Compare what lies around a cut: the engine gives together what it gives apart, and the reference the same."""
        if not np.array_equal(engine.encode([text])[0], self._comparing.reference.encode([text])[0]):
            raise self._differing("around a place where it was cut, or at its end")

    def push(self, data: bytes, ids: Ids | None) -> None:
        """More of the text (b"" at its end), and ids of the engine."""
        if self._pieces is None:
            return
        for at in range(0, max(len(data), 1), _COMPARED_BYTES):
            try:
                theirs = self._pieces.push(data[at : at + _COMPARED_BYTES])
            except NoCut as exc:
                raise BadSource(str(exc)) from exc  # it can be encoded
            self.settle(_NONE if ids is None else ids, _NONE if theirs is None else theirs)
            ids = None
        if not data and (self._mine or self._theirs):
            raise self._differing(f"from token {self._tokens} of this document on")

    def settle(self, ids: Ids, expected: Ids) -> None:
        """Compare what both have given, with more of either."""
        mine, theirs = np.concatenate([*self._mine, ids]), np.concatenate([*self._theirs, expected])
        both = min(len(mine), len(theirs))
        differing = np.flatnonzero(mine[:both] != theirs[:both])
        if len(differing):
            raise self._differing(f"from token {self._tokens + int(differing[0])} of this document on")
        self._tokens += both
        self._mine = [mine[both:]] if len(mine) > both else []
        self._theirs = [theirs[both:]] if len(theirs) > both else []

    def _differing(self, where: str) -> EngineDiffers:
        return EngineDiffers(
            f"{named(self._path, self._place)}: the engine and {self._comparing.reference.name}, "
            f"the reference, differ {where}",
            path=self._path,
            place=said(self._place),
        )


_NONE = np.empty(0, np.uint32)
_LINE_END = ord("\n")


def said(place: Place) -> str:
    """The place, now that it is told."""
    return place if isinstance(place, str) else place()


def named(path: str, place: Place) -> str:
    """A document, for messages."""
    where = said(place)
    return f"{path}:{where}" if where else path


def decoded(data: bytes, *, path: str, place: Place = "", line: int = 1) -> str:
    """UTF-8 that begins in that line of a document; raises BadDocument, which names the line if no place is given."""
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        where = said(place) or str(line + data.count(b"\n", 0, exc.start))
        reason = f"not UTF-8: byte 0x{data[exc.start]:02x}"
        raise BadDocument(f"{path}:{where}: {reason}", path=path, place=where) from exc


def places(engine: Engine, held: bytes, first: int = 0) -> Iterator[tuple[int, str, str]]:
    """Seams from `first` on where this text may be cut as far as windows on both sides tell, the last of the best kind
    first; with some text left and right of them."""
    seams = engine.seams()
    first = max(first, _WINDOW_BYTES)
    end = len(held) - _WINDOW_BYTES
    reaches = iter(_REACHES)
    reach = 0
    while end > first:
        reach = next(reaches, reach)
        begin = max(end - reach, first)
        for found in seams.cuts(held, begin, end):
            for cut in reversed(found[-_TRIES:]):
                texts = _around(held, cut, _WINDOW_BYTES)
                further = _around(held, cut, 2 * _WINDOW_BYTES)
                if texts is None or further is None:
                    continue  # what is not UTF-8 is told when it is encoded
                lead, right = texts
                if _behind(*_split(engine, [lead, lead + right, "".join(further)])) is not None:
                    yield cut, lead, right
        end = begin


def _split(engine: Engine, texts: list[str]) -> list[Ids]:
    """The ids of each text."""
    ids, lengths = engine.encode(texts)
    return np.split(ids, np.cumsum(lengths)[:-1])


def _behind(own: Ids, near: Ids, far: Ids) -> Ids | None:
    """The ids of a text behind its lead (`near`) without the lead's `own`, if behind more (`far`) it has the same."""
    behind = near[len(own) :]
    same = np.array_equal(near[: len(own)], own) and np.array_equal(far[max(len(far) - len(behind), 0) :], behind)
    return behind if same and len(behind) else None


def _around(held: bytes, cut: int, left_bytes: int) -> tuple[str, str] | None:
    """Some text left and right of a cut; None where it is not UTF-8."""
    begin, end = max(cut - left_bytes, 0), min(cut + _WINDOW_BYTES, len(held))
    # A cut is where a character begins; the window's own ends may lie inside others.
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
