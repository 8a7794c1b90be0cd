"""As many workers of `dsmem tokenize` as fit into its memory, and what is long in as many of them as fit beside."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tokentexts

import dsmem
from dsmem.tokens import crowd, engines, nursery, seams, starting, vocabularies, worker
from dsmem.tokens import tokenize as running
from dsmem.tokens.asking import Asked
from dsmem.tokens.crew import Crew
from dsmem.tokens.renewing import Renewing
from dsmem.tokens.seams import Anywhere, ByteSeams, Seams, TextSeams
from dsmem.tokens.turns import Turns
from dsmem.tokens.vocabularies import Located

MEASURED = {  # vocabulary, workers: MiB of all processes, one run each (docs/figures.md)
    (32_768, 16): 864,
    (32_768, 32): 1100,
    (200_000, 9): 1035,
    (200_000, 16): 1108,
    (200_000, 32): 1744,
}


@pytest.mark.parametrize(("tokens", "workers"), MEASURED)
def test_those_that_were_measured_to_fit(tokens: int, workers: int) -> None:
    fits = MEASURED[tokens, workers] < crowd.MOST_BYTES >> 20
    assert (workers <= crowd.most_workers(tokens - 1, "fastokens")) == fits


def test_larger_vocabularies_and_more_besides_leave_room_for_fewer() -> None:
    sizes = 257, 32_768, 65_536, 131_072, 200_000, 262_144
    counts = [crowd.most_workers(size - 1, "fastokens") for size in sizes]
    assert counts == sorted(counts, reverse=True) and counts[1] >= 24 and counts[4] >= 6
    for size, count in zip(sizes, counts, strict=True):
        with_tables = crowd.most_workers(size - 1, "fastokens", has_tables=True)
        assert 1 < with_tables < count
        assert crowd.most_workers(size - 1, "tokenizers") >= count  # which makes no table
        assert 1 < crowd.most_workers(size - 1, "fastokens", compares_all=True) <= count
    by_themselves = crowd.most_workers(199_999, "tokenizers", is_shared=False)
    assert 1 <= by_themselves < counts[4]
    assert crowd.most_workers(1 << 30, "fastokens") == 1


def test_comparing_all_by_a_large_vocabulary_takes_what_was_measured() -> None:
    """Each of 7 took 119 to 135 MiB with 200,000 tokens, and all 1,041; each of 3 up to 165 in the end."""
    assert 2 <= crowd.most_workers(199_999, "fastokens", compares_all=True) <= 4
    assert crowd.most_workers(32_767, "fastokens", compares_all=True) >= 16  # 526 MiB in all


def test_a_worker_without_a_request_holds_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not between two that follow one another: what it gives back it would have to make again."""
    requests, told = os.pipe()
    rested = threading.Event()
    with os.fdopen(requests, "rb") as lines, os.fdopen(told, "wb") as ours, io.BytesIO() as answers:
        parent = worker._Parent(lines, answers)
        listening = threading.Thread(target=parent.listen)
        listening.start()
        heard: list[bytes] = []
        ours.write(b"1\n2\n")
        ours.flush()
        monkeypatch.setattr(worker, "_IDLE_S", 60.0)
        heard += [parent.hear(rested.set), parent.hear(rested.set)]
        assert not rested.is_set()
        monkeypatch.setattr(worker, "_IDLE_S", 0.01)
        waiting = threading.Thread(target=lambda: heard.append(parent.hear(rested.set)))
        waiting.start()
        assert rested.wait(30)
        ours.write(b"3\n")
        ours.flush()
        waiting.join(30)
        ours.close()
        listening.join(30)
        heard.append(parent.hear())
    assert heard == [b"1\n", b"2\n", b"3\n", b""]


def test_what_is_long_takes_more_places_the_more_the_vocabulary_takes() -> None:
    assert [crowd.weight(workers, 32_767, "fastokens") for workers in (2, 8, 16)] == [1, 1, 1]
    assert [crowd.weight(workers, 199_999, "fastokens") for workers in (2, 8, 13)] == [1, 1, 2]
    assert crowd.weight(1000, 199_999, "fastokens") == crowd.PLACES


def test_as_few_as_fit_and_the_report_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what all know before they are started, and by the vocabulary; the output is the same."""
    trained, path = tmp_path / "tokenizer.json", tmp_path / "x.jsonl"
    trained.write_text(tokentexts.trained())
    tokentexts.write_jsonl(path, tokentexts.documents(300))

    def run(workers: int | None) -> dsmem.Tokenized:
        return dsmem.tokenize(
            path, tmp_path / "out.bin", tokenizer=trained, workers=workers, part_bytes=1 << 13, overwrite=True
        )

    all_of_them = run(9)
    assert (all_of_them.workers, all_of_them.why_fewer_workers) == (9, "")
    expected = (tmp_path / "out.bin").read_bytes()
    monkeypatch.setattr(crowd, "_TABLE_BYTES_OF_ID", 60 << 10)  # 60 MiB each, thrice as much while it grows
    few = run(9)
    assert few.workers == 3
    assert few.why_fewer_workers == running._TOO_LARGE == "with more and this tokenizer, memory might exceed 1.0 GiB"
    assert (tmp_path / "out.bin").read_bytes() == expected
    monkeypatch.setattr(starting, "HERE_BYTES", 0)
    by_itself = run(None)
    assert by_itself.workers <= 3 and by_itself.why_fewer_workers == ""
    monkeypatch.setattr(crowd, "_EACH_BYTES", 400 << 20)  # whatever the vocabulary
    fewer = run(9)
    assert (fewer.workers, fewer.why_fewer_workers) == (1, running._TOO_LARGE)
    assert (tmp_path / "out.bin").read_bytes() == expected


def test_workers_that_are_not_kept_end(tmp_path: Path) -> None:
    with starting.nursery() as one:
        one.expect(Located("bytes"), "auto", parse_special=False, processes=3)
        with Crew(one) as crew:
            crew.keep(5)
            assert crew.size == 3
            crew.keep(1)
            assert crew.size == 1
            for _, answers in one.ends[1:]:
                assert os.read(answers.fileno(), 1) == b""
            crew.ask_fitting({})
            assert crew.fitting() == "bytes"


def test_what_is_long_waits_for_the_places_that_it_takes(tmp_path: Path) -> None:
    """With less in the meantime."""
    of = [Turns(str(tmp_path), weight=4) for _ in range(3)]
    waiting = threading.Event()
    got = threading.Event()
    of[2].before_waiting(waiting.set)
    taken = [one.take("x", 1) for one in of[:2]]
    assert [len(some) for some in taken] == [4, 4]

    def wait() -> None:
        of[2].take("x", 1)
        got.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert waiting.wait(10) and not got.wait(0.2)
    for one, some in zip(of, taken, strict=False):
        one.leave(some)
    assert got.wait(10)
    thread.join()
    heavy = Turns(str(tmp_path / "none"), weight=8)
    assert heavy.take("x", 0) == ()  # what is short takes none


def test_who_waits_for_one_that_is_alone_has_less(tmp_path: Path) -> None:
    alone, other = Turns(str(tmp_path)), Turns(str(tmp_path))
    waiting, through = threading.Event(), threading.Event()
    other.before_waiting(waiting.set)
    with other.beside():
        pass
    assert not waiting.is_set()

    def wait() -> None:
        with other.beside():
            through.set()

    thread = threading.Thread(target=wait, daemon=True)
    with alone.alone():
        thread.start()
        assert waiting.wait(10) and not through.is_set()
    assert through.wait(10)
    thread.join()


class _Engine:
    name: engines.EngineName = "fastokens"

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.do: Callable[[], object] = lambda: None

    def encode(self, texts: Sequence[str]) -> tuple[engines.Ids, engines.Lengths]:
        self.threads.append(threading.current_thread())
        self.do()
        return np.zeros(1, np.uint32), np.ones(1, np.int64)

    def seams(self) -> Seams:
        return Anywhere([])


def test_an_engine_that_rests_has_no_thread_but_while_it_encodes() -> None:
    engine = _Engine()
    many = Renewing(engine, 1 << 40, lambda: 0, is_one_of_many=True)
    many.encode(["a"])
    thread = engine.threads[-1]
    engine.do = many.rest  # as who encodes waits for others: its own thread goes on
    many.encode(["b"])
    engine.do = lambda: None
    assert engine.threads[-1] is thread and thread.is_alive()
    many.rest()
    assert not thread.is_alive()
    many.encode(["c"])
    assert engine.threads[-1] is not thread
    many.rest()
    few = Renewing(engine, 1 << 40, lambda: 0)
    few.encode(["a" * (1 << 20)])
    thread = engine.threads[-1]
    few.rest()
    assert thread.is_alive()


@pytest.mark.parametrize(
    "found",
    [ByteSeams(["ab", "b ", "\nx"], within_words=True), ByteSeams(["ab"], within_words=False), TextSeams(["ab", "▁c"])],
)
def test_a_vocabulary_is_looked_through_once(found: Seams, tmp_path: Path) -> None:
    asked: list[int] = []

    def find() -> Seams:
        asked.append(1)
        return found

    text = b"ab cab\nxa b\nbbaacb aa x\na" * 3
    for one in (Turns(str(tmp_path)), Turns(str(tmp_path))):
        kept = one.seams(find)
        assert kept.cuts(text, 0, len(text)) == found.cuts(text, 0, len(text))
        assert type(kept) is type(found)
    assert len(asked) == 1
    Turns(None).seams(find)
    assert len(asked) == 2


def test_what_is_made_at_once_is_not_kept(tmp_path: Path) -> None:
    assert isinstance(seams.kept(str(tmp_path / "seams.npz"), lambda: Anywhere([])), Anywhere)
    assert not [*tmp_path.iterdir()]


def test_the_reference_is_asked_whatever_the_length(tmp_path: Path) -> None:
    """Workers load none for long documents: it takes up to 200 MiB."""
    trained = tmp_path / "tokenizer.json"
    trained.write_text(tokentexts.trained())
    located = vocabularies.locate(str(trained), lambda: "")
    reference = engines.load(located, "tokenizers", parse_special=False)

    def ask(text: str) -> list[int]:
        ids: list[int] = reference.encode([text])[0].tolist()
        return ids

    long = Asked("tokenizers", ask, reference.seams)
    texts = tokentexts.documents(20)
    (mine, lengths), (theirs, their_lengths) = long.encode(texts), reference.encode(texts)
    assert mine.tolist() == theirs.tolist() and lengths.tolist() == their_lengths.tolist()
    assert long.encode([])[0].tolist() == [] and long.seams() is reference.seams()


def test_one_reference_for_all_that_compare_everything(tmp_path: Path) -> None:
    trained = tmp_path / "tokenizer.json"
    trained.write_text(tokentexts.trained())
    located = {"kind": "tokenizer.json", "path": str(trained)}
    fast = nursery._engine(located, "auto", parse_special=False)
    assert fast is not None and fast.name == "fastokens"
    reference = nursery._reference(fast, located, "auto", parse_special=False)
    assert reference is not None and reference.name == "tokenizers"
    assert reference.encode(["some text"])[0].tolist() == fast.encode(["some text"])[0].tolist()
    assert nursery._reference(reference, located, "auto", parse_special=False) is None
    assert nursery._reference(None, located, "auto", parse_special=False) is None


def test_all_long_documents_are_compared_by_workers(tmp_path: Path) -> None:
    trained, path = tmp_path / "tokenizer.json", tmp_path / "x.jsonl"
    trained.write_text(tokentexts.trained())
    texts = [" ".join(tokentexts.documents(1200))[: 1_300_000 - at] for at in range(3)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    expected = tokentexts.expected(texts, eos=False)
    for verify in (16, "all"):
        done = dsmem.tokenize(
            path,
            tmp_path / "out.bin",
            tokenizer=trained,
            workers=2,
            part_bytes=1 << 20,
            verify=verify,
            overwrite=True,
            eos="none",
        )
        assert done.verified >= 1 and done.workers == 2
        assert tokentexts.written(tmp_path / "out.bin") == expected
