"""Which files are meant by a directory or a glob: text, but nothing hidden, nor what a run has written."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import children
import pytest
import tokentexts

import dsmem
from dsmem.tokens import workdir
from dsmem.tokens.inputs import Wanted, gather

PART = 1 << 14


def test_nothing_hidden_is_taken(tmp_path: Path) -> None:
    for name in (
        "b.jsonl",
        "a/x.jsonl",
        "a-b/x.jsonl",
        ".ipynb_checkpoints/b-checkpoint.jsonl",
        "a/.git/x.jsonl",
        ".c.jsonl",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text('{"text": "x"}\n')
    found = [os.path.relpath(one.path, tmp_path) for one in gather([str(tmp_path)])]
    assert found == ["b.jsonl", "a/x.jsonl", "a-b/x.jsonl"]
    # What is named is taken, hidden or not.
    assert len(gather([str(tmp_path / ".ipynb_checkpoints")])) == 1


def test_links_to_directories_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name in ("d/a.jsonl", "elsewhere/b.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    (tmp_path / "d" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "d" / "c.jsonl").symlink_to(tmp_path / "elsewhere" / "b.jsonl")
    with caplog.at_level(logging.WARNING):
        assert [Path(one.path).name for one in gather([str(tmp_path / "d")])] == ["a.jsonl", "c.jsonl"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/d/link is a link to a directory, which is not followed: name it to have it read"
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_directory_that_is_closed_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "closed").mkdir(0)
    with pytest.raises(PermissionError):
        gather([str(tmp_path)])


@pytest.mark.parametrize("form", [None, "jsonl"])
@pytest.mark.parametrize("how", [{}, {"val_fraction": 0.4}, {"shards": 2}])
def test_what_runs_have_written_is_no_input(form: Any, how: dict[str, Any], tmp_path: Path) -> None:
    texts = tokentexts.documents(30)
    tokentexts.write_jsonl(tmp_path / "a.jsonl", texts)
    dsmem.tokenize(tmp_path, tmp_path / "train.bin", format=form, **how)
    again = dsmem.tokenize(tmp_path, tmp_path / "train.bin", format=form, overwrite=True, **how)
    other = dsmem.tokenize(tmp_path, tmp_path / "other.bin", format=form)
    assert again.documents == other.documents == 30
    found = gather([str(tmp_path / "*.json*")], Wanted("jsonl"))
    assert [Path(one.path).name for one in found] == ["a.jsonl"]
    with pytest.raises(dsmem.BadSource, match="all that matches was written by dsmem tokenize"):
        gather([str(tmp_path / "*.json")])


def test_json_of_others_beside_is_an_input(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('[{"text": "a"}]')
    (tmp_path / "odd.json").write_text('[{"dsmem_tokens": 1, "text": "b"}]')
    assert dsmem.tokenize(tmp_path, tmp_path / "out.bin").documents == 2


@pytest.mark.parametrize("after", [0, 8])
@pytest.mark.parametrize("restart", [False, True])
def test_killed_with_the_output_within_the_input(after: int, restart: bool, tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    tokentexts.write_jsonl(directory / "x.jsonl", tokentexts.documents(300))
    out = directory / "train.bin"

    def die() -> None:
        def stop(done_bytes: int, total_bytes: int) -> None:
            if done_bytes > after * PART:
                os._exit(9)

        dsmem.tokenize(directory, out, part_bytes=PART, progress=stop)

    with pytest.raises(children.ChildDied):
        children.call(die)
    parts = Path(workdir.path_of(str(out)))
    assert (parts / "plan.json").exists() and bool(list(parts.glob("part-*.json"))) == bool(after)
    done = dsmem.tokenize(directory, out, part_bytes=PART, restart=restart)
    assert done.documents == 300 and (done.resumed_parts > 0) == (after > 0 and not restart)
    dsmem.tokenize(directory / "x.jsonl", tmp_path / "whole.bin", part_bytes=PART)
    assert out.read_bytes() == (tmp_path / "whole.bin").read_bytes()
    assert not list(directory.glob(".*"))


@pytest.mark.parametrize("name", ["dataset_dict.json", "state.json"])
def test_what_tells_of_a_saved_dataset_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(dsmem.BadSource, match=f"{name} is no regular file"):
        list(gather([str(tmp_path)], Wanted()))
    (tmp_path / name).unlink()
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 1 << 40)
    with pytest.raises(dsmem.BadSource, match=f"{name} is larger than"):
        list(gather([str(tmp_path)], Wanted()))
