"""What takes much memory waits for its turn, so that all workers together stay bounded however many they are.

Turns are locks on files of the work directory: the kernel gives back those of a process that ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from dsmem import files

if TYPE_CHECKING:
    from dsmem.tokens.engines import Engine, EngineName, Ids, Lengths
    from dsmem.tokens.seams import Seams

_PLACES = 4
"""So many processes hold some at once, or one of them much."""
_SOME_BYTES, _MUCH_BYTES = 3 << 19, 5 << 20
"""Of text: more than a batch has, and more than a piece of a long document; an engine takes up to 50 times that."""
_REFERENCE_WEIGHT = 6
"""Hugging Face's tokenizers take so many times more."""


class Turn:
    """A share of memory, by how much is needed: little is free, some takes one of a few places, much takes all."""

    def __init__(self, directory: str | None, what: str, *, some_bytes: int, much_bytes: int) -> None:
        """Without a directory everything is free: there is one worker."""
        self._directory = directory
        self._what = what
        self._some_bytes, self._much_bytes = some_bytes, much_bytes
        self._held = ExitStack()
        self._places: Sequence[int] = ()

    def need(self, size_bytes: int) -> None:
        """Wait until so much may be taken, instead of what was taken before."""
        if self._directory is None or size_bytes <= self._some_bytes:
            wanted: Sequence[int] = ()
        else:
            wanted = range(_PLACES) if size_bytes > self._much_bytes else [os.getpid() % _PLACES]
        if wanted == self._places:
            return
        self.done()  # who holds one place waits for no other, and who takes all takes them in order
        for place in wanted:
            fd = files.open_own(f"{self._directory}/turn-{self._what}-{place}", os.O_RDWR | os.O_CREAT)
            self._held.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
        self._places = wanted

    def done(self) -> None:
        """Nothing of it is held any longer."""
        self._held.close()
        self._places = ()


def weight_of(engine: EngineName) -> int:
    """What a byte of text counts."""
    return _REFERENCE_WEIGHT if engine == "tokenizers" else 1


class InTurn:
    """An engine that is given much text only while few others are."""

    def __init__(self, engine: Engine, directory: str) -> None:
        self._engine = engine
        self._weight = weight_of(engine.name)
        self._turn = Turn(directory, "encode", some_bytes=_SOME_BYTES, much_bytes=_MUCH_BYTES)
        self.name = engine.name

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        """As the engine does."""
        self._turn.need(self._weight * sum(map(len, texts)))
        try:
            return self._engine.encode(texts)
        finally:
            self._turn.done()

    def seams(self) -> Seams:
        """As the engine tells."""
        return self._engine.seams()
