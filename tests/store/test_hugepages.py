"""Huge pages of a file on a mount that gives none: taken where the kernel has them, and never needed."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from stores import InTmpfs, used_bytes

from dsmem import proc
from dsmem.madvise import Patience
from dsmem.proc import Mount
from dsmem.store import hugepages
from dsmem.store.hugepages import EXTENT_BYTES, LEAST_BYTES, Extents

SIZE = LEAST_BYTES + 3 * 4096
TMPFS = Mount("/m", "tmpfs", "m", {"rw": ""})


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("test")
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


@pytest.fixture
def real(fd: int) -> Extents:
    """Extents of a memfd, where this machine has huge pages."""
    if not hugepages.can_be_taken(None) or (proc.free_huge_pages() or 0) < 1000:
        pytest.skip("no huge pages to be had here")
    os.pwrite(fd, b"x", 2 * EXTENT_BYTES)
    if hugepages._collapse(fd, 2 * EXTENT_BYTES, None) == errno.EINVAL:
        pytest.skip("a kernel before 6.1")
    os.ftruncate(fd, 0)
    os.ftruncate(fd, SIZE)
    extents = Extents(fd)
    extents.resize(SIZE)
    return extents


def there(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Offsets of the extents that a kernel is asked for, which has as many as one likes."""
    offsets: list[int] = []

    def collapse(fd: int, offset: int, place: object) -> int:
        offsets.append(offset // EXTENT_BYTES)
        return 0

    monkeypatch.setattr(hugepages, "_collapse", collapse)
    monkeypatch.setattr(proc, "free_huge_pages", lambda: 1 << 20)
    return offsets


def test_extents_are_there_whole_once_taken(fd: int, real: Extents) -> None:
    os.pwrite(fd, b"before", EXTENT_BYTES + 5)
    assert real.take(EXTENT_BYTES - 1, 2)
    assert there(fd) == 2 * EXTENT_BYTES
    assert os.pread(fd, 8, EXTENT_BYTES + 4) == b"\0before\0"
    assert real.take(0, 2 * EXTENT_BYTES)
    assert there(fd) == 2 * EXTENT_BYTES
    os.pwrite(fd, b"after", EXTENT_BYTES - 2)
    assert os.pread(fd, 7, EXTENT_BYTES - 3) == b"\0after\0"
    assert os.fstat(fd).st_size == SIZE


def test_what_is_no_whole_extent_is_left(fd: int, real: Extents) -> None:
    assert not real.take(LEAST_BYTES - 1, 2)
    assert there(fd) == EXTENT_BYTES
    assert not real.take(LEAST_BYTES + 1, 4096)
    assert not real.take(1 << 40, 4096)


def test_they_are_taken_through_a_map_of_the_file(fd: int, real: Extents, monkeypatch: pytest.MonkeyPatch) -> None:
    with hugepages.mapped(fd, SIZE, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE) as whole:
        place = hugepages.address_of(whole)
        assert place % EXTENT_BYTES == 0
        monkeypatch.setattr(hugepages, "libc", pytest.fail)  # maps nothing more
        extents = Extents(fd, lambda: place)
        extents.resize(SIZE)
        assert extents.take(EXTENT_BYTES, 2 * EXTENT_BYTES)
        assert there(fd) == 2 * EXTENT_BYTES
        whole[2 * EXTENT_BYTES - 1 : 2 * EXTENT_BYTES + 1] = b"ab"
        assert os.pread(fd, 4, 2 * EXTENT_BYTES - 2) == b"\0ab\0"


def test_a_file_that_cannot_be_mapped_whole_gets_them_all_the_same(fd: int, real: Extents) -> None:
    def refused() -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    for place in (refused, lambda: 4096):
        extents = Extents(fd, place)
        extents.resize(SIZE)
        assert extents.take(0, EXTENT_BYTES)
    assert there(fd) == EXTENT_BYTES


def test_each_extent_is_asked_for_once(fd: int, asked: list[int]) -> None:
    extents = Extents(fd)
    assert not extents.take(0, 1)  # nothing is known of the size
    extents.resize(SIZE)
    assert extents.take(0, 1) and extents.take(EXTENT_BYTES, EXTENT_BYTES) and extents.take(100, EXTENT_BYTES)
    assert asked == [0, 1]
    os.ftruncate(fd, 2 * SIZE)
    extents.resize(2 * SIZE)
    assert extents.take(0, 3 * EXTENT_BYTES)
    assert asked == [0, 1, 2]
    extents.resize(LEAST_BYTES - 1)
    assert not extents.take(0, 1)


def test_the_last_ones_are_left_to_others(fd: int, asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "free_huge_pages", lambda: 100)
    extents = Extents(fd)
    extents.resize(SIZE)
    assert not extents.take(0, SIZE)
    assert (asked, there(fd)) == ([], 0)


def test_a_kernel_that_does_not_know_how_is_asked_once(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0

    def refuse(fd: int, offset: int, place: object) -> int:
        nonlocal count
        count += 1
        return errno.EINVAL

    monkeypatch.setattr(hugepages, "_collapse", refuse)
    monkeypatch.setattr(proc, "free_huge_pages", lambda: 1 << 20)
    extents = Extents(fd)
    extents.resize(SIZE)
    assert not extents.take(0, SIZE)
    assert count == 1


def test_one_that_moves_memory_for_each_is_given_up(fd: int, asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(hugepages, "Patience", partial(Patience, clock=lambda: next(now) * 0.03))
    extents = Extents(fd)
    extents.resize(SIZE)
    assert not extents.take(0, SIZE)
    assert asked == [0]  # 29 ms lost, 20 allowed


def test_a_failure_that_passes_is_that_of_one_extent(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "free_huge_pages", lambda: 1 << 20)
    monkeypatch.setattr(hugepages, "_collapse", lambda fd, offset, place: 0 if offset else errno.EAGAIN)
    extents = Extents(fd)
    extents.resize(SIZE)
    assert not extents.take(0, 2 * EXTENT_BYTES)
    assert extents.take(EXTENT_BYTES, EXTENT_BYTES)


def test_a_full_mount_is_an_error_or_small_pages(tiny_tmpfs: InTmpfs) -> None:
    """Never more than there is; the first page of an extent that has no room is ENOSPC."""

    def body(point: Path) -> None:
        fd = os.open(point / "x", os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(fd, LEAST_BYTES)
        extents = Extents(fd)
        extents.resize(LEAST_BYTES)
        extents.take(0, EXTENT_BYTES)
        os.posix_fallocate(fd, 0, (3 << 20) - 4096)
        assert not extents.take(EXTENT_BYTES, EXTENT_BYTES)
        os.posix_fallocate(fd, 0, 3 << 20)
        extents = Extents(fd)
        extents.resize(LEAST_BYTES)
        with pytest.raises(OSError, match="No space left"):
            extents.take(2 * EXTENT_BYTES, 1)
        os.close(fd)
        assert used_bytes(point) == 3 << 20

    tiny_tmpfs(body, size="3m")


@pytest.mark.parametrize(
    ("mount", "setting", "switch", "huge_bytes", "expected"),
    [
        (TMPFS, "", "never", EXTENT_BYTES, True),
        (None, "auto", "advise", EXTENT_BYTES, True),
        (TMPFS, "never", "never", EXTENT_BYTES, False),
        (TMPFS, "", "deny", EXTENT_BYTES, False),
        (TMPFS, "", None, EXTENT_BYTES, False),
        (TMPFS, "", "never", 512 << 20, False),  # arm64 with pages of 64 KiB
        (TMPFS, "", "never", None, False),
        (Mount("/m", "tmpfs", "m", {"huge": "advise"}), "", "never", EXTENT_BYTES, False),  # gives them by itself
        (Mount("/m", "ext4", "m", {}), "", "never", EXTENT_BYTES, False),
    ],
)
def test_when_they_are_asked_for(
    mount: Mount | None,
    setting: str,
    switch: str | None,
    huge_bytes: int | None,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DSMEM_HUGE_PAGES", setting)
    monkeypatch.setattr(proc, "shmem_enabled", lambda: switch)
    monkeypatch.setattr(proc, "huge_page_bytes", lambda: huge_bytes)
    monkeypatch.setattr(proc, "huge_pages", lambda mount: mount.options.get("huge", "never"))
    assert hugepages.can_be_taken(mount) is expected


@pytest.mark.parametrize("more_bytes", [0, 4096, 12345])
def test_maps_begin_where_huge_pages_do(more_bytes: int) -> None:
    """Each of many of one size, without more addresses than it takes; nothing is held afterwards."""
    arguments = [sys.executable, "-c", _MAPS, str(LEAST_BYTES + more_bytes)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert (done.stderr, done.stdout.split()) == ("", ["0"] * 50)


_MAPS = """
import mmap, numpy, os, resource, sys
from dsmem.store import hugepages
size_bytes = int(sys.argv[1])
fd = os.memfd_create("test")
os.ftruncate(fd, size_bytes)
os.pwrite(fd, b"end", size_bytes - 3)
kept = []
resource.setrlimit(resource.RLIMIT_AS, (51 * size_bytes + int(open("/proc/self/statm").read().split()[0]) * 4096,) * 2)
for _ in range(50):
    kept.append(hugepages.mapped(fd, size_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ))
    assert len(kept[-1]) == size_bytes and kept[-1][-3:] == b"end"
    print(hugepages.address_of(kept[-1]) % hugepages.EXTENT_BYTES)
with open("/proc/self/maps") as maps:
    held = [line for line in maps if "---p" in line and len(line.split()) == 5]
assert len(held) < 20, held
"""
