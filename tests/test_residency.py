"""Whether a file is in the page cache, told of files of one's own and, less surely, of other people's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsmem import residency

SIZE_BYTES = 8 << 20


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file of which nothing is cached; skips where the file system keeps what it is told to drop."""
    (tmp_path / "x").write_bytes(os.urandom(SIZE_BYTES))
    fd = os.open(tmp_path / "x", os.O_RDWR)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    try:
        if residency.is_cached(fd, 0, SIZE_BYTES) is not False:
            pytest.skip("this file system keeps what it is told to drop")
        yield fd
    finally:
        os.close(fd)


def test_looking_brings_nothing(fd: int) -> None:
    for _ in range(100):
        assert residency.is_cached(fd, 0, SIZE_BYTES) is False


def test_most_of_a_range_decides(fd: int) -> None:
    half = SIZE_BYTES // 2
    os.pread(fd, half // 4, 0)
    assert residency.is_cached(fd, 0, half) is False
    os.pread(fd, half, 0)
    assert residency.is_cached(fd, 0, half) is True
    assert residency.is_cached(fd, half, half) is False
    assert residency.is_cached(fd, 0, SIZE_BYTES + half) is False


def test_a_file_of_others_is_asked_by_reads_that_do_not_wait(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "_is_told", lambda fd: False)
    os.pread(fd, SIZE_BYTES, 0)
    assert residency.is_cached(fd, 0, SIZE_BYTES) is True

    def absent(*arguments: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", absent)
    assert residency.is_cached(fd, 0, SIZE_BYTES) is False

    def unknown(*arguments: object) -> int:
        raise OSError

    monkeypatch.setattr(os, "preadv", unknown)
    assert residency.is_cached(fd, 0, SIZE_BYTES) is None


def test_of_nothing_nobody_can_say() -> None:
    read, write = os.pipe()
    try:
        assert residency.is_cached(read, 0, 4096) is None
    finally:
        os.close(read)
        os.close(write)


def test_an_empty_file_is_not_mapped(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w+b") as file:
        assert residency.is_cached(file.fileno(), 0, 0) is None
