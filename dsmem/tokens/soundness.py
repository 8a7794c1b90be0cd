"""How much of a damaged compressed file is sound: checksums lie behind what they are of, so that it is decoded once to
find out, and once more to be read.

What counts lies before the first member of gzip, stream or block of xz, block of bzip2 or frame of Zstandard whose
checksum is wrong, or that can't be decoded. Where a file is just cut off, all that it holds is taken to be sound.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from itertools import accumulate
from typing import IO, cast

from dsmem.tokens import compressed
from dsmem.tokens.compressed import Compression, Damage, Damaged

_READ_BYTES = 64 << 10
_MOST_INDEX_BYTES = 1 << 20
"""Of a stream of xz: more than 100,000 blocks."""
_ABOUT_BYTES = 64 << 10
_ZST_MAGIC = b"\x28\xb5\x2f\xfd"
_XZ_HEAD_BYTES = _XZ_FOOT_BYTES = 12


def damage_of(file: IO[bytes], compression: Compression) -> Damage | None:
    """What is wrong with a file that can be read again, from where it is now; None for nothing, or for its end."""
    begin = file.tell()
    decoder = compressed.decoding(file, compression)
    found_bytes = 0
    try:
        while data := decoder.read(_READ_BYTES):
            found_bytes += len(data)
    except Damaged as exc:
        sound_bytes = decoder.sound_bytes
        if not str(exc) and not _has_end(file, compression, found_bytes - sound_bytes):
            return None
        if compression == "zst":
            sound_bytes = _in_frames(file, begin)
        elif compression == "xz":
            sound_bytes += _in_blocks(file, begin + decoder.begin_bytes, found_bytes - sound_bytes)
        return Damage(sound_bytes, found_bytes, str(exc) or "its end is there, and is not found")
    finally:
        file.seek(begin)
    return None


def _has_end(file: IO[bytes], compression: Compression, found_bytes: int) -> bool:
    """Whether a file is not cut off, though it seems so, but damaged where its end is marked: it ends as one does.

    A member of gzip ends with its length: one of 30,000 that are cut off has about that there by chance.
    """
    size_bytes = file.seek(0, os.SEEK_END)
    foot = _at(file, max(size_bytes - _XZ_FOOT_BYTES, 0), _XZ_FOOT_BYTES)
    if compression == "xz":
        return _is_foot(foot)
    length = int.from_bytes(foot[-4:], "little")
    return compression == "gz" and (found_bytes - length + _ABOUT_BYTES) % 2**32 <= 2 * _ABOUT_BYTES


def _is_foot(foot: bytes) -> bool:
    """Whether a stream of xz ends so."""
    return foot[-2:] == b"YZ" and zlib.crc32(foot[4:10]).to_bytes(4, "little") == foot[:4]


def _in_frames(file: IO[bytes], begin: int) -> int:
    """The bytes in the frames of Zstandard before the first that is bad."""
    sound_bytes = 0
    for start, end in _frames(file, begin):
        decoder = compressed.decoding(cast("IO[bytes]", _Range(file, start, end)), "zst")
        frame_bytes = 0
        try:
            while data := decoder.read(_READ_BYTES):
                frame_bytes += len(data)
        except Damaged:
            break
        sound_bytes += frame_bytes
    return sound_bytes


class _Range(io.RawIOBase):
    """Some of a file."""

    def __init__(self, file: IO[bytes], start: int, end: int) -> None:
        self._file = file
        self._at, self._end = start, end

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        self._file.seek(self._at)
        left = self._end - self._at
        data = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data


def _frames(file: IO[bytes], begin: int) -> Iterator[tuple[int, int]]:
    """Where frames lie, as far as their headers and those of their blocks tell; the last that they tell of may end with
    the file."""
    size_bytes = file.seek(0, os.SEEK_END)

    def number(at: int, size: int) -> int:
        file.seek(at)
        return int.from_bytes(file.read(size), "little")

    while begin < size_bytes:
        file.seek(begin)
        head = file.read(5)
        if head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50:
            end = begin + 8 + number(begin + 4, 4)
        elif head[:4] != _ZST_MAGIC or len(head) < 5:
            end = size_bytes
        else:
            flags = head[4]
            is_single = flags >> 5 & 1
            content = flags >> 6
            end = begin + 5 + (not is_single) + (0, 1, 2, 4)[flags & 3] + (1 << content if content else is_single)
            is_last = False
            while not is_last and end < size_bytes:
                block = number(end, 3)
                is_last, is_repeated = bool(block & 1), block >> 1 & 3 == 1
                end += 3 + (1 if is_repeated else block >> 3)
            end += 4 * (flags >> 2 & 1)
        yield begin, min(end, size_bytes)
        begin = end


def _in_blocks(file: IO[bytes], begin: int, found_bytes: int) -> int:
    """Of a stream of xz that begins there, the bytes in the blocks before the last that was decoded in part; 0 where
    its index can't be read."""
    for start, blocks in _indices(file, begin):
        if start == begin:
            return max((end for end in accumulate(blocks) if end < found_bytes), default=0)
    return 0


def _indices(file: IO[bytes], begin: int) -> Iterator[tuple[int, list[int]]]:
    """Where streams of xz begin, from the last to the one there, and what their blocks hold; to the first whose index
    is none."""
    end = file.seek(0, os.SEEK_END)
    while end >= begin + _XZ_HEAD_BYTES + _XZ_FOOT_BYTES:
        foot = _at(file, end - _XZ_FOOT_BYTES, _XZ_FOOT_BYTES)
        if foot[-4:] == bytes(4):  # padding
            end -= 4
            continue
        index_bytes = 4 * (int.from_bytes(foot[4:8], "little") + 1)
        at = end - _XZ_FOOT_BYTES - index_bytes
        if not _is_foot(foot) or index_bytes > _MOST_INDEX_BYTES or at < begin:
            return
        index = _at(file, at, index_bytes)
        if index[0] or zlib.crc32(index[:-4]).to_bytes(4, "little") != index[-4:]:
            return
        count, *sizes = _numbers(index[1:-4])
        end = at - sum(-(-size // 4) * 4 for size in sizes[: 2 * count : 2]) - _XZ_HEAD_BYTES
        yield end, sizes[1 : 2 * count : 2]


def _at(file: IO[bytes], at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _numbers(data: bytes) -> Iterator[int]:
    """Of 7 bits a byte, the lowest first."""
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield value
            value = shift = 0
