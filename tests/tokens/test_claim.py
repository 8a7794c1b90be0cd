"""What a run may replace: never what it reads, nothing unasked, and of its own output the whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import children
import pytest
import tokentexts

import dsmem
from dsmem.tokens import arrange, workdir
from dsmem.tokens.layout import Beside

SIDES = ("idx", "docs.npy", "json")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return tokentexts.write_jsonl(tmp_path / "corpus.jsonl", tokentexts.documents(40))


def names(directory: Path) -> set[str]:
    return {one.name for one in directory.iterdir()}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["in.json", "in.idx", "in.docs.npy", "in.bin"])
def test_an_input_is_never_replaced(name: str, overwrite: bool, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text('[{"text": "precious"}]')
    with pytest.raises(dsmem.UsageError, match="is read, and the output would replace it"):
        dsmem.tokenize(path, tmp_path / "in.bin", format="json", overwrite=overwrite)
    assert path.read_text() == '[{"text": "precious"}]'
    assert names(tmp_path) == {name}


@pytest.mark.parametrize("overwrite", [False, True])
def test_nor_an_input_below_a_directory_or_behind_a_link(overwrite: bool, tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    path = directory / "train.json"
    path.write_text('[{"text": "precious"}]')
    with pytest.raises((dsmem.UsageError, dsmem.OutputExists)):
        dsmem.tokenize(directory, directory / "train.bin", overwrite=overwrite)
    (tmp_path / "link.json").symlink_to(path)
    with pytest.raises(dsmem.UsageError, match=r"train\.json, which is .*link\.json, is read"):
        dsmem.tokenize(tmp_path / "link.json", directory / "train.bin", overwrite=overwrite)
    assert path.read_text() == '[{"text": "precious"}]'
    assert names(directory) == {"train.json"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_nor_the_tokenizer(overwrite: bool, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "tokenizer.json"
    path.write_text(tokentexts.trained())
    for named in (path, path.parent):
        with pytest.raises((dsmem.UsageError, dsmem.OutputExists)):
            dsmem.tokenize(corpus, path.with_suffix(".bin"), tokenizer=named, overwrite=overwrite)
    with pytest.raises(dsmem.UsageError, match=r"tokenizer\.json.* is read"):
        dsmem.tokenize(corpus, path.with_suffix(".bin"), tokenizer=path.parent, overwrite=True)
    assert path.read_text() == tokentexts.trained()
    assert names(path.parent) == {"tokenizer.json"}


def test_nor_what_standard_input_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('[{"text": "precious"}]')

    def run() -> str:
        os.dup2(os.open(path, os.O_RDONLY), 0)
        with pytest.raises(dsmem.UsageError) as caught:
            dsmem.tokenize("-", tmp_path / "x.bin", format="json", overwrite=True)
        return str(caught.value)

    assert "standard input, is read" in children.call(run)
    assert names(tmp_path) == {"x.json"}


def test_nor_what_lies_in_the_work_directory(tmp_path: Path) -> None:
    out = tmp_path / "out.bin"
    directory = Path(workdir.path_of(str(out)))
    directory.mkdir(0o700)
    path = tokentexts.write_jsonl(directory / "x.jsonl", ["precious"])
    with pytest.raises(dsmem.UsageError, match="in the work directory"):
        dsmem.tokenize(path, out, restart=True)
    assert path.exists()


@pytest.mark.parametrize("side", SIDES)
def test_side_files_of_others_are_not_replaced(side: str, corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / f"out.{side}"
    path.write_text("precious")
    with pytest.raises(dsmem.OutputExists) as caught:
        dsmem.tokenize(corpus, tmp_path / "out.bin")
    assert caught.value.path == str(path)
    assert path.read_text() == "precious"
    assert names(tmp_path) == {"corpus.jsonl", path.name}
    dsmem.tokenize(corpus, tmp_path / "out.bin", overwrite=True)
    assert tokentexts.written(tmp_path / "out.bin")


@pytest.mark.parametrize("how", [{"shards": 2}, {"shard_tokens": 10_000}])
def test_nor_those_of_shards_and_validation_documents(how: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    for name in ("out-00001-of-00002.json", "out.val.idx" if "shards" in how else "out.val-00000-of-00001.idx"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(dsmem.OutputExists, match=name):
            dsmem.tokenize(corpus, tmp_path / "out.bin", val_fraction=0.2, **how)
        assert (tmp_path / name).read_text() == "precious"
        (tmp_path / name).unlink()
    assert names(tmp_path) == {"corpus.jsonl"}


@pytest.mark.parametrize("name", ["out.val.json", "out-00000-of-00002.json", "out.val-00000-of-00003.json"])
@pytest.mark.parametrize("what", ["a FIFO", "a directory", "a link to nowhere", "a TiB", "a TiB that begins as one"])
def test_what_lies_where_another_form_would_be_is_not_waited_for_nor_read_whole(
    what: str, name: str, corpus: Path, tmp_path: Path
) -> None:
    path = tmp_path / name
    if what == "a FIFO":
        os.mkfifo(path)
    elif what == "a directory":
        path.mkdir()
    elif what == "a link to nowhere":
        path.symlink_to("nowhere")
    else:
        path.write_text('{"dsmem_tokens": 1, ' if "begins" in what else "")
        os.truncate(path, 1 << 40)
    dsmem.tokenize(corpus, tmp_path / "out.bin")
    dsmem.tokenize(corpus, tmp_path / "out.bin", overwrite=True)
    assert os.path.lexists(path) and tokentexts.written(tmp_path / "out.bin")


def test_what_took_the_name_meanwhile_is_not_replaced(corpus: Path, tmp_path: Path) -> None:
    def take(done_bytes: int, total_bytes: int) -> None:
        (tmp_path / "out.json").write_text("precious")

    with pytest.raises(dsmem.OutputExists, match=r"out\.json"):
        dsmem.tokenize(corpus, tmp_path / "out.bin", progress=take)
    assert (tmp_path / "out.json").read_text() == "precious"
    assert not (tmp_path / "out.bin").exists()


@pytest.mark.parametrize("before", [{"shards": 3}, {"shard_tokens": 9_000, "val_fraction": 0.3}, {"val_fraction": 0.3}])
@pytest.mark.parametrize("after", [{"shards": 2}, {"shard_tokens": 30_000}, {}, {"val_fraction": 0.2, "shards": 2}])
def test_another_form_of_the_output_is_replaced_as_a_whole(
    before: dict[str, Any], after: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.bin"
    dsmem.tokenize(corpus, out, **before)
    there = names(tmp_path)
    with pytest.raises(dsmem.OutputExists):
        dsmem.tokenize(corpus, out, **after)
    assert names(tmp_path) == there
    done = dsmem.tokenize(corpus, out, overwrite=True, **after)
    written = {os.path.basename(path) for one in done.outputs for path in Beside.of(one.path).paths()}
    assert names(tmp_path) == {"corpus.jsonl", *written}


def test_what_is_not_told_to_be_of_the_output_is_not_removed(corpus: Path, tmp_path: Path) -> None:
    """An output of its own that has the name of our validation file; shards of which nothing is known."""
    dsmem.tokenize(corpus, tmp_path / "out.val.bin")
    dsmem.tokenize(corpus, tmp_path / "out.bin")
    dsmem.tokenize(corpus, tmp_path / "out.bin", overwrite=True)
    assert len(tokentexts.written(tmp_path / "out.val.bin")) == 40
    foreign = tmp_path / "out-00000-of-00009.bin"
    foreign.write_bytes(b"precious")
    for overwrite in (False, True):
        with pytest.raises(dsmem.OutputExists, match="out-00000-of-00009.bin" if overwrite else ".bin"):
            dsmem.tokenize(corpus, tmp_path / "out.bin", shards=2, overwrite=overwrite)
    assert foreign.read_bytes() == b"precious"
    assert len(tokentexts.written(tmp_path / "out.bin")) == 40


ARRANGEMENTS: dict[str, dict[str, Any]] = {
    "one": {},
    "val": {"val_fraction": 0.3},
    "shards": {"shards": 3},
    "by size": {"shard_tokens": 9_000, "val_fraction": 0.3, "shuffle_seed": 1},
}


@pytest.mark.parametrize(("kind", "overwrite"), [("one", True), *((kind, False) for kind in ARRANGEMENTS)])
def test_killed_between_the_first_name_and_the_last_cleaning(
    kind: str, overwrite: bool, corpus: Path, tmp_path: Path
) -> None:
    """At each call that gives or takes a name from then on, twice in a row; the same command then finishes."""
    how = ARRANGEMENTS[kind]
    expected = dsmem.tokenize(corpus, tmp_path / "whole.bin", part_bytes=1 << 15, **how)
    count, ended = 0, False
    while not ended:
        count += 1
        out = tmp_path / f"{count}" / "out.bin"
        out.parent.mkdir()
        run = partial(_killed, corpus, out, count, how, overwrite)
        ended = children.call(run)
        left = {one.name for one in out.parent.glob(".*/*")}
        if not ended and not overwrite and left <= {"lock"}:
            with pytest.raises(dsmem.OutputExists):  # all was done but to remove the directory
                dsmem.tokenize(corpus, out, part_bytes=1 << 15, **how)
        elif not ended and not children.call(run):
            done = dsmem.tokenize(corpus, out, part_bytes=1 << 15, overwrite=overwrite, **how)
            assert len(done.outputs) == len(expected.outputs)
            assert not list(out.parent.glob(".*"))
        for one in expected.outputs:
            path = Path(str(out.parent / Path(one.path).name.replace("whole", "out")))
            assert path.read_bytes() == Path(one.path).read_bytes()
            assert path.with_suffix(".idx").read_bytes() == Path(one.path).with_suffix(".idx").read_bytes()
    assert count > 6


def _killed(corpus: Path, out: Path, count: int, how: dict[str, Any], overwrite: bool) -> bool:
    """A run that stops dead before the count-th such call; whether it ended before."""
    calls = 0

    class Dead(BaseException):
        pass

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += publishing
            if calls == count:
                raise Dead
            return call(*args, **kwargs)

        return wrapped

    publishing = False
    publish = arrange._publish

    def begin(*args: Any) -> None:
        nonlocal publishing
        publishing = True
        publish(*args)

    patch = pytest.MonkeyPatch()
    patch.setattr(arrange, "_publish", begin)
    for name in ("replace", "unlink", "rmdir"):
        patch.setattr(os, name, dying(getattr(os, name)))
    # A process that is killed cleans nothing.
    patch.setattr("dsmem.tokens.tokenize._remove_if_bare", lambda *_: None)
    try:
        dsmem.tokenize(corpus, out, part_bytes=1 << 15, overwrite=overwrite, **how)
    except Dead:
        return False
    finally:
        patch.undo()
    return True


def test_word_of_another_arrangement_exempts_nothing(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.bin"

    def dead(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workdir, "remove", dead)
        with pytest.raises(KeyboardInterrupt):
            dsmem.tokenize(corpus, out)
    before = out.read_bytes()
    with pytest.raises(dsmem.OutputExists):
        dsmem.tokenize(corpus, out, shuffle_seed=2)
    assert out.read_bytes() == before
    dsmem.tokenize(corpus, out)
    assert out.read_bytes() == before
    assert json.loads((tmp_path / "out.json").read_bytes())["documents"] == 40
    assert not list(tmp_path.glob(".*"))
