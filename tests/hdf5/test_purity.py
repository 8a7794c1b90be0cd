"""Damaged chunks: an error, or bytes that the chunk alone decides, whatever the memory held before."""

from __future__ import annotations

import random

import hdf5plugin
import pytest
from purity import PIPELINES, damaged, decoded, stored

MUTANTS = 200


@pytest.mark.parametrize("name", PIPELINES)
def test_mutants(name: str) -> None:
    pipeline, raw, expected = stored(name)
    assert decoded(pipeline, raw, len(expected)) == {expected}
    chance = random.Random(name)
    for i in range(MUTANTS):
        mutant = damaged(raw, chance)
        assert len(decoded(pipeline, mutant, len(expected))) == 1, (i, mutant.hex())


@pytest.mark.parametrize("name", ["lz4", "lz4, blocks"])
def test_an_lz4_chunk_that_announces_another_size(name: str) -> None:
    pipeline, raw, expected = stored(name)
    for total in (len(expected) - 36, len(expected) + 4, 0):
        changed = total.to_bytes(8, "big") + raw[8:]
        assert decoded(pipeline, changed, len(expected)) == {None}


@pytest.mark.parametrize("name", ["blosc", "blosc zlib", "blosclz"])
def test_a_blosc_chunk_that_is_cut_off(name: str) -> None:
    """The decoder would read on, beyond what is stored."""
    pipeline, raw, expected = stored(name)
    for end in (len(raw) - 1, len(raw) - 3, 17, 3, 0):
        assert decoded(pipeline, raw[:end], len(expected)) == {None}


@pytest.mark.parametrize("name", ["bitshuffle", "bitshuffle lz4, blocks"])
def test_a_bitshuffled_chunk_whose_rest_is_cut_off(name: str) -> None:
    """Items that fill no block lie at the end; a single byte that is left of them is not all of them."""
    pipeline, raw, expected = stored(name, "u1")
    rest = len(expected) % 8
    assert rest > 1
    for end in (len(raw) - 1, len(raw) - rest + 1, len(raw) - rest):
        assert decoded(pipeline, raw[:end], len(expected)) == {None}


def test_a_bitshuffled_chunk_that_is_too_long() -> None:
    pipeline, raw, expected = stored("bitshuffle")
    assert decoded(pipeline, raw + bytes(4), len(expected)) == {None}


def test_a_frame_of_blosc2_that_was_never_written() -> None:
    pipeline, raw, expected = stored("blosc2")
    header_bytes = int.from_bytes(raw[11:15], "big")
    content = bytearray(raw)
    content[header_bytes + 31] = 0x40
    assert decoded(pipeline, bytes(content), len(expected)) == {None}


def test_a_frame_of_blosc2_whose_chunk_lies_elsewhere() -> None:
    """Its index says so; h5py looks there."""
    pipeline, raw, expected = stored("blosc2")
    index = int.from_bytes(raw[11:15], "big") + int.from_bytes(raw[39:47], "big")
    for at in range(8):
        content = bytearray(raw)
        assert content[index + 32 + at] == 0
        content[index + 32 + at] = 1
        assert decoded(pipeline, bytes(content), len(expected)) == {None}


@pytest.mark.parametrize(("at", "number"), [(30, 1), (31, 0x19), (31, 0x08)])
def test_kinds_of_blosc2_chunks_that_h5py_does_not_read(at: int, number: int) -> None:
    pipeline, raw, expected = stored("blosc2")
    content = bytearray(raw)
    content[int.from_bytes(raw[11:15], "big") + at] = number
    assert decoded(pipeline, bytes(content), len(expected)) == {None}


@pytest.mark.parametrize(("filters", "at", "number"), [(1, 29, 2), (1, 29, 255), (3, 16, 1), (3, 20, 2)])
def test_filters_of_blosc2_that_its_versions_undo_differently(filters: int, at: int, number: int) -> None:
    pipeline, raw, expected = stored("blosc2", options=dict(hdf5plugin.Blosc2(cname="lz4", filters=filters)))
    assert decoded(pipeline, raw, len(expected)) == {expected}
    content = bytearray(raw)
    content[int.from_bytes(raw[11:15], "big") + at] = number
    assert decoded(pipeline, bytes(content), len(expected)) == {None}


def test_an_index_of_blosc2_that_announces_less_than_nothing() -> None:
    pipeline, raw, expected = stored("blosc2")
    header_bytes, stored_bytes = int.from_bytes(raw[11:15], "big"), int.from_bytes(raw[39:47], "big")
    for length in (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4)):
        content = bytearray(raw)
        index = header_bytes + stored_bytes
        content[index + 2] &= ~2  # else it is read as it is
        content[index + 4 : index + 8] = length
        assert decoded(pipeline, bytes(content), len(expected)) == {None}
        content[39:47] = bytes(8)  # a frame of zeros
        del content[header_bytes:index]
        assert decoded(pipeline, bytes(content), len(expected)) == {None}
