"""Reading items straight to their places: no zip reader, no unpickling, no copy in between where none is needed.

Whatever is not as expected is left to the stock code, item by item.
"""

from __future__ import annotations

import ctypes
import threading
import time
import zlib
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch

from dsmem.checkpoint import records, regions
from dsmem.checkpoint.items import Item, Outcome
from dsmem.checkpoint.opened import Directory, Opened, memory_at
from dsmem.checkpoint.records import Layout
from dsmem.checkpoint.regions import NotDirect, Region
from dsmem.checkpoint.scratch import BOUNCE_BYTES, GROUP_BYTES, Scratch
from dsmem.checkpoint.unpickling import NotPlain
from dsmem.errors import BadSource, DsmemError

Verify = Literal["none", "crc"]
SMALL_BYTES = 256 << 10
PIECE_BYTES = 16 << 20
_MOST_BYTES = PIECE_BYTES + PIECE_BYTES // 2
"""Of an item that is not cut, and of the first piece of one that is."""
_GAP_BYTES = 64 << 10


class Direct:
    """The tasks of one read; layouts that were learned are shared by all workers."""

    def __init__(self, directory: Directory, *, verify: Verify) -> None:
        self._directory = directory
        self._verify = verify
        self._layouts: dict[object, Layout] = {}
        self._lock = threading.Lock()

    def group(self, items: Sequence[Item], scratch: Scratch) -> Outcome:
        """Read items that lie side by side in one file with one call, then give each its bytes."""
        began = time.perf_counter()
        outcome = Outcome(items[0].file)
        start = items[0].offset
        span = items[-1].offset + items[-1].length - start
        try:
            file = self._directory.open(items[0].file)
            file.read([scratch.view[:span]], start)
        except (OSError, DsmemError) as exc:
            outcome.again += [(item, _reason(exc)) for item in items]
            return outcome
        size_bytes = 0
        data, address, layouts, crc = scratch.data, scratch.address, self._layouts, self._verify == "crc"
        for item in items:
            position = item.offset - start
            layout = layouts.get(item.key)
            matched = None
            if layout is not None and layout.item_bytes == item.length and data.startswith(layout.prefix, position):
                after = position + len(layout.prefix) + layout.record_bytes
                matched = layout.trailer.match(data, after, position + item.length)
            try:
                if matched is None or layout is None:
                    layout = self._learn_from(bytes(data[position : position + item.length]))
                    layouts[item.key] = layout
                    after = position + len(layout.prefix) + layout.record_bytes
                    matched = layout.trailer.match(data, after, position + item.length)
                    assert matched is not None
                if crc:
                    record = scratch.view[position + len(layout.prefix) : after]
                    _compare(outcome, item, matched["crc"], zlib.crc32(record))
                target, request = item.target, item.request
                # `whole`: the shape of a tensor that is all of its record, in order. Most are: this is the fast way.
                shape = target.shape
                if layout.whole == shape == request.lengths and item.straight and layout.stored.dtype == target.dtype:
                    source = address + position + len(layout.prefix)
                    ctypes.memmove(target.data_ptr(), source, layout.record_bytes)
                    outcome.grouped.append(item)
                    size_bytes += item.length
                    continue
                self._give(item, layout, scratch, position, outcome)
            except NotPlain as exc:
                outcome.again.append((item, str(exc)))
            except DsmemError as exc:
                outcome.failed.append((item, item.failure(exc)))
            except RuntimeError as exc:  # torch refuses a cast or a view: the stock code says how
                outcome.again.append((item, _reason(exc)))
        outcome.size_bytes += size_bytes
        outcome.elapsed_s = time.perf_counter() - began
        return outcome

    def _give(self, item: Item, layout: Layout, scratch: Scratch, position: int, outcome: Outcome) -> None:
        """A part of an item that lies in the scratch memory, or one that is cast, to its place."""
        found = regions.region(layout.stored, item.request.storage_offsets, item.request.lengths, item.target)
        if isinstance(found, NotDirect):
            outcome.again.append((item, found.reason))
            return
        begin = position + len(layout.prefix) + found.begin
        if found.how == "straight":
            ctypes.memmove(item.target.data_ptr(), scratch.address + begin, found.end - found.begin)
            outcome.grouped.append(item)
        else:
            _spread(item.target, scratch.data, begin, found, layout.stored.dtype)
            outcome.bounced.append(item)
        outcome.size_bytes += found.end - found.begin

    def large(self, item: Item, scratch: Scratch) -> Outcome:
        """Check what stands around an item, then read its bytes; the rest of a very large one is for other workers."""
        began = time.perf_counter()
        outcome = Outcome(item.file)
        try:
            file = self._directory.open(item.file)
            if file.preads and self._at_once(item, file):
                outcome.direct.append(item)
                outcome.size_bytes = item.target.nbytes
                outcome.elapsed_s = time.perf_counter() - began
                return outcome
            layout, crc = self._around(item, file)
            found = regions.region(layout.stored, item.request.storage_offsets, item.request.lengths, item.target)
            if isinstance(found, NotDirect):
                outcome.again.append((item, found.reason))
                return outcome
            record = item.offset + len(layout.prefix)
            if found.how == "bounced":
                if self._verify == "crc":
                    _compare(outcome, item, crc, _crc_of_file(file, record, layout.record_bytes, scratch))
                self._bounce(item, file, record, found, layout, scratch)
                outcome.bounced.append(item)
                outcome.size_bytes = found.end - found.begin
            else:
                self._straight(item, file, record, found, layout, crc, scratch, outcome)
        except NotPlain as exc:
            outcome.again.append((item, str(exc)))
        except DsmemError as exc:
            if isinstance(exc, ChecksumError):
                outcome.failed.append((item, item.failure(exc)))
            else:
                outcome.again.append((item, _reason(exc)))
        except (OSError, RuntimeError) as exc:
            outcome.again.append((item, _reason(exc)))
        outcome.elapsed_s = time.perf_counter() - began
        return outcome

    def _straight(
        self,
        item: Item,
        file: Opened,
        record: int,
        found: Region,
        layout: Layout,
        crc: bytes,
        scratch: Scratch,
        outcome: Outcome,
    ) -> None:
        address, size_bytes, start = item.target.data_ptr(), found.end - found.begin, record + found.begin
        if self._verify == "crc":
            self._directory.prepare(address, size_bytes)
            actual = file.copy_with_crc(address, size_bytes, start)
            if size_bytes != layout.record_bytes:
                actual = _crc_of_file(file, record, layout.record_bytes, scratch)
            _compare(outcome, item, crc, actual)
        else:
            first = min(size_bytes, _MOST_BYTES)
            rest = range(first, size_bytes, PIECE_BYTES)
            outcome.pieces = 1 + len(rest)
            outcome.more = [
                partial(self._piece, item, file, address + at, min(PIECE_BYTES, size_bytes - at), start + at)
                for at in rest
            ]
            self._directory.prepare(address, first)
            file.copy(address, first, start)
            size_bytes = first
        outcome.direct.append(item)
        outcome.size_bytes = size_bytes

    def _at_once(self, item: Item, file: Opened) -> bool:
        """What stands around an item of a known kind, and its bytes, with one call; False = not as expected.

        Then its destination may hold anything, and is still to be read.
        """
        layout = self._layouts.get(item.key)
        if layout is None or layout.item_bytes != item.length or layout.record_bytes > _MOST_BYTES:
            return False
        if self._verify == "crc" or not item.straight:
            return False
        shape = item.target.shape
        if not layout.whole == shape == item.request.lengths or layout.stored.dtype != item.target.dtype:
            return False
        prefix, trailer = bytearray(len(layout.prefix)), bytearray(layout.trailer_bytes)
        self._directory.prepare(item.target.data_ptr(), layout.record_bytes)
        there = memory_at(item.target.data_ptr(), layout.record_bytes)
        file.read([memoryview(prefix), there, memoryview(trailer)], item.offset)
        return prefix == layout.prefix and layout.trailer.match(trailer) is not None

    def _piece(self, item: Item, file: Opened, address: int, size_bytes: int, offset: int, scratch: Scratch) -> Outcome:
        began = time.perf_counter()
        outcome = Outcome(item.file)
        try:
            self._directory.prepare(address, size_bytes)
            file.copy(address, size_bytes, offset)
        except (OSError, DsmemError) as exc:
            outcome.again.append((item, _reason(exc)))
            return outcome
        outcome.direct.append(item)
        outcome.size_bytes = size_bytes
        outcome.elapsed_s = time.perf_counter() - began
        return outcome

    def _bounce(self, item: Item, file: Opened, record: int, found: Region, layout: Layout, scratch: Scratch) -> None:
        """Read 1 MiB at a time and spread it: columns, casts, destinations with strides."""
        dtype = layout.stored.dtype
        for starts, lengths in regions.boxes(found.lengths, found.stride, BOUNCE_BYTES // dtype.itemsize):
            first = sum(start * step for start, step in zip(starts, found.stride, strict=True))
            reach = 1 + sum((size - 1) * step for size, step in zip(lengths, found.stride, strict=True))
            file.read([scratch.view[: reach * dtype.itemsize]], record + found.begin + first * dtype.itemsize)
            part = Region("bounced", 0, reach * dtype.itemsize, lengths, found.stride)
            _spread(regions.narrowed(item.target, starts, lengths), scratch.data, 0, part, dtype)

    def _around(self, item: Item, file: Opened) -> tuple[Layout, bytes]:
        """The layout of an item and the checksum in its trailer, checked against the file."""
        layout = self._layouts.get(item.key)
        if layout is not None and layout.item_bytes == item.length:
            prefix, trailer = bytearray(len(layout.prefix)), bytearray(layout.trailer_bytes)
            file.read([memoryview(prefix)], item.offset)
            file.read([memoryview(trailer)], item.offset + item.length - layout.trailer_bytes)
            matched = layout.trailer.match(trailer)
            if matched is not None and prefix == layout.prefix:
                return layout, matched["crc"]
        head_bytes = records.PROBE_BYTES
        while True:
            head = bytearray(min(head_bytes, item.length))
            file.read([memoryview(head)], item.offset)
            found = records.start_of_data(bytes(head))
            if found is not None:
                break
            if len(head) == item.length or head_bytes > records.MAX_PREFIX_BYTES:
                raise NotPlain("no tensor where one should be")
            head_bytes *= 4
        data, stored = found
        trailer_bytes = item.length - data - stored.storage_bytes
        if not 0 < trailer_bytes <= records.MAX_TRAILER_BYTES:
            raise NotPlain("the item is not as long as its tensor")
        trailer = bytearray(trailer_bytes)
        file.read([memoryview(trailer)], item.offset + item.length - trailer_bytes)
        layout = records.layout(bytes(head), data, stored, bytes(trailer), item.length)
        with self._lock:
            self._layouts[item.key] = layout
        matched = layout.trailer.match(trailer)
        assert matched is not None
        return layout, matched["crc"]

    @staticmethod
    def _learn_from(data: bytes) -> Layout:
        found = records.start_of_data(data)
        if found is None:
            raise NotPlain("no tensor where one should be")
        start, stored = found
        trailer = data[start + stored.storage_bytes :]
        return records.layout(data, start, stored, trailer, len(data))


class ChecksumError(BadSource):
    """The bytes of an item are not those that were saved."""


def groups(items: Sequence[Item]) -> list[list[Item]]:
    """Small items, sorted by file and offset, that one read of at most 4 MiB fetches together."""
    found: list[list[Item]] = []
    start = end = 0
    file = None
    for item in sorted(items, key=_place):
        stop = item.offset + item.length
        if file == item.file and item.offset - end <= _GAP_BYTES and stop - start <= GROUP_BYTES:
            found[-1].append(item)
            end = max(end, stop)
        else:
            found.append([item])
            file, start, end = item.file, item.offset, stop
    return found


def _place(item: Item) -> tuple[str, int, int]:
    return item.file, item.offset, item.length


def _spread(target: torch.Tensor, data: bytearray, begin: int, found: Region, dtype: torch.dtype) -> None:
    reach = (found.end - found.begin) // dtype.itemsize
    if reach == 0:
        return
    source = torch.frombuffer(data, dtype=torch.uint8, count=reach * dtype.itemsize, offset=begin)
    if begin % dtype.itemsize:
        source = source.clone()
    regions.copy_in_pieces(target, source.view(dtype).as_strided(found.lengths, found.stride))


def _compare(outcome: Outcome, item: Item, stored: bytes, actual: int) -> None:
    expected = int.from_bytes(stored, "little")
    if expected == 0 and actual != 0:
        outcome.unverifiable += 1  # saved with torch.serialization.set_crc32_options(False)
    elif expected != actual:
        raise ChecksumError(f"the bytes of {item.name} changed: their CRC is {actual:08x}, saved was {expected:08x}")
    else:
        outcome.verified += 1


def _crc_of_file(file: Opened, offset: int, size_bytes: int, scratch: Scratch) -> int:
    crc = 0
    for start in range(0, size_bytes, GROUP_BYTES):
        block = scratch.view[: min(GROUP_BYTES, size_bytes - start)]
        file.read([block], offset + start)
        crc = zlib.crc32(block, crc)
    return crc


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
