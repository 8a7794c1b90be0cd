"""A checkpoint of torch.distributed.checkpoint against its metadata: what is told, what is there, what changed."""

from __future__ import annotations

import io
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader

from dsmem.checkpoint import formats, listing, records, unpickling, zips
from dsmem.checkpoint.findings import Findings, few
from dsmem.checkpoint.formats import Found
from dsmem.checkpoint.opened import Directory, Opened, check_relative
from dsmem.checkpoint.records import Layout
from dsmem.checkpoint.unpickling import NotPlain, Stored
from dsmem.checkpoint.zips import InFile, InMemory, Window
from dsmem.errors import BadSource, DsmemError, SourceMissing, UntrustedPickle

_TASK_BYTES = 16 << 20
_MOST_PICKLE_BYTES = 1 << 30
Box = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Item:
    """Bytes of a file that the metadata tells of; a byte item has no dtype."""

    name: str
    file: str
    offset: int
    length: int
    dtype: torch.dtype | None
    shape: tuple[int, ...]
    descriptors: Sequence[str]


def look(found: Found, directory: Directory, findings: Findings, registry: Any) -> list[Callable[[], None]]:
    """Compare metadata and files; returns what is left to do in threads: to read every item."""
    try:
        metadata = listing.metadata_of(found)
        items = list(_items(metadata, findings))
    except BadSource as exc:
        findings.bad("structure", str(exc), file=formats.METADATA)
        return []
    except (AttributeError, TypeError, ValueError, KeyError) as exc:
        told = f"no metadata of a checkpoint: {type(exc).__name__}: {exc}"
        findings.bad("structure", told, file=formats.METADATA)
        return []
    by_file: dict[str, list[_Item]] = {}
    for item in items:
        by_file.setdefault(item.file, []).append(item)
    tasks: list[Callable[[], None]] = []
    checking = _Checking(findings, found.directory, registry)
    for file, some in sorted(by_file.items()):
        opened = _open(file, some, directory, findings)
        if opened is not None:
            inside = _inside(opened, file, some, findings)
            findings.expect(sum(item.length for item in inside))
            tasks += [partial(checking.run, opened, part) for part in _parts(inside)]
    extra = [one for one in sorted(os.listdir(found.directory)) if one.endswith(".distcp") and one not in by_file]
    if extra:
        findings.note("files", f"the metadata does not name {few(extra)}")
    findings.fine("structure", "dcp")
    findings.fine("files", f"{len(by_file)} there, and as long as the metadata says")
    findings.fine("tensors", f"the metadata tells the whole of each of {findings.tensors}")
    return tasks


def _items(metadata: Any, findings: Findings) -> Iterator[_Item]:
    places: dict[tuple[str, tuple[int, ...] | None], Any] = {}
    for index, info in metadata.storage_data.items():
        key = (index.fqn, None if index.offset is None else tuple(index.offset))
        if key in places:
            findings.bad("tensors", f"told twice: {_at(key[1])}", tensor=index.fqn)
        places[key] = info
    for name, one in metadata.state_dict_metadata.items():
        if not hasattr(one, "chunks"):
            info = places.pop((name, None), None)
            if info is None:
                findings.bad("tensors", "nothing tells where its bytes lie", tensor=name)
            else:
                yield _item(name, info, None, ())
            continue
        dtype = one.properties.dtype
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"{name} has no dtype")
        findings.tensors += 1
        boxes: dict[Box, None] = {}
        for chunk in one.chunks:
            box = tuple(chunk.offsets), tuple(chunk.sizes)
            if box in boxes:
                findings.bad("tensors", f"told twice: {_at(box[0])}", tensor=name)
                continue
            boxes[box] = None
            info = places.pop((name, box[0]), None) or places.pop((name, None), None)
            if info is None:
                findings.bad("tensors", f"nothing tells where its bytes lie: {_at(box[0])}", tensor=name)
            else:
                yield _item(name, info, dtype, box[1])
        fault = _not_whole(tuple(one.size), list(boxes))
        if fault is not None:
            findings.bad("tensors", fault, tensor=name)
    for name, offset in places:
        findings.bad("tensors", f"extra: stored, but no part of the checkpoint: {_at(offset)}", tensor=name)


def _at(offset: tuple[int, ...] | None) -> str:
    return "the whole" if offset is None else f"the part at {offset}"


def _item(name: str, info: Any, dtype: torch.dtype | None, shape: tuple[int, ...]) -> _Item:
    if type(info.relative_path) is not str or type(info.offset) is not int or type(info.length) is not int:
        raise TypeError(f"{name} has no place in a file")
    descriptors = getattr(info, "transform_descriptors", None) or ()
    return _Item(name, info.relative_path, info.offset, info.length, dtype, shape, tuple(descriptors))


def _not_whole(shape: tuple[int, ...], boxes: list[Box]) -> str | None:
    """Why parts do not make up a tensor: each must lie inside, none over another, and all together be as large."""
    for starts, sizes in boxes:
        if not len(starts) == len(sizes) == len(shape):
            return f"{_at(starts)} has another number of dimensions"
        if any(at < 0 or size < 0 or at + size > most for at, size, most in zip(starts, sizes, shape, strict=True)):
            return f"{_at(starts)} of {sizes} reaches out of {shape}"
    open_boxes: list[Box] = []
    for box in sorted(box for box in boxes if math.prod(box[1])):
        # Only boxes that begin before the end of others, along the first dimension, can lie over them.
        open_boxes = [one for one in open_boxes if not shape or one[0][0] + one[1][0] > box[0][0]]
        over = next((one for one in open_boxes if _overlap(one, box)), None)
        if over is not None:
            return f"{_at(box[0])} lies over {_at(over[0])}"
        open_boxes.append(box)
    have, need = sum(math.prod(sizes) for _, sizes in boxes), math.prod(shape)
    return None if have == need else f"its parts have {have} elements, it has {need}"


def _overlap(one: Box, other: Box) -> bool:
    sides = zip(one[0], one[1], other[0], other[1], strict=True)
    return all(a < b + b_size and b < a + a_size for a, a_size, b, b_size in sides)


def _open(file: str, items: list[_Item], directory: Directory, findings: Findings) -> Opened | None:
    try:
        check_relative(file)
        opened = directory.open(file)
    except SourceMissing:
        findings.bad("files", f"missing, with {few(item.name for item in items)}", file=file)
    except (BadSource, OSError) as exc:
        findings.bad("files", str(exc), file=file)
    else:
        findings.size_bytes += opened.size_bytes
        return opened
    return None


def _inside(opened: Opened, file: str, items: list[_Item], findings: Findings) -> list[_Item]:
    """Items that lie in the file, in its order; the others are faults, as are items that share bytes."""
    inside: list[_Item] = []
    beyond: list[_Item] = []
    for item in items:
        fits = item.offset >= 0 and 0 <= item.length <= opened.size_bytes - item.offset
        (inside if fits else beyond).append(item)
    if beyond:
        need_bytes = max(item.offset + item.length for item in beyond)
        told = f"truncated: it has {opened.size_bytes} bytes of {need_bytes}, without {few(one.name for one in beyond)}"
        findings.bad("files", told, file=file)
    inside.sort(key=lambda item: (item.offset, item.length))
    end, before, unnamed_bytes = 0, "", 0
    for item in inside:
        if item.offset < end:
            findings.bad("tensors", f"its bytes are also those of {before}", file=file, tensor=item.name)
        unnamed_bytes += max(0, item.offset - end)
        if item.offset + item.length >= end:
            end, before = item.offset + item.length, item.name
    unnamed_bytes += 0 if beyond else opened.size_bytes - end
    if unnamed_bytes:
        findings.note("files", f"{unnamed_bytes} bytes belong to nothing", file=file)
    return inside


def _parts(items: list[_Item]) -> Iterator[list[_Item]]:
    """Neighbours, so many bytes at a time."""
    part: list[_Item] = []
    size_bytes = 0
    for item in items:
        part.append(item)
        size_bytes += item.length
        if size_bytes >= _TASK_BYTES:
            yield part
            part, size_bytes = [], 0
    if part:
        yield part


class _Checking:
    """Reads items, in threads; layouts that were seen are shared, so that most items are only compared with one."""

    def __init__(self, findings: Findings, path: str, registry: Any) -> None:
        self._findings = findings
        self._layouts: dict[object, Layout] = {}
        self._reader = FileSystemReader(path, registry)
        self._lock = threading.Lock()

    def run(self, file: Opened, items: Sequence[_Item]) -> None:
        """Check them; what is wrong is a finding."""
        for item in items:
            try:
                self._item(file, item)
            except UntrustedPickle as exc:
                self._findings.note("structure", f"reading it needs trust: {exc}", file=item.file, tensor=item.name)
            except (DsmemError, OSError) as exc:
                self._findings.bad("structure", str(exc), file=item.file, tensor=item.name)

    def _item(self, file: Opened, item: _Item) -> None:
        window: Window = InFile(file, item.offset, item.length)
        if item.descriptors:
            try:
                self._reader.transforms.extension_registry.from_descriptor_list(item.descriptors)
            except Exception as exc:  # noqa: BLE001 - extensions are anybody's code
                told = f"how to undo {', '.join(item.descriptors)} is not known here: {exc}"
                self._findings.note("checksums", told, file=item.file, tensor=item.name)
                self._findings.count(verified=False)
                return
            window = InMemory(self._undone(window, item))
        elif self._as_seen(window, item):
            return
        if item.dtype is None and window.read(0, 4) != b"PK\x03\x04":
            self._findings.count(verified=False)  # bytes of a planner of its own
            return
        found = zips.records(window)
        verified = True
        for record in found:
            advance = (lambda size_bytes: None) if item.descriptors else self._findings.advance
            actual = zips.crc(window, record.offset, record.size_bytes, advance)
            if actual != record.crc and record.crc:
                told = f"bytes changed in {record.inner}: {zips.told(actual, record.crc)}"
                self._findings.bad("checksums", told, file=item.file, tensor=item.name)
                return
            verified = verified and actual == record.crc
        self._findings.count(verified=verified)
        pickled = next((record for record in found if record.inner == "data.pkl"), None)
        if pickled is None or pickled.size_bytes > _MOST_PICKLE_BYTES:
            raise BadSource("no zip of torch.save: it has no data.pkl")
        if item.dtype is None:
            unpickling.check_byte_item(window.read(0, window.size_bytes), where=item.name)
            return
        try:
            stored = unpickling.tensors(window.read(pickled.offset, pickled.size_bytes))
        except NotPlain:
            return  # parameters of a class of its own, sparse or conjugate tensors: torch's to load
        self._compare(item, stored)
        if not item.descriptors:
            self._learn(window, item)

    def _undone(self, window: Window, item: _Item) -> bytes:
        stream = io.BytesIO(window.read(0, item.length))
        self._findings.advance(item.length)
        try:
            undone = self._reader.transforms.transform_load_stream(None, item.descriptors, stream)  # type: ignore[arg-type]  # it looks at descriptors only
            data: bytes = undone.read(-1)
        except Exception as exc:
            # Extensions are anybody's code; what they raise at damaged bytes is theirs.
            raise BadSource(f"{', '.join(item.descriptors)} can't be undone: {type(exc).__name__}: {exc}") from exc
        return data

    def _compare(self, item: _Item, stored: object) -> None:
        if not isinstance(stored, Stored):
            raise BadSource("it is no tensor, the metadata says it is one")
        if (stored.dtype, stored.shape) != (item.dtype, item.shape):
            raise BadSource(f"it is {stored.dtype} {stored.shape}, the metadata says {item.dtype} {item.shape}")
        if stored.reach_bytes > stored.storage_bytes:
            raise BadSource("the tensor is larger than its storage")

    def _as_seen(self, window: Window, item: _Item) -> bool:
        """Whether the item is laid out as one before of its dtype, shape and length, and so only its bytes are new."""
        layout = self._layouts.get((item.dtype, item.shape, item.length))
        if layout is None:
            return False
        start = len(layout.prefix)
        matched = layout.trailer.match(window.read(start + layout.record_bytes, layout.trailer_bytes))
        if matched is None or window.read(0, start) != layout.prefix:
            return False
        saved = int.from_bytes(matched["crc"], "little")
        actual = zips.crc(window, start, layout.record_bytes, self._findings.advance)
        if actual != saved and saved:
            told = f"bytes changed in data/0: {zips.told(actual, saved)}"
            self._findings.bad("checksums", told, file=item.file, tensor=item.name)
        else:
            self._findings.count(verified=actual == saved)
        return True

    def _learn(self, window: Window, item: _Item) -> None:
        try:
            head = window.read(0, records.PROBE_BYTES)
            found = records.start_of_data(head)
            if found is None:
                return
            data, stored = found
            trailer_bytes = item.length - data - stored.storage_bytes
            if not 0 < trailer_bytes <= records.MAX_TRAILER_BYTES:
                return
            trailer = window.read(item.length - trailer_bytes, trailer_bytes)
            layout = records.layout(head, data, stored, trailer, item.length)
        except NotPlain:
            return  # each such item is looked at in full
        with self._lock:
            self._layouts[item.dtype, item.shape, item.length] = layout
