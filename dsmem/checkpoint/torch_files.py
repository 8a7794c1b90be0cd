"""Files of torch.save as places of storages: a zip whose entries are STORED, and a pickle that is only looked at."""

from __future__ import annotations

import errno
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsmem.checkpoint import unpickling
from dsmem.checkpoint.parts import Part, TensorEntry
from dsmem.checkpoint.unpickling import NotPlain, Stored
from dsmem.errors import BadSource, DsmemError, SourceMissing

_MAX_PICKLE_BYTES = 1 << 30


class NeedsTorch(Exception):
    """Only torch itself can load the file; the message says why."""


@dataclass(frozen=True, slots=True)
class StoragePlace:
    """The bytes of one storage."""

    offset: int
    size_bytes: int
    crc: int
    """Zero where none was saved."""


@dataclass(frozen=True, slots=True)
class TorchFile:
    """One file: tensors by name (keys of nested dicts and lists joined by dots), and the storages they share."""

    name: str
    tensors: Mapping[str, Stored]
    others: tuple[str, ...]
    storages: Mapping[str, StoragePlace]

    @property
    def entries(self) -> list[TensorEntry]:
        """As every format tells its tensors: a tensor with strides has the bytes of its storage."""
        found = []
        for name, stored in self.tensors.items():
            place = self.storages[stored.storage]
            begin = stored.offset * stored.dtype.itemsize if stored.contiguous else 0
            entry = TensorEntry(name, stored.dtype, stored.shape, ())
            size_bytes = entry.size_bytes if stored.contiguous else place.size_bytes
            part = Part(self.name, place.offset + begin, size_bytes, (0,) * len(stored.shape), stored.shape)
            found.append(TensorEntry(name, stored.dtype, stored.shape, (part,)))
        return found


def look_at(directory: str, name: str) -> TorchFile:
    """Raises SourceMissing, BadSource (damaged), NeedsTorch (an older format, or more than plain tensors)."""
    path = Path(directory, name)
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                raise NeedsTorch("the format of torch before 1.6")
            file.seek(0)
            with zipfile.ZipFile(file) as archive:
                return _looked_at(name, archive, file)
    except FileNotFoundError as exc:
        raise SourceMissing(f"{path}: no such file") from exc
    except NotPlain as exc:
        raise NeedsTorch(f"more than plain tensors ({exc})") from exc
    except DsmemError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, struct.error, OverflowError) as exc:
        raise BadSource(f"{path} is damaged: {exc}") from exc
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        raise BadSource(f"{path} is damaged: its directory leads to before its beginning") from exc  # bytes are missing


def _looked_at(name: str, archive: zipfile.ZipFile, file: Any) -> TorchFile:
    places: dict[str, StoragePlace] = {}
    pickled = None
    for entry in archive.infolist():
        inner = entry.filename.partition("/")[2]
        if inner == "data.pkl" and entry.file_size <= _MAX_PICKLE_BYTES:
            pickled = _content(archive, entry, file)
        elif inner == "byteorder" and _content(archive, entry, file) != sys.byteorder.encode():
            raise NotPlain("another byte order")
        elif inner == "constants.pkl":
            raise NotPlain("a TorchScript program")
        elif inner.startswith("data/"):
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise NotPlain("compressed")
            places[inner[5:]] = StoragePlace(_start(entry, file), entry.file_size, entry.CRC)
    if pickled is None:
        raise BadSource(f"{name} is a zip, but none of torch.save: it has no data.pkl")
    tensors: dict[str, Stored] = {}
    others: list[str] = []
    for key, value in leaves(unpickling.tensors(pickled)):
        if isinstance(value, Stored):
            place = places.get(value.storage)
            if place is None or place.size_bytes < value.storage_bytes or value.reach_bytes > place.size_bytes:
                raise BadSource(f"{name}: the storage of {key} is missing or too small")
            tensors[key] = value
        else:
            others.append(key)
    return TorchFile(name, tensors, tuple(others), places)


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, file: Any) -> bytes:
    """The bytes of a small record; without a checksum (set_crc32_options(False)) zipfile would call them damaged."""
    if entry.CRC or entry.compress_type != zipfile.ZIP_STORED:
        return archive.read(entry)
    file.seek(_start(entry, file))
    content: bytes = file.read(entry.file_size)
    return content


def _start(entry: zipfile.ZipInfo, file: Any) -> int:
    """Where the bytes of a record begin."""
    file.seek(entry.header_offset + 26)
    name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
    return entry.header_offset + 30 + int(name_bytes) + int(extra_bytes)


def leaves(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """What a nested dict or list holds, with names joined by dots; a bare value is called `value`."""
    if depth > 64:
        raise NotPlain("nested too deeply")
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from leaves(one, f"{name}.{key}" if name else str(key), depth + 1)
    elif isinstance(value, list | tuple):
        for index, one in enumerate(value):
            yield from leaves(one, f"{name}.{index}" if name else str(index), depth + 1)
    else:
        yield name or "value", value
