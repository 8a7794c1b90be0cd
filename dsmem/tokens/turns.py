"""What takes much memory is done alone, so that all workers together stay bounded however many they are.

Two locks on files of the work directory: whoever is alone holds `room` alone, whoever encodes a little beside others
shares it; who wants it for itself keeps `gate` meanwhile, where all others pass, so that it waits for those only that
are in. The kernel gives back the locks of a process that ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dsmem import files
from dsmem.tokens.renewing import give_back

if TYPE_CHECKING:
    from dsmem.tokens.engines import Engine, EngineName, Ids, Lengths
    from dsmem.tokens.seams import Seams

_BESIDE_BYTES = 21 << 16
"""Of text that is encoded beside others: more than a batch has, and more than a piece of a long document; an engine
takes up to 60 times that."""
_REFERENCE_WEIGHT = 6
"""Hugging Face's tokenizers take so many times more."""


class Turns:
    """The turns of one process, which may take them one inside the other."""

    def __init__(self, directory: str | None) -> None:
        """Without a directory everything is free: there is one worker."""
        self._directory = directory
        self._fds: tuple[int, int] | None = None
        self._depth = 0

    def take_alone(self) -> None:
        """Wait until nobody encodes or is alone; until `end_alone`, as often as this was called, others wait."""
        self._depth += 1
        if self._directory is None or self._depth > 1:
            return
        gate, room = self._locks(self._directory)
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX)

    def end_alone(self) -> None:
        """Nothing large is held any longer."""
        self._depth -= 1
        if self._depth:
            return
        give_back()
        if self._directory is not None:
            for fd in reversed(self._locks(self._directory)):
                fcntl.flock(fd, fcntl.LOCK_UN)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, others neither encode nor hold anything large."""
        self.take_alone()
        try:
            yield
        finally:
            self.end_alone()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Inside, nobody else is alone."""
        if self._directory is None or self._depth:
            yield
            return
        gate, room = self._locks(self._directory)
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)

    def _locks(self, directory: str) -> tuple[int, int]:
        if self._fds is None:  # for as long as the process lives
            gate, room = (
                files.open_own(f"{directory}/turn-{name}", os.O_RDWR | os.O_CREAT) for name in ("gate", "room")
            )
            self._fds = gate, room
        return self._fds


class Turn:
    """What may become large bit by bit: alone from some size on."""

    def __init__(self, turns: Turns, *, alone_bytes: int) -> None:
        self._turns = turns
        self._alone_bytes = alone_bytes
        self._is_alone = False

    def need(self, size_bytes: int) -> None:
        """Wait until so much may be taken, instead of what was taken before."""
        if size_bytes <= self._alone_bytes:
            self.done()
        elif not self._is_alone:
            self._turns.take_alone()
            self._is_alone = True

    def done(self) -> None:
        """Nothing of it is held any longer."""
        if self._is_alone:
            self._is_alone = False
            self._turns.end_alone()


def weight_of(engine: EngineName) -> int:
    """What a byte of text counts."""
    return _REFERENCE_WEIGHT if engine == "tokenizers" else 1


class InTurn:
    """An engine that is given much text only while no other is given any."""

    def __init__(self, engine: Engine, turns: Turns) -> None:
        self._engine = engine
        self._weight = weight_of(engine.name)
        self._turns = turns
        self.name = engine.name

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        """As the engine does."""
        is_little = self._weight * sum(map(len, texts)) <= _BESIDE_BYTES
        with self._turns.beside() if is_little else self._turns.alone():
            return self._engine.encode(texts)

    def seams(self) -> Seams:
        """As the engine tells."""
        return self._engine.seams()
