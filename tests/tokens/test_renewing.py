"""Engines forget what they have remembered before it is much, and no id depends on it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokentexts

import dsmem
from dsmem import malloc, proc
from dsmem.tokens import engines, nursery, renewing, starting
from dsmem.tokens import tokenize as running
from dsmem.tokens.renewing import Renewing
from dsmem.tokens.seams import ByteSeams, Seams


class Remembering:
    """Remembers in the memory of its thread what it has encoded, as fastokens does."""

    name: engines.EngineName = "fastokens"

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.begun: list[threading.Thread] = []

    def encode(self, texts: Sequence[str]) -> tuple[engines.Ids, engines.Lengths]:
        if texts is renewing.FIRST:
            self.begun.append(threading.current_thread())
            return np.zeros(1, np.uint32), np.ones(1, np.int64)
        if "bad" in texts:
            raise ValueError("a bad text")
        self.threads.append(threading.current_thread())
        return np.array([len(text) for text in texts], np.uint32), np.ones(len(texts), np.int64)

    def seams(self) -> Seams:
        return ByteSeams([], within_words=True)


def test_a_thread_ends_when_the_process_has_grown_by_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([100, 105, 111, 110, 102, 112, 113, 113, 101, 105, 90, 101, 101, 95])
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
    assert engine.begun[:2] == [others[0], others[2]]  # what each has from the first is no growth


def test_free_blocks_of_the_heap_are_no_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    """What malloc keeps is given back, and the engine keeps what it remembers, unless that is most of its share."""
    sizes = {"now": 100, "used": 100}
    trimmed: list[int] = []

    def give_back() -> None:
        trimmed.append(sizes["now"])
        sizes["now"] = sizes["used"]

    monkeypatch.setattr(renewing, "own_bytes", lambda: sizes["now"])
    monkeypatch.setattr(malloc, "give_back", give_back)
    renewed = Renewing(Remembering(), 20, lambda: 0)
    for now, used, renewals in ((100, 100, 0), (120, 100, 0), (121, 100, 0), (130, 115, 0), (130, 116, 1)):
        sizes.update(now=now, used=used)
        renewed.encode(["a"])
        assert renewed.renewals == renewals, now
    assert trimmed == [121, 130, 130, 116]  # the last once more, when its thread has ended


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


def test_one_of_many_remembers_nothing_in_its_own_thread_and_encodes_little_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(renewing, "_LITTLE_CHARACTERS", 10)
    engine = Remembering()
    renewed = Renewing(engine, 1 << 40, lambda: 0, is_one_of_many=True)
    texts = ["x" * size for size in (4, 5, 2, 11, 1, 0, 9)]
    ids, lengths = renewed.encode(texts)
    assert ids.tolist() == [4, 5, 2, 11, 1, 0, 9] and lengths.tolist() == [1] * 7
    assert len(engine.threads) == 4 and threading.main_thread() not in engine.threads
    assert renewed.encode([])[0].tolist() == []
    assert [renewing.are_many(workers) for workers in (8, 9)] == [False, True]
    assert [renewing.are_many(workers, 1 << 16) for workers in (2, 3)] == [False, True]


@pytest.mark.parametrize(
    ("limit_bytes", "processes", "is_warm"), [(1, 2, True), (1 << 40, 2, False), (1 << 40, 9, True)]
)
def test_what_workers_can_share_is_made_before_them(
    limit_bytes: int, processes: int, is_warm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a thread that has ended: what it had for itself is no worker's."""
    (tmp_path / "tokenizer.json").write_text("{} ")
    monkeypatch.setitem(nursery._LARGE_BYTES, "tokenizer.json", limit_bytes)
    engine = Remembering()
    nursery._warm(engine, {"kind": "tokenizer.json", "path": str(tmp_path / "tokenizer.json")}, processes)
    assert len(engine.begun) == is_warm and not any(one.is_alive() for one in engine.begun)


def test_shares_of_workers() -> None:
    assert [renewing.share_bytes(workers) >> 20 for workers in (1, 2, 8, 16)] == [96, 48, 12, 6]
    assert [renewing.share_bytes(workers, 1 << 16) >> 20 for workers in (1, 2, 3, 8, 16)] == [96, 48, 6, 6, 6]


@pytest.fixture
def _tiny_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each batch a new thread: what is measured is more than before, every time; also in workers, forked here."""
    monkeypatch.setattr(renewing, "share_bytes", lambda *_: -1 << 40)
    monkeypatch.setattr(starting, "nursery", lambda: starting.Nursery(forked=True))


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


def test_as_many_workers_as_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _many(tmp_path / "x.txt")
    done = dsmem.tokenize(tmp_path / "x.txt", tmp_path / "out.bin", split_on="line", workers=20, part_bytes=1024)
    assert (done.workers, done.why_fewer_workers) == (20, "")
    one = dsmem.tokenize(tmp_path / "x.txt", tmp_path / "one.bin", split_on="line", workers=1, part_bytes=1024)
    assert one.workers == 1 and (tmp_path / "one.bin").read_bytes() == (tmp_path / "out.bin").read_bytes()
    few = dsmem.tokenize(tmp_path / "x.txt", tmp_path / "few.bin", split_on="line", workers=9)
    assert (few.workers, few.why_fewer_workers) == (1, "the input is cut into no more parts")
    monkeypatch.setattr(running, "_most_processes", lambda: 2)
    few = dsmem.tokenize(tmp_path / "x.txt", tmp_path / "two.bin", split_on="line", workers=9, part_bytes=1024)
    assert (few.workers, few.why_fewer_workers) == (2, "more need more open files (ulimit -n)")
    monkeypatch.setattr(starting, "HERE_BYTES", 0)
    monkeypatch.setattr(running, "_most_processes", lambda: 99)
    monkeypatch.setattr(proc, "usable_cpus", lambda: 64)
    done = dsmem.tokenize(tmp_path / "x.txt", tmp_path / "all.bin", split_on="line", part_bytes=1024)
    assert (done.workers, done.why_fewer_workers) == (running.MOST_WORKERS, "")


def test_a_long_text_that_took_long_is_not_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewing, "_HERE_BYTES", 10)
    monkeypatch.setattr(renewing, "_LONG_S", -1.0)
    monkeypatch.setattr(renewing, "_KEPT_BYTES", 8)  # two ids
    engine = Remembering()
    renewed = Renewing(engine, 1 << 40, lambda: 0)
    for text, encoded in (("x" * 20, 1), ("x" * 20, 1), ("y" * 20, 2), ("x" * 20, 2), ("z" * 21, 3), ("y" * 20, 4)):
        assert renewed.encode([text])[0].tolist() == [len(text)]
        assert len(engine.threads) == encoded, text
    renewed.encode(["short"])
    renewed.encode(["short"])
    assert len(engine.threads) == 6


def _in_small_parts(tmp_path: Path) -> dict[str, Any]:
    trained = tmp_path / "tokenizer.json"
    trained.write_text(tokentexts.trained())
    _many(tmp_path / "x.txt", 20000)
    return {"tokenizer": trained, "split_on": "line", "workers": 2, "part_bytes": 1 << 14}


def _once_free(path: Path, out: Path, **options: Any) -> dsmem.Tokenized:
    """Workers that were forked after the lock was taken have it until the kernel has ended them."""
    until = time.monotonic() + 10
    while True:
        try:
            return dsmem.tokenize(path, out, **options)
        except dsmem.OutputBusy:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


@pytest.mark.usefixtures("_tiny_share")
def test_killed_while_engines_are_renewed_it_goes_on(tmp_path: Path) -> None:
    options = _in_small_parts(tmp_path)
    out = tmp_path / "out.bin"
    pid = os.fork()
    if not pid:

        def kill(done_bytes: int, total_bytes: int) -> None:
            if done_bytes > total_bytes // 2:
                os.kill(os.getpid(), signal.SIGKILL)

        dsmem.tokenize(tmp_path / "x.txt", out, progress=kill, **options)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert not out.exists()
    done = _once_free(tmp_path / "x.txt", out, **options)
    assert 0 < done.resumed_parts < done.parts and done.engine == "fastokens"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(renewing, "share_bytes", lambda *_: 1 << 40)
        dsmem.tokenize(tmp_path / "x.txt", tmp_path / "whole.bin", **options)
    for suffix in (".bin", ".idx", ".docs.npy"):
        assert out.with_suffix(suffix).read_bytes() == (tmp_path / "whole.bin").with_suffix(suffix).read_bytes()


@pytest.mark.usefixtures("_tiny_share")
@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_renewed_thread_is_the_same(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a worker process, after renewals: what the engine refuses is named as it is without any."""
    options = _in_small_parts(tmp_path)
    lines = (tmp_path / "x.txt").read_text().splitlines()
    lines[15000] = "refuse this"
    (tmp_path / "x.txt").write_text("\n".join(lines))
    before = engines._Fastokens.encode

    def encode(self: Any, texts: Sequence[str]) -> tuple[engines.Ids, engines.Lengths]:
        if "refuse this" in texts:
            raise ValueError("a text that can't be")
        return before(self, texts)

    monkeypatch.setattr(engines._Fastokens, "encode", encode)
    with pytest.raises(dsmem.BadSource, match=r"x\.txt:15001.*a text that can't be"):
        dsmem.tokenize(tmp_path / "x.txt", tmp_path / "out.bin", **{**options, "workers": workers})
    assert not (tmp_path / "out.bin").exists()


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


def test_places(tmp_path: Path) -> None:
    """As many as there are at once, halves as wholes of their own; who has left is waited for no longer."""
    from dsmem.tokens.turns import Turns

    of = [Turns(str(tmp_path)) for _ in range(9)]
    half = of[0].take("x", 4)
    ones = [one.take("x", 1) for one in of[1:5]]
    assert len(half) == 4 and all(len(one) == 1 for one in ones)
    got = threading.Event()

    def wait() -> None:
        of[5].take("x", 4)
        got.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert not got.wait(0.2)
    of[0].leave(half)
    for one, taken in zip(of[1:5], ones, strict=True):
        one.leave(taken)
    assert got.wait(10)
    thread.join()
    with of[6].alone():
        assert of[6].take("x", 8) == ()  # whoever is alone needs none
    assert Turns(None).take("x", 4) == ()
