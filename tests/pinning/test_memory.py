"""Pinning takes the object and little more: 64 MiB, and a chunk for each thread."""

from __future__ import annotations

import mmap
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
from children import call
from samples import MIB

import dsmem
from dsmem import proc
from dsmem.pinning import decoding

SIZE_BYTES = 192 * MIB
ALLOWED_BYTES = 64 * MIB
DECODER_BYTES = 13 * MIB
"""What a process that decodes plain chunks is, numpy not in it."""
READER_BYTES = 22 * MIB
"""What a process with h5py in it is."""
_SAMPLING_S = 0.002


class Peak:
    """The most memory of its own that this process and its children had in a block, beyond what it had before."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self.looks = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self._before = self._now()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLING_S):
            self.size_bytes = max(self.size_bytes, self._now() - self._before)
            self.looks += 1

    @staticmethod
    def _now() -> int:
        """A child that has yet to become another program is seen with the memory of its parent: it has none yet."""
        me = psutil.Process()
        total = proc.memory_of(me.pid).anonymous_bytes
        for child in me.children(recursive=True):
            with suppress(ProcessLookupError, psutil.Error):
                if child.cmdline() != me.cmdline():
                    total += proc.memory_of(child.pid).anonymous_bytes
        return total


def write(path: Path, chunk: tuple[int, ...] | None, **options: Any) -> Path:
    """192 MiB of uint8 in `x`; in chunks (of whole rows) it is one chunk again and again."""
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        if chunk is None:
            file["x"] = np.resize(random.integers(0, 255, MIB, np.uint8), (SIZE_BYTES // MIB, MIB))
            return path
        rows = SIZE_BYTES // int(np.prod(chunk[1:]))
        dataset = file.create_dataset("x", (rows, *chunk[1:]), "u1", chunks=chunk, **options)
        dataset[: chunk[0]] = random.normal(100, 3, chunk).astype(np.uint8) // 4 * 4
        below = (0,) * (len(chunk) - 1)
        mask, stored = dataset.id.read_direct_chunk((0, *below))
        for row in range(chunk[0], rows, chunk[0]):
            dataset.id.write_direct_chunk((row, *below), stored, mask)
    return path


KINDS: dict[str, tuple[tuple[int, ...] | None, dict[str, Any]]] = {
    "contiguous": (None, {}),
    "gzip images": ((1, 256, 256), {"compression": "gzip"}),
    "lzf in large chunks": ((12, 1024, 1024), {"compression": "lzf"}),
    "shuffle + gzip in large chunks": ((12, 1024, 1024), {"compression": "gzip", "shuffle": True}),
    "shuffle + gzip in very large chunks": ((64, 1024, 1024), {"compression": "gzip", "shuffle": True}),
    "checked shuffle + gzip in very large chunks": (
        (64, 1024, 1024),
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
    ),
    "small gzip chunks": ((1, 64, 64), {"compression": "gzip"}),
    "scaleoffset": ((1, 1024, 1024), {"scaleoffset": 0}),
    "scaleoffset in large chunks": ((16, 1024, 1024), {"scaleoffset": 0}),
    "scaleoffset in very large chunks": ((64, 1024, 1024), {"scaleoffset": 0}),
    "shuffle + scaleoffset in very large chunks": ((64, 1024, 1024), {"scaleoffset": 0, "shuffle": True}),
}


@pytest.mark.parametrize(("kind", "threads"), [*((kind, 2) for kind in KINDS), ("shuffle + gzip in large chunks", 6)])
def test_pinning_takes_the_object_and_little_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, threads: int
) -> None:
    monkeypatch.setattr(proc, "usable_cpus", lambda: threads)
    monkeypatch.setattr(decoding, "WORTH_CHUNKS", 1)
    chunk, options = KINDS[kind]
    path = write(tmp_path / "x.h5", chunk, **options)

    def pin() -> int:
        with Peak() as peak:
            dsmem.pin(path)
        return peak.size_bytes

    beside = threads * DECODER_BYTES if kind == "small gzip chunks" else 0
    beside += (threads - 1) * READER_BYTES if "scaleoffset" in kind else 0
    taken = call(pin)
    allowed = ALLOWED_BYTES + threads * int(np.prod(chunk or ())) + beside
    assert taken <= allowed, f"{taken / MIB:.0f} MiB taken, {allowed / MIB:.0f} allowed"


def test_narrow_chunks_that_do_not_compress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are stored in their whole size, and decoded through a buffer of that size."""
    monkeypatch.setattr(proc, "usable_cpus", lambda: 2)
    path, chunk = tmp_path / "x.h5", (32, MIB)
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", (64, 3 * MIB), "u1", chunks=chunk, compression="gzip", fletcher32=True)
        block = np.random.default_rng(0).integers(0, 256, chunk, np.uint8)
        dataset[: chunk[0], : chunk[1]] = block
        mask, stored = dataset.id.read_direct_chunk((0, 0))
        for row in range(0, 64, chunk[0]):
            for column in range(0, 3 * MIB, chunk[1]):
                dataset.id.write_direct_chunk((row, column), stored, mask)

    def pin() -> int:
        with Peak() as peak:
            dsmem.pin(path)
        return peak.size_bytes

    taken = call(pin)
    allowed = ALLOWED_BYTES + 2 * int(np.prod(chunk))
    assert taken <= allowed, f"{taken / MIB:.0f} MiB taken, {allowed / MIB:.0f} allowed"


def test_attributes(tmp_path: Path) -> None:
    """All of them come to more than may be taken; HDF5 reads those of one node together to tell their names."""
    path, groups, each, size_bytes = tmp_path / "x.h5", 60, 10, 120_000
    random = np.random.default_rng(0)
    with h5py.File(path, "w", libver="latest") as file:
        file["x"] = np.arange(1000)
        for number in range(groups):
            group = file.create_group(f"{number}")
            for name in range(each):
                group.attrs[f"{name}"] = random.integers(0, 255, size_bytes, np.uint8)

    def pin() -> int:
        with Peak() as peak:
            dsmem.pin(path)
        return peak.size_bytes

    taken = call(pin)
    assert groups * each * size_bytes > ALLOWED_BYTES
    assert taken <= ALLOWED_BYTES, f"{taken / MIB:.0f} MiB taken, {ALLOWED_BYTES / MIB:.0f} allowed"


def taken_bytes(path: Path) -> int:
    """What pinning a file takes, in a process of its own."""

    def pin() -> int:
        with Peak() as peak:
            dsmem.pin(path)
        return peak.size_bytes

    return call(pin)


TEXTS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "short": (1_500_000, 3, {}),
    "of 1,000 bytes": (100_000, 1000, {}),
    "in gzip chunks of 8 MB": (1_000_000, 8, {"chunks": (500_000,), "compression": "gzip"}),
    "in rows of many chunks": (1_500_000, 3, {"shape": (1, 1_500_000), "chunks": (1, 50_000), "compression": "lzf"}),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(proc, "usable_cpus", lambda: 2)
    count, length, options = TEXTS[kind]
    path = tmp_path / "x.h5"

    def write() -> None:
        with h5py.File(path, "w") as file:
            dataset = file.create_dataset("x", dtype=h5py.string_dtype(), **{"shape": (count,), **options})
            dataset[...] = "x" * length

    call(write)  # in a process of its own: what is free in this one is used again, unseen
    taken = taken_bytes(path)
    allowed = ALLOWED_BYTES + 2 * 16 * int(np.prod(options.get("chunks", ())))
    assert taken <= allowed, f"{taken / MIB:.0f} MiB taken, {allowed / MIB:.0f} allowed"


@pytest.mark.parametrize("width", [1, 200])
def test_many_small_chunks_without_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """16 bytes a chunk at most, and 100 of those that are decoded now; in whole rows, and many in a row."""
    monkeypatch.setattr(proc, "usable_cpus", lambda: 2)
    monkeypatch.setattr(decoding, "WORTH_CHUNKS", 1 << 30)
    path, chunks = tmp_path / "x.h5", 80_000

    def write() -> None:
        with h5py.File(path, "w") as file:
            dataset = file.create_dataset("x", (chunks // width, 4 * width), "u1", chunks=(1, 4))
            for row in range(0, len(dataset), len(dataset) // 10):
                dataset[row : row + len(dataset) // 10] = 1

    call(write)
    taken = taken_bytes(path)
    allowed = 20 * MIB + 16 * chunks
    assert taken <= allowed, f"{taken / MIB:.0f} MiB taken, {allowed / MIB:.0f} allowed"


@pytest.mark.parametrize(
    ("filters", "fixed_bytes"),
    [({}, 9 * MIB), ({"compression": "gzip", "chunks": (4,)}, 15 * MIB)],
    ids=["plain", "gzip"],
)
def test_many_datasets(tmp_path: Path, filters: dict[str, Any], fixed_bytes: int) -> None:
    """Some 150 bytes each; of HDF5's structures the last that were looked at, of decoding what threads have."""
    path, count = tmp_path / "x.h5", 10_000

    def write() -> None:
        with h5py.File(path, "w") as file:
            for number in range(count):
                file.create_dataset(f"{number // 500}/dataset{number}", data=np.arange(4.0), **filters)

    call(write)
    taken = taken_bytes(path)
    allowed = fixed_bytes + 200 * count
    assert taken <= allowed, f"{taken / MIB:.0f} MiB taken, {allowed / MIB:.0f} allowed"


def test_what_is_taken_is_seen() -> None:
    def take() -> int:
        with Peak() as peak:
            # Not malloc's, which may have been this process's before.
            held = np.frombuffer(mmap.mmap(-1, 32 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
            held.fill(1)
            looks, deadline = peak.looks, time.monotonic() + 60
            while peak.looks < looks + 2:  # one that has begun since
                assert time.monotonic() < deadline
                time.sleep(_SAMPLING_S)
            del held
        return peak.size_bytes

    assert 32 * MIB <= call(take) < 48 * MIB
