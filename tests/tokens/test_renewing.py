"""Engines forget what they have remembered before it is much, and no id depends on it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tokentexts

import dsmem
from dsmem.tokens import engines, renewing
from dsmem.tokens.renewing import Renewing
from dsmem.tokens.seams import ByteSeams, Seams
from dsmem.tokens.tokenize import MOST_WORKERS


class Remembering:
    """Remembers in the memory of its thread what it has encoded, as fastokens does."""

    name: engines.EngineName = "fastokens"

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def encode(self, texts: Sequence[str]) -> tuple[engines.Ids, engines.Lengths]:
        if "bad" in texts:
            raise ValueError("a bad text")
        self.threads.append(threading.current_thread())
        return np.array([len(text) for text in texts], np.uint32), np.ones(len(texts), np.int64)

    def seams(self) -> Seams:
        return ByteSeams([], within_words=True)


def test_a_thread_ends_when_the_process_has_grown_by_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([100, 105, 111, 102, 112, 113, 101, 105, 90, 101, 95])
    monkeypatch.setattr(renewing, "own_bytes", lambda: next(sizes))
    engine = Remembering()
    renewed = Renewing(engine, 10, lambda: 0)
    for texts, renewals in ((["a"], 0), (["b"], 1), (["c"], 1), (["d"], 2), (["e"], 2), (["f"], 2), (["g"], 3)):
        assert renewed.encode(texts)[0].tolist() == [1]
        assert renewed.renewals == renewals, texts
    first, second, *others = engine.threads
    assert first is second is threading.main_thread()
    assert others[0] is others[1] and others[2] is others[3] is others[4]  # one for c and d, one for e, f and g
    assert others[0] is not others[2] and not any(one.is_alive() for one in others)


def test_what_waits_for_its_place_is_not_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100
    monkeypatch.setattr(renewing, "own_bytes", lambda: now)
    renewed = Renewing(Remembering(), 10, lambda: now - 100)
    for size in (100, 200, 300):
        now = size
        renewed.encode(["a"])
    assert renewed.renewals == 0


def test_much_text_is_encoded_by_a_thread_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewing, "_HERE_BYTES", 10)
    monkeypatch.setattr(renewing, "_ONCE_BYTES", 20)
    engine = Remembering()
    renewed = Renewing(engine, 1 << 40, lambda: 0)
    for size in (10, 11, 20, 21, 1):
        assert renewed.encode(["x" * size])[0].tolist() == [size]
    main, some, same, much, last = engine.threads
    assert main is threading.main_thread() and some is same is much is not main
    assert last is not much and not much.is_alive()
    with pytest.raises(ValueError, match="a bad text"):  # an error of the engine is the caller's
        renewed.encode(["bad"])


def test_shares_of_workers() -> None:
    assert [renewing.share_bytes(workers) >> 20 for workers in (1, 2, 8, 16)] == [96, 48, 12, 12]


@pytest.fixture
def _tiny_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each batch a new thread: what is measured is more than before, every time."""
    monkeypatch.setattr(renewing, "share_bytes", lambda workers: -1 << 40)


def _many(path: Path, count: int = 4000) -> list[str]:
    texts = [f"{number} some words {number * number:x}" for number in range(count)]
    path.write_text("\n".join(texts))
    return texts


@pytest.mark.usefixtures("_tiny_share")
def test_ids_are_the_same_whenever_an_engine_is_renewed(tmp_path: Path) -> None:
    texts = _many(tmp_path / "x.txt")
    trained = tmp_path / "tokenizer.json"
    trained.write_text(tokentexts.trained())
    done = dsmem.tokenize(tmp_path / "x.txt", tmp_path / "out.bin", tokenizer=trained, split_on="line")
    assert done.engine == "fastokens"
    assert tokentexts.written(tmp_path / "out.bin") == tokentexts.expected(texts)
    (tmp_path / "x.txt").write_bytes(b"one\n\xff\n")
    with pytest.raises(dsmem.BadDocument, match=r"x\.txt:2: not UTF-8"):
        dsmem.tokenize(tmp_path / "x.txt", tmp_path / "no.bin", tokenizer=trained, split_on="line")


def test_workers_are_no_more_than_memory_allows(tmp_path: Path) -> None:
    _many(tmp_path / "x.txt")
    done = dsmem.tokenize(tmp_path / "x.txt", tmp_path / "out.bin", split_on="line", workers=30, part_bytes=1024)
    assert done.workers == MOST_WORKERS
    one = dsmem.tokenize(tmp_path / "x.txt", tmp_path / "one.bin", split_on="line", workers=1, part_bytes=1024)
    assert one.workers == 1 and (tmp_path / "one.bin").read_bytes() == (tmp_path / "out.bin").read_bytes()


def test_who_dies_while_it_is_alone_is_waited_for_no_longer(tmp_path: Path) -> None:
    from dsmem.tokens.turns import Turns

    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        Turns(str(tmp_path)).take_alone()
        os.write(write, b"x")
        signal.pause()
    assert os.read(read, 1) == b"x"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(read)
    os.close(write)
    with Turns(str(tmp_path)).alone():
        pass
