"""Some tensors of a checkpoint of any format, read to memory that is there already: a place in the store, a buffer.

Looking reads no tensor; reading uses the machinery of `load`, and takes no memory beside the destinations but for
tensors with strides (one at a time), and for files that only torch can load (all of them, while looking).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dsmem.checkpoint import dcp, extents, formats, listing, loading, reading, safetensors_files, torch_files
from dsmem.checkpoint import workers as choosing
from dsmem.checkpoint.extents import Extent
from dsmem.checkpoint.formats import Found
from dsmem.checkpoint.opened import Directory, Io, is_network
from dsmem.checkpoint.parts import Part, TensorEntry
from dsmem.checkpoint.reader import ParallelFileSystemReader
from dsmem.checkpoint.report import Counting
from dsmem.checkpoint.torch_files import NeedsTorch, TorchFile
from dsmem.checkpoint.workers import Workers
from dsmem.errors import BadSource, Refusal, Unsupported
from dsmem.progress import ByteCounter, Progress, ignore

Tensors = Mapping[str, torch.Tensor]
_SEQUENTIAL_BELOW = 32 << 20


@dataclass(slots=True)
class Source:
    """A checkpoint that was looked at: what of it is wanted, and where it lies."""

    found: Found
    entries: dict[str, TensorEntry] = field(default_factory=dict)
    """Wanted tensors by name, in the order of the checkpoint, without those of `same`."""
    same: dict[str, str] = field(default_factory=dict)
    """Name → the entry that is the very same memory: tied weights of a torch file."""
    others: tuple[str, ...] = ()
    """Names of what is no tensor."""
    metadata: Any = None
    """Of a DCP directory."""
    reader: ParallelFileSystemReader | None = None
    strided: dict[str, tuple[Part, int, tuple[int, ...]]] = field(default_factory=dict)
    """Tensors that do not lie in order: their storage, the offset in it and the strides, in elements."""
    held: dict[str, torch.Tensor] = field(default_factory=dict)
    """Loaded by torch itself: formats before 1.6, and more than plain tensors."""

    @property
    def names(self) -> list[str]:
        """Of all wanted tensors."""
        return [*self.entries, *self.same]


def look(
    path: str | os.PathLike[str],
    *,
    only: str | Iterable[str] | None = None,
    workers: Workers = "auto",
    io: Io = "auto",
    trusted: bool = False,
) -> Source:
    """What a checkpoint holds, `only`: globs of names. Raises what `formats.detect` raises, BadSource for a glob that
    matches nothing."""
    choosing.check(workers)
    found = formats.detect(path)
    chosen = loading.chooser(only)
    source = Source(found)
    if found.format == "dcp":
        source.reader = ParallelFileSystemReader(found.directory, workers=workers, io=io, trusted=trusted)
        source.metadata = source.reader.read_metadata()
        where = os.path.join(found.directory, formats.METADATA)
        listed, others, _ = listing.of_metadata(source.metadata, where)
        source.entries = {entry.name: entry for entry in listed if chosen(entry.name)}
        for entry in source.entries.values():
            listing.check_cover(entry, where=where)
        source.others = tuple(name for name in others if chosen(name))
    elif found.format == "safetensors":
        for file in found.files:
            for entry in safetensors_files.entries(found.directory, file):
                if chosen(entry.name) and _is_in(found, file, entry.name):
                    source.entries[entry.name] = entry
    else:
        _look_at_torch_files(source, chosen, trusted)
    lacking = [name for name in found.weight_map or () if chosen(name) and name not in {*source.entries, *source.same}]
    if lacking:
        raise BadSource(f"{found.index} names {len(lacking)} tensors that its files lack, the first is {lacking[0]}")
    if not source.entries and only is not None:
        globs = only if isinstance(only, str) else ", ".join(only)
        raise BadSource(f"{os.fspath(path)} has no tensor that is called {globs}")
    return source


def _is_in(found: Found, file: str, name: str) -> bool:
    return found.weight_map is None or found.weight_map.get(name) == file


def _look_at_torch_files(source: Source, chosen: Any, trusted: bool) -> None:
    found = source.found
    try:
        looked = [torch_files.look_at(found.directory, file) for file in found.files]
    except NeedsTorch:
        _hold(source, chosen, trusted)
        return
    others: list[str] = []
    for one in looked:
        _take(source, one, chosen)
        others += [name for name in one.others if chosen(name)]
    source.others = tuple(others)


def _take(source: Source, looked: TorchFile, chosen: Any) -> None:
    seen: dict[object, str] = {}
    for entry in looked.entries:
        name = entry.name
        if not chosen(name) or not _is_in(source.found, looked.name, name):
            continue
        stored = looked.tensors[name]
        key = (stored.storage, stored.offset, stored.shape, stored.stride, stored.dtype)
        if entry.size_bytes and key in seen:
            source.same[name] = seen[key]
            continue
        seen[key] = name
        source.entries[name] = entry
        if not stored.contiguous:
            source.strided[name] = (entry.parts[0], stored.offset, stored.stride)


def _hold(source: Source, chosen: Any, trusted: bool) -> None:
    found = source.found
    path = os.path.join(found.directory, found.index or found.files[0])
    seen: dict[object, str] = {}
    for name, tensor in loading.load(path, trusted=trusted).items():
        if not chosen(name):
            continue
        plain = tensor.layout is torch.strided and not tensor.is_quantized
        seen_as = (tensor.is_conj(), tensor.is_neg())
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, seen_as) if plain else None
        if plain and tensor.nbytes and key in seen:
            source.same[name] = seen[key]
            continue
        seen[key] = name
        source.held[name] = tensor.detach()
        source.entries[name] = TensorEntry(name, tensor.dtype, tuple(tensor.shape), ())


def read(
    source: Source,
    targets: Tensors,
    *,
    workers: Workers = "auto",
    io: Io = "auto",
    progress: Progress = ignore,
) -> None:
    """Read entries to contiguous tensors of the CPU of the same dtype and shape. Raises CheckpointReadError."""
    commit = ByteCounter(progress, sum(tensor.nbytes for tensor in targets.values())).add

    if source.reader is not None:
        entries = [source.entries[name] for name in targets]
        dcp.read(source.reader, source.metadata, entries, targets, commit=commit)
        return
    bare = {name: target for name, target in targets.items() if name not in {*source.held, *source.strided}}
    _read_bare(source, bare, workers, io, commit)
    for name in targets.keys() & source.held.keys():
        targets[name].copy_(source.held[name])
        commit(targets[name].nbytes)
    for name in targets.keys() & source.strided.keys():
        part, offset, stride = source.strided[name]
        whole = torch.empty(part.size_bytes, dtype=torch.uint8)
        _read_extents(source, [Extent(part.file, part.offset, part.size_bytes, whole.data_ptr(), (name,))], 1, io)
        target = targets[name]
        flat = whole[: part.size_bytes - part.size_bytes % target.itemsize].view(target.dtype)
        target.copy_(flat.as_strided(tuple(target.shape), stride, offset))
        commit(target.nbytes)


def _read_bare(source: Source, targets: Tensors, workers: Workers, io: Io, commit: dcp.Commit) -> None:
    wanted = []
    for name, target in targets.items():
        (part,) = source.entries[name].parts
        if target.nbytes:
            wanted.append(Extent(part.file, part.offset, target.nbytes, target.data_ptr(), (name,)))
    _read_extents(source, wanted, workers, io, commit)


def _read_extents(
    source: Source, wanted: Sequence[Extent], workers: Workers, io: Io, commit: dcp.Commit = lambda size_bytes: None
) -> None:
    size_bytes = sum(one.size_bytes for one in wanted)
    choice = choosing.choose(
        workers,
        size_bytes,
        largest_copy_bytes=0,
        budget_bytes=choosing.available_bytes(),
        sequential_below=_SEQUENTIAL_BELOW,
        network=size_bytes >= _SEQUENTIAL_BELOW and is_network(source.found.directory),
    )
    with Directory(source.found.directory, io=io) as directory:
        result = extents.read(
            directory,
            wanted,
            workers=choice.workers,
            counting=Counting(),
            commit=lambda file, size_bytes: commit(size_bytes),
        )
    reading.raise_failures(result.failures, [name for one in wanted for name in one.names])


def fitting(source: Source) -> tuple[dict[str, str], list[Refusal]]:
    """The safetensors dtype of each entry, and what has none, which the source is rid of."""
    codes: dict[str, str] = {}
    refused: list[Refusal] = []
    for name, entry in source.entries.items():
        held = source.held.get(name)
        code = safetensors_files.code_of(entry.dtype)
        if held is not None and (held.layout is not torch.strided or held.is_quantized):
            refused.append(Refusal(name, "safetensors has no sparse or quantised tensors"))
        elif name == "__metadata__":
            refused.append(Refusal(name, "the name means something else in safetensors"))
        elif code is None:
            refused.append(Refusal(name, f"safetensors has no {str(entry.dtype).removeprefix('torch.')}"))
        else:
            codes[name] = code
    tied = [Refusal(name, f"it is {other}") for name, other in source.same.items() if other not in codes]
    source.entries = {name: entry for name, entry in source.entries.items() if name in codes}
    source.same = {name: other for name, other in source.same.items() if other in codes}
    return codes, refused + tied


def unsupported(source: Source, refused: Sequence[Refusal]) -> Unsupported:
    """The error that names all of them."""
    what = f"{len(refused)} things" if len(refused) > 1 else "one thing"
    return Unsupported(f"{source.found.directory} holds {what} that safetensors has no place for", refusals=refused)
