"""Files for what would take much memory: unnamed, on a disk, and done without where there is none."""

from __future__ import annotations

import errno
import gc
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from dsmem import files, proc, settings
from dsmem.scratch import Scratch


def test_what_was_appended_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    one = Scratch()
    assert [one.append(b"abc"), one.append(memoryview(b"defgh"))] == [0, 3]
    assert one.read(3, 5) == b"defgh"
    mapped = one.mapped()
    one.rewrite(1, b"BC")
    assert one.append(b"i") == 8
    assert mapped[:] == b"aBCdefgh" and one.mapped()[:] == b"aBCdefghi"
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_open_before_the_first_and_after_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def opened() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = opened()
    one = Scratch()
    assert opened() == before
    one.append(b"x")
    assert opened() == before + 1
    mapped = one.mapped()
    del one
    assert mapped[:] == b"x"
    del mapped
    assert opened() == before


@pytest.mark.parametrize("fstype", ["tmpfs", "ramfs", "nfs4", "unknown"])
def test_memory_and_the_network_are_no_disk(monkeypatch: pytest.MonkeyPatch, fstype: str) -> None:
    monkeypatch.setattr(proc, "mount_of", lambda _: proc.Mount("/", fstype, "x", {}))
    one = Scratch()
    assert one.append(b"x") is None
    monkeypatch.undo()
    assert one.append(b"x") is None


def test_the_next_directory_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert Scratch().append(b"x") == 0


def test_no_directory_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(settings, "cache_directory", homeless)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert Scratch().append(b"x") is None


def test_no_directory_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mounted(where: str) -> proc.Mount:
        return proc.Mount("/", "ext4" if where == str(tmp_path) else "tmpfs", "x", {})

    monkeypatch.setattr(tempfile, "gettempdir", full)
    monkeypatch.setattr(settings, "cache_directory", lambda: tmp_path)
    monkeypatch.setattr(
        proc, "mount_of", lambda where: proc.Mount("/", "ext4" if where == str(tmp_path) else "tmpfs", "x", {})
    )
    assert Scratch().append(b"x") == 0


def test_a_log_keeps_none_of_it(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(files, "pwrite_full", full)
    data = bytearray(b"abc")
    with caplog.at_level("INFO", "dsmem.scratch"):
        assert Scratch().append(memoryview(data)) is None
    assert "no space left" in caplog.text
    data.append(1)  # raises BufferError where anybody has it


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Scratch()
    assert one.append(b"abc") == 0
    monkeypatch.setattr(files, "pwrite_full", full)
    assert one.append(b"def") is None
    monkeypatch.undo()
    assert one.append(b"ghi") is None
    assert one.read(0, 3) == b"abc" and one.mapped()[:] == b"abc"


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "no space left")
