"""Chunks of HDF5's filter szip, decoded so that a stream that ends early is seen.

The decoder says how much it wrote, but not to who gives it a header, nor where lines are padded: its count is then what
was asked for. So it is never given a header, and decodes such lines with their padding, which is cut out here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
_codecs: Any = imagecodecs
_HEADER = struct.Struct("<I")
_INTERLEAVED_BITS = (32, 64)
"""Items of so many bits are stored as byte 0 of all of them, byte 1 of all of them, ..."""

_MOST_LINE_ITEMS = 4096


@dataclass(frozen=True, slots=True)
class Coding:
    """The filter's values."""

    options: int
    block_items: int
    item_bits: int
    line_items: int

    @property
    def sample_bytes(self) -> int:
        """How long what is coded as one number is."""
        if self.item_bits in _INTERLEAVED_BITS or self.item_bits <= 8:
            return 1
        return 2 if self.item_bits <= 16 else 4

    @property
    def padded_items(self) -> int:
        """A line's length in whole blocks."""
        return -(-self.line_items // self.block_items) * self.block_items

    @property
    def is_known(self) -> bool:
        """Whether it is one that HDF5 writes, and the decoder takes lines of it that are padded."""
        return 0 < self.block_items <= self.line_items and self.padded_items <= _MOST_LINE_ITEMS


def decode(coding: Coding, data: Any, out: Array) -> Array:
    """Decode a chunk into `out`: uint8, as long as the chunk; returns it.

    Raises ValueError, struct.error, and what imagecodecs raises, for what does not decode to exactly that.
    """
    (total,) = _HEADER.unpack(bytes(data[: _HEADER.size]))
    if total != len(out):
        raise ValueError(f"{total} bytes announced instead of {len(out)}")
    stream = data[_HEADER.size :]
    if coding.line_items % coding.block_items:
        return _decode_padded(coding, stream, out)
    done = _codecs.szip_decode(stream, coding.options, coding.block_items, coding.item_bits, coding.line_items, out=out)
    _check(len(done), len(out))
    return out


def _decode_padded(coding: Coding, stream: Any, out: Array) -> Array:
    """Lines that are not whole blocks are coded longer; the last one's end may be missing where nothing needs it."""
    line, padded = coding.line_items * coding.sample_bytes, coding.padded_items * coding.sample_bytes
    lines = -(-len(out) // line)
    decoded = np.empty(lines * padded, np.uint8)
    bits = 8 if coding.item_bits in _INTERLEAVED_BITS else coding.item_bits
    done = _codecs.szip_decode(stream, coding.options, coding.block_items, bits, coding.padded_items, out=decoded)
    _check(len(done), (lines - 1) * padded + len(out) - (lines - 1) * line)
    planes = decoded.reshape(lines, padded)[:, :line].reshape(-1)[: len(out)]
    if coding.item_bits not in _INTERLEAVED_BITS:
        out[:] = planes
        return out
    item_bytes = coding.item_bits // 8
    if len(out) % item_bytes:
        raise ValueError(f"items of {item_bytes} bytes in {len(out)}")
    items = out.reshape(-1, item_bytes)
    for k, plane in enumerate(planes.reshape(item_bytes, -1)):
        items[:, k] = plane
    return out


def _check(done_bytes: int, wanted_bytes: int) -> None:
    if done_bytes < wanted_bytes:
        raise ValueError(f"decodes to {done_bytes} bytes instead of {wanted_bytes}")
