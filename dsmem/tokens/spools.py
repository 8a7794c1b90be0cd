"""Streams in pieces: what must be decoded before its documents can be seen (compressed files, JSON arrays and objects
over lines, pipes, other encodings) goes as whole documents into files of the work directory, one a piece.

Such a file is removed when its part is finished. What is bad about a stream itself, a document that is too long or data
that ends too early, goes with the piece before it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from dsmem.errors import BadDocument, BadSource
from dsmem.files import FileIdentity
from dsmem.tokens import compressed, cutting, recoding, soundness, values
from dsmem.tokens.compressed import Broken, Compression, Damage, Joined
from dsmem.tokens.cutting import Separator
from dsmem.tokens.inputs import STDIN, Source

_HEAD_BYTES = 1 << 16
_COPIED_BYTES = 1 << 20
"""Of a value, at once: a long one is in memory twice, not more often."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Whole documents of a stream, one after the other."""

    data: memoryview
    """Good until the next one is asked for."""
    first: int
    """The number of its first line."""
    left_out: tuple[str, ...] = ()
    """What is bad behind them."""


@dataclass(frozen=True, slots=True)
class Spool:
    """A stretch in a file."""

    path: str
    size_bytes: int
    weight_bytes: int
    """Of the input, for progress."""
    first: int
    unit: str
    """What is counted: lines, if it is not said."""
    left_out: tuple[str, ...]


def spooled(
    source: Source,
    separator: Separator,
    *,
    piece_bytes: int,
    encoding: str,
    skip_bad: bool,
    path_of: Callable[[], str | None],
    damage: Damage | None = None,
) -> Iterator[Spool]:
    """A stream in files; `path_of` names the next one, None if its part is done. Raises BadSource, OSError."""
    with _text(source, encoding, skip_bad, damage) as (raw, text):
        chunks, unit = _chunks(text, source, min(piece_bytes, cutting.BLOCK_BYTES))
        before_bytes = 0
        found = stretches(chunks, separator, piece_bytes, shown=source.shown, unit=unit, skip_bad=skip_bad)
        for one in found:
            path = path_of()
            if path is not None:
                with Path(path).open("wb") as file:
                    file.write(one.data)
            at = raw.tell() if source.identity is not None else before_bytes + len(one.data)
            yield Spool(path or "", len(one.data), at - before_bytes, one.first, unit, one.left_out)
            before_bytes = at


def damage_of(source: Source) -> Damage | None:
    """What is wrong with a compressed file, looked through; None for a stream, too, which can be read once only."""
    if source.identity is None:
        return None
    with _raw(source) as (raw, compression):
        return None if compression is None else soundness.damage_of(raw, compression)


def spooled_whole(source: Source, path: str | None, *, encoding: str, skip_bad: bool) -> Spool:
    """A stream that is one document, in a file; nothing is read if that is not to be written."""
    size_bytes = 0
    with _text(source, encoding, skip_bad) as (_, text):
        if path is not None:
            try:
                with Path(path).open("wb") as file:
                    while data := text.read(1 << 20):
                        size_bytes += file.write(data)
            except BadDocument as exc:
                if not skip_bad:
                    raise
                Path(path).write_bytes(b"")
                return Spool(path, 0, size_bytes, 1, "", (str(exc),))
    return Spool(path or "", size_bytes, size_bytes, 1, "", ())


def stretches(
    chunks: Iterator[bytes | None], separator: Separator, piece_bytes: int, *, shown: str, unit: str, skip_bad: bool
) -> Iterator[Stretch]:
    """Whole documents of at least that many bytes together (the last may have less), cut by bytes alone.

    None among the chunks is a document that is too long, between others. Raises BadDocument unless such are skipped.
    """
    held = bytearray()
    searched, first = 0, 1
    is_in_long = False
    """What is held belongs to a document that is too long."""

    def bad(number: int, reason: str) -> tuple[str]:
        place = f"{unit} {number}".lstrip()
        message = f"{shown}:{place}: {reason}"
        if not skip_bad:
            raise BadDocument(message, path=shown, place=place)
        return (message,)

    def take(cut: int, left_out: tuple[str, ...] = ()) -> Iterator[Stretch]:
        nonlocal first, searched
        with memoryview(held) as whole, whole[:cut] as data:
            yield Stretch(data, first, left_out)
        drop(cut)

    def drop(cut: int) -> None:
        nonlocal first, searched
        first += held.count(b"\n", 0, cut)
        del held[:cut]
        searched = len(held)

    try:
        for chunk in chunks:
            if chunk is None:
                yield from take(len(held), bad(first + held.count(b"\n"), cutting.too_long()))
                first += 1
                continue
            held += chunk
            if is_in_long:
                end = cutting.first_cut(held, 0, len(held), separator)
                drop(end or max(len(held) - 2, 0))
                searched, is_in_long = 0, not end
            if is_in_long or len(held) < min(piece_bytes, cutting.MOST_DOCUMENT_BYTES):
                continue
            cut = cutting.last_cut(held, searched, len(held), separator)
            searched = len(held)
            if cut:
                yield from take(cut)
            elif len(held) > cutting.MOST_DOCUMENT_BYTES:
                yield from take(0, bad(first, cutting.too_long()))
                is_in_long = True
    except (Broken, values.Ends) as exc:
        if isinstance(exc, Broken) and exc.is_doubtful and skip_bad:
            raise BadSource(
                f"{shown}: {exc.reason}; some of what was read before may be wrong, and of a stream nothing can be "
                "taken back: what is sound is left of a file only, where that is named"
            ) from exc
        cut = 0 if is_in_long else cutting.last_cut(held, 0, len(held), separator)
        reason = exc.reason if isinstance(exc, Broken) else str(exc)
        yield from take(cut, bad(first + held.count(b"\n", 0, cut), reason))
        return
    if held and not is_in_long:
        yield from take(len(held))


def _chunks(text: IO[bytes], source: Source, at_once: int) -> tuple[Iterator[bytes | None], str]:
    """What is read, and what is counted to name a document in it: lines, elements or objects."""
    if source.format != "json":
        return _read(text, at_once), ""
    head = text.read(_HEAD_BYTES)
    rest = cast("IO[bytes]", Joined(head, text))
    if values.is_array(head):
        return _as_lines(values.elements(rest)), "element"
    if values.is_over_lines(head):
        return _as_lines(values.objects(rest)), "object"
    return _read(rest, at_once), ""


def _read(text: IO[bytes], at_once: int) -> Iterator[bytes]:
    while data := text.read(at_once):
        yield data


def _as_lines(found: Iterator[values.Value | None]) -> Iterator[bytes | None]:
    """Values as lines: a line end inside one becomes a carriage return, which JSON allows and forbids in the same
    places."""
    for value in found:
        if value is None:
            yield None
        else:
            for at in range(0, len(value), _COPIED_BYTES):
                yield bytes(value[at : at + _COPIED_BYTES]).replace(b"\n", b"\r")
            yield b"\n"


@contextmanager
def _text(
    source: Source, encoding: str, skip_bad: bool, damage: Damage | None = None
) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The file as it lies, and its text as UTF-8."""
    with (
        _raw(source) as (raw, compression),
        compressed.opened(raw, compression, path=source.shown, damage=damage) as plain,
    ):
        yield raw, recoding.as_utf8(plain, encoding, path=source.shown, skip_bad=skip_bad)


@contextmanager
def _raw(source: Source) -> Iterator[tuple[IO[bytes], Compression | None]]:
    """The bytes as they lie, and how they are compressed: of a stream that is known only now."""
    if source.path == STDIN:
        yield compressed.peeked(sys.stdin.buffer)
        return
    with Path(source.path).open("rb") as file:
        if source.identity is None:
            yield compressed.peeked(file)
            return
        if FileIdentity.of(os.fstat(file.fileno())) != source.identity:
            raise BadSource(f"{source.path} is not the file that it was a moment ago")
        yield file, source.compression
