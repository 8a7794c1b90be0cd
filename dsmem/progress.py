"""How library code reports progress: through a callback that it is given, never by printing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with bytes done and bytes in all, from any thread, not more than some hundred times a second."""

    def __call__(self, done_bytes: int, total_bytes: int, /) -> None: ...


def ignore(done_bytes: int, total_bytes: int, /) -> None:
    """The progress callback for those who don't ask."""
