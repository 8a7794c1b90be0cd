"""Several files that are published together: under other names until all are complete, removed if they never are."""

from __future__ import annotations

import os
from collections.abc import Callable

from dsmem import files


class Drafts:
    """The files, in the order in which they were begun."""

    def __init__(self, may_take: Callable[[str], None]) -> None:
        """`may_take` raises for a name that is not to be taken; it is asked when names are claimed, and at the end."""
        self._may_take = may_take
        self._paths: list[str] = []

    def __enter__(self) -> Drafts:
        return self

    def __exit__(self, *error: object) -> None:
        for path in self._paths:
            files.unlink_if_there(self.name_of(path))

    def claim(self, *paths: str) -> None:
        """Ask for names before anything is written."""
        for path in paths:
            self._may_take(path)

    def begin(self, path: str) -> str:
        """The name to write to for `path`, beside it."""
        self._paths.append(path)
        return self.name_of(path)

    def publish(self) -> tuple[str, ...]:
        """Give all their names, those begun last first: the first, the tokens, comes when the rest is there."""
        self.claim(*self._paths)
        for path in self._paths:
            files.sync(self.name_of(path))
        for path in reversed(self._paths):
            os.replace(self.name_of(path), path)
        for directory in {os.path.dirname(path) or "." for path in self._paths}:
            files.sync(directory)
        done, self._paths = tuple(self._paths), []
        return done

    @staticmethod
    def name_of(path: str) -> str:
        """Hidden, and this process's own."""
        return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}.part")
