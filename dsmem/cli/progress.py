"""The progress bar: one for all files, on stderr, gone when done; none where stderr is no terminal.

rich is imported at the first report of progress, so that an operation which has nothing to do stays instant.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dsmem import settings
from dsmem.progress import Progress, ignore

if TYPE_CHECKING:
    import rich.progress


@contextmanager
def bar(label: str, paths: Sequence[str]) -> Iterator[Bar]:
    """A bar over all the paths: `for path in paths: work(path, progress=bar.follow(path))`."""
    shown = Bar(label, paths, enabled=sys.stderr.isatty() and not settings.read().no_progress)
    try:
        yield shown
    finally:
        shown.close()


@contextmanager
def files(label: str) -> Iterator[Files]:
    """A bar over the bytes of several files that are read at once, with the number of those that are done."""
    shown = Files(label, enabled=sys.stderr.isatty() and not settings.read().no_progress)
    try:
        yield shown
    finally:
        shown.close()


class Files:
    """Progress from one thread: `files` takes files done and in all, `bytes` bytes done and in all."""

    def __init__(self, label: str, *, enabled: bool) -> None:
        self._label = label
        self._enabled = enabled
        self._drawn: rich.progress.Progress | None = None

    def files(self, done: int, total: int) -> None:
        """So many files are done."""
        self._update(description=f"{self._label}, {done} of {total} file{'s' if total != 1 else ''}")

    def bytes(self, done_bytes: int, total_bytes: int, /) -> None:
        """So many bytes are done."""
        self._update(completed=done_bytes, total=total_bytes)

    def _update(self, **changes: Any) -> None:
        if not self._enabled:
            return
        if self._drawn is None:
            self._drawn = _draw(self._label)
        self._drawn.update(self._drawn.task_ids[0], **changes)

    def close(self) -> None:
        """Takes the bar off the screen for good."""
        if self._drawn is not None:
            self._drawn.stop()


class Bar:
    """Progress over several files, each weighing its size on disk; a single one counts in its own bytes."""

    def __init__(self, label: str, paths: Sequence[str], *, enabled: bool) -> None:
        self._label = label
        self._sizes = {path: _size_bytes(path) for path in paths} if enabled else {}
        self._enabled = enabled
        self._described = label
        self._before_bytes = 0
        self._current: str | None = None
        self._drawn: rich.progress.Progress | None = None
        self._lock = threading.Lock()

    def follow(self, path: str) -> Progress:
        """The callback for the next file; the one before counts as done."""
        if not self._enabled:
            return ignore
        if self._current is not None:
            self._before_bytes += self._sizes[self._current]
        self._current = path
        return self._advance

    def tell(self, more: str) -> None:
        """Say more than the label, from now on."""
        with self._lock:
            self._described = f"{self._label}, {more}"
            if self._drawn is not None:
                self._drawn.update(self._drawn.task_ids[0], description=self._described)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Takes the bar off the screen while results are written."""
        if self._drawn is None:
            yield
            return
        self._drawn.stop()
        try:
            yield
        finally:
            self._drawn.start()

    def close(self) -> None:
        """Takes the bar off the screen for good."""
        with self._lock:
            if self._drawn is not None:
                self._drawn.stop()

    def _advance(self, done_bytes: int, total_bytes: int, /) -> None:
        with self._lock:
            if self._drawn is None:
                self._drawn = _draw(self._described)
            if len(self._sizes) > 1 and self._current is not None:
                size_bytes = self._sizes[self._current]
                done_bytes = self._before_bytes + size_bytes * done_bytes // max(total_bytes, 1)
                total_bytes = sum(self._sizes.values())
            self._drawn.update(self._drawn.task_ids[0], completed=done_bytes, total=total_bytes)


def _draw(label: str) -> rich.progress.Progress:
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as SpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        SpeedColumn(),
        TimeRemainingColumn(),
    )
    return _started(label, columns)


def _started(label: str, columns: Sequence[rich.progress.ProgressColumn]) -> rich.progress.Progress:
    from rich.console import Console
    from rich.progress import Progress

    drawn = Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,  # results on stdout are data; `aside` makes room for them
    )
    drawn.add_task(label, total=None)
    drawn.start()
    return drawn


def _size_bytes(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # the operation itself will say what is wrong with the file
