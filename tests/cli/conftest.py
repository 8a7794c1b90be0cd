"""The command line run in this process, with a pipe or a screen where stdout and stderr are."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import pytest

from dsmem.cli.app import main


class Stream(io.TextIOWrapper):
    """A stream of this process that is, or is not, a terminal."""

    def __init__(self, *, terminal: bool, text: str = "") -> None:
        super().__init__(io.BytesIO(text.encode()), encoding="utf-8", errors="strict", newline="")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def text(self) -> str:
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode()


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command did."""

    exit_code: int
    out: str
    err: str


Dsmem = Callable[..., Ran]


@pytest.fixture
def dsmem(monkeypatch: pytest.MonkeyPatch) -> Dsmem:
    """`dsmem("shm", "ls", terminal=True)`; `answer` is what is typed on a terminal, None = stdin is none."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def run(*arguments: str, terminal: bool = False, answer: str | None = None, colour: bool = False) -> Ran:
        streams = [Stream(terminal=terminal), Stream(terminal=terminal)]
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", streams[0])
            patched.setattr(sys, "stderr", streams[1])
            patched.setattr(sys, "stdin", Stream(terminal=answer is not None, text=answer or ""))
            with pytest.raises(SystemExit) as ended:
                main(arguments)
        out, err = (stream.text() if colour else plain(stream.text()) for stream in streams)
        assert isinstance(ended.value.code, int | None)
        return Ran(ended.value.code or 0, out, err)

    return run


def plain(text: str) -> str:
    """Without the codes that steer a terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


Fake = Callable[..., None]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """`fake("dsmem.shm.listing", list_objects=…)`: what a command finds when it imports that module."""

    def replace(module: str, **names: object) -> None:
        stand_in = ModuleType(module)
        vars(stand_in).update(names)
        monkeypatch.setitem(sys.modules, module, stand_in)

    return replace


@pytest.fixture(autouse=True)
def _logger_as_it_was() -> Iterator[None]:
    logger = logging.getLogger("dsmem")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers
