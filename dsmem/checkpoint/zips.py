"""The zips of torch.save looked at in full: every record's headers against each other, and its checksum.

Source: APPNOTE.TXT 6.3.10, 4.3.7–4.3.9 (local header, data, descriptor), 4.3.12 (directory).
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from dsmem.checkpoint.opened import Opened
from dsmem.errors import BadSource

BLOCK_BYTES = 1 << 20
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_SIZES_FOLLOW = 0x8


class Window(Protocol):
    """Bytes from 0 to `size_bytes`, wherever they lie."""

    @property
    def size_bytes(self) -> int: ...
    def read(self, offset: int, size_bytes: int) -> bytes:
        """So many bytes, fewer at the end."""


class InFile:
    """A part of a file."""

    def __init__(self, file: Opened, start: int, size_bytes: int) -> None:
        self._file = file
        self._start = start
        self.size_bytes = size_bytes

    def read(self, offset: int, size_bytes: int) -> bytes:
        """So many bytes, fewer at the end of the part; raises BadSource where the file ends before it."""
        data = bytearray(max(0, min(size_bytes, self.size_bytes - offset)))
        self._file.read([memoryview(data)], self._start + offset)
        return bytes(data)


class InMemory:
    """Bytes that are there already."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size_bytes = len(data)

    def read(self, offset: int, size_bytes: int) -> bytes:
        """So many bytes, fewer at the end."""
        return self._data[offset : offset + size_bytes]


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of a zip; `offset` is where its bytes begin in the window, `crc` zero where none was saved."""

    name: str
    offset: int
    size_bytes: int
    crc: int

    @property
    def inner(self) -> str:
        """The name without the directory that all entries share: 'data/0'."""
        return self.name.partition("/")[2]


def records(window: Window) -> list[Record]:
    """Every entry, its header and descriptor compared with the directory; raises BadSource for what is damaged."""
    try:
        with zipfile.ZipFile(io.BufferedReader(_Stream(window))) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, struct.error, OverflowError) as exc:
        raise BadSource(f"no whole zip of torch.save: {exc}") from exc
    if entries and min(entry.header_offset for entry in entries) != 0:
        raise BadSource("no whole zip of torch.save: it does not begin with a record")
    found = [_record(window, entry) for entry in entries]
    try:
        torch._C.PyTorchFileReader(io.BufferedReader(_Stream(window)))  # it is stricter with what zipfile passes over
    except (RuntimeError, ValueError) as exc:  # ValueError: it looks for the directory before the beginning
        raise BadSource(f"no whole zip of torch.save: torch says: {str(exc).splitlines()[0]}") from exc
    return found


def _record(window: Window, entry: zipfile.ZipInfo) -> Record:
    head = window.read(entry.header_offset, _LOCAL.size)
    if len(head) < _LOCAL.size:
        raise BadSource(f"the record {entry.orig_filename} lies outside of it")
    magic, _, flags, method, _, _, _, _, _, name_bytes, extra_bytes = _LOCAL.unpack(head)
    start = entry.header_offset + _LOCAL.size
    name = window.read(start, name_bytes).decode(errors="replace")
    if (magic, flags, method, name) != (b"PK\x03\x04", entry.flag_bits, entry.compress_type, entry.orig_filename):
        raise BadSource(f"the header of the record {entry.orig_filename} is damaged")
    if method != zipfile.ZIP_STORED or flags & 1:
        raise BadSource(f"the record {entry.orig_filename} is compressed or encrypted, which torch.save never does")
    data = start + name_bytes + extra_bytes
    if data + entry.file_size > window.size_bytes or entry.file_size != entry.compress_size:
        raise BadSource(f"the record {entry.orig_filename} lies outside of it")
    if flags & _SIZES_FOLLOW:
        after = window.read(data + entry.file_size, 24)
        told = (entry.CRC, entry.file_size, entry.file_size)
        if after[:4] != b"PK\x07\x08" or told not in (_unpacked("<III", after), _unpacked("<IQQ", after)):
            raise BadSource(f"what follows the record {entry.orig_filename} is damaged")
    return Record(name, data, entry.file_size, entry.CRC)


def _unpacked(form: str, data: bytes) -> tuple[int, ...]:
    return struct.unpack_from(form, data, 4) if len(data) >= 4 + struct.calcsize(form) else ()


def crc(window: Window, offset: int, size_bytes: int, advance: Callable[[int], None]) -> int:
    """The checksum of a part, read 1 MiB at a time; raises BadSource, OSError."""
    found = 0
    for start in range(0, size_bytes, BLOCK_BYTES):
        block = window.read(offset + start, min(BLOCK_BYTES, size_bytes - start))
        found = zlib.crc32(block, found)
        advance(len(block))
    return found


class _Stream(io.RawIOBase):
    """A window as the file that zipfile wants."""

    def __init__(self, window: Window) -> None:
        super().__init__()
        self._window = window
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._window.size_bytes}[whence]
        if base + offset < 0:
            raise ValueError("a position before the beginning")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._window.read(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def told(actual: int, saved: int) -> str:
    """Two checksums in words."""
    return f"their CRC is {actual:08x}, saved was {saved:08x}"
