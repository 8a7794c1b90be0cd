"""Damaged chunks, laid against memory that can't be touched: what decodes them reads and writes nothing beyond."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import struct
from typing import Any

import numpy as np
import pytest
from purity import PIPELINES, damaged, stored

from dsmem.hdf5.codecs import Pipeline, Undecodable

MUTANTS = 150
SIZES_OF_BLOSC = (4, 8, 12, 16, 20)
"""Where its header has the sizes of all, of a block, and as stored; where the first block is, and its size."""


def before_a_wall(content: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The content in memory whose next byte is a crash to touch."""
    pages = -(-len(content) // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, pages + mmap.PAGESIZE), np.uint8)
    wall = ctypes.c_void_p(memory.ctypes.data + pages)
    assert ctypes.CDLL(None).mprotect(wall, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    inside = memory[pages - len(content) : pages]
    inside[:] = np.frombuffer(content, np.uint8)
    return inside


def mutant(name: str, raw: bytes, number: int) -> bytes:
    chance = random.Random(number)
    if not name.startswith("blosc") or name.startswith("blosc2") or chance.random() < 0.5:
        return damaged(raw, chance)
    at = chance.choice(SIZES_OF_BLOSC)
    (value,) = struct.unpack_from("<I", raw, at)
    value = chance.choice([value + chance.choice([-4, -1, 1, 4, 100]), len(raw) + 1, 0, 2**31 - 1, 2**32 - 1])
    return raw[:at] + struct.pack("<I", value & 0xFFFFFFFF) + raw[at + 4 :]


def decode_all(pipeline: Pipeline, name: str, raw: bytes, size: int) -> None:
    out = before_a_wall(bytes(size))
    for number in range(MUTANTS):
        try:
            pipeline.decode(before_a_wall(mutant(name, raw, number)).data, out, 0)
        except Undecodable:
            continue


@pytest.mark.parametrize("name", PIPELINES)
def test_nothing_beyond_is_touched(name: str) -> None:
    pipeline, raw, expected = stored(name)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            decode_all(pipeline, name, raw, len(expected))
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
