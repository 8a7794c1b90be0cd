"""The demo, tiny: what it shows is so, and nothing of it stays."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dsmem import demo as module
from dsmem.bench import sizes
from dsmem.bench.harness import ResultsDiffer
from dsmem.bench.sizes import Room
from dsmem.demo import demo
from dsmem.errors import NoSpace, UsageError

SIZE = 16 << 20


@pytest.fixture(autouse=True)
def _nothing_stays(tmp_path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    files = tmp_path / "files"
    files.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(files))
    environment = (os.environ["DSMEM_ROOT"], os.environ["XDG_CACHE_HOME"])
    children = set(psutil.Process().children())
    yield
    assert list(files.iterdir()) == []
    assert list(store_root.parent.iterdir()) == []
    assert (os.environ["DSMEM_ROOT"], os.environ["XDG_CACHE_HOME"]) == environment
    assert set(psutil.Process().children()) <= children


def test_what_it_shows() -> None:
    steps: list[str] = []
    done = demo(size_bytes=SIZE, say=steps.append)
    assert done.why_smaller is None and done.asked_bytes == SIZE
    assert 0.9 * SIZE < done.size_bytes <= SIZE
    assert [one.path for one in done.pinned.datasets] == ["heatmaps", "images", "labels"]
    assert [one.dtype for one in done.pinned.datasets] == ["float32", "uint8", "int64"]
    for held in (done.plain, done.attached):
        assert len(held.answers) == 4
        assert {answer.digest for answer in held.answers} == {done.plain.answers[0].digest}
    assert done.plain.data_pss_bytes > 3.8 * done.size_bytes
    assert done.attached.data_pss_bytes < 1.2 * done.size_bytes
    (entry,) = done.listing.entries
    assert entry.name == done.pinned.name
    assert entry.holders is not None and len(entry.holders) == 4
    assert len(steps) == 4


def test_it_shrinks_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "room", lambda place: Room(1 << 40, 5 << 20, 1 << 40))
    done = demo(size_bytes=SIZE)
    assert done.asked_bytes == SIZE and done.size_bytes < 4 << 20
    assert done.why_smaller is not None and "5.0 MiB of shared memory is free" in done.why_smaller


def test_no_room_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "room", lambda place: Room(1 << 40, 1000, 1 << 40))
    with pytest.raises(NoSpace):
        demo()


def test_too_small_a_size() -> None:
    with pytest.raises(UsageError, match="too little"):
        demo(size_bytes=1000)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_ended_in_the_middle(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(module, "list_objects", fail)
    with pytest.raises(error):
        demo(size_bytes=1 << 20)


def test_reading_something_else_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsmem.bench import team

    right = team._hear
    heard = iter(range(100))

    def wrong(member: object) -> object:
        answer = right(member)  # type: ignore[arg-type]  # passed through
        assert isinstance(answer, team.Answer)
        number = next(heard)  # 16 to warm up, then 8 for the plain ones
        return team.Answer(answer.ready_s, answer.read_s, "0") if number == 25 else answer

    monkeypatch.setattr(team, "_hear", wrong)
    with pytest.raises(ResultsDiffer):
        demo(size_bytes=1 << 20)
