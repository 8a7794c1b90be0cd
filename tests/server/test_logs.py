"""The log: bounded, one line a record, read while it grows."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsmem.errors import UnsafeRoot
from dsmem.server import logs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "server.log"


@pytest.fixture
def logger(path: Path) -> Iterator[logging.Logger]:
    made = logging.Logger("test")
    handler = logs.RotatingFile(str(path), limit_bytes=200, kept=2)
    made.addHandler(handler)
    yield made
    handler.close()


def test_lines(path: Path, logger: logging.Logger) -> None:
    logger.warning("about %s", "a\x1b[31m\nb")
    (line,) = path.read_text().splitlines()
    assert line.endswith(r"WARNING about a\x1b[31m\x0ab")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_is_rotated_and_old_ones_go(path: Path, logger: logging.Logger) -> None:
    for number in range(40):
        logger.info("record %d", number)
    names = sorted(os.listdir(path.parent))
    assert names == ["server.log", "server.log.1", "server.log.2"]
    assert all((path.parent / name).stat().st_size < 300 for name in names)
    assert logs.tail(str(path), 3)[-1].endswith("record 39") or path.read_text() == ""
    assert [line.rpartition(" ")[2] for line in logs.tail(str(path), 7)] == [str(n) for n in range(33, 40)]
    assert len(logs.tail(str(path), 1000)) < 40


def test_tail_of_nothing(path: Path) -> None:
    assert logs.tail(str(path), 10) == []
    path.parent.mkdir()
    path.write_text("one\n")
    assert logs.tail(str(path), 0) == []
    assert logs.tail(str(path), 10) == ["one"]


def test_follow_through_rotations(path: Path, logger: logging.Logger) -> None:
    logger.info("before")
    seen: list[str] = []
    todo = iter(range(30))

    def pause(elapsed_s: float) -> None:
        number = next(todo, None)
        if number is None:
            raise KeyboardInterrupt
        logger.info("record %d", number)

    with pytest.raises(KeyboardInterrupt):
        for line in logs.follow(str(path), pause=pause):
            seen.append(line.rpartition(" ")[2])
    assert seen == [str(number) for number in range(30)]


def test_follow_waits_for_a_file(path: Path) -> None:
    def pause(elapsed_s: float) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text("first\n")

    assert next(logs.follow(str(path), pause=pause)) == "first"


def test_a_log_that_is_a_symlink_is_not_written_to(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    (tmp_path / "precious").write_text("x")
    path.symlink_to(tmp_path / "precious")
    with pytest.raises(UnsafeRoot):
        logs.RotatingFile(str(path))
    assert (tmp_path / "precious").read_text() == "x"
