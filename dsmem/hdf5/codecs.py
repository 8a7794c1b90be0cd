"""HDF5 filter pipelines decoded without HDF5: in threads (the codecs release the GIL), into memory that is given.

Filter numbers and parameters: the HDF5 library's H5Zpublic.h, and https://github.com/HDFGroup/hdf5_plugins
(docs/RegisteredFilterPlugins.md). What is not known here is left to h5py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import deflate
import imagecodecs
import numpy as np

from dsmem.buffers import memory
from dsmem.hdf5 import blosc2, shuffle, szip

Array = np.ndarray[Any, np.dtype[Any]]
_codecs: Any = imagecodecs
"""Its stubs know neither memoryviews in nor arrays out; both work, and copy nothing."""

DEFLATE, _SHUFFLE, _FLETCHER32, _SZIP = 1, 2, 3, 4
_LZF, _BLOSC, _LZ4, _BITSHUFFLE, _ZSTD, _BLOSC2 = 32000, 32001, 32004, 32008, 32015, 32026
_BLOSC2_FILTERS, _BLOSC2_CODECS = range(5), range(6)
"""Those that are part of Blosc2 itself; others are plugins of it."""
_BLOSC2_MOST_ITEM_BYTES = 255
"""Larger ones hdf5plugin 7.1.0 writes, and can't read."""
_LZ4_HEADER, _BLOSC_STORED = struct.Struct(">Q"), struct.Struct("<12xI")
_BITSHUFFLE_PLAIN, _BITSHUFFLE_LZ4, _BITSHUFFLE_ZSTD = 0, 2, 3
_BITSHUFFLE_HEADER = struct.Struct(">QI")
_BITSHUFFLE_TARGET_BYTES, _BITSHUFFLE_MULTIPLE, _BITSHUFFLE_LEAST = 8192, 8, 128
_CHECKSUM_BYTES = 4
_SMALL_BYTES = 16 << 10
"""Up to here a copy costs less than what imagecodecs does around libdeflate; beyond, fresh memory costs more."""
_LARGE_BYTES = 8 << 20
"""From here on a buffer is a map of its own: it costs page faults (15 % for chunks of 1 to 4 MiB), but no free heap."""
_FOREIGN = (
    deflate.DeflateError,
    RuntimeError,
    ValueError,
    TypeError,
    MemoryError,
    ArithmeticError,  # filter values that can't be: items of 0 bytes
    struct.error,
)
"""What codecs raise for bytes, or parameters, that are not theirs."""


@dataclass(frozen=True, slots=True)
class Filter:
    """One stage of a pipeline, as a dataset's creation properties list it."""

    code: int
    values: tuple[int, ...]
    name: str = ""


class Undecodable(ValueError):
    """A chunk that is not what its filters say."""


class NotKnown(LookupError):
    """A pipeline that only HDF5 itself can decode; the message says why."""


class Pipeline:
    """The filters of a dataset, undone. Raises NotKnown when it is made from filters that are not known here."""

    def __init__(self, filters: Sequence[Filter], chunk_bytes: int) -> None:
        self._filters = tuple(filters)
        self._chunk_bytes = chunk_bytes
        self._by_mask: dict[int, tuple[_Stage, ...]] = {0: self._stages(0)}
        self._rearranges = any(one.code in (_SZIP, _BLOSC2) for one in filters)
        self.is_small_deflate = [one.code for one in filters] == [DEFLATE] and chunk_bytes <= _SMALL_BYTES
        """Whether deflate is all there is to undo, in chunks so small that `StoredChunks.inflated` does it best."""

    @property
    def passed_on_bytes(self) -> int:
        """At most so much memory is taken for what one stage leaves to the next."""
        between = min(len(self._by_mask[0]) - 1, 2)
        return (between + self._rearranges) * self._chunk_bytes

    def decode(self, data: memoryview, out: Array, mask: int) -> None:
        """Decode a chunk into `out` (uint8, as long as a whole chunk); bit i of `mask`: filter i was left out.

        Raises Undecodable.
        """
        stages = self._by_mask.get(mask)
        if stages is None:
            stages = self._by_mask[mask] = self._stages(mask)
        current: Any = data
        try:
            for stage in stages[:-1]:
                current = stage.undo(current, scratch(stage.size_bytes))
            done = stages[-1].undo(current, out)
        except _FOREIGN as exc:
            raise Undecodable(str(exc)) from exc
        if len(done) != len(out):
            raise Undecodable(f"decodes to {len(done)} bytes instead of {len(out)}")
        if isinstance(done, bytearray):
            out[:] = np.frombuffer(done, np.uint8)

    def _stages(self, mask: int) -> tuple[_Stage, ...]:
        """What undoes the filters, last one first; the size that each gives is known from the chunk's."""
        stages: list[_Stage] = []
        size_bytes: int | None = self._chunk_bytes
        for index, one in enumerate(self._filters):
            if mask >> index & 1:
                continue
            undo, grows = _undo(one)
            if size_bytes is None and undo is not _undo_checksum:
                raise NotKnown("filters behind a compression")
            stages.append(_Stage(undo, size_bytes or 0))
            size_bytes = None if grows is None or size_bytes is None else size_bytes + grows
        if not stages or stages[0].undo is _undo_checksum:
            stages.insert(0, _Stage(_copy, self._chunk_bytes))
        return tuple(reversed(stages))


def scratch(size_bytes: int) -> Array:
    """A buffer of uint8 for as long as a chunk is decoded."""
    is_large = size_bytes >= _LARGE_BYTES
    return np.frombuffer(memory(size_bytes), np.uint8) if is_large else np.empty(size_bytes, np.uint8)


@dataclass(frozen=True, slots=True)
class _Stage:
    undo: Callable[[Any, Array], Any]
    """Decode into an array of `size_bytes` and return it, or return a bytearray or a view of what it was given."""
    size_bytes: int


def _undo(one: Filter) -> tuple[Callable[[Any, Array], Any], int | None]:
    """What undoes a filter, and by how many bytes the filter makes its input longer (None: a compression)."""
    if one.code == _FLETCHER32:
        return _undo_checksum, _CHECKSUM_BYTES
    if one.code == _SHUFFLE:
        item_bytes = one.values[0] if one.values else 1
        return partial(shuffle.undo, item_bytes), 0
    if one.code in _SIMPLE:
        return _SIMPLE[one.code], None
    if one.code == _SZIP and len(one.values) >= 4:
        coding = szip.Coding(*one.values[:4])
        if coding.is_known:
            return partial(szip.decode, coding), None
    if (
        one.code == _BITSHUFFLE
        and len(one.values) >= 5
        and one.values[4] in (_BITSHUFFLE_PLAIN, _BITSHUFFLE_LZ4, _BITSHUFFLE_ZSTD)
    ):
        return partial(_undo_bitshuffle, one.values[2], one.values[3], one.values[4]), None
    if (
        one.code == _BLOSC2
        and len(one.values) >= 7
        and one.values[2] <= _BLOSC2_MOST_ITEM_BYTES
        and one.values[5] in _BLOSC2_FILTERS
        and one.values[6] in _BLOSC2_CODECS
    ):
        return blosc2.decode, None
    raise NotKnown(f"only HDF5 decodes {one.name or one.code}")


def _undo_deflate(data: Any, out: Array) -> Any:
    if len(out) <= _SMALL_BYTES:
        return deflate.zlib_decompress(data, len(out))
    return _codecs.deflate_decode(data, out=out)


def _undo_lzf(data: Any, out: Array) -> Any:
    return _codecs.lzf_decode(data, out=out)


def _undo_zstd(data: Any, out: Array) -> Any:
    return _codecs.zstd_decode(data, out=out)


def _undo_lz4(data: Any, out: Array) -> Any:
    (total,) = _LZ4_HEADER.unpack(bytes(data[: _LZ4_HEADER.size]))
    if total != len(out):
        raise ValueError(f"{total} bytes announced instead of {len(out)}")
    return _codecs.lz4h5_decode(data, out=out)


def _undo_blosc(data: Any, out: Array) -> Any:
    (stored,) = _BLOSC_STORED.unpack_from(data)
    if stored > len(data):  # the decoder does not know where its input ends
        raise ValueError(f"{stored} bytes announced, and {len(data)} are stored")
    return _codecs.blosc_decode(data, numthreads=1, out=out)


_SIMPLE: dict[int, Callable[[Any, Array], Any]] = {
    DEFLATE: _undo_deflate,
    _LZF: _undo_lzf,
    _ZSTD: _undo_zstd,
    _LZ4: _undo_lz4,
    _BLOSC: _undo_blosc,
}


def _copy(data: Any, out: Array) -> Any:
    if len(data) != len(out):
        raise ValueError(f"{len(data)} bytes stored instead of {len(out)}")
    out[:] = np.frombuffer(data, np.uint8)
    return out


def _undo_checksum(data: Any, _: Array) -> Any:
    """Check and cut off the Fletcher-32 sum; HDF5 before 1.6.3 stored it with the bytes of each half swapped."""
    payload = data[:-_CHECKSUM_BYTES]
    (stored,) = struct.unpack("<I", bytes(data[-_CHECKSUM_BYTES:]))
    computed = int(_codecs.h5checksum_fletcher32(payload))
    swapped = (computed & 0x00FF00FF) << 8 | (computed & 0xFF00FF00) >> 8
    if stored not in (computed, swapped):
        raise ValueError(f"checksum {computed:#010x} instead of {stored:#010x}")
    return payload


def _undo_bitshuffle(item_bytes: int, block_items: int, method: int, data: Any, out: Array) -> Any:
    """The format of https://github.com/kiyo-masui/bitshuffle: blocks of bit planes, each compressed by itself."""
    if method == _BITSHUFFLE_PLAIN:
        if len(data) != len(out):
            raise ValueError(f"{len(data)} shuffled bytes instead of {len(out)}")
        block_bytes = (block_items or _default_block(item_bytes)) * item_bytes
        return _bit_blocks(data, out, item_bytes, block_bytes, None)
    total, block_bytes = _BITSHUFFLE_HEADER.unpack(bytes(data[: _BITSHUFFLE_HEADER.size]))
    if total != len(out):
        raise ValueError(f"{total} bytes announced instead of {len(out)}")
    decode = _codecs.lz4_decode if method == _BITSHUFFLE_LZ4 else _codecs.zstd_decode
    return _bit_blocks(data[_BITSHUFFLE_HEADER.size :], out, item_bytes, block_bytes, decode)


def _default_block(item_bytes: int) -> int:
    items = _BITSHUFFLE_TARGET_BYTES // item_bytes // _BITSHUFFLE_MULTIPLE * _BITSHUFFLE_MULTIPLE
    return max(items, _BITSHUFFLE_LEAST)


def _bit_blocks(data: Any, out: Array, item_bytes: int, block_bytes: int, decode: Any) -> Any:
    step = _BITSHUFFLE_MULTIPLE * item_bytes
    if block_bytes <= 0 or block_bytes % step:
        raise ValueError(f"blocks of {block_bytes} bytes")
    at, done = 0, 0
    while len(out) - done >= step:
        size = min(block_bytes, (len(out) - done) // step * step)
        if decode is None:
            planes, at = data[at : at + size], at + size
        else:
            (length,) = struct.unpack(">I", bytes(data[at : at + 4]))
            planes = decode(data[at + 4 : at + 4 + length], out=np.empty(size, np.uint8))
            at += 4 + length
        if len(planes) != size:
            raise ValueError(f"a block of {len(planes)} bytes instead of {size}")
        out[done : done + size] = np.frombuffer(
            _codecs.bitshuffle_decode(memoryview(planes), itemsize=item_bytes, blocksize=size // item_bytes),
            np.uint8,
        )
        done += size
    rest = data[at : at + len(out) - done]
    if len(rest) != len(out) - done:
        raise ValueError(f"{len(rest)} bytes are left instead of {len(out) - done}")
    out[done:] = np.frombuffer(rest, np.uint8)
    return out
