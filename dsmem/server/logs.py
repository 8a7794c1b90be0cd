"""The daemon's log: a file that is rotated at 1 MiB, three older ones kept, and how it is read while it grows."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from dsmem import files

LIMIT_BYTES = 1 << 20
KEPT = 3
_POLL_S = 0.2
_PART_BYTES = 1 << 16
_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class RotatingFile(logging.Handler):
    """Appends lines to a file; once it is full, it becomes `.1`, and what was `.1` becomes `.2`."""

    def __init__(self, path: str, *, limit_bytes: int = LIMIT_BYTES, kept: int = KEPT) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(_FORMAT))
        self._path, self._limit_bytes, self._kept = path, limit_bytes, kept
        self._fd = open_log(path)

    def emit(self, record: logging.LogRecord) -> None:
        """One record, one line: what is no printable character is escaped."""
        line = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in self.format(record))
        try:
            os.write(self._fd, (line + "\n").encode("utf-8", "backslashreplace"))
            if os.fstat(self._fd).st_size >= self._limit_bytes:
                self._rotate()
        except OSError:  # a full disk stops no server
            self.handleError(record)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        super().close()

    def _rotate(self) -> None:
        for number in range(self._kept - 1, 0, -1):
            with suppress(FileNotFoundError):
                os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
        with suppress(FileNotFoundError):
            os.replace(self._path, f"{self._path}.1")
        fresh = open_log(self._path)
        os.close(self._fd)
        self._fd = fresh


def open_log(path: str) -> int:
    """A descriptor that appends to a log of our own, made (mode 0600) if need be; raises UnsafeRoot, OSError."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    return files.open_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def tail(path: str, lines: int) -> list[str]:
    """The last lines, from older files too where the newest has not so many; [] when there is no log."""
    found: list[str] = []
    for name in (path, *(f"{path}.{number}" for number in range(1, KEPT + 1))):
        if len(found) >= lines:
            break
        try:
            with Path(name).open(encoding="utf-8", errors="backslashreplace") as file:
                found = file.read().splitlines() + found
        except FileNotFoundError:
            break
    return found[max(len(found) - lines, 0) :]


def follow(path: str, *, pause: Callable[[float], None] = time.sleep) -> Iterator[str]:
    """Lines as they are written from now on, through rotations, without end; waits for a file that is not there yet."""
    file = None
    began = False
    rest = ""
    try:
        while True:
            if file is None:
                with suppress(FileNotFoundError):
                    file = Path(path).open(encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - closed below
                    file.seek(0, os.SEEK_SET if began else os.SEEK_END)
                began = True
            part = file.read(_PART_BYTES) if file is not None else ""
            *whole, rest = (rest + part).split("\n")
            yield from whole
            if part:
                continue
            if file is not None and not files.names_inode(path, os.fstat(file.fileno())):
                file.close()  # rotated: the new one from its beginning
                file = None
                continue
            pause(_POLL_S)
    finally:
        if file is not None:
            file.close()
