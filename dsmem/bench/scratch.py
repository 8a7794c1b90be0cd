"""A private place for one run: a directory for files, one in shared memory; never the user's own store.

It is removed whatever happens: after an error, Ctrl-C or SIGTERM by this process, after SIGKILL by a janitor.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dsmem import settings, stopping
from dsmem.bench import janitor
from dsmem.store.root import SHARED_MEMORY

_PREFIX = "dsmem-bench-"


@dataclass(frozen=True, slots=True)
class Scratch:
    """The private place, while it is there."""

    files: Path
    """A directory for ordinary files, where temporary files go."""
    shared: Path
    """A directory in shared memory."""

    @contextmanager
    def store(self) -> Iterator[Path]:
        """A fresh store that this process, and those that it starts, use as theirs; removed at the end.

        It changes the environment of the process, so only one at a time, from one thread.
        """
        root = Path(tempfile.mkdtemp(prefix="store-", dir=self.shared))
        try:
            with environment(DSMEM_ROOT=str(root), XDG_CACHE_HOME=str(self.files / "cache")):
                yield root
        finally:
            shutil.rmtree(root)


@contextmanager
def scratch() -> Iterator[Scratch]:
    """The private place. While it is there, SIGTERM and SIGHUP raise SystemExit(128 + n), so that it is removed."""
    with (
        stopping.raised(),
        _directory(None) as files,
        _directory(shared_directory()) as shared,
        _janitor(files, shared),
    ):
        try:
            yield Scratch(files, shared)
        finally:
            _remove(files, shared)


def shared_directory() -> Path:
    """Where the private directory in shared memory is made: beside the user's store, so on the same mount."""
    configured = settings.read().root
    if configured is not None:
        beside = Path(os.path.abspath(configured)).parent
        if os.access(beside, os.W_OK | os.X_OK):
            return beside
    if os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        return Path(SHARED_MEMORY)
    return Path(tempfile.gettempdir())


@contextmanager
def _directory(parent: Path | None) -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        yield made
    finally:
        if made.exists():  # the janitor could not be started
            made.rmdir()


@contextmanager
def _janitor(*directories: Path) -> Iterator[None]:
    """A process of a group of its own (Ctrl-C does not reach it) that outlives this one only to clean up."""
    command = [sys.executable, "-I", "-S", janitor.__file__, *map(str, directories)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0):
        yield  # leaving closes its stdin and waits for it


def _remove(*directories: Path) -> None:
    # A second Ctrl-C waits until everything is gone.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *stopping.ENDING))
    try:
        for directory in directories:
            shutil.rmtree(directory)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """With these variables in the environment of the process: only one at a time, from one thread."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
