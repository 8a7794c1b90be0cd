"""What every command writes: a table for people, TSV for a pipe, JSON when asked, all from one definition.

stdout carries data only and stderr everything else; whatever came from a file is escaped before it is shown.
rich is imported when a table is really drawn on a terminal, never before.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, TextIO

import typer

from dsmem.errors import DsmemError, UsageError

# Control characters, invisible direction marks, line separators, and the surrogates that stand for raw bytes.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_ANSI = {"bold": "1", "red": "31", "green": "32", "yellow": "33"}
BROKEN_PIPE = 141  # 128 + SIGPIPE, as any tool that writes to a closed pipe


class NoAnswer(UsageError):
    """A question is due and there is no terminal to ask."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: `title` heads it on a terminal, `field` in TSV; `show` turns a value into text for people.

    TSV holds the bare value. A list is several values: one a line on a terminal, joined by ` | ` in TSV.
    """

    title: str
    field: str
    show: Callable[[Any], str] = str
    right: bool = False


def escape(text: str) -> str:
    """Text that can't move a cursor or fake a line: unsafe characters as \\xNN (or \\uNNNN)."""
    return _UNSAFE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # surrogateescape: a byte that is not UTF-8
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def quote(argument: str) -> str:
    """The argument as a shell reads it; unsafe characters as $'…', so that it stays one safe line."""
    if not _UNSAFE.search(argument):
        return shlex.quote(argument)
    safe = (chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in os.fsencode(argument))
    return "$'" + "".join({"\\": "\\\\", "'": "\\'"}.get(char, char) for char in safe) + "'"


def paint(text: str, style: str, stream: TextIO | None) -> str:
    """The text in a style of `_ANSI` where the stream is a terminal that wants colours."""
    if stream is None or not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{_ANSI[style]}m{text}\x1b[0m"


class Output:
    """The only way in which commands write."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.terminal = not as_json and sys.stdout is not None and sys.stdout.isatty()

    def json(self, value: object) -> None:
        """The value as JSON; dataclasses become objects, sizes stay integers."""
        self._write(json.dumps(value, indent=2, default=_plain) + "\n")

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[object]]) -> None:
        """Rows under a header. Nothing is cut: a terminal folds, a pipe gets every character."""
        if self.terminal:
            self._write(_drawn(columns, rows))
            return
        lines = ["\t".join(column.field for column in columns)]
        lines += ["\t".join(_tsv(value) for value in row) for row in rows]
        self._write("\n".join(lines) + "\n")

    def record(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Facts about one thing, a line each."""
        if self.terminal:
            width = max(len(key) for key, _ in pairs)
            self._write("".join(f"{key:<{width}}  {escape(value)}\n" for key, value in pairs))
        else:
            self._write("".join(f"{key}\t{_tsv(value)}\n" for key, value in pairs))

    def line(self, text: str, *, style: str | None = None) -> None:
        """One line of data, written as it is given: the caller has escaped what came from a file."""
        self._write((paint(text, style, sys.stdout) if style else text) + "\n")

    def raw(self, data: bytes) -> None:
        """Bytes of data, for file names in the form in which the system holds them."""
        self._write(data)

    def result(self, text: str) -> None:
        """A sentence that sums up: below the table on a terminal, else on stderr; nothing beside JSON."""
        if self.terminal:
            self._write(escape(text) + "\n")
        elif not self.as_json:
            note(escape(text))

    def warning(self, text: str) -> None:
        """Something the user should know; the command goes on."""
        note(f"{paint('warning:', 'yellow', sys.stderr)} {escape(text)}")

    def hint(self, text: str) -> None:
        """What to type next."""
        note(f"{paint('hint:', 'bold', sys.stderr)} {escape(text)}")

    def confirm(self, question: str, *, yes: bool) -> None:
        """Returns if the answer is yes, ends the command with 1 if it is no; NoAnswer without a terminal."""
        if yes:
            return
        if sys.stdin is None or not sys.stdin.isatty():
            raise NoAnswer(f"{question} There is no terminal to answer on")
        sys.stderr.write(f"{escape(question)} [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            note("nothing done")
            raise typer.Exit(1)

    def _write(self, data: str | bytes) -> None:
        if sys.stdout is None:
            raise DsmemError("the output can't be written: standard output is closed")
        try:
            if isinstance(data, bytes):
                sys.stdout.flush()
                sys.stdout.buffer.write(data)
            else:
                sys.stdout.write(data)
            sys.stdout.flush()
        except BrokenPipeError:
            _abandon_stdout()
            raise typer.Exit(BROKEN_PIPE) from None
        except OSError as exc:
            _abandon_stdout()
            raise DsmemError(f"the output can't be written: {exc.strerror}") from exc


def note(text: str) -> None:
    """One line to stderr, as it is given."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except BrokenPipeError:
        raise typer.Exit(BROKEN_PIPE) from None


def _abandon_stdout() -> None:
    """Lets the interpreter's last flush go nowhere instead of failing a second time."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    finally:
        os.close(nowhere)


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _tsv(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " | ".join(_tsv(one) for one in value)
    return escape(str(value).replace("\\", "\\\\"))


def _drawn(columns: Sequence[Column], rows: Sequence[Sequence[object]]) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for column in columns:
        table.add_column(
            Text().append(column.title, "bold"),
            justify="right" if column.right else "left",
            no_wrap=column.right,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(_shown(column, value)) for column, value in zip(columns, row, strict=True)))
    console = Console(file=sys.stdout)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _shown(column: Column, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return "\n".join(escape(column.show(one)) for one in value)
    return escape(column.show(value))
