"""ASCII JSON of any length, read an entry at a time: held are a window of the text, and what was read last.

What Python's json refuses is refused here, too, as the ValueError or RecursionError that it raises.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, cast

PIECE_BYTES = 1 << 17
_SPACE = re.compile(r"[ \t\n\r]*")
_ESCAPE_CHARACTERS = 6
_NUMBER_CHARACTERS = 2
"""Of a number that is cut, what may look like something behind it: 'e-'."""
_TRIES = 4
_decode = json.JSONDecoder().raw_decode


def pieces(fd: int, begin: int, end: int) -> Iterator[str]:
    """The text between two offsets of a file."""
    for at in range(begin, end, PIECE_BYTES):
        yield str(os.pread(fd, min(PIECE_BYTES, end - at), at), "ascii")


class Text:
    """A JSON text that comes in pieces. What is asked for is what comes next, an entry before the next one."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._window = ""
        self._at = 0
        self._before = 0

    @property
    def position(self) -> int:
        """Characters read so far."""
        return self._before + self._at

    def keys(self) -> Iterator[str]:
        """The keys of a table, those that come twice, too. Whoever takes one reads its value."""
        is_open = self._is_begun()
        while is_open:
            yield self._key()
            is_open = self._expect(",}") == ","

    def entries(self, close: str, *, inside: bool = False, without_lists: bool = False) -> Iterator[tuple[str, Any]]:
        """The keys of a table and their values; with `inside` what is left of it after one of `keys` was read.

        Many at a time where values end with `close`; of a key that comes twice among these the last counts, as in json.
        With `without_lists` None may stand for a list.
        """
        is_open = self._expect(",}") == "," if inside else self._is_begun()
        tried = 0
        while is_open:
            self._next()
            some = None
            if self.position >= tried:
                end = min(self._at + PIECE_BYTES, len(self._window))
                some = self._together(close, end)
                tried = self._before + end
            if some is None:
                yield self._key(), self._past_value() if without_lists else self.value()
            else:
                yield from some.items()
            is_open = self._expect(",}") == ","

    def _together(self, close: str, end: int) -> dict[str, Any] | None:
        """Those entries, or most, that end before: what can be parsed as a table is just what comes next."""
        for _ in range(_TRIES):
            end = self._window.rfind(close + ',"', self._at, end)
            if end < 0:
                break
            with suppress(ValueError):  # within an entry, or of what comes behind the table
                found = json.loads(f"{{{self._window[self._at : end + 1]}}}")
                self._at = end + 1
                return cast("dict[str, Any]", found)
        return None

    def _is_begun(self) -> bool:
        """Whether something is in the table that begins here."""
        self._expect("{")
        if self._next() != "}":
            return True
        self._at += 1
        return False

    def _key(self) -> str:
        """A key, and what is between it and its value."""
        if self._next() != '"':
            raise ValueError("a key is no text")
        key = cast(str, self.value())
        self._expect(":")
        self._next()
        return key

    def value(self) -> Any:
        """A value of any kind, as a whole."""
        self._next()
        while True:
            try:
                value, end = _decode(self._window, self._at)
            except ValueError:
                if not self._more():
                    raise
                continue
            if len(self._window) - end > _NUMBER_CHARACTERS or not self._more():
                self._at = end
                return value

    def _past_value(self) -> Any:
        """A value; of a list only that it is right is looked at, many of its texts at a time."""
        if self._next() != "[":
            return self.value()
        self._at += 1
        if self._next() == "]":
            self._at += 1
            return None
        tried = 0
        while True:
            self._next()
            end = min(self._at + PIECE_BYTES, len(self._window))
            cut = self._window.rfind('","', self._at, end) if self.position >= tried else -1
            tried = max(tried, self._before + end)
            if cut < 0 or not self._is_list(cut + 1):
                self.value()
            if self._expect(",]") == "]":
                return None

    def _is_list(self, end: int) -> bool:
        """Whether what comes before is elements of a list, which are taken then."""
        with suppress(ValueError):
            json.loads(f"[{self._window[self._at : end]}]")
            self._at = end
            return True
        return False

    def string(self) -> Iterator[str]:
        """A text, in parts; to be read to its end. A character of two escapes may come as two."""
        self._expect('"')
        while (part := self._rest_of_string()) is None:
            whole = self._whole()
            yield _string(f'"{self._window[self._at : whole]}"')[0]
            self._at = whole
            if not self._more():
                raise ValueError("a text without an end")
        yield part

    def _rest_of_string(self) -> str | None:
        """Up to its end; None where that is not in the window."""
        try:
            part, end = _string(f'"{self._window[self._at :]}')
        except ValueError:  # of what else is wrong with it `string` hears again
            return None
        self._at += end - 1
        return part

    def _whole(self) -> int:
        """Where in the window the last escape begins that may be cut, or the window ends."""
        last = self._window.rfind("\\", max(self._at, len(self._window) - _ESCAPE_CHARACTERS))
        return len(self._window) if last < 0 else max(self._at, len(self._window[:last].rstrip("\\")))

    def end(self) -> None:
        """Raise ValueError unless nothing comes any more."""
        if self._next():
            raise ValueError("something comes behind the end")

    def _next(self) -> str:
        """The next character that is no space, not taken yet; '' at the end."""
        while True:
            space = _SPACE.match(self._window, self._at)
            assert space is not None
            self._at = space.end()
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._more():
                return ""

    def _expect(self, wanted: str) -> str:
        found = self._next()
        if not found or found not in wanted:
            raise ValueError(f"{found!r} instead of one of {wanted!r}")
        self._at += 1
        return found

    def _more(self) -> bool:
        """Drop what was read, and at least double what is left; False, and nothing happens, at the end."""
        parts = [self._window[self._at :]]
        wanted, got = len(parts[0]), 0
        for piece in self._pieces:
            parts.append(piece)
            got += len(piece)
            if got and got >= wanted:
                break
        if got:
            self._before += self._at
            self._window, self._at = "".join(parts), 0
        return got > 0


def _string(text: str) -> tuple[str, int]:
    """The string at the beginning of a text, and where it ends."""
    part, end = _decode(text)
    return cast(str, part), end
