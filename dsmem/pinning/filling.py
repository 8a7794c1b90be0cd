"""Fill a draft with the arrays of an HDF5 file: copy or read each to its place, write the header last."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dsmem.arrays import header, tree, views
from dsmem.arrays.summary import DatasetSummary
from dsmem.errors import Allow, DsmemError, SourceChanged
from dsmem.hdf5 import reading
from dsmem.hdf5.attrs import AttributeReader
from dsmem.hdf5.datasets import Item
from dsmem.hdf5.items import Items
from dsmem.hdf5.opening import translated
from dsmem.pinning import copying, decoding, summaries, through_h5py
from dsmem.pinning.copying import Digests, Extent
from dsmem.pinning.growing import Growth, Variable
from dsmem.pinning.pagecache import PageCache
from dsmem.pinning.planning import Plan
from dsmem.pinning.source import Source
from dsmem.progress import ByteCounter, Progress
from dsmem.store.draft import Draft
from dsmem.store.objects import PROVENANCE_KEY
from dsmem.store.refs import Provenance

_SAMPLES = 8
_SAMPLE_BYTES = 64 << 10
_COMPARED_BYTES = 4 << 20
Array = np.ndarray[Any, np.dtype[Any]]


class ReadDifferently(DsmemError, RuntimeError):
    """What was copied is not what h5py reads: a fault of dsmem, found before anything was published."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read into a draft."""

    digests: Digests
    seal: Callable[[Provenance], None]
    """Writes the header, the provenance in it: the end of the filling."""
    datasets: Callable[[], Sequence[DatasetSummary]]
    """What was read, after `seal`."""


def fill(
    plan: Plan,
    draft: Draft,
    source: Source,
    file: Any,
    *,
    stream_algo: str | None,
    verify: bool,
    progress: Progress,
) -> Loaded:
    """Read everything of the plan into the draft, all but the header.

    `file` is the h5py.File of the source. Raises BadSource, SourceChanged, NoSpace, ReadDifferently.
    """
    fd, size_bytes, path = source.fd, source.size_bytes, source.path
    with PageCache(fd, size_bytes) as cache:
        draft.allocate(plan.known_bytes)
        items = plan.scan.items
        copied = items.where(lambda item: item.tier == "contiguous")
        extents = (Extent(item.offset, plan.begin(item), item.size_bytes) for item in copied if item.offset is not None)
        counter = ByteCounter(progress, plan.tensors.total_bytes)
        going_on = partial(counter.add, 0)
        decoded = items.where(lambda item: item.tier == "chunked")
        shared_out = decoding.in_processes(decoded)
        with decoding.started(shared_out, fd, draft, object_bytes=plan.known_bytes) as decoders:
            decodings = decoding.decodings(
                decoded,
                plan.begin,
                source,
                file,
                draft,
                shared_out=shared_out,
                decoders=decoders,
                looked=going_on,
            )
            digests = copying.copy(fd, size_bytes, draft, extents, decodings, stream_algo, counter, cache)
        rest = items.where(lambda item: item.tier == "h5py" and item.info.dtype.kind != "O")
        for size in through_h5py.read(rest, plan.begin, draft, fd, file, path):
            counter.add(size)
        cursor = plan.known_bytes
        growth, varying = Growth(draft, plan.need_bytes), Variable(path, size_bytes, source.allow)

        def at_piece(item: Item, start: int, data: memoryview) -> None:
            varying.add(item, len(data))
            growth.to(start + len(data))
            going_on()

        for item in plan.tensors.unknown():
            pieces = through_h5py.variable_pieces(item, file, fd, size_bytes, path)
            end = _read_variable(plan, draft, pieces, item, cursor, at_piece)
            plan.tensors.put(item, cursor - plan.data_start, end - plan.data_start)
            cursor = end
        _read_attributes(plan, draft, file, path, source.allow, at_piece=going_on)
        direct = items.where(lambda item: item.tier in ("contiguous", "chunked"))
        if not verify:  # a look at some blocks: what would be read ahead of them is not wanted
            os.posix_fadvise(file.id.get_vfd_handle(), 0, 0, os.POSIX_FADV_RANDOM)
        compare(
            plan,
            draft,
            source,
            file,
            direct if verify else _sampled(direct),
            whole=verify,
            at_piece=going_on,
        )
    draft.allocate(cursor)

    def seal(provenance: Provenance) -> None:
        metadata = {
            **plan.metadata,
            PROVENANCE_KEY: provenance.dump(),
            views.DATA_BYTES_KEY: str(cursor - plan.data_start),
        }
        header.write(draft.write, plan.tensors, metadata, size_bytes=plan.data_start)
        items.forget_chunks()

    return Loaded(digests, seal, lambda: summaries.of_items(items, plan.tensors.size_bytes))


def _read_attributes(
    plan: Plan, draft: Draft, file: Any, path: str, allow: Collection[Allow], *, at_piece: Callable[[], None]
) -> None:
    """Write long attributes to their places, those that are not held read once more.

    Raises SourceChanged where one is not as long as it was.
    """
    with AttributeReader(allow) as reader:
        for one in plan.scan.noted.apart():
            raw = one.held
            if raw is None:
                with translated(path, f"/{one.path}@{one.name}"):
                    raw = reader.raw(file[tree.raw(one.path)], one.name)
            if len(raw) != one.end - one.begin:
                raise SourceChanged(f"{path} changed while it was read; nothing was published")
            draft.write(plan.data_start + plan.tensors.attributes_begin() + one.begin, raw)
            at_piece()


def _read_variable(
    plan: Plan,
    draft: Draft,
    pieces: Iterator[tuple[memoryview, Array]],
    item: Item,
    cursor: int,
    at_piece: Callable[[Item, int, memoryview], None],
) -> int:
    """Append the values at `cursor` and write their offsets; returns where they end.

    `at_piece` is called before anything is written, with where it goes.
    """
    at = plan.begin(item)
    draft.write(at, np.zeros(1, np.int64).view(np.uint8).data)
    at += 8
    elements = 0
    for data, lengths in pieces:
        at_piece(item, cursor, data)
        ends = elements + np.cumsum(lengths)
        draft.write(cursor, data)
        draft.write(at, ends.view(np.uint8).data)
        cursor += len(data)
        at += ends.nbytes
        elements = int(ends[-1]) if len(ends) else elements
    return cursor


def _sampled(items: Items) -> Iterable[Item]:
    return items if len(items) <= _SAMPLES else map(items.__getitem__, random.sample(range(len(items)), _SAMPLES))


def compare(
    plan: Plan,
    draft: Draft,
    source: Source,
    file: Any,
    items: Iterable[Item],
    *,
    whole: bool,
    at_piece: Callable[[], None],
) -> None:
    """Compare copied datasets with what h5py reads, in whole or one block of each.

    Raises ReadDifferently, or BadSource where HDF5 does not find chunks that the index lists.
    """
    path = source.path
    for item in items:
        shape, item_bytes = item.info.shape or (), item.info.dtype.itemsize
        start = plan.begin(item)
        if whole:
            cuts = reading.blocks(shape, item_bytes, item.info.chunks)
        else:
            cuts = iter([reading.some_block(shape, item_bytes, item.info.chunks, _SAMPLE_BYTES)])
        for block in cuts:
            with translated(path, f"/{item.path}"):
                expected = reading.read_block(file[tree.raw(item.path)], block.selection)
            if not _is_there(draft, expected, start, shape, item_bytes, block):
                decoding.check_index(item, source, file)
                raise ReadDifferently(f"{path}: /{item.path} was copied differently from what h5py reads")
            at_piece()


def _is_there(
    draft: Draft, expected: memoryview, start: int, shape: Sequence[int], item_bytes: int, block: reading.Block
) -> bool:
    """Whether the draft holds these bytes where a block of a dataset belongs that begins at `start`."""
    at = start + block.first * item_bytes
    if block.is_contiguous:
        pieces = range(0, len(expected), _COMPARED_BYTES)  # two bytes are compared at once, a memoryview by elements
        parts = (bytes(expected[piece : piece + _COMPARED_BYTES]) for piece in pieces)
        return all(os.pread(draft.fd, len(part), at + piece) == part for piece, part in zip(pieces, parts, strict=True))
    span = draft.reserved_on(at, block.span * item_bytes)
    rows = reading.rows_of(span, shape, item_bytes, block.selection)
    return np.array_equal(rows, np.frombuffer(expected, np.uint8).reshape(rows.shape))
