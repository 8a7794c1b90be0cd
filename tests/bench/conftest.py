"""Benches that leave nothing: no files in a directory made for the test, shared memory as it was."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch.distributed.checkpoint

from dsmem.bench import machine

IMPORTED = datasets, torch.distributed.checkpoint
"""By the cases, too: beforehand, nothing looks for garbage among it (`pytest_collection_finish`)."""


@pytest.fixture(autouse=True)
def quick_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's speeds, of which every run measures three, on 1 MiB."""
    monkeypatch.setattr(machine, "_TRY_BYTES", 1 << 20)


@pytest.fixture(autouse=True)
def scratch_parents(store_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """Where private places are made; checked for leftovers, and for the user's own store not being touched.

    A short path: below pytest's own, the sockets by which torch's workers send tensors have names over 108 bytes, and a
    worker that can't send leaves its loader waiting.
    """
    files = Path(tempfile.mkdtemp(prefix="dsmem-"))
    monkeypatch.setattr(tempfile, "tempdir", str(files))
    monkeypatch.setenv("TMPDIR", str(files))
    segments = _segments()
    yield files, store_root.parent
    assert list(files.iterdir()) == []
    assert list(store_root.parent.iterdir()) == []
    deadline = time.monotonic() + 60  # others on this machine may have segments, which go; what is left here stays
    left = _segments() - segments
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left &= _segments()
    assert left == set()
    files.rmdir()


def _segments() -> set[str]:
    """Segments of multiprocessing.shared_memory."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("psm_")}
