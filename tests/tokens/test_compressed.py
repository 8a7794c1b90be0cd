"""Compressed streams give the same however they are read: in steps of any size, and asked for any number of bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import random
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmem.tokens import compressed
from dsmem.tokens.compressed import Broken, Compression

ENCODERS: dict[Compression, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}
DECODERS: dict[Compression, Callable[[], lzma.LZMADecompressor | bz2.BZ2Decompressor]] = {
    "bz2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
}


def letters(count: int, seed: int) -> bytes:
    """Text that compresses to a good half."""
    return "".join(random.Random(seed).choices("abcdefgh \n", k=count)).encode()


def read(data: bytes, kind: Compression, sizes: Sequence[int]) -> tuple[bytes, bool]:
    """All that is given, asked for in these sizes in turns, and whether the end came without an error."""
    found = bytearray()
    turns: Iterator[int] = itertools.cycle(sizes)
    with compressed.opened(io.BytesIO(data), kind, path="x") as file:
        try:
            while part := file.read(next(turns)):
                found += part
        except Broken:
            return bytes(found), False
    return bytes(found), True


@pytest.mark.parametrize("kind", ENCODERS)
@given(
    counts=st.lists(st.integers(0, 3000), min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, 4000), min_size=1, max_size=3),
    step_bytes=st.integers(1, 3000),
)
def test_all_of_what_is_whole(kind: Compression, counts: list[int], sizes: list[int], step_bytes: int) -> None:
    texts = [letters(count, seed) for seed, count in enumerate(counts)]
    data = b"".join(map(ENCODERS[kind], texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressed, "_STEP_BYTES", step_bytes)
        assert read(data, kind, sizes) == (b"".join(texts), True)


@pytest.mark.parametrize("size", [1, 7, 512, 1000])
def test_every_end_of_a_step_at_every_end_of_what_was_asked_for(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """xz says that it wants no more where both end together, though it holds nothing."""
    text = letters(4000, 1)
    data = lzma.compress(text)
    for step_bytes in range(1, 200):
        monkeypatch.setattr(compressed, "_STEP_BYTES", step_bytes)
        assert read(data, "xz", [size]) == (text, True)


def decodable(data: bytes, kind: Compression) -> bytes:
    """What the library gives byte by byte."""
    found, stream = bytearray(), DECODERS[kind]()
    for place in range(len(data)):
        try:
            found += stream.decompress(data[place : place + 1])
        except (OSError, lzma.LZMAError):
            break
        if stream.eof:
            stream = DECODERS[kind]()
    return bytes(found)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("sizes", [[1 << 20], [1000], [1, 70_000]])
def test_all_that_can_be_decoded_before_damage(kind: Compression, sizes: list[int]) -> None:
    randoms = random.Random(2)
    for seed in range(6):
        parts = [ENCODERS[kind](letters(count, seed)) for count in (3000, 150_000)]
        data = bytearray(b"".join(parts if seed % 2 else parts[::-1]))
        data[randoms.randrange(3000, len(data) - 100)] ^= 1 << randoms.randrange(8)
        given_bytes, is_whole = read(bytes(data), kind, sizes)
        assert not is_whole
        assert given_bytes.startswith(decodable(bytes(data), kind))
