"""The bar: only where stderr is a terminal, one over all files, gone at the end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dsmem.cli import progress
from dsmem.progress import ignore

from .conftest import Stream, plain


def _stderr(monkeypatch: pytest.MonkeyPatch, *, terminal: bool = True) -> Stream:
    stream = Stream(terminal=terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("DSMEM_NO_PROGRESS", raising=False)
    return stream


def _files(directory: Path, *sizes: int) -> list[str]:
    paths = []
    for number, size in enumerate(sizes):
        path = directory / f"{number}.h5"
        path.write_bytes(b"x" * size)
        paths.append(str(path))
    return paths


def test_drawn_with_bytes_and_then_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _stderr(monkeypatch)
    paths = _files(tmp_path, 10)
    with progress.bar("pinning", paths) as bar:
        report = bar.follow(paths[0])
        report(1 << 20, 4 << 20)
        report(2 << 20, 4 << 20)
    assert "pinning" in plain(screen.text())
    assert "2.0/4.0 MiB" in plain(screen.text())
    assert screen.text().endswith("\x1b[2K")  # the last thing written erases the line
    assert screen.text().count("\x1b[?25l") == screen.text().count("\x1b[?25h") == 1  # cursor hidden, shown


def test_several_files_are_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _stderr(monkeypatch)
    paths = _files(tmp_path, 3 << 20, 1 << 20)
    with progress.bar("pinning", paths) as bar:
        bar.follow(paths[0])  # already pinned: nothing reported
        bar.follow(paths[1])(50, 100)
    assert "3.5/4.0 MiB" in plain(screen.text())


def test_makes_room_for_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _stderr(monkeypatch)
    paths = _files(tmp_path, 10, 10)
    with progress.bar("pinning", paths) as bar:
        bar.follow(paths[0])(10, 10)
        with bar.aside():
            before = screen.text()
            assert before.endswith("\x1b[2K")
        bar.follow(paths[1])(10, 10)
        assert len(screen.text()) > len(before)


def test_files_that_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _stderr(monkeypatch)
    with progress.files("reading") as shown:
        shown.files(0, 3)
        shown.bytes(1 << 20, 4 << 20)
        shown.files(1, 3)
    assert "reading, 1 of 3 files" in plain(screen.text())
    assert "1.0/4.0 MiB" in plain(screen.text())
    assert screen.text().endswith("\x1b[2K")
    quiet = _stderr(monkeypatch, terminal=False)
    with progress.files("reading") as shown:
        shown.bytes(1, 2)
    assert quiet.text() == ""


def test_more_than_the_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _stderr(monkeypatch)
    with progress.bar("tokenizing", ["."]) as bar:
        bar.tell("1.0M tokens")
        assert screen.text() == ""
        bar.follow(".")(1 << 20, 4 << 20)
        bar.tell("2.5M tokens")
    assert "tokenizing, 1.0M tokens" in plain(screen.text())
    assert "tokenizing, 2.5M tokens" in plain(screen.text())


@pytest.mark.parametrize("reason", ["pipe", "variable"])
def test_not_drawn(reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _stderr(monkeypatch, terminal=reason == "variable")
    if reason == "variable":
        monkeypatch.setenv("DSMEM_NO_PROGRESS", "1")
    with progress.bar("pinning", ["gone.h5"]) as bar:
        assert bar.follow("gone.h5") is ignore
    assert stream.text() == ""


def test_nothing_to_do_draws_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _stderr(monkeypatch)
    paths = _files(tmp_path, 10)
    with progress.bar("pinning", paths) as bar:
        bar.follow(paths[0])
    assert screen.text() == ""


def test_gone_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _stderr(monkeypatch)
    paths = _files(tmp_path, 10)
    with pytest.raises(KeyboardInterrupt), progress.bar("pinning", paths) as bar:
        bar.follow(paths[0])(1, 10)
        raise KeyboardInterrupt
    assert screen.text().endswith("\x1b[2K")
