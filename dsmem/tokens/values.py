"""The values of a JSON file, one after the other as they stand there: the elements of an array, or objects over lines.

Only brackets and strings are looked at, each byte once: whoever parses a value finds what is wrong inside it, also that
there is none between two commas.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO

from dsmem.tokens import cutting

_SCAN_BYTES = 1 << 20
_LARGE_BYTES = 1 << 20
"""A value that has more is not copied."""
Value = bytes | memoryview
"""As it stands in the file; a view is good until the next value is asked for."""
_SPACE = b" \t\r\n"
_WHITE = re.compile(rb"[ \t\r\n]*+")
_TAIL_BYTES = 1 << 12
"""What JSON takes for white space."""
_NO_VALUE = b","
"""For an element that is none: no parser takes it, and whoever parses it tells where it is."""
_BOM = b"\xef\xbb\xbf"
_MARKS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_QUOTE, _COMMA, _ARRAY, _OBJECT = b'",[{'


class Ends(Exception):
    """From some place on there is nothing that can be read, for this reason."""


def is_array(head: bytes) -> bool:
    """Whether a JSON file that begins so is an array."""
    return head.removeprefix(_BOM).lstrip(_SPACE).startswith(b"[")


def is_over_lines(head: bytes) -> bool:
    """Whether a JSON file that begins so holds objects of several lines each."""
    return head.removeprefix(_BOM).lstrip(_SPACE).split(b"\n", 1)[0].strip(_SPACE) == b"{"


def elements(stream: IO[bytes]) -> Iterator[Value | None]:
    """The elements of an array; None for one that is too long. Raises Ends after all that lies before."""
    text = _Text(stream)
    depth, number = 0, 1
    closed = False
    while not closed and text.more():
        for at, mark in text.marks():
            if depth == 0:
                if mark != _ARRAY or text.value(at):
                    raise Ends("the file does not begin as a JSON array")
                depth = 1
                text.begin(at + 1)
            elif mark in b"[{":
                depth += 1
            elif mark in b"]}" and depth > 1:
                depth -= 1
            elif depth == 1:
                value = text.value(at)
                if mark == b"}"[0]:
                    raise Ends("the JSON array is closed by }")
                if value != b"" or mark == _COMMA or number > 1:
                    yield value if value is None or isinstance(value, memoryview) or value.strip() else _NO_VALUE
                _release(value)
                number += 1
                text.begin(at + 1)
                closed = mark != _COMMA
                if closed:
                    break
    if not closed:
        if depth == 1 and not text.in_string and (value := text.rest()):
            yield value
        raise Ends("the file ends inside its JSON array")
    while not text.rest():
        text.forget()
        if not text.more():
            return
    raise Ends("the file goes on after its JSON array")


def objects(stream: IO[bytes]) -> Iterator[Value | None]:
    """Objects, with white space between; None for one that is too long. Raises Ends after all that lies before."""
    text = _Text(stream)
    depth = 0
    while text.more():
        for at, mark in text.marks():
            if depth == 0:
                if mark != _OBJECT or text.value(at):
                    raise Ends("not an object, as those before")
                text.begin(at)
            if mark in b"[{":
                depth += 1
            elif mark in b"]}":
                depth -= 1
                if depth == 0:
                    value = text.value(at + 1)
                    yield value
                    _release(value)
                    text.begin(at + 1)
    if text.rest() or depth:
        raise Ends("the file ends inside a JSON object" if depth else "not an object, as those before")


def _release(value: Value | None) -> None:
    """What was read can be forgotten only when nobody looks at it."""
    if isinstance(value, memoryview):
        value.release()


class _Text:
    """What is read and still needed: a value from its beginning on, as far as it is not too long."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._held = bytearray()
        self._at = 0
        """What lies before has been looked at."""
        self._start = 0
        self._is_too_long = False
        self.in_string = False

    def more(self) -> bool:
        """Read on; False at the end."""
        if len(self._held) - self._start > cutting.MOST_DOCUMENT_BYTES:
            self._is_too_long = True
        before = self._at if self._is_too_long else self._start
        del self._held[:before]
        self._at, self._start = self._at - before, 0
        data = self._stream.read(_SCAN_BYTES)
        self._held += data
        return bool(data)

    def marks(self) -> Iterator[tuple[int, int]]:
        """Brackets and commas outside of strings, and where they are."""
        if self.in_string:
            self._leave_string()
        if self.in_string:
            return
        for match in _MARKS.finditer(self._held, self._at):
            at = match.start()
            self._at = match.end()
            if self._held[at] != _QUOTE:
                yield at, self._held[at]
            elif self._at - at == 1:
                self.in_string = True
                self._leave_string()
                return
        self._at = len(self._held)

    def _leave_string(self) -> None:
        """As far as it goes: to its end, or to what is still to come."""
        found = _IN_STRING.match(self._held, self._at)
        assert found is not None  # it matches nothing, too
        self._at = found.end()
        if self._held[self._at : self._at + 1] == b'"':
            self._at += 1
            self.in_string = False

    def begin(self, at: int) -> None:
        """A value, or white space and then one."""
        self._start = at
        self._is_too_long = False

    def value(self, stop: int) -> Value | None:
        """What began and ends here; None if it is too long."""
        if self._is_too_long or stop - self._start >= cutting.MOST_DOCUMENT_BYTES:
            return None
        if stop - self._start > _LARGE_BYTES:
            start, stop = self._trimmed(stop)
            if stop - start > _LARGE_BYTES:
                return memoryview(self._held)[start:stop]
        with memoryview(self._held) as held:
            return bytes(held[self._start : stop]).strip(_SPACE).removeprefix(_BOM)

    def _trimmed(self, stop: int) -> tuple[int, int]:
        """What began and ends here without white space around it, and without a mark of byte order."""
        held, start = self._held, self._start
        space = _WHITE.match(held, start, stop)
        assert space is not None  # it matches nothing, too
        start = space.end()
        while stop > start:
            tail = bytes(memoryview(held)[max(start, stop - _TAIL_BYTES) : stop])
            kept = len(tail.rstrip(_SPACE))
            stop -= len(tail) - kept
            if kept:
                break
        return start + len(_BOM) * held.startswith(_BOM, start, stop), stop

    def rest(self) -> Value | None:
        """What began and is not ended."""
        return self.value(len(self._held))

    def forget(self) -> None:
        """All of it was white space."""
        self._start = self._at = len(self._held)
