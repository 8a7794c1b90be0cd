"""Fill a draft with the arrays of an HDF5 file: lay them out, copy or read each, write the header last."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dsmem.arrays import dtypes, header, layout, tree, views
from dsmem.arrays.attributes import Apart
from dsmem.arrays.header import Tensor
from dsmem.arrays.layout import Planned
from dsmem.arrays.summary import DatasetSummary, label
from dsmem.errors import Allow, DsmemError, SourceChanged
from dsmem.hdf5 import reading
from dsmem.hdf5.attrs import AttributeReader
from dsmem.hdf5.datasets import Item
from dsmem.hdf5.opening import translated
from dsmem.hdf5.scan import Scan
from dsmem.pinning import copying, decoding, through_h5py
from dsmem.pinning.copying import Digests, Extent
from dsmem.pinning.growing import Growth, Variable
from dsmem.pinning.pagecache import PageCache
from dsmem.pinning.source import Source
from dsmem.progress import ByteCounter, Progress
from dsmem.store.draft import Draft
from dsmem.store.objects import PROVENANCE_KEY
from dsmem.store.refs import Provenance

_SAMPLES = 8
_SAMPLE_BYTES = 64 << 10
_COMPARED_BYTES = 4 << 20
_WIDEST = "9" * 19
Array = np.ndarray[Any, np.dtype[Any]]


class ReadDifferently(DsmemError, RuntimeError):
    """What was copied is not what h5py reads: a fault of dsmem, found before anything was published."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read into a draft."""

    digests: Digests
    seal: Callable[[Provenance], None]
    """Writes the header, the provenance in it: the end of the filling."""
    datasets: Callable[[], tuple[DatasetSummary, ...]]
    """What was read, after `seal`; to be asked once."""


@dataclass(frozen=True, slots=True)
class LongAttribute:
    """One whose value lies apart: where it is, and which bytes of the tensor for them it has."""

    path: str
    name: str
    begin: int
    end: int
    held: memoryview | None


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything goes in an object; `unknown` tensors are appended in their order as they are read."""

    scan: Scan
    tensors: dict[str, Tensor]
    unknown: list[Planned]
    data_start: int
    metadata: Mapping[str, header.Text]
    long_attributes: Sequence[LongAttribute]

    @property
    def known_bytes(self) -> int:
        """Size of the object without what varies in length."""
        return self.data_start + max((tensor.end for tensor in self.tensors.values()), default=0)

    def begin(self, item: Item) -> int:
        """Where in the object a fixed-size dataset begins."""
        return self.data_start + self.tensors[tree.tensor_name(item.path)].begin

    @property
    def need_bytes(self) -> int:
        """The best guess of the size before reading."""
        variable = sum(item.storage_bytes or 0 for item in self.scan.items if item.info.dtype.kind == "O")
        return self.known_bytes + variable

    @property
    def total_bytes(self) -> int:
        """Bytes of all fixed-size arrays: what progress counts to."""
        return sum(item.size_bytes for item in self.scan.items)


def plan(scan: Scan, provenance: Provenance) -> Plan:
    """Lay out the arrays of a scan; `provenance` is as wide as the one that will be sealed in."""
    apart = _long_attributes(scan)
    tensors, unknown = layout.place(_planned(scan, apart))
    metadata: dict[str, header.Text] = {
        PROVENANCE_KEY: provenance.dump(),
        views.DATA_BYTES_KEY: _WIDEST,
        views.TREE_KEY: scan.tree.dumped,
        views.ATTRIBUTES_KEY: lambda: tree.dumped_table(_attributes(scan, apart)),
    }
    everything = {**tensors, **{one.name: Tensor(one.dtype, (0,), 0, 0) for one in unknown}} if unknown else tensors
    return Plan(scan, tensors, unknown, header.reserve(everything, metadata, spare_bytes=64), metadata, apart)


def _long_attributes(scan: Scan) -> list[LongAttribute]:
    """The attributes whose values lie apart, one behind the other."""
    apart: list[LongAttribute] = []
    end = 0
    for path, inside in scan.attributes.items():
        for name, value in inside.items():
            if isinstance(value, Apart):
                apart.append(LongAttribute(path, name, end, end + value.size_bytes, value.held))
                end += value.size_bytes
    return apart


def _attributes(scan: Scan, apart: Sequence[LongAttribute]) -> Iterator[tuple[str, dict[str, Any]]]:
    """All attributes as JSON, by path and name; `apart`: where those lie that do, in the same order."""
    begins = (one.begin for one in apart)
    for path, inside in scan.attributes.items():
        yield (
            path,
            {name: value.placed(next(begins)) if isinstance(value, Apart) else value for name, value in inside.items()},
        )


def _planned(scan: Scan, apart: Sequence[LongAttribute]) -> Iterator[Planned]:
    for item in scan.items:
        info, name = item.info, tree.tensor_name(item.path)
        if info.shape is None:
            continue
        base = dtypes.variable_base(info.dtype)
        carrier = dtypes.carrier(info.dtype if base is None else base)
        if base is None:
            shape = (*info.shape, *carrier.item_shape) if carrier.item_shape else info.shape
            yield Planned(name, carrier.code, shape, carrier.align)
        else:
            yield Planned(tree.offsets_name(item.path), "I64", (math.prod(info.shape) + 1,), 8)
            yield Planned(name, carrier.code, None, carrier.align)
    if apart:
        yield Planned(tree.ATTRIBUTES_NAME, "U8", (apart[-1].end,), 1)


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
        copied = [item for item in plan.scan.items if item.tier == "contiguous"]
        extents = (Extent(item.offset, plan.begin(item), item.size_bytes) for item in copied if item.offset is not None)
        counter = ByteCounter(progress, plan.total_bytes)
        going_on = partial(counter.add, 0)
        decoded = [item for item in plan.scan.items if item.tier == "chunked"]
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
        tensors = dict(plan.tensors) if plan.unknown else plan.tensors
        rest = [item for item in plan.scan.items if item.tier == "h5py" and item.info.dtype.kind != "O"]
        for size in through_h5py.read(rest, plan.begin, draft, fd, file, path):
            counter.add(size)
        cursor = plan.known_bytes
        by_name = {tree.tensor_name(item.path): item for item in plan.scan.items if item.info.dtype.kind == "O"}
        growth, varying = Growth(draft, plan.need_bytes), Variable(path, size_bytes, source.allow)

        def at_piece(item: Item, start: int, data: memoryview) -> None:
            varying.add(item, len(data))
            growth.to(start + len(data))
            going_on()

        for planned in plan.unknown:
            item = by_name[planned.name]
            pieces = through_h5py.variable_pieces(item, file, fd, size_bytes, path)
            end, elements = _read_variable(plan, draft, pieces, item, cursor, at_piece)
            tensors[planned.name] = _variable_tensor(
                planned, item, elements, cursor - plan.data_start, end - plan.data_start
            )
            cursor = end
        _read_attributes(plan, draft, file, path, source.allow, at_piece=going_on)
        direct = [*copied, *decoded]
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
        header.write(draft.write, tensors, metadata, size_bytes=plan.data_start)

    return Loaded(digests, seal, partial(_summaries, plan.scan, tensors))


def _summaries(scan: Scan, tensors: Mapping[str, Tensor]) -> tuple[DatasetSummary, ...]:
    """What `summarize` would find in the header; the items of the scan are gone then: they may be many."""
    sizes = {name: tensor.end - tensor.begin for name, tensor in tensors.items() if name.startswith(tree.HELPER_PREFIX)}

    def summary(item: Item) -> DatasetSummary:
        info = item.info
        if info.shape is None:
            return DatasetSummary(item.path, None, label(info.dtype), 0)
        tensor = tensors[tree.tensor_name(item.path)]
        beside = sizes.get(tree.offsets_name(item.path), 0) if info.dtype.kind == "O" else 0
        return DatasetSummary(item.path, info.shape, label(info.dtype), tensor.end - tensor.begin + beside)

    scan.items.reverse()
    return tuple(summary(scan.items.pop()) for _ in range(len(scan.items)))


def _read_attributes(
    plan: Plan, draft: Draft, file: Any, path: str, allow: Collection[Allow], *, at_piece: Callable[[], None]
) -> None:
    """Write long attributes to their places, those that are not held read once more.

    Raises SourceChanged where one is not as long as it was.
    """
    with AttributeReader(allow) as reader:
        for one in plan.long_attributes:
            raw = one.held
            if raw is None:
                with translated(path, f"/{one.path}@{one.name}"):
                    raw = reader.raw(file[tree.raw(one.path)], one.name)
            if len(raw) != one.end - one.begin:
                raise SourceChanged(f"{path} changed while it was read; nothing was published")
            draft.write(plan.data_start + plan.tensors[tree.ATTRIBUTES_NAME].begin + one.begin, raw)
            at_piece()


def _read_variable(
    plan: Plan,
    draft: Draft,
    pieces: Iterator[tuple[memoryview, Array]],
    item: Item,
    cursor: int,
    at_piece: Callable[[Item, int, memoryview], None],
) -> tuple[int, int]:
    """Append the values at `cursor` and write their offsets; returns where they end, and the number of elements.

    `at_piece` is called before anything is written, with where it goes.
    """
    at = plan.data_start + plan.tensors[tree.offsets_name(item.path)].begin
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
        elements = int(ends[-1])
    return cursor, elements


def _variable_tensor(planned: Planned, item: Item, elements: int, begin: int, end: int) -> Tensor:
    base = dtypes.variable_base(item.info.dtype)
    assert base is not None
    return Tensor(planned.dtype, (elements, *dtypes.carrier(base).item_shape), begin, end)


def _sampled(items: Sequence[Item]) -> Sequence[Item]:
    return items if len(items) <= _SAMPLES else random.sample(items, _SAMPLES)


def compare(
    plan: Plan,
    draft: Draft,
    source: Source,
    file: Any,
    items: Sequence[Item],
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
