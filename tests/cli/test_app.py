"""The tree of commands: complete help, examples that parse, the same options everywhere, a light start."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.core
from typer.main import get_command

import dsmem as package
from dsmem.cli import app, commands
from dsmem.digest import ALGORITHMS

from .conftest import Dsmem, Fake

HEAVY = {"numpy", "h5py", "torch", "datasets", "pyarrow", "rich", "pydantic", "pandas", "xxhash", "psutil"}


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    if isinstance(command, typer.core.TyperGroup):
        for name, sub in command.commands.items():
            yield from _commands(sub, (*path, name))


ALL = dict(_commands(get_command(app.app)))
PATHS = sorted(ALL)


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_help_is_complete(path: tuple[str, ...], dsmem: Dsmem) -> None:
    command = ALL[path]
    assert command.help and command.epilog
    for parameter in command.params:
        assert parameter.help, f"{parameter.name} has no help"
    long, short = dsmem(*path, "--help"), dsmem(*path, "-h")
    assert long == short and long.exit_code == 0 and not long.err
    assert "\x1b" not in long.out
    assert "Examples:" in long.out


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_examples_parse(path: tuple[str, ...]) -> None:
    examples = ALL[path].epilog.splitlines()[2:]
    assert 2 <= len(examples) <= 4
    for example in examples:
        words = shlex.split(example.partition(">")[0])
        assert words.pop(0) == "dsmem"
        command = ALL[()]
        while isinstance(command, typer.core.TyperGroup):
            command = command.commands[words.pop(0)]
        command.make_context("x", words)


def test_help_lists_commands_in_order(dsmem: Dsmem) -> None:
    assert set(ALL[()].commands) <= set(app.ORDER)
    listed = dsmem("--help").out.partition("Commands:\n")[2].partition("\n\n")[0]
    names = [line.split()[0] for line in listed.splitlines()]
    assert names == [name for name in app.ORDER if name in ALL[()].commands]
    assert "..." not in listed


def test_options_mean_the_same_everywhere() -> None:
    spellings = {"--yes": ["-y", "--yes"], "--dry-run": ["-n", "--dry-run"], "--json": ["--json"]}
    for command in ALL.values():
        for parameter in command.params:
            for long, wanted in spellings.items():
                if long in parameter.opts:
                    assert parameter.opts == wanted


def test_algorithms_are_those_of_the_library() -> None:
    assert get_args(commands.Algorithm) == ALGORITHMS


@pytest.mark.parametrize("path", [(), ("shm",)], ids=["dsmem", "shm"])
def test_group_alone_shows_its_help(path: tuple[str, ...], dsmem: Dsmem) -> None:
    ran = dsmem(*path)
    assert (ran.exit_code, ran.out) == (2, "")
    assert ran.err == dsmem(*path, "--help").out


def test_version(dsmem: Dsmem) -> None:
    assert dsmem("--version").out == f"dsmem {package.__version__}\n"


def test_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "dsmem", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"dsmem {package.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "variable", "levels"),
    [
        ([], None, ["warning"]),
        (["-v"], None, ["warning", "info"]),
        (["-vv"], None, ["warning", "info", "debug"]),
        ([], "debug", ["warning", "info", "debug"]),
        (["-v"], "error", ["warning", "info"]),
        ([], "error", []),
    ],
)
def test_logging(
    arguments: list[str],
    variable: str | None,
    levels: list[str],
    dsmem: Dsmem,
    fake: Fake,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def examine() -> object:
        log = logging.getLogger("dsmem.store.root")
        for level in ("warning", "info", "debug"):
            getattr(log, level)("about %s", "a\x1bb")
        raise FileNotFoundError("/gone")

    monkeypatch.delenv("DSMEM_LOG", raising=False)
    if variable is not None:
        monkeypatch.setenv("DSMEM_LOG", variable)
    fake("dsmem.shm.doctor", examine=examine)
    shown = dsmem(*arguments, "shm", "doctor").err.splitlines()[:-1]
    assert [line.partition(":")[0] for line in shown] == levels
    assert all(line.endswith(r"about a\x1bb") for line in shown)


_SEEN = """
import sys
from dsmem.cli.app import main
try:
    main({arguments!r})
except SystemExit as ended:
    sys.stderr.write("\\n" + " ".join([str(len(sys.modules)), *(name for name in {heavy!r} if name in sys.modules)]))
    sys.exit(ended.code)
"""


@pytest.mark.parametrize("line", ["--help", "--version", "pin --help", "shm --help", "shm ls", "shm clean"])
def test_starts_light(line: str, tmp_path: Path) -> None:
    program = _SEEN.format(arguments=line.split(), heavy=sorted(HEAVY))
    environ = {**os.environ, "DSMEM_ROOT": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True)
    assert done.returncode == 0
    modules, *heavy = done.stderr.splitlines()[-1].split()
    assert heavy == []
    assert int(modules) < 350  # what `--help` imports decides what it costs
