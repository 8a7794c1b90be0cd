"""`dsmem tokens`: what each command shows to people, to a pipe and as JSON, and its exit codes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tokenfiles import make_tokens, of_bytes

from dsmem.tokens.options import Arrangement

from .conftest import Dsmem

TEXTS = ("hello world", "", "x" * 100, "two\nlines \x1b[2J é")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    make_tokens(tmp_path / "a.bin", of_bytes(*TEXTS))
    return tmp_path / "a.bin"


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    np.arange(300, dtype="<u2").tofile(tmp_path / "bare.bin")
    return tmp_path / "bare.bin"


def test_info_to_people(tokens: Path, dsmem: Dsmem) -> None:
    ran = dsmem("tokens", "info", str(tokens), terminal=True)
    assert ran.exit_code == 0
    lines = ran.out.splitlines()
    assert "documents   4" in lines
    assert "dtype       uint16 (by the manifest)" in lines
    assert any(line.startswith("tokenizer   bytes") for line in lines)
    assert any("64–127" in line and "█" in line for line in lines)
    assert not any("█" in line for line in lines if "2–3" in line)


def test_info_to_a_pipe(tokens: Path, dsmem: Dsmem) -> None:
    lines = dsmem("tokens", "info", str(tokens)).out.splitlines()
    assert "documents\t4" in lines
    at = lines.index("length\tdocuments\ttokens")
    assert lines[at + 1].split("\t") == ["1", "1", "1"]
    assert sum(int(line.split("\t")[1]) for line in lines[at + 1 :]) == 4


def test_info_as_json(tokens: Path, bare: Path, dsmem: Dsmem) -> None:
    found = json.loads(dsmem("tokens", "info", str(tokens), "--json").out)
    assert set(found) == {
        "path", "size_bytes", "dtype", "known_by", "tokens", "documents", "lengths", "beside", "manifest",
    }  # fmt: skip
    assert found["tokens"] == found["manifest"]["tokens"] == sum(map(len, of_bytes(*TEXTS)))
    assert found["lengths"]["longest"] == 101
    plain = json.loads(dsmem("tokens", "info", str(bare), "--json").out)
    assert (plain["tokens"], plain["documents"], plain["manifest"]) == (300, None, None)
    wide = json.loads(dsmem("tokens", "info", str(bare), "--json", "--dtype", "uint32").out)
    assert (wide["tokens"], wide["known_by"]) == (150, "asked")


def test_info_says_what_is_a_guess(bare: Path, dsmem: Dsmem) -> None:
    out = dsmem("tokens", "info", str(bare)).out
    assert "dtype\tuint16 (a guess: nothing tells it)" in out
    assert "documents\tunknown: nothing tells where they end" in out


def test_info_of_shards(tmp_path: Path, dsmem: Dsmem) -> None:
    how = Arrangement(shards=2, shuffle_seed=7)
    first, _ = make_tokens(tmp_path / "a.bin", of_bytes(*TEXTS), arrangement=how)
    out = dsmem("tokens", "info", first.path).out
    assert "shard\t1 of 2" in out and "shuffled\tseed 7" in out
    assert "bytes a token" not in out  # the text of one shard is not known


def test_show(tokens: Path, dsmem: Dsmem) -> None:
    ran = dsmem("tokens", "show", str(tokens))
    assert (ran.exit_code, ran.out) == (0, "hello world<|endoftext|>\n")
    assert ran.err == "document 0, tokens 0 to 12\n"
    assert dsmem("tokens", "show", str(tokens), "--doc", "-1", colour=True).out == f"{TEXTS[-1]}<|endoftext|>\n"
    shown = dsmem("tokens", "show", str(tokens), "--doc", "3", terminal=True, colour=True).out
    assert shown.startswith("two\nlines \\x1b[2J é<|endoftext|>\n")  # text moves no cursor
    assert dsmem("tokens", "show", str(tokens), "--ids", "--doc", "1").out == "256\n"
    cut = dsmem("tokens", "show", str(tokens), "--doc", "2", "--limit", "3")
    assert (cut.out, cut.err) == ("xxx\n", "document 2, tokens 13 to 16, 3 of 101\n")


def test_show_as_json(tokens: Path, dsmem: Dsmem) -> None:
    found = json.loads(dsmem("tokens", "show", str(tokens), "--doc", "1", "--json").out)
    assert found == {
        "excerpt": {"path": str(tokens), "document": 1, "start": 12, "tokens": 1, "ids": [256]},
        "text": "<|endoftext|>",
        "why_no_text": None,
    }


def test_show_without_a_tokenizer(bare: Path, dsmem: Dsmem) -> None:
    ran = dsmem("tokens", "show", str(bare), "--at", "7", "--limit", "3")
    assert (ran.exit_code, ran.out) == (0, "7 8 9\n")
    assert ran.err.startswith("warning: shown as ids: no manifest names the tokenizer\n")
    assert len(dsmem("tokens", "show", str(bare), "--at", "1", "--ids").out.split()) == 256
    assert dsmem("tokens", "show", str(bare)).exit_code == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--doc", "4"], "has 4 documents; there is no 4"),
        (["--at", "999"], "there is none at 999"),
        (["--at", "1", "--doc", "1"], "not both"),
        (["--limit", "0"], "--limit 0 shows nothing"),
    ],
)
def test_show_misused(tokens: Path, options: list[str], words: str, dsmem: Dsmem) -> None:
    ran = dsmem("tokens", "show", str(tokens), *options)
    assert (ran.exit_code, ran.out) == (2, "")
    assert words in ran.err and "hint: dsmem tokens show --help" in ran.err


def test_verify(tokens: Path, bare: Path, dsmem: Dsmem) -> None:
    ran = dsmem("tokens", "verify", str(tokens), str(bare))
    assert ran.exit_code == 0
    rows = [line.split("\t") for line in ran.out.splitlines()]
    assert rows[0] == ["path", "state", "name", "detail"]
    assert {row[1] for row in rows if row[0] == str(tokens)} == {"ok", ""}
    assert [str(tokens), "", "phantom eos", "0"] in rows
    assert {row[1] for row in rows if row[0] == str(bare)} == {"ok", "absent"}
    shown = dsmem("tokens", "verify", str(tokens), terminal=True).out
    assert "✓ checksum" in shown and "✗" not in shown


def test_verify_finds_faults(tokens: Path, bare: Path, dsmem: Dsmem) -> None:
    data = bytearray(tokens.read_bytes())
    data[1] = 9
    tokens.write_bytes(data)
    ran = dsmem("tokens", "verify", str(tokens), str(bare), terminal=True)
    assert ran.exit_code == 1
    assert "✗ ids" in ran.out and "✗ checksum" in ran.out and "✓ documents" in ran.out
    gone = f"{tokens}.not"
    ran = dsmem("tokens", "verify", gone, str(tokens), "--json")
    assert ran.exit_code == 3
    told = json.loads(ran.out)
    assert [one["path"] for one in told["failed"]] == [gone]
    (file,) = told["files"]
    assert not file["ok"]
    assert {check["name"] for check in file["checks"] if check["state"] == "bad"} == {"ids", "checksum"}


def test_verify_tells_of_phantoms(tmp_path: Path, dsmem: Dsmem) -> None:
    make_tokens(tmp_path / "a.bin", [[1, 256, 2, 256]])
    ran = dsmem("tokens", "verify", str(tmp_path / "a.bin"), terminal=True)
    assert ran.exit_code == 0
    assert "1 tokens look like the end of a document and are not" in ran.out


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("llm.c", ["out.bin"]),
        ("datatrove", ["out.ds", "out.ds.index", "out.ds.metadata"]),
        ("olmo", ["out.npy", "out.csv.gz"]),
    ],
)
def test_export(tokens: Path, tmp_path: Path, form: str, names: list[str], dsmem: Dsmem) -> None:
    ran = dsmem("tokens", "export", str(tokens), "--to", form, "-o", str(tmp_path / "out"))
    assert ran.exit_code == 0
    assert ran.out.splitlines() == [
        "path\tsize_bytes",
        *(f"{tmp_path}/{name}\t{os.stat(tmp_path / name).st_size}" for name in names),
    ]
    again = ("tokens", "export", str(tokens), "--to", form, "-o", str(tmp_path / "out"), "--json")
    ran = dsmem(*again)
    assert ran.exit_code == 1 and "is there already" in ran.err and "--json --force" in ran.err
    told = json.loads(dsmem(*again, "--force").out)
    assert set(told) == {"form", "paths", "tokens", "documents"}
    assert told["documents"] == 4


def test_export_refuses(tokens: Path, bare: Path, dsmem: Dsmem) -> None:
    ran = dsmem("tokens", "export", str(tokens), "--to", "llm.c", "-o", str(tokens))
    assert ran.exit_code == 2 and "give another name" in ran.err
    ran = dsmem("tokens", "export", str(bare), "--to", "olmo", "-o", f"{bare}.x")
    assert ran.exit_code == 1 and "documents" in ran.err
    assert dsmem("tokens", "export", str(tokens), "--to", "tfrecord", "-o", "x").exit_code == 2


@pytest.mark.parametrize("command", ["info", "show", "verify"])
def test_what_is_no_token_file(command: str, tmp_path: Path, dsmem: Dsmem) -> None:
    assert dsmem("tokens", command, str(tmp_path / "none.bin")).exit_code == 3
    assert dsmem("tokens", command, str(tmp_path)).exit_code == 1
    os.mkfifo(tmp_path / "pipe.bin")
    ran = dsmem("tokens", command, str(tmp_path / "pipe.bin"))
    assert ran.exit_code == 1 and "unexpected" not in ran.err
    (tmp_path / "odd.bin").write_bytes(b"123")
    assert dsmem("tokens", command, str(tmp_path / "odd.bin")).exit_code == 1
