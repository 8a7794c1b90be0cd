"""A run that was killed goes on: finished parts are taken over if they are whole, and the result is the same file."""

from __future__ import annotations

import errno
import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import children
import psutil
import pytest
import tokentexts

import dsmem
from dsmem.errors import OutputExists, UnsafeRoot
from dsmem.tokens import arrange, workdir
from dsmem.tokens.parts import Part

PART = 1 << 14


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return tokentexts.write_jsonl(tmp_path / "corpus.jsonl", tokentexts.documents(300))


def run(path: Path, out: Path, **options: object) -> dsmem.Tokenized:
    return dsmem.tokenize(path, out, part_bytes=PART, **options)  # type: ignore[arg-type]


class Stop(Exception):
    """What interrupts a run here."""


def interrupt(path: Path, out: Path, *, after_bytes: int = 6 * PART, **options: object) -> None:
    """A run that ends in the middle."""

    def stop(done_bytes: int, total_bytes: int) -> None:
        if done_bytes > after_bytes:
            raise Stop

    with pytest.raises(Stop):
        run(path, out, progress=stop, **options)
    assert not out.exists()
    assert (out.parent / f".{out.name}.parts" / "plan.json").exists()


def whole(path: Path, tmp_path: Path) -> bytes:
    run(path, tmp_path / "whole.bin")
    return (tmp_path / "whole.bin").read_bytes()


@pytest.mark.parametrize("options", [{}, {"workers": 2}])
def test_it_goes_on(options: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    interrupt(corpus, tmp_path / "out.bin", after_bytes=12 * PART, **options)  # of 24; up to 8 wait for their place
    seen: list[int] = []
    tokens: list[int] = []
    done = run(
        corpus,
        tmp_path / "out.bin",
        progress=lambda done_bytes, _: seen.append(done_bytes),
        tokens_progress=tokens.append,
    )
    assert 2 < done.resumed_parts < done.parts
    assert (tmp_path / "out.bin").read_bytes() == whole(corpus, tmp_path)
    assert seen[-1] == corpus.stat().st_size
    assert len(tokens) == done.parts and tokens[-1] == done.tokens
    assert not list(tmp_path.glob(".*"))


def test_compressed_input_goes_on(corpus: Path, tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(gzip.compress(corpus.read_bytes()))
    interrupt(path, tmp_path / "out.bin", after_bytes=PART)
    assert run(path, tmp_path / "out.bin").resumed_parts > 0
    assert (tmp_path / "out.bin").read_bytes() == whole(corpus, tmp_path)


def test_what_waited_for_its_place_when_it_was_killed_goes(corpus: Path, tmp_path: Path) -> None:
    interrupt(corpus, tmp_path / "out.bin")
    directory = Path(workdir.path_of(str(tmp_path / "out.bin")))
    waited = directory / "part-000099.bin"
    waited.write_bytes(bytes(100))
    seen: list[bool] = []
    run(corpus, tmp_path / "out.bin", progress=lambda *_: seen.append(waited.exists()))
    assert seen and not any(seen)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM])
def test_without_hard_links_it_is_copied_if_there_is_room(
    code: int, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    expected = whole(corpus, tmp_path)
    required: list[int] = []
    require = arrange._require_room

    def required_room(staging: str, parts: Sequence[Part], total_bytes: int) -> None:
        required.append(total_bytes)
        require(staging, parts, total_bytes)

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(arrange, "_require_room", required_room)
    run(corpus, tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == expected
    assert required == [0, len(expected)]


def test_a_part_that_was_damaged_is_made_anew(corpus: Path, tmp_path: Path) -> None:
    interrupt(corpus, tmp_path / "out.bin")
    directory = Path(workdir.path_of(str(tmp_path / "out.bin")))
    records = sorted(directory.glob("part-*.json"))
    assert len(records) > 2
    tokens = directory / "tokens.bin"
    data = bytearray(tokens.read_bytes())
    data[7] ^= 1
    tokens.write_bytes(data)
    (directory / "part-000001.lengths").unlink()
    records[2].write_bytes(records[2].read_bytes()[:-9])
    done = run(corpus, tmp_path / "out.bin")
    assert done.resumed_parts == len(records) - 3
    assert (tmp_path / "out.bin").read_bytes() == whole(corpus, tmp_path)


def test_another_plan_is_refused_and_says_what_differs(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.bin"
    interrupt(corpus, out)
    with pytest.raises(dsmem.OtherPlan, match=r"eos was \['append', .*and is \['none'") as caught:
        run(corpus, out, eos="none")
    assert len(caught.value.differences) == 1
    with corpus.open("a") as file:
        file.write('{"text": "more"}\n')
    with pytest.raises(dsmem.OtherPlan, match=r"corpus\.jsonl has changed"):
        run(corpus, out)
    with pytest.raises(dsmem.OtherPlan, match="there were 1 inputs and are 2"):
        dsmem.tokenize([corpus, tokentexts.write_jsonl(tmp_path / "b.jsonl", ["x"])], out, part_bytes=PART)
    done = run(corpus, out, restart=True)
    assert (done.resumed_parts, done.documents) == (0, 301)


@pytest.mark.parametrize("workers", [None, 2])
@pytest.mark.parametrize(
    ("before", "now", "made_anew"),
    [
        (0, "all", {0, 1, 2, 3, 4, 5}),
        (0, 5, {0}),
        (5, 6, {0}),
        (5, "all", {0, 1, 2, 3, 4, 5}),
        (0, 0, set()),
        (5, 5, set()),
        (9999, 9999, set()),  # of a part that has fewer documents
        ("all", "all", set()),
        ("all", 5, set()),
        ("all", 0, set()),
        (5, 4, set()),
    ],
)
def test_no_part_is_taken_over_that_was_compared_less_than_is_asked_for(
    before: Any, now: Any, made_anew: set[int], workers: int | None, corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(tokentexts.trained())
    out, directory = tmp_path / "out.bin", Path(workdir.path_of(str(tmp_path / "out.bin")))
    how: dict[str, Any] = {"tokenizer": tmp_path / "tokenizer.json"}
    interrupt(corpus, out, after_bytes=7 * PART, verify=before, **how)
    kept = {number for number in range(6) if (directory / f"part-{number:06d}.json").exists()}
    assert kept == set(range(6))
    for extra in directory.glob("part-*.json"):
        if int(extra.stem[5:]) > 5:
            extra.unlink()
    done = run(corpus, out, verify=now, workers=workers, **how)
    assert done.resumed_parts == 6 - len(made_anew)
    if now == "all":
        assert done.verified == done.documents
    run(corpus, tmp_path / "whole.bin", **how)
    assert out.read_bytes() == (tmp_path / "whole.bin").read_bytes()


def test_each_run_of_several_is_asked_for_its_own_comparing(corpus: Path, tmp_path: Path) -> None:
    """Interrupted with all compared, then with nothing, then with all: the parts of the first are enough."""
    (tmp_path / "tokenizer.json").write_text(tokentexts.trained())
    out, directory = tmp_path / "out.bin", Path(workdir.path_of(str(tmp_path / "out.bin")))
    how: dict[str, Any] = {"tokenizer": tmp_path / "tokenizer.json"}
    interrupt(corpus, out, after_bytes=5 * PART, verify="all", **how)
    compared = len(list(directory.glob("part-*.json")))
    interrupt(corpus, out, after_bytes=12 * PART, verify=0, **how)
    assert len(list(directory.glob("part-*.json"))) > compared
    interrupt(corpus, out, after_bytes=6 * PART, verify="all", **how)
    done = run(corpus, out, verify="all", **how)
    assert done.resumed_parts >= compared > 2
    assert done.verified == done.documents


def test_an_engine_that_is_its_own_reference_goes_on_whatever_is_to_be_compared(corpus: Path, tmp_path: Path) -> None:
    interrupt(corpus, tmp_path / "out.bin", verify=0)
    done = run(corpus, tmp_path / "out.bin", verify="all")
    assert done.resumed_parts > 2 and done.verified == 0


def test_bad_documents_may_be_skipped_by_the_run_that_goes_on(corpus: Path, tmp_path: Path) -> None:
    lines = corpus.read_bytes().splitlines()
    lines[200] = b"no"
    corpus.write_bytes(b"\n".join(lines))
    with pytest.raises(dsmem.BadDocument, match=r"corpus\.jsonl:201"):
        run(corpus, tmp_path / "out.bin")
    done = run(corpus, tmp_path / "out.bin", on_error="skip")
    assert done.resumed_parts > 0 and (done.skipped, done.documents) == (1, 299)


def test_parts_with_skipped_documents_are_not_taken_over_by_a_run_that_skips_none(corpus: Path, tmp_path: Path) -> None:
    corpus.write_bytes(b"no\n" + corpus.read_bytes())
    interrupt(corpus, tmp_path / "out.bin", on_error="skip")
    with pytest.raises(dsmem.BadDocument, match=r"corpus\.jsonl:1: "):
        run(corpus, tmp_path / "out.bin")


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """kill -9 of the parent, again and again: no worker stays, and in the end the file is what it would have been."""
    texts = tokentexts.documents(600)
    path = tokentexts.write_jsonl(tmp_path / "corpus.jsonl", texts)
    (tmp_path / "tokenizer.json").write_text(tokentexts.trained())
    out = tmp_path / "out.bin"
    rng = random.Random(5)
    directory = Path(workdir.path_of(str(out)))

    def tokenize(path: Path, out: Path, **options: Any) -> None:
        dsmem.tokenize(path, out, tokenizer=tmp_path / "tokenizer.json", part_bytes=1 << 14, **options)

    def finished_parts() -> int:
        return len(list(directory.glob("part-*.json"))) if directory.exists() else 0

    kills = 0
    while kills < 3:
        before, more = finished_parts(), rng.randrange(1, 9)
        with children.started(lambda: tokenize(path, out, workers=2)) as running:
            limit = time.monotonic() + 60
            while finished_parts() < before + more:  # a little further each time, then killed wherever it is
                assert time.monotonic() < limit
                if os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                    running.result()  # raises what it raised
                    raise AssertionError("it was done before it was killed")
                time.sleep(0.002)
            time.sleep(rng.random() * 0.02)
            started = psutil.Process(running.pid).children(recursive=True)
            assert started
            running.kill()
            kills += 1
            while any(map(children.runs, started)):
                assert time.monotonic() < limit
                time.sleep(0.002)
    children.call(lambda: tokenize(path, out, workers=2))
    assert tokentexts.written(out) == tokentexts.expected(texts)
    assert json.loads((tmp_path / "out.json").read_bytes())["documents"] == len(texts)
    assert not directory.exists()
    tokenize(path, tmp_path / "again.bin")
    assert out.read_bytes() == (tmp_path / "again.bin").read_bytes()


def test_a_work_directory_that_is_not_ours_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("mine")
    out = tmp_path / "out.bin"
    hidden = Path(workdir.path_of(str(out)))
    hidden.symlink_to(victim)
    with pytest.raises(UnsafeRoot, match="is not a directory"):
        dsmem.tokenize(corpus, out)
    assert [one.name for one in victim.iterdir()] == ["thesis.txt"]
    hidden.unlink()
    hidden.mkdir()
    hidden.chmod(0o777)
    with pytest.raises(UnsafeRoot, match="others can write"):
        dsmem.tokenize(corpus, out)
    assert not out.exists() and not list(hidden.iterdir())


def test_a_stream_does_not_take_the_place_of_an_unfinished_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.bin"
    interrupt(corpus, out)
    directory = Path(workdir.path_of(str(out)))
    parts = sorted(one.name for one in directory.glob("part-*.json"))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(dsmem.OtherPlan, match=r"input 1 was .*corpus\.jsonl and is .*fifo"):
        dsmem.tokenize(fifo, out, part_bytes=PART, format="jsonl", workers=1)
    assert parts and sorted(one.name for one in directory.glob("part-*.json")) == parts
    assert run(corpus, out).resumed_parts == len(parts)


def test_what_is_left_of_a_stream_is_in_nobodys_way(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.bin"
    directory = Path(workdir.path_of(str(out)))

    def feed(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data)

    def tokenize(progress: Any) -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        with children.started(lambda: feed(fifo, corpus.read_bytes())):
            dsmem.tokenize(fifo, out, part_bytes=PART, format="jsonl", progress=progress)

    def stop(done_bytes: int, total_bytes: int) -> None:
        if list(directory.glob("part-*.json")):
            raise Stop

    with pytest.raises(Stop):
        tokenize(stop)
    assert not directory.exists()
    # Killed, it leaves parts that no later run can use.
    (tmp_path / "fifo").unlink()
    interrupt(corpus, out)
    plan = json.loads((directory / "plan.json").read_bytes())
    plan["inputs"] = [["-", "jsonl", None]]
    (directory / "plan.json").write_text(json.dumps(plan))
    assert run(corpus, out).resumed_parts == 0


@pytest.mark.parametrize(
    "how", [{"shards": 5}, {"val_fraction": 0.999999, "shards": 2}, {"shards": 5, "shuffle_seed": 1}]
)
def test_too_few_documents_for_the_shards_leave_nothing(how: dict[str, Any], tmp_path: Path) -> None:
    path = tokentexts.write_jsonl(tmp_path / "x.jsonl", ["a", "b", "c"])
    with pytest.raises(dsmem.UsageError, match="documents can't be spread over"):
        run(path, tmp_path / "out.bin", **how)
    assert not list(tmp_path.glob("*out*"))


def test_text_files_are_counted_before_any_work(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("text")
    worked: list[int] = []
    with pytest.raises(dsmem.UsageError, match="2 documents can't be spread over 3 shards: each text file is one"):
        dsmem.tokenize(tmp_path, tmp_path / "out.bin", shards=3, progress=lambda *_: worked.append(1))
    assert not worked
    assert len(dsmem.tokenize(tmp_path, tmp_path / "out.bin", shards=2).outputs) == 2


def test_too_many_shards_keep_the_parts(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrange, "MOST_SHARDS", 3)
    with pytest.raises(dsmem.UsageError, match="shards are too many, 3 have names; all parts are kept"):
        run(corpus, tmp_path / "out.bin", shard_tokens=1000)
    done = run(corpus, tmp_path / "out.bin", shard_tokens=10**6)
    assert done.resumed_parts == done.parts and not list(tmp_path.glob(".*"))


def test_shards_are_replaced_only_when_told(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.bin"
    first = dsmem.tokenize(corpus, out, shards=2)
    before = Path(first.outputs[0].path).read_bytes()
    with pytest.raises(OutputExists, match="out-00000-of-00002"):
        dsmem.tokenize(corpus, out, shards=3)
    assert Path(first.outputs[0].path).read_bytes() == before
    dsmem.tokenize(corpus, out, shards=3, overwrite=True)
