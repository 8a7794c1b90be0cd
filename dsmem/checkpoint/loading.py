"""A checkpoint of any format as a dict of tensors, read by every core."""

from __future__ import annotations

import fnmatch
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from dsmem import units
from dsmem.arrays.memory import Pages
from dsmem.checkpoint import dcp, extents, formats, listing, reading, safetensors_files, torch_files
from dsmem.checkpoint import workers as choosing
from dsmem.checkpoint.direct import Verify
from dsmem.checkpoint.extents import Extent
from dsmem.checkpoint.formats import Found
from dsmem.checkpoint.opened import Directory, Io, is_network
from dsmem.checkpoint.options import Options
from dsmem.checkpoint.parts import TensorEntry
from dsmem.checkpoint.reading import FilesProgress
from dsmem.checkpoint.report import Counting, ReadReport
from dsmem.checkpoint.torch_files import NeedsTorch, TorchFile
from dsmem.checkpoint.workers import Workers
from dsmem.errors import BadSource, NoSpace, ReadFailure, UntrustedPickle
from dsmem.progress import ByteCounter, Progress, ignore

Tensors = dict[str, torch.Tensor]
Report = Callable[[ReadReport], None]


def load(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    only: str | Iterable[str] | None = None,
    workers: Workers = "auto",
    io: Io = "auto",
    verify: Verify = "none",
    sequential_below: int = 32 << 20,
    trusted: bool = False,
    progress: FilesProgress | None = None,
    bytes_progress: Progress = ignore,
    report: Report = lambda report: None,
) -> Tensors:
    """Every tensor of a DCP directory, of safetensors or of torch files, by name; `only`: globs of names.

    What is no tensor is left out. Nested dicts of a torch file give names joined by dots; tensors that share a storage
    in the file share it here. The tensors are the caller's own memory. `progress` gets files done and files in all,
    `bytes_progress` bytes. Raises SourceMissing, BadSource, Ambiguous, UntrustedPickle, CheckpointReadError (with all
    that failed), NoSpace, UsageError (for arguments that mean nothing).
    """
    options = Options(
        workers=workers, io=io, verify=verify, sequential_below=sequential_below, trusted=trusted, pages=Pages()
    )
    found = formats.detect(path)
    chosen = chooser(only)
    listeners = _Listeners(progress, bytes_progress, report)
    if found.format == "dcp":
        loaded = _load_dcp(found, chosen, options, listeners)
    else:
        loaded = _Plain(found, chosen, options, listeners).load()
    if torch.device(device).type == "cpu":
        return loaded
    return {name: tensor.to(device) for name, tensor in loaded.items()}


def chooser(only: str | Iterable[str] | None) -> Callable[[str], bool]:
    """Whether a name is wanted: it matches one of the globs, or there are none."""
    if only is None:
        return lambda name: True
    globs = [only] if isinstance(only, str) else list(only)
    return lambda name: any(fnmatch.fnmatchcase(name, glob) for glob in globs)


@dataclass(frozen=True, slots=True)
class _Listeners:
    """Who wants to know how far it is, and in the end what was done."""

    files: FilesProgress | None
    size_bytes: Progress
    report: Report


def _load_dcp(found: Found, chosen: Callable[[str], bool], options: Options, listeners: _Listeners) -> Tensors:
    from dsmem.checkpoint.reader import ParallelFileSystemReader

    reader = ParallelFileSystemReader(found.directory)
    reader.read_options = options
    metadata = reader.read_metadata()
    where = os.path.join(found.directory, formats.METADATA)
    listed, _, _ = listing.of_metadata(metadata, where)
    entries = [entry for entry in listed if chosen(entry.name)]
    for entry in entries:
        listing.check_cover(entry, where=where)
    tensors = {entry.name: new(entry, where=where) for entry in entries}
    counted = ByteCounter(listeners.size_bytes, sum(entry.size_bytes for entry in entries))
    try:
        dcp.read(reader, metadata, entries, tensors, files_progress=listeners.files, commit=counted.add)
    finally:
        if reader.last_report is not None:
            listeners.report(reader.last_report)
    return tensors


def new(entry: TensorEntry, *, where: str) -> torch.Tensor:
    """Memory for a tensor that the file `where` tells of; raises NoSpace where there is not so much."""
    try:
        return torch.empty(entry.shape, dtype=entry.dtype)
    except RuntimeError as exc:  # damage can make a tensor larger than any memory
        raise NoSpace(
            f"{where} tells of {entry.name} with {units.format_bytes(entry.size_bytes)}: there is no memory for it",
            need_bytes=entry.size_bytes,
            free_bytes=choosing.available_bytes(),
            limit=choosing.MEMORY,
        ) from exc


class _Plain:
    """Formats whose tensors lie bare in their files."""

    def __init__(self, found: Found, chosen: Callable[[str], bool], options: Options, listeners: _Listeners) -> None:
        self._found = found
        self._chosen = chosen
        self._options = options
        self._listeners = listeners
        self._files_done = 0
        self._tensors: Tensors = {}
        self._extents: list[Extent] = []
        self._left: list[tuple[str, str]] = []
        self._keep: list[torch.UntypedStorage] = []
        self._counting = Counting()

    def load(self) -> Tensors:
        began = time.perf_counter()
        if self._listeners.files is not None:
            self._listeners.files(0, len(self._found.files))
        find = self._safetensors if self._found.format == "safetensors" else self._torch
        for name in self._found.files:
            before = len(self._extents)
            find(name)
            if len(self._extents) == before:
                self._file_is_done()
        self._check_index()
        reading.raise_failures(self._read(began), self._tensors)
        return self._tensors

    def _file_is_done(self) -> None:
        self._files_done += 1
        if self._listeners.files is not None:
            self._listeners.files(self._files_done, len(self._found.files))

    def _read(self, began: float) -> Sequence[ReadFailure]:
        size_bytes = sum(one.size_bytes for one in self._extents)
        choice = choosing.choose(
            self._options.workers,
            size_bytes,
            largest_copy_bytes=0,
            budget_bytes=choosing.available_bytes(),
            sequential_below=self._options.sequential_below,
            network=size_bytes >= self._options.sequential_below and is_network(self._found.directory),
        )
        left = Counter[str]()
        for one in self._extents:
            left[one.file] += one.size_bytes
        counted = ByteCounter(self._listeners.size_bytes, size_bytes)

        def commit(file: str, done_bytes: int) -> None:
            left[file] -= done_bytes
            counted.add(done_bytes)
            if not left[file]:
                self._file_is_done()

        counting = self._counting
        with Directory(self._found.directory, io=self._options.io, pages=self._options.pages) as directory:
            result = extents.read(directory, self._extents, workers=choice.workers, counting=counting, commit=commit)
            ways = directory.ways
        counting.direct = len(self._tensors) - len(self._left)
        elapsed_s = time.perf_counter() - began
        self._listeners.report(counting.report(elapsed_s=elapsed_s, choice=choice, pace=result.slower, io=ways))
        return result.failures

    def _wanted(self, file: str, name: str) -> bool:
        weight_map = self._found.weight_map
        return self._chosen(name) and (weight_map is None or weight_map.get(name) == file)

    def _safetensors(self, file: str) -> None:
        for entry in safetensors_files.entries(self._found.directory, file):
            if self._wanted(file, entry.name):
                tensor = self._tensors[entry.name] = torch.empty(entry.shape, dtype=entry.dtype)
                (part,) = entry.parts
                self._counting.items[file] += 1
                self._counting.unverifiable += self._options.verify == "crc"
                if part.size_bytes:
                    extent = Extent(file, part.offset, part.size_bytes, tensor.data_ptr(), (entry.name,))
                    self._extents.append(extent)

    def _torch(self, file: str) -> None:
        try:
            looked = torch_files.look_at(self._found.directory, file)
        except NeedsTorch as exc:
            self._by_torch(file, str(exc))
            return
        self._plan_storages(looked)

    def _plan_storages(self, looked: TorchFile) -> None:
        """A storage is read once, whoever shares it."""
        chosen = {name: stored for name, stored in looked.tensors.items() if self._wanted(looked.name, name)}
        users: dict[str, list[str]] = {}
        for name, stored in chosen.items():
            users.setdefault(stored.storage, []).append(name)
        storages: dict[str, torch.UntypedStorage] = {}
        for key, names in users.items():
            place = looked.storages[key]
            storage = torch.UntypedStorage(place.size_bytes)  # type: ignore[no-untyped-call]  # torch's own
            storages[key] = storage
            if self._options.verify == "crc" and not place.crc:
                self._counting.unverifiable += 1
            crc = place.crc if self._options.verify == "crc" else None
            if place.size_bytes:
                address = storage.data_ptr()
                self._extents.append(Extent(looked.name, place.offset, place.size_bytes, address, tuple(names), crc))
        for name, stored in chosen.items():
            tensor = torch.empty(0, dtype=stored.dtype)
            tensor.set_(storages[stored.storage], stored.offset, stored.shape, stored.stride)
            if stored.parameter:
                tensor = torch.nn.Parameter(tensor, requires_grad=stored.requires_grad)
            else:
                tensor.requires_grad_(stored.requires_grad)
            self._tensors[name] = tensor
            self._counting.items[looked.name] += 1

    def _by_torch(self, file: str, why: str) -> None:
        """Raises UntrustedPickle for what torch will not load as weights only."""
        path = os.path.join(self._found.directory, file)
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=not self._options.trusted)
        except OSError:
            raise
        except Exception as exc:
            told = str(exc).split("\n", 1)[0]
            if "weights_only" in str(exc) and not self._options.trusted:
                raise UntrustedPickle(f"{path} is a pickle of more than weights: {told}") from exc
            raise BadSource(f"{path} can't be loaded: {type(exc).__name__}: {told}") from exc
        for name, value in torch_files.leaves(loaded):
            if isinstance(value, torch.Tensor) and self._wanted(file, name):
                self._tensors[name] = value
                self._left.append((file, name))
                self._counting.items[file] += 1
                self._counting.fallback += 1
                self._counting.why[why] += 1
                size_bytes = value.nbytes if value.layout is torch.strided else 0
                self._counting.size_bytes += size_bytes
                self._counting.file_bytes[file] += size_bytes

    def _check_index(self) -> None:
        """Raises BadSource when the index names tensors that its files do not have."""
        weight_map: Mapping[str, str] = self._found.weight_map or {}
        missing = [name for name in weight_map if self._chosen(name) and name not in self._tensors]
        if missing:
            raise BadSource(
                f"{self._found.index} names {len(missing)} tensors that its files lack, the first is {missing[0]} "
                f"in {weight_map[missing[0]]}"
            )
