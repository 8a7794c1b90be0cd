"""A document of many MiB among others, read piece by piece from where it lies: its text is never in memory as a whole.

A string of Python takes up to four bytes for a character, and a parser as much again as it reads.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from dsmem.errors import BadDocument

Read = Callable[[int], bytes]
LONG_BYTES = 4 << 20
"""A row that is longer is read so."""
_LONG_STRING_BYTES = 1 << 20
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_WHOLE = re.compile(
    rb"(?:[^\\]++|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\[^u])*+", re.DOTALL
)
"""Of a JSON string: what holds neither a part of an escape nor half of a surrogate pair."""
_MOST_ESCAPE_BYTES = 12
_HALF = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
"""Of a surrogate pair."""
MOST_VALUES = 2_000_000
"""Of a row: 60 to 200 bytes each when it is parsed."""


@dataclass(frozen=True, slots=True)
class Long:
    """One document, to be read as often as one likes until the next is asked for."""

    path: str
    place: Callable[[], str]
    input_bytes: int
    open: Callable[[], Read]
    """`read(size)` over its UTF-8, b"" at the end; what it gives may be no UTF-8, or it raises BadDocument."""


def without_longest(row: memoryview) -> tuple[bytes, str, memoryview] | None:
    """A row of JSON with another string instead of its longest, that string, and the content of the longest as it
    stands there; None where no string is long."""
    longest = max(_STRINGS.finditer(row), key=_size_of, default=None)
    if longest is None or _size_of(longest) < _LONG_STRING_BYTES:
        return None
    begin, end = longest.start() + 1, longest.end() - 1
    instead = os.urandom(32).hex()  # nobody can have written it into the row, in whatever way
    return bytes(row[:begin]) + instead.encode() + bytes(row[end:]), instead, row[begin:end]


def has_many_values(row: bytes | memoryview) -> bool:
    """Whether a row of JSON has more than MOST_VALUES; what is within its strings are none."""
    whole = bytes(row)
    count = _marks(whole)
    if count <= MOST_VALUES:
        return False
    for string in _STRINGS.finditer(whole):
        count -= _marks(string[0])
        if count <= MOST_VALUES:
            return False
    return True


def _marks(data: bytes) -> int:
    """What JSON has about one of for each value."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _size_of(match: re.Match[bytes]) -> int:
    return match.end() - match.start()


def plain(data: memoryview) -> Read:
    """Bytes as they lie."""
    at = 0

    def read(size: int) -> bytes:
        nonlocal at
        found = bytes(data[at : at + size])
        at += len(found)
        return found

    return read


def unescaped(raw: memoryview, *, path: str, place: Callable[[], str], text_field: str | None = None) -> Read:
    """The content of a JSON string; raises BadDocument where it is none. Half of a surrogate pair is JSON, but no text:
    it is bad where this is the text of that field."""
    from orjson import JSONDecodeError, loads

    at = 0

    def read(size: int) -> bytes:
        nonlocal at
        begin, end = at, min(at + max(size, _MOST_ESCAPE_BYTES), len(raw))
        if begin >= len(raw):
            return b""
        stop = end
        if end < len(raw):
            if b"\\" in bytes(raw[max(end - _MOST_ESCAPE_BYTES, begin) : end]):
                found = _WHOLE.match(raw, begin, end)
                assert found is not None  # it matches nothing, too
                stop = found.end()
            while stop > begin and raw[stop] & 0xC0 == 0x80:  # inside of a character
                stop -= 1
        if stop == begin:  # half of a pair, or no escape that can be
            half = _HALF.match(raw, begin)
            stop = half.end() if half else min(begin + _MOST_ESCAPE_BYTES, len(raw))
        data = bytes(raw[begin:stop])
        try:
            text = loads(b'"' + data + b'"')
        except JSONDecodeError as exc:
            reason = _reason(data, begin, text_field)
            if reason is not None:
                where = place()
                raise BadDocument(f"{path}:{where}: {reason}", path=path, place=where) from exc
            at = stop
            return data
        at = stop
        encoded: bytes = text.encode()
        return encoded

    return read


def _reason(data: bytes, begin: int, text_field: str | None) -> str | None:
    """What is wrong with some of a string; None for half of a surrogate pair that is not in the text."""
    try:
        json.loads(f'"{data.decode()}"')  # which takes half of a pair, unlike orjson
    except UnicodeDecodeError as exc:
        return f"not UTF-8: byte 0x{data[exc.start]:02x} at position {begin + exc.start + 1} of the string"
    except ValueError:
        return f"no JSON string: it holds a control character or half of an escape after byte {begin}"
    return None if text_field is None else half_of_pair(text_field)


def half_of_pair(text_field: str) -> str:
    """What is wrong with a text that holds one."""
    return f"{text_field!r} holds half of a surrogate pair, which is no text"
