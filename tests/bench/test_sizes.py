"""Sizes shrink to what is there, say what made them, and below 1 MiB there is an error with the numbers."""

from __future__ import annotations

import pytest

from dsmem.bench.sizes import Need, Room, fit
from dsmem.errors import NoSpace

MIB = 1 << 20
PLENTY = Room(memory_bytes=1 << 40, shared_bytes=1 << 40, files_bytes=1 << 40)
NEED = Need(memory=5, shared=1, files=1)


def test_what_fits_is_as_asked() -> None:
    size = fit(256 * MIB, NEED, PLENTY)
    assert (size.size_bytes, size.asked_bytes, size.why) == (256 * MIB, 256 * MIB, None)


@pytest.mark.parametrize(
    ("free", "size_mib", "why"),
    [
        (Room(500 * MIB, 1 << 40, 1 << 40), 80, "500.0 MiB of memory is free and 5 times the data is needed"),
        (Room(1 << 40, 64 * MIB, 1 << 40), 51, "64.0 MiB of shared memory is free and 1 times the data is needed"),
        (Room(1 << 40, 1 << 40, 100 * MIB), 80, "100.0 MiB of room for temporary files is free"),
        (Room(600 * MIB, 1 << 40, 1 << 40, files_in_memory=True), 80, "6 times the data"),
    ],
)
def test_the_tightest_bound_counts_and_is_told(free: Room, size_mib: int, why: str) -> None:
    size = fit(256 * MIB, NEED, free)
    assert size.size_bytes // MIB == size_mib
    assert size.why is not None and why in size.why


def test_time_bounds_too() -> None:
    size = fit(256 * MIB, NEED, PLENTY, seconds_per_byte=1 / MIB, within_s=40)
    assert (size.size_bytes, size.why) == (40 * MIB, "more would take too long")
    assert fit(256 * MIB, NEED, PLENTY, seconds_per_byte=1e9, within_s=40).size_bytes == MIB


def test_too_little_is_an_error_with_the_numbers() -> None:
    with pytest.raises(NoSpace, match=r"of shared memory needed, 1\.0 MiB free") as raised:
        fit(256 * MIB, NEED, Room(1 << 40, MIB, 1 << 40))
    assert raised.value.free_bytes == MIB
    assert raised.value.need_bytes > MIB
    assert raised.value.limit == "shared memory"
