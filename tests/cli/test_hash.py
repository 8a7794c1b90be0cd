"""`dsmem hash` against md5sum itself, and with files that fail."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Dsmem


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.h5"
    path.write_bytes(b"some bytes" * 1000)
    return path


@pytest.mark.skipif(shutil.which("md5sum") is None, reason="needs md5sum")
def test_lines_are_those_of_md5sum(tmp_path: Path) -> None:
    names = [
        b"plain",
        b"two words",
        b"back\\slash",
        b"new\nline",
        b"re\rturn",
        b"\xff\xfe",
        "é".encode(),
        b"\x1b",
    ]
    directory = os.fsencode(tmp_path)
    for name in names:
        with open(os.path.join(directory, name), "wb") as file:
            file.write(name * 10)
    ours = subprocess.run(
        [sys.executable, "-m", "dsmem", "hash", "--algo", "md5", *names], cwd=tmp_path, capture_output=True
    )
    theirs = subprocess.run(["md5sum", *names], cwd=tmp_path, capture_output=True)
    assert ours.stdout == theirs.stdout
    assert (ours.returncode, ours.stderr) == (0, b"")
    checked = subprocess.run(["md5sum", "-c"], cwd=tmp_path, input=ours.stdout, capture_output=True)
    assert checked.returncode == 0


def test_a_terminal_gets_names_escaped(tmp_path: Path, dsmem: Dsmem) -> None:
    path = tmp_path / "a\x1b[2J"
    path.write_bytes(b"x")
    ran = dsmem("hash", "--algo", "md5", str(path), terminal=True, colour=True)
    assert ran.out == f"{hashlib.md5(b'x').hexdigest()}  {tmp_path}/a\\x1b[2J\n"


def test_default_is_the_digest_that_pin_shows(data: Path, dsmem: Dsmem) -> None:
    assert dsmem("hash", str(data)).out == dsmem("hash", "--algo", "xxh3-tree", str(data)).out
    assert dsmem("hash", str(data)).out != dsmem("hash", "--algo", "xxh3-128", str(data)).out


def test_json(data: Path, dsmem: Dsmem) -> None:
    ran = dsmem("hash", "--algo", "sha256", "--json", str(data), str(data) + ".not", terminal=True)
    read = json.loads(ran.out)
    assert ran.exit_code == 3
    assert set(read) == {"digests", "failed"}
    (digest,) = read["digests"]
    assert set(digest) == {"path", "algo", "hex", "size_bytes", "cached", "elapsed_s"}
    assert digest["hex"] == hashlib.sha256(data.read_bytes()).hexdigest()
    assert digest["size_bytes"] == 10_000
    assert digest["cached"] is False
    (failed,) = read["failed"]
    assert (
        failed["path"] == f"{data}.not"
        and failed["exit_code"] == 3
        and set(failed)
        == {
            "path",
            "error",
            "exit_code",
        }
    )


def test_no_cache_recomputes(data: Path, dsmem: Dsmem) -> None:
    def cached(*options: str) -> bool:
        return bool(json.loads(dsmem("hash", "--json", *options, str(data)).out)["digests"][0]["cached"])

    assert not cached()
    assert cached()
    assert not cached("--no-cache")


def test_the_others_go_on(data: Path, tmp_path: Path, dsmem: Dsmem) -> None:
    ran = dsmem("hash", "--algo", "md5", str(tmp_path / "gone"), str(data), str(tmp_path))
    assert ran.out == f"{hashlib.md5(data.read_bytes()).hexdigest()}  {data}\n"
    assert ran.exit_code == 3
    lines = ran.err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["error", "error"]
    assert str(tmp_path / "gone") in lines[0] and str(tmp_path) in lines[1]
