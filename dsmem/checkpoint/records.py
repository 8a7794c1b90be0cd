"""A tensor as torch.save writes it into a checkpoint: a zip of STORED entries whose bytes can be told in advance.

An item is `prefix, the storage's bytes, trailer`. Items of equal dtype and shape have equal prefixes, and trailers that
differ only in checksums: one is parsed and checked in full, the others are compared with it. Local headers carry flag
0x808 with zero CRC and sizes; the truth is in the descriptor after each record and in the central directory.
Source: caffe2/serialize/inline_container.cc and the zip format (APPNOTE.TXT 6.3.10, 4.3.7–4.3.16).
"""

from __future__ import annotations

import re
import struct
import sys
import zlib
from dataclasses import dataclass

from dsmem.checkpoint import unpickling
from dsmem.checkpoint.unpickling import NotPlain, Stored

PROBE_BYTES = 2048
MAX_TRAILER_BYTES = 16 << 10
MAX_PREFIX_BYTES = 64 << 10
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_DESCRIPTOR = b"PK\x07\x08"
_STREAMED = 0x808
"""Sizes follow the record; the name is UTF-8."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the bytes of an item lie, and what must stand around them."""

    prefix: bytes
    stored: Stored
    record_bytes: int
    trailer: re.Pattern[bytes]
    """Matches a trailer; group `crc` is the checksum of the record."""
    trailer_bytes: int
    whole: tuple[int, ...] | None
    """The shape, where the tensor is contiguous and fills its record."""

    @property
    def item_bytes(self) -> int:
        """The whole item."""
        return len(self.prefix) + self.record_bytes + self.trailer_bytes


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    offset: int
    data: int
    size_bytes: int
    crc: int


def start_of_data(head: bytes) -> tuple[int, Stored] | None:
    """Where the record `*/data/0` begins and what is in it; None when more of the item is needed to say.

    Raises NotPlain for what is not such an item, or is damaged.
    """
    position = 0
    stored: Stored | None = None
    while True:
        if len(head) < position + _LOCAL.size:
            return None
        name, data = _local(head, position)
        if name is None:
            return None
        if name.endswith("/data/0"):
            if stored is None:
                raise NotPlain("data before data.pkl")
            return data, stored
        found_end = _end(head, data)
        if found_end is None:
            return None
        end, crc, size_bytes = found_end
        content = head[data:end]
        if crc and zlib.crc32(content) != crc:
            raise NotPlain(f"the checksum of {name} is wrong")
        if name.endswith("/data.pkl"):
            found = unpickling.tensors(content)
            if not isinstance(found, Stored) or found.storage != "0" or found.parameter:
                raise NotPlain("not one plain tensor")
            stored = found
        elif name.endswith("/byteorder") and content != sys.byteorder.encode():
            raise NotPlain(f"{content!r} byte order")
        position = end + size_bytes


def layout(head: bytes, data: int, stored: Stored, trailer: bytes, item_bytes: int) -> Layout:
    """The layout of an item from its beginning and its end, both checked; raises NotPlain."""
    record_bytes = item_bytes - data - len(trailer)
    if record_bytes != stored.storage_bytes:
        raise NotPlain("the record is not as large as its storage")
    if stored.reach_bytes > record_bytes:
        raise NotPlain("the tensor is larger than its storage")
    if sys.byteorder != "little":
        raise NotPlain("a machine with big-endian memory")
    pattern = _trailer_pattern(head[:data], trailer, record_bytes)
    whole = stored.contiguous and not stored.offset and stored.reach_bytes == record_bytes
    return Layout(head[:data], stored, record_bytes, pattern, len(trailer), stored.shape if whole else None)


def _local(data: bytes, position: int) -> tuple[str | None, int]:
    """Name of an entry and where its content begins; None when the header is cut off."""
    magic, _, flags, method, _, _, crc, packed, size, name_bytes, extra_bytes = _LOCAL.unpack_from(data, position)
    if magic != b"PK\x03\x04" or flags != _STREAMED or method or crc or packed or size:
        raise NotPlain("not an entry as torch.save writes it")
    start = position + _LOCAL.size
    if len(data) < start + name_bytes + extra_bytes:
        return None, 0
    return data[start : start + name_bytes].decode(errors="replace"), start + name_bytes + extra_bytes


def _end(data: bytes, start: int) -> tuple[int, int, int] | None:
    """Where the content that begins at `start` ends, its CRC, and the length of the descriptor; None = further on."""
    end = data.find(_DESCRIPTOR, start)
    while end >= 0:
        found = _descriptor(data, end, end - start)
        if found is not None:
            return end, *found
        end = data.find(_DESCRIPTOR, end + 1)
    return None


def _descriptor(data: bytes, position: int, size_bytes: int) -> tuple[int, int] | None:
    """CRC and length of a descriptor that tells this size, of 4 or (zip64) 8 bytes a size."""
    for form in ("<4xIII", "<4xIQQ"):
        if len(data) >= position + struct.calcsize(form):
            crc, packed, size = struct.unpack_from(form, data, position)
            if packed == size == size_bytes:
                return crc, struct.calcsize(form)
    return None


def _trailer_pattern(prefix: bytes, trailer: bytes, record_bytes: int) -> re.Pattern[bytes]:
    """Check a trailer in full (records, directory, end); the pattern lets only checksums and the identifier differ."""
    found = _descriptor(trailer, 0, record_bytes) if trailer[:4] == _DESCRIPTOR else None
    if found is None:
        raise NotPlain("no descriptor after the record")
    crc, position = found
    start = len(prefix) + record_bytes  # of the trailer, in the item
    marks: list[tuple[int, int, bytes]] = [(4, 8, b"(?P<crc>.{4})")]
    entries = _entries(prefix)
    entries[-1] = _Entry(entries[-1].name, entries[-1].offset, entries[-1].data, record_bytes, crc)
    data_name = entries[-1].name
    identifier = ""
    while trailer[position : position + 4] == b"PK\x03\x04":
        name, data = _local(trailer, position)
        end = trailer.find(_DESCRIPTOR, data)
        sizes = _descriptor(trailer, end, end - data) if name is not None and end >= 0 else None
        if name is None or sizes is None or (sizes[0] and zlib.crc32(trailer[data:end]) != sizes[0]):
            raise NotPlain("a record after the data is damaged")
        if name.endswith("/.data/serialization_id"):
            identifier = name
            marks += [(data, end, b".{%d}" % (end - data)), (end + 4, end + 8, b"(?P<id>.{4})")]
        entries.append(_Entry(name, start + position, 0, end - data, sizes[0]))
        position = end + sizes[1]
    directory = position
    for entry in entries:
        if len(trailer) < position + _CENTRAL.size:
            raise NotPlain("the directory is cut off")
        fields = _CENTRAL.unpack_from(trailer, position)
        magic, flags, method, crc_here, packed, size, name_bytes, extra_bytes, comment_bytes, offset = (
            fields[0], fields[3], fields[4], fields[7], fields[8], fields[9], *fields[10:13], fields[16],
        )  # fmt: skip
        after = position + _CENTRAL.size
        name = trailer[after : after + name_bytes].decode(errors="replace")
        if size == 0xFFFFFFFF or packed == 0xFFFFFFFF or offset == 0xFFFFFFFF:
            packed, size, offset = _wide(trailer[after + name_bytes :][:extra_bytes], packed, size, offset)
        same = (name, offset, size, crc_here) == (entry.name, entry.offset, entry.size_bytes, entry.crc)
        if magic != b"PK\x01\x02" or not same or packed != size or method or flags != _STREAMED or comment_bytes:
            raise NotPlain("the directory says something else than the records")
        if name in (data_name, identifier):
            group = b"(?P=crc)" if name == data_name else b"(?P=id)"
            marks.append((position + 16, position + 20, group))
        position = after + name_bytes + extra_bytes
    _check_end(trailer[position:], len(entries), start + directory, position - directory, start + position)
    return re.compile(_around(trailer, marks), re.DOTALL)


def _entries(prefix: bytes) -> list[_Entry]:
    """Entries before the data, which `start_of_data` has checked, and that of the data itself, without its size."""
    found = []
    position = 0
    while True:
        name, data = _local(prefix, position)
        assert name is not None
        if data == len(prefix):
            found.append(_Entry(name, position, data, 0, 0))
            return found
        after = _end(prefix, data)
        assert after is not None
        end, crc, size_bytes = after
        found.append(_Entry(name, position, data, end - data, crc))
        position = end + size_bytes


def _wide(extra: bytes, packed: int, size: int, offset: int) -> tuple[int, int, int]:
    """The zip64 field holds, in this order, those of size, packed size and offset that did not fit."""
    values = [size, packed, offset]
    if extra[:2] != b"\x01\x00":
        raise NotPlain("a large entry without its sizes")
    rest = extra[4:]
    for index, value in enumerate(values):
        if value == 0xFFFFFFFF and len(rest) >= 8:
            (values[index],) = struct.unpack_from("<Q", rest)
            rest = rest[8:]
    return values[1], values[0], values[2]


def _check_end(end: bytes, count: int, directory: int, directory_bytes: int, zip64: int) -> None:
    """The records that end a zip: zip64 end, its locator, the end."""
    if len(end) not in (22, 98) or end[-22:-18] != b"PK\x05\x06" or end[-2:] != b"\0\0":
        raise NotPlain("the item does not end where it should")
    disk, first, here, total, size, offset = struct.unpack_from("<HHHHII", end, len(end) - 18)
    if len(end) == 98:
        magic, length = struct.unpack_from("<4sQ", end)
        far = struct.unpack_from("<IIQQQQ", end, 16)
        locator = struct.unpack_from("<4sIQI", end, 56)
        expected = (0, 0, count, count, directory_bytes, directory)
        if magic != b"PK\x06\x06" or length != 44 or far != expected or locator != (b"PK\x06\x07", 0, zip64, 1):
            raise NotPlain("the end of the directory is damaged")
    small = (count, count, directory_bytes, directory)
    for value, right, most in zip((here, total, size, offset), small, (0xFFFF, 0xFFFF, 1 << 32, 1 << 32), strict=True):
        if value != right and not (len(end) == 98 and value >= most - 1):
            raise NotPlain("the end of the directory is damaged")
    if disk or first:
        raise NotPlain("a zip of several parts")


def _around(trailer: bytes, marks: list[tuple[int, int, bytes]]) -> bytes:
    pattern = b""
    position = 0
    for start, end, what in sorted(marks):
        pattern += re.escape(trailer[position:start]) + what
        position = end
    return pattern + re.escape(trailer[position:])
