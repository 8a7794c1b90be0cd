"""`dsmem tokenize`: what it prints, its exit codes and hints, and Ctrl-C."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from dsmem.errors import SourceChanged
from dsmem.tokens import workdir

from .conftest import Dsmem, Fake


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "ab"}\n{"text": ""}\n')
    return path


def test_a_pipe_gets_tsv(corpus: Path, tmp_path: Path, dsmem: Dsmem) -> None:
    out = tmp_path / "out.bin"
    ran = dsmem("tokenize", str(corpus), "-o", str(out))
    assert ran.exit_code == 0
    assert ran.out == f"path\tsplit\ttokens\tdocuments\n{out}\tall\t4\t2\n"
    assert "2 B of text to 4 uint16 tokens by bytes" in ran.err
    assert out.read_bytes() == bytes([97, 0, 98, 0, 0, 1, 0, 1])


def test_a_terminal_gets_a_table(corpus: Path, tmp_path: Path, dsmem: Dsmem) -> None:
    ran = dsmem("tokenize", str(corpus), "-o", str(tmp_path / "out.bin"), terminal=True)
    assert ran.out.splitlines()[0].split() == ["file", "split", "tokens", "documents"]


def test_json(corpus: Path, tmp_path: Path, dsmem: Dsmem) -> None:
    corpus.write_text('{"text": "ab"}\nno\n')
    options = ("--on-error", "skip", "--json", "--bos", "prepend", "--bos-token", "<|endoftext|>", "--eos", "none")
    ran = dsmem("tokenize", str(corpus), "-o", str(tmp_path / "out.bin"), *options)
    said = json.loads(ran.out)
    assert (said["tokens"], said["documents"], said["skipped"], said["engine"]) == (3, 1, 1, "bytes")
    assert said["outputs"] == [{"path": str(tmp_path / "out.bin"), "split": "all", "tokens": 3, "documents": 1}]
    assert said["skipped_places"][0] in ran.err


def test_no_hint_names_what_was_given(corpus: Path, tmp_path: Path, dsmem: Dsmem) -> None:
    corpus.with_suffix(".txt").write_bytes("ab".encode("utf-16-le"))
    words = ("tokenize", str(corpus.with_suffix(".txt")), "-o", str(tmp_path / "out.bin"), "--encoding", "utf-16")
    said = dsmem(*words, "--split-on", "LINE", "--on-error", "skip")
    assert said.exit_code == 1 and "needs none" in said.err and "hint:" not in said.err
    raised = dsmem(*words, "--on-error", "raise")
    assert raised.err.splitlines()[-1] == f"hint: leave such documents out: dsmem {' '.join(words)} --on-error skip"


def test_without_room_or_directory_the_hint_goes_on(
    corpus: Path, tmp_path: Path, dsmem: Dsmem, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    words = ("tokenize", str(corpus), "-o", str(tmp_path / "out" / "out.bin"), "--shards", "2")
    found = os.statvfs(tmp_path)
    little = os.statvfs_result((found.f_bsize, found.f_frsize, found.f_blocks, 0, 0, *tuple(found)[5:]))
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda path: little)
        ran = dsmem(*words)
    assert ran.exit_code == 4 and "0 B are free" in ran.err
    assert ran.err.splitlines()[-1] == f"hint: make room, then go on: dsmem {' '.join(words)}"

    def remove(path: str) -> None:
        shutil.rmtree(tmp_path / "out")
        raise FileNotFoundError(errno.ENOENT, "No such file", path)

    monkeypatch.setattr(os, "statvfs", remove)
    ran = dsmem(*words)
    assert ran.exit_code == 3 and f"{tmp_path}/out was removed while" in ran.err
    assert ran.err.splitlines()[-1] == f"hint: begin anew: mkdir -p {tmp_path}/out; dsmem {' '.join(words)}"


def test_options_reach_the_library(tmp_path: Path, dsmem: Dsmem) -> None:
    (tmp_path / "x.txt").write_text("\n".join(f"line {number}" for number in range(100)))
    options = ("--split-on", "LINE", "--shard-tokens", "1k", "--val-fraction", "0.3", "--shuffle-docs", "1")
    ran = dsmem("tokenize", str(tmp_path / "x.txt"), "-o", str(tmp_path / "out.bin"), *options, "--dtype", "uint32")
    rows = [line.split("\t") for line in ran.out.splitlines()[1:]]
    assert {row[1] for row in rows} == {"train", "val"}
    assert sum(int(row[3]) for row in rows) == 100
    assert all(int(row[2]) <= 1000 for row in rows)
    assert sum(Path(row[0]).stat().st_size for row in rows) == 4 * sum(int(row[2]) for row in rows)


def test_errors_have_codes_and_hints(corpus: Path, tmp_path: Path, dsmem: Dsmem) -> None:
    out = str(tmp_path / "out.bin")
    corpus.write_text('{"text": "ab"}\n{"body": 1}\n')
    ran = dsmem("tokenize", str(corpus), "-o", out)
    assert (ran.exit_code, ran.out) == (1, "")
    assert ran.err.splitlines() == [
        f"error: {corpus}:2: no field 'text'; there are: 'body'",
        "hint: name the field that holds text, or leave such documents out with --on-error skip: "
        f"dsmem tokenize {corpus} -o {out} --text-field body",
    ]
    corpus.write_text('{"text": "ab"}\n{}\n')
    ran = dsmem("tokenize", str(corpus), "-o", out, "--workers", "1")
    assert ran.err.splitlines() == [
        f"error: {corpus}:2: no field 'text'; there are: none",
        f"hint: leave such documents out: dsmem tokenize {corpus} -o {out} --workers 1 --on-error skip",
    ]
    corpus.write_text('{"body": "b", "n": 1}\n')
    ran = dsmem("tokenize", str(corpus), "-o", out, "--workers", "1")
    assert ran.err.splitlines()[1].endswith("--workers 1 --text-field body")
    ran = dsmem("tokenize", str(corpus), "-o", out, "--text-field", "wrong", "--workers", "1")
    assert ran.err.splitlines()[1].endswith(f"dsmem tokenize {corpus} -o {out} --workers 1 --text-field body")
    assert dsmem("tokenize", str(tmp_path / "none.jsonl"), "-o", out).exit_code == 3
    assert dsmem("tokenize", str(corpus), "-o", out, "--verify", "some").exit_code == 2
    assert dsmem("tokenize", str(corpus), "-o", out, "--shard-tokens", "many").exit_code == 2
    ran = dsmem("tokenize", str(corpus), "-o", out, "--bos", "prepend")
    assert ran.exit_code == 2 and "name it with --bos-token TOKEN" in ran.err
    (tmp_path / "out.bin").write_bytes(b"")
    ran = dsmem("tokenize", str(corpus), "-o", out)
    assert ran.exit_code == 1 and ran.err.splitlines()[1].endswith("--force")


def test_in_use_and_other_plans(corpus: Path, tmp_path: Path, dsmem: Dsmem) -> None:
    out = str(tmp_path / "out.bin")
    with workdir.locked(out) as directory:
        assert dsmem("tokenize", str(corpus), "-o", out).exit_code == 5
    workdir.remove(directory)


@pytest.mark.parametrize("kept", [False, True])
def test_an_interrupt_says_how_to_go_on(kept: bool, tmp_path: Path, fake: Fake, dsmem: Dsmem) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    fake("dsmem.tokens.tokenize", tokenize=interrupted)
    if kept:
        (tmp_path / ".out.bin.parts").mkdir()
    ran = dsmem("tokenize", "x.jsonl", "-o", str(tmp_path / "out.bin"))
    assert ran.exit_code == 130
    assert ("the same command goes on" in ran.err) == kept


def test_an_interrupt_before_the_command_line_is_there(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from importlib.abc import MetaPathFinder
        class Interrupted(MetaPathFinder):
            def find_spec(self, name, *_):
                if name == "dsmem.cli.app":
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, Interrupted())
        from dsmem.__main__ import main
        main()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_no_documents_leaves_nothing_and_tells_what_was_left_out(tmp_path: Path, dsmem: Dsmem) -> None:
    path, out = tmp_path / "x.jsonl", str(tmp_path / "out.bin")
    path.write_text('{"text": 5}\nno\n')
    ran = dsmem("tokenize", str(path), "-o", out, "--on-error", "skip")
    assert ran.exit_code == 1
    lines = ran.err.splitlines()
    assert lines[0] == f"error: no documents in {path}: 2 bad ones were left out"
    assert lines[1].startswith(f"  {path}:1: 'text' is ") and lines[2].startswith(f"  {path}:2: not JSON")
    assert [one.name for one in tmp_path.iterdir()] == ["x.jsonl"]
    path.write_text("[]")
    (tmp_path / "y.jsonl").write_text('{"text": "a"}\n')
    assert dsmem("tokenize", str(tmp_path / "y.jsonl"), "-o", out).exit_code == 0


def test_an_input_that_changed_is_begun_anew(corpus: Path, tmp_path: Path, fake: Fake, dsmem: Dsmem) -> None:
    def changed(*_: object, **__: object) -> None:
        raise SourceChanged("x.jsonl changed while it was tokenized")

    fake("dsmem.tokens.tokenize", tokenize=changed)
    ran = dsmem("tokenize", "x.jsonl", "-o", "out.bin")
    assert ran.err.splitlines()[1] == "hint: once the file is at rest: dsmem tokenize x.jsonl -o out.bin --restart"
    ran = dsmem("tokenize", "x.jsonl", "--restart", "-o", "out.bin")
    assert ran.err.splitlines()[1].endswith("dsmem tokenize x.jsonl --restart -o out.bin")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_standard_streams(closed: str, corpus: Path, tmp_path: Path) -> None:
    """The work is done; that nobody gets the table is an error."""
    command = f'"$0" -m dsmem tokenize x.jsonl -o out.bin {closed}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (tmp_path / "out.bin").stat().st_size == 8
    if closed == "2>&-":
        assert (done.returncode, done.stdout.count("\n")) == (0, 2)
    else:
        assert (done.returncode, done.stdout) == (1, "")
    if closed == ">&-":
        assert done.stderr == "error: the output can't be written: standard output is closed\n"


def test_ctrl_c(tmp_path: Path) -> None:
    """A real one, to the whole group as a terminal sends it; then the same command goes on."""
    (tmp_path / "x.txt").write_bytes(b"some line of text\n" * 2_000_000)
    command = [sys.executable, "-m", "dsmem", "tokenize", "x.txt", "-o", "out.bin", "--split-on", "LINE"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    parts = tmp_path / ".out.bin.parts"
    limit = time.monotonic() + 60
    while not list(parts.glob("part-*.json")) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-2:] == [
        "the same command goes on where this one was; --restart begins anew",
        "interrupted",
    ]
    done = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout)["resumed_parts"] > 0
    assert json.loads(done.stdout)["documents"] == 2_000_000


def test_a_dtype_too_narrow_hints_at_one_that_does(tmp_path: Path, dsmem: Dsmem) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    vocabulary = Tokenizer(models.WordLevel({"a": 0, "far": 70_000}, unk_token="a"))
    vocabulary.save(str(tmp_path / "far.json"))
    given = ("tokenize", str(tmp_path / "x.jsonl"), "-o", str(tmp_path / "x.bin"), "--eos", "none")
    ran = dsmem(*given, "--tokenizer", str(tmp_path / "far.json"), "--dtype", "uint16")
    assert ran.exit_code == 2
    *_, hint = ran.err.splitlines()
    assert hint.startswith("hint: dsmem tokenize ") and hint.endswith(" --dtype uint32")
    assert dsmem(*shlex.split(hint)[2:]).exit_code == 0


def test_errors_in_standard_input_are_said_to_be_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dsmem", "tokenize", "-", "-o", str(tmp_path / "x.bin")]
    ran = subprocess.run(command, input='{"text": "a"}\n{"text": \n', capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1 and ran.stderr.startswith("error: standard input:2: not JSON")
