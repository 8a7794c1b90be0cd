"""`populate=True`: all pages are mapped ahead of the first read, beside whatever the process does."""

from __future__ import annotations

import logging
import pickle
import re
from pathlib import Path

import pytest
from children import call
from samples import MIB, assert_reads_as_h5py, settle, write_sample

import dsmem
from dsmem import madvise


@pytest.fixture
def path(tmp_path: Path, store_root: Path) -> Path:
    path = settle(write_sample(tmp_path / "data.h5", 24 * MIB))
    dsmem.pin(path)
    return path


def mapped_bytes(name: str) -> int:
    """What of an object this process has in its page tables."""
    text = Path("/proc/self/smaps").read_text()
    found = re.search(rf"{re.escape(name)}\n(?:.*\n)*?Rss: +(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024


def test_every_page_is_mapped_before_it_is_read(path: Path) -> None:
    def fresh(populate: bool) -> int:
        with dsmem.File(path, populate=populate) as file:
            assert file.populated() == populate
            assert file.object_name is not None
            return mapped_bytes(file.object_name)

    assert call(lambda: fresh(False)) < 4 * MIB
    assert call(lambda: fresh(True)) >= 24 * MIB


def test_it_goes_with_a_pickled_file(path: Path) -> None:
    with dsmem.attach(path, populate=True) as file, pickle.loads(pickle.dumps(file)) as other:
        assert other.populated()
    with dsmem.attach(path) as file, pickle.loads(pickle.dumps(file)) as other:
        assert not other.populated()


def test_closing_in_the_middle_hurts_nobody(path: Path, store_root: Path) -> None:
    files = [dsmem.File(path, pin="auto", populate=True) for _ in range(20)]
    for file in files:
        file.close()
    for file in files:
        file.populated()
    with dsmem.attach(path, populate=True) as again:
        assert_reads_as_h5py(again, path)


def test_a_kernel_without_it_is_done_without(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(madvise, "POPULATE_READ", 9999)
    with caplog.at_level(logging.INFO), dsmem.File(path, populate=True) as file:
        assert file.populated()
        assert_reads_as_h5py(file, path)
    assert "Invalid argument" in caplog.text
