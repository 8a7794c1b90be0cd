"""Bytes that wait for their place go back to where they were, in memory and in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsmem.tokens.holding import Held, Room


@pytest.mark.parametrize("blocks", [0, 1, 3, 100])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 40), st.lists(st.integers(0, 40), max_size=3)), max_size=8))
def test_going_back(blocks: int, tmp_path: Path, writes: list[tuple[int, list[int]]]) -> None:
    room = Room(16 * blocks, 16)
    held = Held(str(tmp_path / "held"), room)
    expected = bytearray()

    def write(size: int) -> bytes:
        data = np.random.default_rng(len(expected) + size).integers(0, 256, size, np.uint8)
        held.write(data)
        return data.tobytes()

    for kept, taken_back in writes:
        expected += write(kept)
        mark = held.mark()
        for size in taken_back:
            write(size)
        held.go_back(mark)
        assert held.size_bytes == len(expected)
        assert held.hexdigest() == xxhash.xxh3_128(expected).hexdigest()
    expected += write(7)
    held.write_to(str(tmp_path / "out"), 3)
    assert (tmp_path / "out").read_bytes()[3:] == expected
    (tmp_path / "out").unlink()
    assert not (tmp_path / "held").exists()
    taken = [room.take() for _ in range(blocks)]
    assert None not in taken and room.take() is None
