"""The safetensors header: what is written is read back, by safetensors too; what is damaged is said to be."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from dsmem.arrays import header
from dsmem.arrays.header import Tensor
from dsmem.errors import DamagedObject


def raw(table: object, *, tail: bytes = b"", length: int | None = None) -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + tail


def parse(data: bytes) -> header.Header:
    return header.parse(memoryview(data), len(data))


tensors = st.dictionaries(
    st.text(min_size=1).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(sorted(header.ITEM_BYTES)), st.lists(st.integers(0, 5), max_size=3)),
    max_size=6,
)


def placed(shapes: dict[str, tuple[str, list[int]]]) -> dict[str, Tensor]:
    offset, found = 0, {}
    for name, (dtype, shape) in shapes.items():
        end = offset + header.shape_bytes(dtype, shape)
        found[name] = Tensor(dtype, tuple(shape), offset, end)
        offset = end
    return found


@given(shapes=tensors, metadata=st.dictionaries(st.text(), st.text(), max_size=3))
def test_round_trip(shapes: dict[str, tuple[str, list[int]]], metadata: dict[str, str]) -> None:
    expected = placed(shapes)
    size_bytes = header.reserve(expected, metadata, spare_bytes=10)
    assert size_bytes % header.PAGE_BYTES == 0
    data_bytes = max((tensor.end for tensor in expected.values()), default=0)
    found = parse(bytes(header.encode(expected, metadata, size_bytes=size_bytes)) + bytes(data_bytes))
    assert found.data_start == size_bytes
    assert found.data_bytes == data_bytes
    assert found.metadata == metadata
    assert sorted(found.names()) == sorted(expected)
    assert {name: found.tensor(name) for name in expected} == expected


def test_safetensors_reads_it() -> None:
    expected = placed({"a": ("F32", [2, 3]), "b/c": ("U8", [5]), "none": ("I64", [0, 3]), "one": ("BOOL", [])})
    encoded = bytes(header.encode(expected, {"k": "ü\udc80"}, size_bytes=4096))
    found = safetensors.numpy.load(encoded.replace(b"\\udc80", b"      ") + bytes(range(30)))
    assert {name: array.shape for name, array in found.items()} == {name: t.shape for name, t in expected.items()}
    assert found["b/c"].tobytes() == bytes(range(24, 29))


def test_what_is_reserved_for_the_widest_numbers_holds_every_other() -> None:
    widest = header.WIDEST_NUMBER
    size_bytes = header.reserve({"text": Tensor("U8", (widest, 2), widest, widest)}, {"k": "v"}, spare_bytes=0)
    largest = 2**63 - 1
    assert (
        len(header.encode({"text": Tensor("U8", (largest, 2), largest, largest)}, {"k": "v"}, size_bytes=size_bytes))
        == size_bytes
    )


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs"):
        header.encode({}, {"k": "x" * 100}, size_bytes=64)
    put: list[int] = []
    with pytest.raises(ValueError, match="needs"):
        header.write(lambda offset, _: put.append(offset), {}, {"k": lambda: ["x" * 100] * 40_000}, size_bytes=3 << 20)
    assert len(put) == 2


def test_a_long_one_is_written_in_pieces() -> None:
    tensors = placed({f"{i:05}": ("F32", [i]) for i in range(30_000)})
    metadata: dict[str, header.Text] = {"k": "v", "parts": lambda: ['"ü', "\ud83d", "x" * 100_000], "none": list}
    size_bytes = header.reserve(tensors, metadata, spare_bytes=0)
    content, pieces = bytearray(size_bytes), 0

    def put(offset: int, piece: memoryview) -> None:
        nonlocal pieces
        content[offset : offset + len(piece)] = piece
        pieces += 1

    header.write(put, tensors, metadata, size_bytes=size_bytes)
    assert pieces >= 2
    assert len(content) == size_bytes
    assert content == header.encode(tensors, metadata, size_bytes=size_bytes)
    found = parse(bytes(content) + bytes(tensors["29999"].end))
    assert found.metadata == {"k": "v", "parts": '"ü\ud83d' + "x" * 100_000, "none": ""}
    assert found.tensor("29999") == tensors["29999"]


DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"1234567",
    "zeros": bytes(100),
    "claims more than there is": raw({}, length=1000),
    "claims 2**64 - 1": raw({}, length=2**64 - 1),
    "not JSON": raw(b"{nope"),
    "not UTF-8": raw(b'{"\xff": 1}'),
    "a list": raw([]),
    "a number": raw(3),
    "null": raw(None),
    "metadata is a list": raw({"__metadata__": []}),
    "metadata of numbers": raw({"__metadata__": {"a": 1}}),
    "metadata is null": raw({"__metadata__": None}),
    "deep": raw(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "deep lists": raw(b"[" * 100_000 + b"]" * 100_000),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged(what: str) -> None:
    with pytest.raises(DamagedObject):
        parse(DAMAGED[what])


WRONG: dict[str, Any] = {
    "null": None,
    "a list": [],
    "empty": {},
    "no offsets": {"dtype": "U8", "shape": [4]},
    "past the end": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]},
    "shorter than its shape": {"dtype": "U8", "shape": [4], "data_offsets": [0, 3]},
    "negative": {"dtype": "U8", "shape": [4], "data_offsets": [-4, 0]},
    "backwards": {"dtype": "U8", "shape": [0], "data_offsets": [4, 0]},
    "negative axes": {"dtype": "U8", "shape": [-2, -2], "data_offsets": [0, 4]},
    "floats": {"dtype": "U8", "shape": [4.0], "data_offsets": [0, 4]},
    "bools": {"dtype": "U8", "shape": [True], "data_offsets": [False, True]},
    "three offsets": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4, 4]},
    "unknown dtype": {"dtype": "F1", "shape": [4], "data_offsets": [0, 4]},
    "dtype is a list": {"dtype": ["U8"], "shape": [4], "data_offsets": [0, 4]},
    "shape is a number": {"dtype": "U8", "shape": 4, "data_offsets": [0, 4]},
    "shape is text": {"dtype": "U8", "shape": "4", "data_offsets": [0, 4]},
    "huge": {"dtype": "U8", "shape": [2**62, 2**62], "data_offsets": [0, 4]},
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_tensor_is_refused_when_asked_for(what: str) -> None:
    found = parse(
        raw({"x": WRONG[what], "right": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}, tail=bytes(8))
    )
    assert found.tensor("right").end == 8
    with pytest.raises(DamagedObject, match="'x'"):
        found.tensor("x")


def test_a_missing_tensor_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        parse(raw({})).tensor("x")


@given(data=st.binary(max_size=200))
def test_any_bytes_are_parsed_or_damaged(data: bytes) -> None:
    try:
        found = parse(data)
    except DamagedObject:
        return
    for name in found.names():
        with pytest.raises(DamagedObject):
            found.tensor(name)


def test_a_header_that_nobody_could_read_is_refused() -> None:
    with pytest.raises(header.HeaderTooLong, match=r"take 100,\d+,\d+ bytes; 100,000,000 is the most"):
        header.reserve({}, {"k": "v" * header.MAX_HEADER_BYTES}, spare_bytes=0)
    longest = header.reserve({}, {"k": "v" * (header.MAX_HEADER_BYTES - 8000)}, spare_bytes=0)
    assert longest - 8 <= header.MAX_HEADER_BYTES
