"""The committed scripts are what is generated, and completion completes, in a real bash too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dsmem.cli import complete, completions

COMMITTED = Path(__file__).parents[2] / "completions"
NAMES = ["train-0123456789abcdef", "val-0123456789abcdef"]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    objects = tmp_path / "store" / "objects"
    objects.mkdir(parents=True)
    for name in [*NAMES, ".staging-1", "odd\x1bname"]:
        (objects / name).touch()
    monkeypatch.setenv("DSMEM_ROOT", str(tmp_path / "store"))
    return objects


@pytest.fixture
def path_with_dsmem(tmp_path: Path) -> str:
    """PATH with a `dsmem` on it that is this very package."""
    program = tmp_path / "bin" / "dsmem"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dsmem "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}{os.pathsep}{os.environ['PATH']}"


def test_committed_scripts_are_current(tmp_path: Path) -> None:
    written = completions.write(tmp_path)
    assert {path.name for path in written} == {path.name for path in COMMITTED.iterdir()}
    for path in written:
        assert (COMMITTED / path.name).read_text() == path.read_text(), "run: make completions"


def test_misuse() -> None:
    assert completions.main([]) == 2


def test_names(store: Path) -> None:
    assert complete.names("") == NAMES
    assert complete.names("tr") == NAMES[:1]
    assert complete.names("x") == []


def test_names_without_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSMEM_ROOT", str(tmp_path / "none"))
    assert complete.names("") == []
    monkeypatch.setenv("DSMEM_PIN", "nonsense")
    assert complete.names("") == []


CASES = [
    (["dsmem", "sh"], ["shm"]),
    (["dsmem", "shm", ""], ["ls", "clean", "doctor"]),
    (["dsmem", "shm", "clean", ""], NAMES),
    (["dsmem", "shm", "clean", "val-0123456789abcdef", "tr"], NAMES[:1]),
    (["dsmem", "hash", "--algo", "x"], ["xxh3-tree", "xxh3-128"]),
    (["dsmem", "shm", "ls", "--sort", ""], ["name", "size", "age"]),
    (["dsmem", "pin", "--no"], ["--no-hash-cache", "--no-keep"]),
    (["dsmem", "pin", ""], []),
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("words", "completed"), CASES)
def test_bash(words: list[str], completed: list[str], store: Path, path_with_dsmem: str) -> None:
    program = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_dsmem_completion dsmem; printf "%s\\n" "${COMPREPLY[@]}"; complete -p dsmem'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", program, "bash", str(COMMITTED / "dsmem.bash"), *words],
        env={**os.environ, "PATH": path_with_dsmem},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    *replies, registered = done.stdout.splitlines()
    assert [reply for reply in replies if reply] == completed
    assert registered == "complete -o default -F _dsmem_completion dsmem"


def _complete(shell: str, line: str, path: str, **more: str) -> str:
    environ = {
        **os.environ,
        "PATH": path,
        "_DSMEM_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": line,
        **more,
    }
    return subprocess.run(["dsmem"], env=environ, capture_output=True, text=True, check=True).stdout


def test_zsh_instruction(store: Path, path_with_dsmem: str) -> None:
    assert '"clean":"Remove objects' in _complete("zsh", "dsmem shm c", path_with_dsmem)
    assert all(f'"{name}"' in _complete("zsh", "dsmem shm clean ", path_with_dsmem) for name in NAMES)
    assert _complete("zsh", "dsmem pin ", path_with_dsmem) == "_files\n"


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_reads_the_script() -> None:
    subprocess.run(["zsh", "-n", str(COMMITTED / "_dsmem")], check=True)


def test_fish_instruction(store: Path, path_with_dsmem: str) -> None:
    action = {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert _complete("fish", "dsmem shm clean ", path_with_dsmem, **action).split() == NAMES


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_reads_the_script() -> None:
    subprocess.run(["fish", "--no-execute", str(COMMITTED / "dsmem.fish")], check=True)
