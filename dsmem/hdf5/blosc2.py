"""Chunks of HDF5's filter Blosc2: a contiguous frame that holds one chunk, cut into blocks where that is an array.

Formats: README_CFRAME_FORMAT.rst and README_B2ND_METALAYER.rst of https://github.com/Blosc/c-blosc2; what the filter
writes of them was looked at in files of hdf5plugin. Numbers in a frame are msgpack's, big-endian, each at its place.
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
_codecs: Any = imagecodecs
_MAGIC = b"b2frame\0"
_HEADER_BYTES, _SIZE_BYTES, _STORED_BYTES = struct.Struct(">10xxi"), struct.Struct(">29xxq"), struct.Struct(">38xxq")
_ARRAY = b"\xa4b2nd\xd2"
"""How the header names the array's description: the name, and a 32-bit offset to follow."""
_FIRST_FIELDS = 2
"""Version and number of axes."""
_ZEROS = 0x81
"""The top byte of the offset of a chunk that is not stored because it is all zeros."""

_FLAGS_AT, _EXTENDED, _KIND_AT, _NOT_WRITTEN = 2, 5, 31, 4
"""README_CHUNK_FORMAT.rst: which kind of special value a chunk is made of; of this one the decoder writes nothing."""
_LATER_AT, _LAZY = 30, 8
"""What later versions say of a chunk, and that it is not all there, as in no file: h5py reads none that has either."""
_FILTERS, _METAS, _SHUFFLE, _DELTA = slice(16, 22), slice(24, 30), 1, 3
"""Its filters and a number for each. Blosc2 2.23 ignores that of a shuffle, 3.3 takes it for the size of an item; and
they undo a delta behind other filters differently. What the filter of HDF5 writes has neither."""

_PLAIN, _PLAIN_INDEX_BYTES, _FIRST = 2, 40, bytes(8)
"""An index of one chunk that is stored as it is: a header of 32 bytes, and the chunk's offset."""


@dataclass(frozen=True, slots=True)
class _Blocks:
    """How an array lies in a chunk: in blocks of one shape, one after the other, those at the edge padded."""

    chunk: tuple[int, ...]
    block: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(-(-length // step) for length, step in zip(self.chunk, self.block, strict=True))

    @property
    def are_in_order(self) -> bool:
        """Whether the chunk's items lie as they would without blocks."""
        return self.block[1:] == self.chunk[1:]


def decode(data: memoryview, out: Array) -> Array:
    """Decode a frame into `out`: uint8, as long as the HDF5 chunk; returns it.

    Raises ValueError, struct.error, and what imagecodecs raises, for what is no such frame.
    """
    if bytes(data[2:10]) != _MAGIC:
        raise ValueError("not a frame of Blosc2")
    (header_bytes,), (size_bytes,), (stored_bytes,) = (
        one.unpack_from(data) for one in (_HEADER_BYTES, _SIZE_BYTES, _STORED_BYTES)
    )
    if not 0 < header_bytes < len(data):
        raise ValueError(f"a header of {header_bytes} bytes in a frame of {len(data)}")
    if stored_bytes == 0:
        _check_zeros(data[header_bytes:])
        out[:] = 0
        return out
    _check_begins(data[header_bytes + stored_bytes :])
    blocks = _blocks(data[:header_bytes])
    stored = data[header_bytes : header_bytes + stored_bytes]
    if blocks is None or (blocks.are_in_order and size_bytes == len(out)):
        return _decoded(stored, out)
    padded_items = math.prod(blocks.counts) * math.prod(blocks.block)
    item_bytes = len(out) // math.prod(blocks.chunk)
    if item_bytes * math.prod(blocks.chunk) != len(out) or item_bytes * padded_items != size_bytes:
        raise ValueError(f"an array of {blocks.chunk} in {size_bytes} bytes, for a chunk of {len(out)}")
    _arrange(_decoded(stored, np.empty(size_bytes, np.uint8)), blocks, item_bytes, out)
    return out


def _decoded(stored: memoryview, out: Array) -> Array:
    if len(stored) > _KIND_AT and stored[_FLAGS_AT] & _EXTENDED == _EXTENDED:
        if stored[_KIND_AT] >> 4 & 7 == _NOT_WRITTEN:
            raise ValueError("a chunk whose bytes were never written")
        if stored[_LATER_AT] or stored[_KIND_AT] & _LAZY:
            raise ValueError("a chunk of a kind that is not known")
        filters, metas = bytes(stored[_FILTERS]), bytes(stored[_METAS])
        if any(meta for code, meta in zip(filters, metas, strict=True) if code == _SHUFFLE):
            raise ValueError("a shuffle that not every Blosc2 undoes alike")
        if any(filters[: max(filters.find(_DELTA), 0)]):
            raise ValueError("filters before a delta, which not every Blosc2 undoes alike")
    done: Array = _codecs.blosc2_decode(stored, numthreads=1, out=out)
    if len(done) != len(out):
        raise ValueError(f"decodes to {len(done)} bytes instead of {len(out)}")
    return done


def _check_zeros(index: memoryview) -> None:
    offsets = _offsets(index)
    if offsets[-1] != _ZEROS:
        raise ValueError("a chunk that is not stored, and not zeros")


def _check_begins(index: memoryview) -> None:
    if len(index) >= _PLAIN_INDEX_BYTES and index[_FLAGS_AT] & _PLAIN and index[32:40] == _FIRST:
        return  # as it is written; to decode it takes as long as a small chunk
    offsets = _offsets(index)
    if offsets != _FIRST:
        raise ValueError(f"a chunk at {offsets.hex()} instead of where the header ends")


def _offsets(index: memoryview) -> bytes:
    """Where the frame's only chunk lies, from the end of the header on."""
    return _decoded(index, np.zeros(len(_FIRST), np.uint8)).tobytes()


def _blocks(header: memoryview) -> _Blocks | None:
    """What the frame's header says of the array; None: it is none."""
    raw = bytes(header)
    at = raw.find(_ARRAY)
    if at < 0:
        return None
    (start,) = struct.unpack_from(">i", raw, at + len(_ARRAY))
    (length,) = struct.unpack_from(">xI", raw, start)  # bin 32
    fields = raw[start + 5 : start + 5 + length]
    if len(fields) <= _FIRST_FIELDS:
        raise ValueError(f"{len(fields)} bytes that say what array it is")
    axes = fields[_FIRST_FIELDS]
    shape_bytes, part_bytes = 1 + 9 * axes, 1 + 5 * axes  # array of `axes`; int 64 for the shape, int 32 for the others
    begin = 1 + _FIRST_FIELDS + shape_bytes
    chunk, block = (struct.unpack_from(">" + "xi" * axes, fields, begin + 1 + part * part_bytes) for part in range(2))
    if not axes or min(*chunk, *block) < 1:
        raise ValueError(f"an array of {chunk} in blocks of {block}")
    return _Blocks(chunk, block)


def _arrange(decoded: Array, blocks: _Blocks, item_bytes: int, out: Array) -> None:
    """Put blocks to their places in an array, and leave out what pads them."""
    *above, width = blocks.chunk
    *rows, columns = blocks.block
    target = out.reshape(*above, width * item_bytes)
    each = decoded.reshape(-1, *rows, columns * item_bytes)
    steps = (*rows, columns * item_bytes)
    for one, place in zip(each, itertools.product(*map(range, blocks.counts)), strict=True):
        here = tuple(slice(i * step, (i + 1) * step) for i, step in zip(place, steps, strict=True))
        part = target[here]
        part[...] = one[tuple(slice(0, length) for length in part.shape)]
