"""Documents out of files: batches of texts, each of which can tell its place, exactly as they stand in the input.

Nothing is stripped, lower-cased or left out. What ends a line (`\\n` or `\\r\\n`) is no part of a document; an empty
line, file or field is an empty document (in JSON lines a blank line is none). What is no document raises
BadDocument, or is counted by `Faults`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from dsmem.errors import BadDocument
from dsmem.tokens import cutting, longrows
from dsmem.tokens.cutting import BLOCK_BYTES, Separator
from dsmem.tokens.longrows import LONG_BYTES, Long

_BLANK = re.compile(rb"\r?\n(?:\r?\n)+")
_BLANK_LINES = re.compile(rb"(?:\r?\n)+")
_ROWS = re.compile(rb"[^\n]*\n|[^\n]+")
_LINE_END, _RETURN = b"\n\r"
_OVER_LINES = "not JSON: an object over several lines? Each line is one here; with --format json a file may hold such"
_MOST_FIELDS = 8
"""That are named where one is missing."""
Blocks = Iterable[tuple[int, memoryview]]
"""Whole documents and where they lie in the file."""
MOST_PLACES = 20
"""Skipped documents that are named; all are counted."""


@dataclass(slots=True)
class Faults:
    """What happens to bad documents: the first is raised, or all are counted and the first ones named."""

    skip: bool
    count: int = 0
    places: list[str] = field(default_factory=list)
    encoding: str = "utf-8"
    """Of the input, of which they were made UTF-8: what was no text in it is none here, either."""

    def add(self, path: str, place: Callable[[], str], reason: str, fields: Sequence[str] = ()) -> None:
        """One bad document, whose place is found if it will be shown; raises BadDocument unless they are skipped."""
        if self.skip and len(self.places) >= MOST_PLACES:
            self.count += 1
            return
        where = place()
        if self.encoding != "utf-8" and reason.startswith("not UTF-8"):
            reason = f"not {self.encoding}"
        message = f"{path}:{where}: {reason}" if where else f"{path}: {reason}"
        if not self.skip:
            raise BadDocument(message, path=path, place=where, fields=fields)
        self.count += 1
        self.places.append(message)

    def add_told(self, message: str) -> None:
        """One bad document that is left out, as somebody else has found."""
        self.count += 1
        if len(self.places) < MOST_PLACES:
            self.places.append(message)


@dataclass(frozen=True, slots=True)
class Batch:
    """Some texts of one file, to be encoded together."""

    path: str
    texts: list[str]
    place: Callable[[int], str]
    """Of a text, by its index: a line or row, '' for a whole file."""
    input_bytes: int
    """Read for it; for progress."""
    most_bytes: int = sys.maxsize
    """All texts together have no more as UTF-8."""
    text_bytes: int | None = None
    """What they have, where that is known without looking at each."""
    long: memoryview | None = None
    """Instead of texts: the UTF-8 of a single long one."""


class Lines:
    """Numbers lines from offsets: those before a range are counted when a number is asked for."""

    def __init__(self, path: str, start: int, first: int | None, unit: str = "") -> None:
        self._path = path
        self._start = start
        self._first = first
        self._unit = unit

    def number(self, offset: int) -> str:
        """The number, from 1, of the line at an offset of the file, after what it counts if that is not lines."""
        begin = 0 if self._first is None else self._start
        count = 1 if self._first is None else self._first
        with Path(self._path).open("rb", buffering=0) as file:
            for at in range(begin, offset, 1 << 20):
                count += os.pread(file.fileno(), min(1 << 20, offset - at), at).count(b"\n")
        return f"{self._unit} {count}".lstrip()


def json_lines(blocks: Blocks, *, path: str, text_field: str, lines: Lines, faults: Faults) -> Iterator[Batch | Long]:
    """A text in a field of each line's object; blank lines are none."""
    from orjson import loads

    for offset, block in blocks:
        texts: list[str] = []
        skipped: list[int] = []
        find, size = cast(bytearray, block.obj).find, len(block)
        has_long, at = size > LONG_BYTES, 0
        while at < size:
            end = find(b"\n", at, size)
            end = size if end < 0 else end
            text: object
            if has_long and end - at > LONG_BYTES:
                text = _of_long(block[at:end], offset + at, path, text_field, lines)
            else:
                try:
                    text = loads(block[at:end])[text_field]
                except (ValueError, LookupError, TypeError):
                    text = _slowly(bytes(block[at:end]), text_field)
            if type(text) is str:
                texts.append(text)
            elif isinstance(text, Long):
                rows = len(texts) + len(skipped)
                if texts:
                    yield Batch(path, texts, _RowOf(block, skipped, lines, offset), 0, size)
                    texts = []
                yield text
                text = _NOTHING  # it holds on to the block
                skipped = list(range(rows + 1))
            else:
                skipped.append(len(texts) + len(skipped))
                if isinstance(text, Fault):
                    faults.add(path, Place(lines, offset + at), text.reason, text.fields)
                elif text is not _NOTHING:
                    faults.add(path, Place(lines, offset + at), f"{text_field!r} is {kind_of(text)}, not a string")
            at = end + 1
        yield Batch(path, texts, _RowOf(block, skipped, lines, offset), size, size)
        block.release()


def _of_long(row: memoryview, offset: int, path: str, text_field: str, lines: Lines) -> object:
    """What is in the field of a long row: what is long itself is not read yet."""
    from orjson import loads

    found = longrows.without_longest(row)
    rest, instead, raw = found or (row, None, row)
    if len(rest) > LONG_BYTES and longrows.has_many_values(rest):
        return Fault(f"a row of more than {longrows.MOST_VALUES:,} values, which would take too much memory")
    try:
        text: object = loads(rest)[text_field]
    except (ValueError, LookupError, TypeError):
        text = _slowly(bytes(rest), text_field)
    if instead is None:
        return text
    place = Place(lines, offset)
    of_longest = partial(longrows.unescaped, raw, path=path, place=place)
    if text == instead:
        return Long(path, place, 0, partial(of_longest, text_field=text_field))
    return _of_other(of_longest(), path, place) or text


def _of_other(read: longrows.Read, path: str, place: Place) -> Fault | None:
    """What is wrong with a string that is not the text, and was not parsed with the rest of its row."""
    try:
        while read(BLOCK_BYTES):
            pass
    except BadDocument as exc:
        return Fault(str(exc).removeprefix(f"{path}:{place()}: "))
    return None


@dataclass(frozen=True, slots=True)
class Fault:
    """Why there is no text where one should be."""

    reason: str
    fields: tuple[str, ...] = ()
    """Those that there are, where one is missing."""


_NOTHING = object()


def _slowly(row: bytes, text_field: str) -> object:
    """What is wrong with a line, or its text after all: the standard library reads NaN, which orjson refuses."""
    if not row.strip():
        return _NOTHING
    try:
        value: Any = json.loads(row.decode("utf-8"))
    except UnicodeDecodeError as exc:
        return Fault(f"not UTF-8: byte 0x{row[exc.start]:02x} at position {exc.start + 1} of the line")
    except RecursionError:
        return Fault("not JSON that can be read: too deeply nested")
    except ValueError as exc:
        if row.strip() == b"{":
            return Fault(_OVER_LINES)
        return Fault(f"not JSON: {exc}")
    if not isinstance(value, dict):
        return Fault(f"{kind_of(value)}, not an object with a field {text_field!r}")
    if text_field not in value:
        fields = tuple(value)[:_MOST_FIELDS]
        return Fault(f"no field {text_field!r}; there are: {_listed(fields)}", fields)
    text = value[text_field]
    if isinstance(text, str):
        try:
            text.encode()
        except UnicodeEncodeError:
            return Fault(longrows.half_of_pair(text_field))
    return text


def kind_of(value: object) -> str:
    """What a value is, in JSON's words."""
    names = {
        str: "a string",
        dict: "an object",
        list: "an array",
        bool: "a boolean",
        type(None): "null",
        bytes: "bytes",
    }
    return names.get(type(value), "a number")


@dataclass(frozen=True, slots=True)
class Place:
    """The number of the line at an offset of the file."""

    lines: Lines
    offset: int

    def __call__(self) -> str:
        return self.lines.number(self.offset)


@dataclass(frozen=True, slots=True)
class _RowOf:
    """The number of the line of a text, by its index, of a block from which some rows were left out."""

    block: memoryview
    skipped: list[int]
    lines: Lines
    offset: int

    def __call__(self, index: int) -> str:
        rows = bytes(self.block).split(b"\n")
        left_out = set(self.skipped)
        kept = [number for number in range(len(rows)) if number not in left_out]
        before = sum(len(row) + 1 for row in rows[: kept[index]])
        return self.lines.number(self.offset + before)


def plain_lines(blocks: Blocks, *, path: str, lines: Lines, faults: Faults) -> Iterator[Batch | Long]:
    """Each line is a document."""
    for offset, block in _without_long(blocks, path, lines, "line"):
        if isinstance(block, Long):
            yield block
            del block  # it holds on to the memory of the one before the next
            continue
        try:
            texts = str(block, "utf-8").split("\n")
        except UnicodeDecodeError:
            at, found = 0, []
            for row in _ROWS.findall(block):
                found.append((at, _without_end(row)))
                at += len(row)
            yield _checked(found, len(block), path, lines, offset, faults)
        else:
            rest = texts.pop()  # what follows the last line end: nothing, but at the end of some files
            text_bytes: int | None = len(block) - len(texts)
            if b"\r" in cast(bytearray, block.obj):
                texts = [text.removesuffix("\r") for text in texts]
                text_bytes = None
            texts += [rest] if rest else []
            row_of = _RowOf(block, [], lines, offset)
            yield Batch(path, texts, row_of, len(block), len(block), text_bytes)


def _without_long(
    blocks: Blocks, path: str, lines: Lines, separator: Separator
) -> Iterator[tuple[int, memoryview | Long]]:
    """Blocks, but for the long documents with which they begin: no other of a block is long."""
    for offset, block in blocks:
        end = 0
        if len(block) > LONG_BYTES:
            begin, stop, end = _first(cast(bytearray, block.obj), len(block), separator)
            if stop - begin > LONG_BYTES:
                place = Place(lines, offset + begin)
                yield offset, Long(path, place, end, partial(longrows.plain, block[begin:stop]))
            else:
                end = 0
        if end < len(block):
            yield offset + end, block[end:]
        block.release()


def _first(held: bytearray, size: int, separator: Separator) -> tuple[int, int, int]:
    """Where the first document begins and ends, and what ends it."""
    begin = 0
    if separator == "blank":
        leading = _BLANK_LINES.match(held, 0, size)
        begin = leading.end() if leading else 0
        if found := _BLANK.search(held, begin, size):
            return begin, found.start(), found.end()
        end = size
    else:
        end = cutting.first_cut(held, 0, size, separator) or size
    stop = end - (held[end - 1] == _LINE_END)
    return begin, stop - (stop < end and held[stop - 1] == _RETURN), end


def _without_end(row: bytes) -> bytes:
    return row[:-1].removesuffix(b"\r") if row.endswith(b"\n") else row


def paragraphs(blocks: Blocks, *, path: str, lines: Lines, faults: Faults) -> Iterator[Batch | Long]:
    """What blank lines part is a document, its inner line ends included."""
    for offset, view in _without_long(blocks, path, lines, "blank"):
        if isinstance(view, Long):
            yield view
            del view  # it holds on to the memory of the one before the next
            continue
        block = bytes(view)
        found: list[tuple[int, bytes]] = []
        leading = _BLANK_LINES.match(block)
        at = leading.end() if leading else 0
        for match in _BLANK.finditer(block, at):
            found.append((at, block[at : match.start()]))
            at = match.end()
        rest = block[at:].removesuffix(b"\n").removesuffix(b"\r") if block.endswith(b"\n") else block[at:]
        if rest:
            found.append((at, rest))
        yield _checked(found, len(block), path, lines, offset, faults)


def _checked(
    found: list[tuple[int, bytes]], size_bytes: int, path: str, lines: Lines, offset: int, faults: Faults
) -> Batch:
    texts: list[str] = []
    places: list[int] = []
    for at, data in found:
        try:
            texts.append(data.decode())
            places.append(offset + at)
        except UnicodeDecodeError as exc:
            faults.add(path, Place(lines, offset + at + exc.start), f"not UTF-8: byte 0x{data[exc.start]:02x}")
    return Batch(path, texts, lambda index: lines.number(places[index]), size_bytes, size_bytes)


def need_column(path: str, names: Sequence[str], wanted: str) -> None:
    """Raise BadDocument for a table without that column, or with several of that name."""
    if list(names).count(wanted) > 1:
        raise BadDocument(
            f"{path}: {list(names).count(wanted)} columns {wanted!r}: which is meant can't be told", path=path
        )
    if wanted not in names:
        fields = tuple(names)[:_MOST_FIELDS]
        raise BadDocument(f"{path}: no column {wanted!r}; there are: {_listed(fields)}", path=path, fields=fields)


def _listed(fields: Sequence[str]) -> str:
    return ", ".join(map(repr, fields)) or "none"
