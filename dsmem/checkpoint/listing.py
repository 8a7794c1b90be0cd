"""What a checkpoint holds, whatever its format: names, dtypes, shapes, places. Nothing is run, no tensor read."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch

from dsmem.checkpoint import formats, safetensors_files, torch_files
from dsmem.checkpoint.formats import Format, Found
from dsmem.checkpoint.parts import FileEntry, Part, TensorEntry
from dsmem.checkpoint.torch_files import NeedsTorch
from dsmem.errors import BadSource


@dataclass(frozen=True, slots=True)
class Contents:
    """A checkpoint, without its bytes."""

    path: str
    format: Format
    directory: str
    """Names of files are relative to it."""
    tensors: tuple[TensorEntry, ...]
    """In the order of the checkpoint."""
    others: tuple[str, ...]
    """Names of what is no tensor."""
    files: tuple[FileEntry, ...]
    note: str | None = None
    """Why the tensors of a file could not be told without loading it."""

    @property
    def size_bytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.size_bytes for tensor in self.tensors)


def contents(path: str | os.PathLike[str]) -> Contents:
    """Look at a DCP directory, safetensors or torch files. Raises what `formats.detect` raises, and BadSource."""
    found = formats.detect(path)
    note = None
    others: tuple[str, ...] = ()
    if found.format == "dcp":
        tensors, others, names = of_metadata(metadata_of(found), os.path.join(found.directory, formats.METADATA))
    elif found.format == "safetensors":
        names = found.files
        tensors = tuple(one for name in names for one in safetensors_files.entries(found.directory, name))
    else:
        names = found.files
        listed: list[TensorEntry] = []
        left: list[str] = []
        for name in names:
            try:
                some = torch_files.look_at(found.directory, name)
            except NeedsTorch as exc:
                note = f"{name}: {exc}"
            else:
                listed += some.entries
                left += some.others
        tensors, others = tuple(listed), tuple(left)
    files = tuple(FileEntry(name, _size(os.path.join(found.directory, name))) for name in names)
    return Contents(os.fspath(path), found.format, found.directory, tensors, others, files, note)


def metadata_of(found: Found, *, trusted: bool = False) -> Any:
    """The metadata of a DCP directory; raises UntrustedPickle, BadSource, OSError."""
    from dsmem.checkpoint.reader import ParallelFileSystemReader

    return ParallelFileSystemReader(found.directory, trusted=trusted).read_metadata()


def of_metadata(metadata: Any, where: str) -> tuple[tuple[TensorEntry, ...], tuple[str, ...], tuple[str, ...]]:
    """Tensors, names of what is none, and names of files; raises BadSource for metadata that lacks them."""
    tensors, others = [], []
    places: dict[str, dict[tuple[int, ...] | None, Any]] = {}
    try:
        for index, info in metadata.storage_data.items():
            offset = None if index.offset is None else tuple(index.offset)
            places.setdefault(index.fqn, {})[offset] = info
        for name, one in metadata.state_dict_metadata.items():
            if not hasattr(one, "chunks"):
                others.append(name)
                continue
            parts = []
            for chunk in one.chunks:
                at = places.get(name, {})
                info = at[tuple(chunk.offsets)] if tuple(chunk.offsets) in at else at.get(None)
                if info is None:
                    raise BadSource(f"{where} does not tell where {name} lies in the files")
                starts, shape = tuple(chunk.offsets), tuple(chunk.sizes)
                parts.append(Part(info.relative_path, info.offset, info.length, starts, shape))
            dtype = one.properties.dtype
            assert isinstance(dtype, torch.dtype)
            tensors.append(TensorEntry(name, dtype, tuple(one.size), tuple(parts)))
        names = sorted({info.relative_path for some in places.values() for info in some.values()})
    except (AttributeError, TypeError, AssertionError) as exc:
        raise BadSource(f"{where} holds no metadata of a checkpoint") from exc
    return tuple(tensors), tuple(others), tuple(names)


def check_cover(entry: TensorEntry, *, where: str) -> None:
    """Raises BadSource unless the parts lie inside the tensor and have as many elements: memory is not zeroed.

    `where`: the file of metadata.
    """
    inside = all(
        len(part.starts) == len(part.shape) == len(entry.shape)
        and all(
            start >= 0 and size >= 0 and start + size <= most
            for start, size, most in zip(part.starts, part.shape, entry.shape, strict=True)
        )
        for part in entry.parts
    )
    boxes = {(part.starts, part.shape) for part in entry.parts}
    if not inside or sum(math.prod(shape) for _, shape in boxes) != math.prod(entry.shape):
        raise BadSource(f"{where} is damaged: the parts of {entry.name} do not make up the tensor")


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise BadSource(f"{path}: {exc.strerror}") from exc
    except ValueError as exc:  # damage: a zero in it, or half of a character
        raise BadSource(f"{path!r} can't be the name of a file") from exc
