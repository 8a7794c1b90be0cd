"""One definition, three outputs; nothing unsafe reaches a terminal; questions need one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsmem import units
from dsmem.cli.output import Column, NoAnswer, Output, escape, paint, quote
from dsmem.errors import Refusal

from .conftest import Stream, plain

COLUMNS = (
    Column("name", "name"),
    Column("size", "size_bytes", show=units.format_bytes, right=True),
    Column("source", "source"),
)


def _stdout(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> Stream:
    """In place of stdout; called by tests and no fixture, because pytest sets its own between the two."""
    stream = Stream(terminal=terminal)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    return stream


def test_terminal_gets_a_table_in_units_of_people(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _stdout(monkeypatch, terminal=True)
    Output().table(COLUMNS, [["train", 3 << 20, ["/a", "/b"]], ["val", 12, None]])
    assert plain(screen.text()).splitlines() == [
        "name      size  source",
        "train  3.0 MiB  /a",
        "                /b",
        "val       12 B",
    ]


def test_terminal_folds_and_never_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _stdout(monkeypatch, terminal=True)
    long = "/data/" + "x" * 150
    Output().table(COLUMNS, [["train", 1, long]])
    assert long in "".join(line.split("1 B")[-1].strip() for line in plain(screen.text()).splitlines()[1:])


def test_pipe_gets_bare_values_and_no_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = _stdout(monkeypatch, terminal=False)
    long = "/data/" + "x" * 500
    Output().table(COLUMNS, [["train", 3 << 20, [long, "/b"]], ["val", 12, None]])
    header = "name\tsize_bytes\tsource\n"
    assert pipe.text() == f"{header}train\t3145728\t{long} | /b\nval\t12\t\n"


def test_pipe_rows_stay_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = _stdout(monkeypatch, terminal=False)
    Output().table(COLUMNS[:1], [["a\tb\nc\\d"]])
    assert pipe.text() == "name\na\\x09b\\x0ac\\\\d\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_names_are_escaped_everywhere(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _stdout(monkeypatch, terminal=terminal)
    evil = "a\x1b]0;owned\x07\u202e\udcff"
    out = Output()
    out.table(COLUMNS[:1], [[evil]])
    out.record([("name", evil)])
    shown = plain(stream.text())
    assert shown.replace("\\\\", "\\").count(r"a\x1b]0;owned\x07\u202e\xff") == 2
    assert "\x1b" not in shown and "\x07" not in shown and "\u202e" not in shown


def test_json_is_exact_and_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = _stdout(monkeypatch, terminal=False)
    Output(as_json=True).json({"source": "é\x1b\udcff", "file": [Refusal("/a", "b")], "size_bytes": 1 << 60})
    assert pipe.text().isascii() and "\x1b" not in pipe.text()
    assert json.loads(pipe.text()) == {
        "source": "é\x1b\udcff",
        "file": [{"path": "/a", "reason": "b", "allow": None}],
        "size_bytes": 1 << 60,
    }


def test_escape_and_quote() -> None:
    assert escape("plain ✓ é") == "plain ✓ é"
    assert escape("\x00\x7f\x9b\u2028") == r"\x00\x7f\x9b\u2028"
    assert quote("train.h5") == "train.h5"
    assert quote("my file") == "'my file'"
    assert quote("a'\x1b\\é") == r"$'a\'\x1b\\\xc3\xa9'"


@pytest.mark.parametrize("name", ["a\x1bb", "a'\n\\", "\udcff", "$(x)\t", "\u202eé"])
def test_quoted_names_are_what_bash_reads(name: str) -> None:
    done = subprocess.run(["bash", "-c", f"printf %s {quote(name)}"], stdout=subprocess.PIPE, check=True)
    assert done.stdout == os.fsencode(name)


def test_colours_only_where_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert paint("x", "red", Stream(terminal=True)) == "\x1b[31mx\x1b[0m"
    assert paint("x", "red", Stream(terminal=False)) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("x", "red", Stream(terminal=True)) == "x"


def test_no_terminal_no_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stream(terminal=False, text="y\n"))
    with pytest.raises(NoAnswer, match="Remove it"):
        Output().confirm("Remove it?", yes=False)
    Output().confirm("Remove it?", yes=True)


def _closed_pipe() -> int:
    read, write = os.pipe()
    os.close(read)
    return write


def test_broken_pipe_is_silent(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    closed = _closed_pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dsmem", "hash", "--no-cache", str(tmp_path / "a")],
            stdout=closed,
            stderr=subprocess.PIPE,
        )
    finally:
        os.close(closed)
    assert (done.returncode, done.stderr) == (141, b"")


def test_full_disk_under_stdout_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dsmem", "hash", "--no-cache", str(tmp_path / "a")],
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert done.returncode == 1
    assert done.stderr == b"error: the output can't be written: No space left on device\n"


@pytest.mark.parametrize(
    ("size_bytes", "elapsed_s", "shown"),
    [
        (12_288_000, 0.005, "2.46 GB/s"),
        (10**8, 1, "0.10 GB/s"),
        (99_000_000, 1, "99 MB/s"),
        (4_240, 0.001, "4.24 MB/s"),
    ],
)
def test_rates(size_bytes: int, elapsed_s: float, shown: str) -> None:
    assert units.format_rate(size_bytes, elapsed_s) == shown
