"""`convert`: a checkpoint in another format, bit for bit, in little memory.

What is written is staged beside its place and gets its name when it is whole. safetensors are written a few tensors at
a time; DCP and torch files by torch's own writers, from tensors that are mapped from files.
"""

from __future__ import annotations

import json
import mmap
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from dsmem import files, units
from dsmem.arrays import header, layout
from dsmem.arrays.layout import Planned
from dsmem.checkpoint import dcp, formats, into, loading, staging, torch_files
from dsmem.checkpoint.into import Source
from dsmem.checkpoint.opened import memory_at
from dsmem.checkpoint.parts import TensorEntry
from dsmem.errors import (
    BadSource,
    DsmemError,
    OutputExists,
    OutputFull,
    Refusal,
    UntrustedPickle,
    UsageError,
)
from dsmem.progress import Progress, ignore

To = Literal["dcp", "safetensors", "pt"]
MAX_SHARD_BYTES = 5 * 10**9
_SUFFIXES: Mapping[str, To] = {".safetensors": "safetensors", ".pt": "pt", ".pth": "pt", ".bin": "pt"}
_AT_ONCE_BYTES = 64 << 20
"""Tensors of so many bytes are read together, by every core, before they are written."""
_MOST_IN_LIST = 1 << 24
_NO_SPACE = (27, 28, 122)
"""EFBIG, ENOSPC, EDQUOT."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What `convert` wrote."""

    path: str
    format: To
    tensors: int
    size_bytes: int
    """Of all tensors; tied ones count where they are written."""
    files: tuple[str, ...]
    """Relative to the path if that is a directory."""
    copied: tuple[str, ...]
    """Tied weights that became tensors of their own: safetensors has no others."""
    left_out: tuple[str, ...]
    """What is no tensor, where it was to be left out."""
    elapsed_s: float


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    to: To | None = None,
    max_shard: int = MAX_SHARD_BYTES,
    force: bool = False,
    skip_unsupported: bool = False,
    trusted: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Write a checkpoint in another format: the tensors are the same, bit for bit.

    to: None = by the destination's suffix (.safetensors, .pt, .pth, .bin). "safetensors" without that suffix is a
    directory of shards of at most `max_shard` bytes (a larger tensor has one of its own) and their index; "dcp" is a
    directory. force: replace what is there. skip_unsupported: leave out what safetensors has no place for. Names of
    nested dicts are joined by dots in safetensors; DCP and torch files keep the nesting. Dicts of sharded torch files
    become one. Memory: the largest tensor or 64 MiB; of files before torch 1.6 all tensors. A DCP directory that
    becomes a torch file or another one takes its size once more beside the destination meanwhile. trusted: that of
    `load`.

    Raises what `load` raises, UsageError, OutputExists, OutputFull, Unsupported (by name).
    """
    began = time.perf_counter()
    path = os.path.abspath(destination)
    kind = _format_of(path, to)
    if max_shard < 1:
        raise UsageError(f"shards of {max_shard} bytes can't be meant")
    one_file = kind == "pt" or path.endswith(".safetensors")
    _check_destination(os.path.realpath(source), path, one_file, force)
    looked = into.look(source, trusted=trusted)
    codes: Mapping[str, str] = {}
    left_out: tuple[str, ...] = ()
    if kind == "safetensors":
        codes, left_out = _fitting(looked, skip_unsupported)
    report = progress or ignore
    replaces = (lambda there: _refusal(there, one_file) is None) if force else None
    with _translated(path), staging.staged(path, directory=not one_file, replaces=replaces) as staged:
        if kind == "safetensors" and one_file:
            size_bytes = _write_safetensors(looked, codes, [*codes], staged, report, 0)
        elif kind == "safetensors":
            size_bytes = _write_shards(looked, codes, Path(staged), max_shard, report)
        else:
            with _state(looked, os.path.dirname(path), trusted, report) as (state, size_bytes):
                _write_by_torch(state, staged, kind)
        names = (os.path.basename(path),) if one_file else tuple(sorted(os.listdir(staged)))
    return Converted(
        path=path,
        format=kind,
        tensors=len(codes) if kind == "safetensors" else len(looked.names),
        size_bytes=size_bytes,
        files=names,
        copied=tuple(name for name in looked.same if name in codes),
        left_out=left_out,
        elapsed_s=time.perf_counter() - began,
    )


def _format_of(path: str, to: To | None) -> To:
    suffix = os.path.splitext(path)[1]
    found = to or _SUFFIXES.get(suffix)
    if found is None:
        raise UsageError(f"{path} does not tell the format: name it, one of {', '.join(get_args(To))}")
    if found not in get_args(To):
        raise UsageError(f"to={found!r} means nothing; it is one of {', '.join(get_args(To))}")
    return found


def _check_destination(source: str, path: str, one_file: bool, force: bool) -> None:
    there = os.path.realpath(path)
    inside = os.path.commonpath([source, there])
    if inside in (source, there):
        raise UsageError(f"{path} and {source} overlap: write to another place")
    if os.path.lexists(path) and not force:
        raise OutputExists(f"{path} exists", path=path)
    refusal = _refusal(path, one_file)
    if refusal:
        raise UsageError(f"{path} {refusal}")
    if not os.path.isdir(os.path.dirname(path)):
        raise UsageError(f"{os.path.dirname(path)} is no directory")


def _refusal(path: str, one_file: bool) -> str | None:
    """What is there, if it is not replaced: files, empty directories, and, by directories, checkpoints are."""
    if not os.path.isdir(path) or not os.listdir(path):
        return None
    if one_file:
        return "is a directory"
    try:
        formats.detect(path)
    except DsmemError:
        return "is a directory that holds no checkpoint: it is not replaced"
    return None


@contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in _NO_SPACE and not isinstance(exc, OutputFull):
            raise OutputFull(f"no room for {path}: {exc.strerror}") from exc
        raise


def _fitting(source: Source, skip: bool) -> tuple[dict[str, str], tuple[str, ...]]:
    """The safetensors dtype of each tensor that is written, tied ones too; and names of what is left out."""
    codes, refused = into.fitting(source)
    refused = [*(Refusal(name, "it is no tensor") for name in source.others), *refused]
    if refused and not skip:
        raise into.unsupported(source, refused)
    codes.update({name: codes[other] for name, other in source.same.items()})
    return codes, tuple(one.path for one in refused)


def _entry(source: Source, name: str) -> TensorEntry:
    return source.entries[source.same.get(name, name)]


def _write_shards(source: Source, codes: Mapping[str, str], directory: Path, most: int, progress: Progress) -> int:
    shards: list[list[str]] = []
    filled = 0
    for name in codes:
        size_bytes = _entry(source, name).size_bytes
        if not shards or (filled and filled + size_bytes > most):
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size_bytes
    done = 0
    weight_map: dict[str, str] = {}
    for number, some in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        done += _write_safetensors(source, codes, some, str(directory / file), progress, done)
        weight_map.update(dict.fromkeys(some, file))
    index = {"metadata": {"total_size": done}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return done


def _write_safetensors(
    source: Source, codes: Mapping[str, str], names: Sequence[str], path: str, progress: Progress, before: int
) -> int:
    """One file of these tensors; returns their bytes. `before`: bytes that other files have already."""
    planned = []
    for name in names:
        entry = _entry(source, name)
        planned.append(Planned(name, codes[name], entry.shape, entry.dtype.itemsize))
    placed = layout.placed(planned)
    text_bytes = header.reserve(placed, {"format": "pt"}, spare_bytes=0)
    head = header.encode({name: placed[name] for name in names}, {"format": "pt"}, size_bytes=text_bytes)
    total = sum(_entry(source, name).size_bytes for name in codes)
    with Path(path).open("wb") as file:
        files.pwrite_full(file.fileno(), memoryview(head), 0)
        offset = len(head)
        for some in _together(placed):
            for tensor in _read(source, some):
                if tensor.nbytes:
                    files.pwrite_full(file.fileno(), memory_at(tensor.data_ptr(), tensor.nbytes), offset)
                offset += tensor.nbytes
            del tensor  # else it were still there when the next are read
            progress(before + offset - len(head), total)
    return offset - len(head)


def _together(placed: Mapping[str, header.Tensor]) -> Iterator[list[str]]:
    """Names in the order of the file, up to 64 MiB each time."""
    some: list[str] = []
    filled = 0
    for name, tensor in placed.items():
        size_bytes = tensor.end - tensor.begin
        if some and filled + size_bytes > _AT_ONCE_BYTES:
            yield some
            some, filled = [], 0
        some.append(name)
        filled += size_bytes
    if some:
        yield some


def _read(source: Source, names: Sequence[str]) -> Iterator[torch.Tensor]:
    """These tensors, read together."""
    entries = [_entry(source, name) for name in names]
    wanted = {entry.name: loading.new(entry, where=source.found.directory) for entry in entries}
    into.read(source, wanted)
    for entry in entries:
        yield wanted[entry.name]


@contextmanager
def _state(source: Source, beside: str, trusted: bool, progress: Progress) -> Iterator[tuple[dict[str, Any], int]]:
    """The state dict of a checkpoint, its tensors mapped, and their bytes."""
    size_bytes = sum(entry.size_bytes for entry in source.entries.values())
    if source.found.format == "torch":
        yield _loaded(source, trusted), size_bytes
    elif source.found.format == "safetensors":
        yield _mapped(source), size_bytes
    else:
        with tempfile.TemporaryFile(dir=beside) as file:
            yield _spooled(source, file.fileno(), progress), size_bytes


def _loaded(source: Source, trusted: bool) -> dict[str, Any]:
    """Torch files as torch maps them; several are one dict."""
    state: dict[str, Any] = {}
    found = source.found
    for name in found.files:
        path = os.path.join(found.directory, name)
        try:
            try:
                loaded = torch.load(path, map_location="cpu", weights_only=not trusted, mmap=not source.held)
            except RuntimeError:
                loaded = torch.load(path, map_location="cpu", weights_only=not trusted)
        except OSError:
            raise
        except Exception as exc:  # torch's own, of many kinds
            told = str(exc).split("\n", 1)[0]
            kind = UntrustedPickle if "weights_only" in str(exc) and not trusted else BadSource
            raise kind(f"{path} can't be loaded: {told}") from exc
        if not isinstance(loaded, dict):
            loaded = dict(torch_files.leaves(loaded))
        weight_map = found.weight_map
        state.update({key: one for key, one in loaded.items() if weight_map is None or weight_map.get(key) == name})
    return state


def _mapped(source: Source) -> dict[str, Any]:
    maps: dict[str, mmap.mmap] = {}
    state: dict[str, Any] = {}
    for name, entry in source.entries.items():
        (part,) = entry.parts
        if part.file not in maps:
            with Path(source.found.directory, part.file).open("rb") as file:
                maps[part.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        state[name] = _over(maps[part.file], part.offset, entry)
    return state


def _over(whole: mmap.mmap, offset: int, entry: TensorEntry) -> torch.Tensor:
    if entry.size_bytes == 0:
        return torch.empty(entry.shape, dtype=entry.dtype)
    count = entry.size_bytes // entry.dtype.itemsize
    return torch.frombuffer(whole, dtype=entry.dtype, count=count, offset=offset).view(entry.shape)


def _spooled(source: Source, fd: int, progress: Progress) -> dict[str, Any]:
    """The tensors of a DCP directory laid out in a file without a name, as its boxes may lie anywhere."""
    placed: dict[str, header.Tensor] = {}
    end = 0
    for name, entry in source.entries.items():
        begin = -(-end // 64) * 64
        end = begin + entry.size_bytes
        placed[name] = header.Tensor("U8", (entry.size_bytes,), begin, end)
    try:
        os.posix_fallocate(fd, 0, end + 1)  # a map of what has no room would be a SIGBUS
    except OverflowError as exc:  # damage can make it larger than any file
        raise OutputFull(f"{source.found.directory} tells of {units.format_bytes(end)} of tensors") from exc
    total = sum(entry.size_bytes for entry in source.entries.values())
    done = 0
    for some in _together(placed):
        for name, tensor in zip(some, _read(source, some), strict=True):
            if tensor.nbytes:
                files.pwrite_full(fd, memory_at(tensor.data_ptr(), tensor.nbytes), placed[name].begin)
            done += tensor.nbytes
        del tensor
        progress(done, total)
    whole = mmap.mmap(fd, end + 1, access=mmap.ACCESS_COPY)
    state: dict[str, Any] = {name: _over(whole, placed[name].begin, entry) for name, entry in source.entries.items()}
    if source.others:
        assert source.reader is not None
        state.update(dcp.read_values(source.reader, source.metadata, source.others))
    nesting = getattr(source.metadata, "planner_data", None)
    if isinstance(nesting, Mapping) and state.keys() <= nesting.keys():
        return _nested(state, nesting, source.found.directory)
    return state


def _nested(state: dict[str, Any], nesting: Mapping[str, Any], directory: str) -> dict[str, Any]:
    """Dicts and lists as they were saved; raises BadSource for paths into them that none can have."""
    from torch.distributed.checkpoint._nested_dict import unflatten_state_dict

    try:
        paths = {tuple(nesting[name]) for name in state}
        for path in paths:
            within = any(path[:depth] in paths for depth in range(len(path)))  # torch would write into that tensor
            if within or not all(type(one) is str or 0 <= one < _MOST_IN_LIST for one in path):
                raise ValueError(path)
        if len(paths) < len(state):
            raise ValueError("two have the same place")
        return dict(unflatten_state_dict(state, dict(nesting)))
    except (TypeError, LookupError, AttributeError, ValueError) as exc:
        where = os.path.join(directory, formats.METADATA)
        raise BadSource(f"{where} is damaged: what was in which dict or list can't be made out of it") from exc


def _write_by_torch(state: dict[str, Any], staged: str, kind: To) -> None:
    if kind == "pt":
        with Path(staged).open("wb") as file:  # by a name torch would write that into the file
            torch.save(state, file)
        return
    from torch.distributed.checkpoint import state_dict_saver
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        state_dict_saver.save(state, storage_writer=FileSystemWriter(staged), no_dist=True)
