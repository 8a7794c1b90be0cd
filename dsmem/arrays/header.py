"""The safetensors header: `<u64 length><JSON>`, then the tensors without gaps.

Format: https://github.com/huggingface/safetensors#format. What is parsed here comes from a shared directory, so sizes
and nesting are bounded, and every tensor is checked against the file before it is used.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from dsmem.errors import BadSource, DamagedObject

PAGE_BYTES = 4096
MAX_HEADER_BYTES = 100_000_000
"""What the reference implementation accepts too."""
DATA_BYTES_KEY = "dsmem.data_bytes"
"""In `__metadata__`: the size of all tensors as published, by which a truncated object is known."""

ITEM_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8,
    "F16": 2, "BF16": 2, "F32": 4, "F64": 8, "C64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
    "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
}  # fmt: skip
WIDEST_NUMBER = 10**18
"""As wide as a size of 64 bits can be."""
_AT_ONCE = 1000
_PIECE_BYTES = 1 << 20
Text = str | Callable[[], Iterable[str]]
"""Of `__metadata__`: a text, or what gives it in parts, the same ones each time."""


class HeaderTooLong(BadSource):
    """More to say of the tensors than a header holds; the message does not say whose."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file: its safetensors dtype, its shape, and where its bytes lie after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Tensors(Protocol):
    """Tensors by name, as a dict has them."""

    def items(self) -> Iterable[tuple[str, Tensor]]:
        """All of them, in the order in which a header is to have them; the same ones each time."""
        ...


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header; `data_start` is where in the file offset 0 of the tensors lies.

    Tensors are checked when they are asked for (`tensor`), so that opening costs no Python work for each of them.
    """

    raw: Mapping[str, object]
    metadata: Mapping[str, str]
    data_start: int
    data_bytes: int

    def names(self) -> list[str]:
        """Names of all tensors."""
        return [name for name in self.raw if name != "__metadata__"]

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name, checked; raises KeyError when absent, DamagedObject when it can't be."""
        return checked(name, self.raw[name] if name != "__metadata__" else None, self.data_bytes)


def checked(name: str, entry: object, data_bytes: int) -> Tensor:
    """What an entry says of a tensor; raises DamagedObject when it can't be."""
    try:
        assert isinstance(entry, dict)
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        right = whole and end - begin == math.prod(shape) * ITEM_BYTES[dtype] and end <= data_bytes
    except (AssertionError, KeyError, TypeError, ValueError) as exc:
        raise DamagedObject(f"tensor {name!r} has no valid description") from exc
    if not right:
        raise DamagedObject(f"tensor {name!r} does not fit the file")
    return Tensor(dtype, shape, begin, end)


def length(data: memoryview, file_bytes: int) -> int:
    """Of the JSON, as the first 8 bytes of a file have it; raises DamagedObject when it can't be."""
    if len(data) < 8:
        raise DamagedObject(f"too short for a header: {file_bytes} bytes")
    (claimed,) = struct.unpack_from("<Q", data)
    if claimed > min(MAX_HEADER_BYTES, file_bytes - 8):
        raise DamagedObject(f"the header claims {claimed} bytes of a file of {file_bytes}")
    return int(claimed)


def parse(data: memoryview, file_bytes: int) -> Header:
    """Parse the header at the start of `data`, which holds the file or at least its header; raises DamagedObject."""
    end = 8 + length(data, file_bytes)
    try:
        raw = json.loads(bytes(data[8:end]))
        metadata = raw.get("__metadata__", {})
        valid = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    except (ValueError, RecursionError, AttributeError) as exc:
        raise DamagedObject("the header is not JSON of the expected form") from exc
    if not valid:
        raise DamagedObject("the header's __metadata__ is not a table of strings")
    return Header(raw, metadata, end, file_bytes - end)


def encode(tensors: Tensors, metadata: Mapping[str, Text], *, size_bytes: int) -> bytearray:
    """The header as `size_bytes` bytes of file (padded with spaces); raises ValueError when it does not fit."""
    encoded = bytearray()
    write(lambda _, piece: encoded.extend(piece), tensors, metadata, size_bytes=size_bytes)
    return encoded


def write(
    put: Callable[[int, memoryview], object],
    tensors: Tensors,
    metadata: Mapping[str, Text],
    *,
    size_bytes: int,
) -> None:
    """`encode`, handed to `put` in pieces, each with its offset: a long one is never in memory as a whole."""
    piece, offset = bytearray(struct.pack("<Q", size_bytes - 8)), 0
    for part in _dumped(tensors.items(), metadata):
        piece += part
        if offset + len(piece) > size_bytes:
            raise ValueError(f"the header needs more than the {size_bytes} bytes that it has")
        if len(piece) >= _PIECE_BYTES:
            put(offset, memoryview(piece))
            piece, offset = bytearray(), offset + len(piece)
    put(offset, memoryview(piece.ljust(size_bytes - offset)))


def reserve(tensors: Tensors, metadata: Mapping[str, Text], *, spare_bytes: int) -> int:
    """Bytes to keep for a header: what these take, spare room, whole pages. What is not known yet is as wide as can be.

    Raises HeaderTooLong for one that nobody could read.
    """
    needed = 8 + sum(map(len, _dumped(tensors.items(), metadata))) + spare_bytes
    size_bytes = -(-needed // PAGE_BYTES) * PAGE_BYTES
    if size_bytes - 8 > MAX_HEADER_BYTES:
        raise HeaderTooLong(f"names, shapes and attributes take {needed:,} bytes; {MAX_HEADER_BYTES:,} is the most")
    return size_bytes


def _dumped(tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, Text]) -> Iterator[bytes]:
    """The JSON, some tensors at a time: until it is text, each takes 1 KB of Python's objects."""
    yield b'{"__metadata__":{'
    for index, (key, text) in enumerate(metadata.items()):
        yield b"," * (index > 0) + json.dumps(key).encode("ascii") + b':"'
        for part in [text] if isinstance(text, str) else text():
            yield json.dumps(part)[1:-1].encode("ascii")
        yield b'"'
    yield b"}"
    remaining = iter(tensors)
    while some := list(itertools.islice(remaining, _AT_ONCE)):
        yield b"," + entries(some).encode("ascii")
    yield b"}"


def entries(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """What a header says of some tensors, as it is written."""
    table = {name: {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [t.begin, t.end]} for name, t in tensors}
    return json.dumps(table, separators=(",", ":"))[1:-1]


def shape_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor of that safetensors dtype and shape."""
    return math.prod(shape) * ITEM_BYTES[dtype]
