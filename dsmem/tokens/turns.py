"""What takes much memory is done alone or beside few, so that all workers together stay bounded however many they are.

Locks on files of the work directory, which the kernel gives back when a process ends. Whoever is alone holds `room`
alone, whoever encodes a little beside others shares it; who wants it for itself keeps `gate` meanwhile, where all
others pass, so that it waits for those only that are in. What takes some holds some of a few places, for what is read
and for what is encoded; those are taken in this order, and before `gate`; whoever is the one at something waits for
nothing meanwhile: nobody waits in a circle.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from dsmem import files, malloc
from dsmem.tokens.crowd import PLACES

if TYPE_CHECKING:
    from dsmem.tokens.engines import Engine, EngineName, Ids, Lengths
    from dsmem.tokens.seams import Seams

_LITTLE_BYTES, _PIECE_BYTES, _SOME_BYTES = 3 << 18, 21 << 16, 5 << 20
"""Of a text: more than a batch has, more than a piece of a long document, and what two at once may be given; an engine
takes up to 60 times that."""
_HALF = PLACES // 2
"""For what is longer than a piece."""
_READ_BYTES, _MANY_READ_BYTES = 4 << 20, 1 << 20
"""Of a document: longer ones are read in a place; the second by many."""
_PASSING_S = 0.001, 0.004
"""How long somebody who passes is waited for before more is done."""
_REFERENCE_WEIGHT = 6
"""Hugging Face's tokenizers take so many times more."""


class Turns:
    """The turns of one process, which may take them one inside the other."""

    def __init__(self, directory: str | None, *, weight: int = 1, are_many: bool = False) -> None:
        """Without a directory everything is free: there is one worker. What takes a place takes `weight` of them."""
        self.read_bytes = _MANY_READ_BYTES if are_many else _READ_BYTES
        self._directory = directory
        self._weight = weight
        self._before_waiting: Callable[[], None] = malloc.give_back
        self._fds: tuple[int, int] | None = None
        self._places: dict[str, list[int]] = {}
        self._depth = 0

    def before_waiting(self, do: Callable[[], None]) -> None:
        """Let this be done, instead of giving back what is free, by whoever has to wait: that may take long."""
        self._before_waiting = do

    def rest(self) -> None:
        """Do what is done before waiting."""
        self._before_waiting()

    def take_alone(self) -> None:
        """Wait until nobody encodes or is alone; until `end_alone`, as often as this was called, others wait."""
        self._depth += 1
        if self._directory is None or self._depth > 1:
            return
        try:
            self._enter(fcntl.LOCK_EX)
        except BaseException:
            self._depth -= 1
            raise

    def _enter(self, how: int) -> None:
        """Take `room` through `gate`, which stays ours where we are to be alone; neither of them, where that fails."""
        gate, room = self._locks(self._directory or "")
        self._lock(gate, fcntl.LOCK_EX)
        is_in = False
        try:
            self._lock(room, how)
            is_in = True
        finally:
            if not is_in or how == fcntl.LOCK_SH:
                fcntl.flock(gate, fcntl.LOCK_UN)

    def _lock(self, fd: int, how: int) -> None:
        """Wait for it, with little held if that may take long: whoever but passes is gone at once."""
        for wait_s in (0.0, *_PASSING_S):
            time.sleep(wait_s)
            with suppress(BlockingIOError):
                fcntl.flock(fd, how | fcntl.LOCK_NB)
                return
        self._before_waiting()
        fcntl.flock(fd, how)

    def end_alone(self) -> None:
        """Nothing large is held any longer."""
        self._depth -= 1
        if self._depth:
            return
        malloc.give_back()
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
        self._enter(fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(self._locks(self._directory)[1], fcntl.LOCK_UN)

    def take(self, what: str, count: int) -> Sequence[int]:
        """Wait for so many places, a divisor of all; to be given to `leave`."""
        if self._directory is None or self._depth or not count:
            return ()
        count = min(count * self._weight, PLACES)
        if what not in self._places:
            names = (f"{self._directory}/turn-{what}-{number}" for number in range(PLACES))
            self._places[what] = [files.open_own(name, os.O_RDWR | os.O_CREAT) for name in names]
        every = self._places[what]
        groups = [every[at : at + count] for at in range(0, PLACES, count)]
        first = os.getpid() % len(groups)
        for group in (*groups[first:], *groups[:first]):
            if _are_free(group):
                return group
        self._before_waiting()
        for fd in groups[first]:
            fcntl.flock(fd, fcntl.LOCK_EX)
        return groups[first]

    @contextmanager
    def one(self, what: str) -> Iterator[None]:
        """Inside, nobody else is at this; not to wait for anything else there."""
        taken = self.take(what, PLACES)
        try:
            yield
        finally:
            self.leave(taken)

    def seams(self, find: Callable[[], Seams]) -> Seams:
        """What `find` gives, by one worker for all."""
        if self._directory is None:
            return find()
        from dsmem.tokens import seams

        with self.one("vocabulary"):
            found = seams.kept(f"{self._directory}/seams.npz", find)
            malloc.give_back()
        return found

    def leave(self, taken: Sequence[int]) -> None:
        """Give them to others."""
        for fd in taken:
            fcntl.flock(fd, fcntl.LOCK_UN)

    def _locks(self, directory: str) -> tuple[int, int]:
        if self._fds is None:  # for as long as the process lives
            gate, room = (
                files.open_own(f"{directory}/turn-{name}", os.O_RDWR | os.O_CREAT) for name in ("gate", "room")
            )
            self._fds = gate, room
        return self._fds


def _are_free(places: Sequence[int]) -> bool:
    """Whether all of them are, and ours now."""
    for number, fd in enumerate(places):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            for taken in places[:number]:
                fcntl.flock(taken, fcntl.LOCK_UN)
            return False
    return True


class Turn:
    """What may become large bit by bit: in a place from some size on, and alone from another on."""

    def __init__(self, turns: Turns, *, alone_bytes: int) -> None:
        self._turns = turns
        self._alone_bytes = alone_bytes
        self._is_alone = False
        self._taken: Sequence[int] = ()

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, *_: object) -> None:
        self.done()

    def need(self, size_bytes: int) -> None:
        """Wait until so much may be taken, instead of what was taken before."""
        if size_bytes <= self._alone_bytes:
            if self._is_alone or size_bytes <= self._turns.read_bytes:
                self.done()
            if size_bytes > self._turns.read_bytes and not self._taken:
                self._taken = self._turns.take("read", 1)
        elif not self._is_alone:
            self.done()
            self._turns.take_alone()
            self._is_alone = True

    def done(self) -> None:
        """Nothing of it is held any longer."""
        if self._is_alone:
            self._is_alone = False
            self._turns.end_alone()
        if self._taken:
            malloc.give_back()
            self._turns.leave(self._taken)
            self._taken = ()


def weight_of(engine: EngineName) -> int:
    """What a byte of text counts."""
    return _REFERENCE_WEIGHT if engine == "tokenizers" else 1


class InTurn:
    """An engine that is given much text only while no other is given any."""

    def __init__(self, engine: Engine, turns: Turns, *, is_large: bool = False) -> None:
        """`is_large`: its vocabulary, so that it is looked through by one worker for all."""
        self._engine = engine
        self._is_large = is_large
        self._weight = weight_of(engine.name)
        self._turns = turns
        self._seams: Seams | None = None
        self.name = engine.name

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        """As the engine does."""
        size = self._weight * max(map(len, texts), default=0)  # many short ones take little
        if size > _SOME_BYTES:
            with self._turns.alone():
                return self._engine.encode(texts)
        taken = self._turns.take("encode", 0 if size <= _LITTLE_BYTES else 1 if size <= _PIECE_BYTES else _HALF)
        try:
            with self._turns.beside():
                return self._engine.encode(texts)
        finally:
            self._turns.leave(taken)

    def seams(self) -> Seams:
        """As the engine tells, which may have to look through its vocabulary first: 1.4 s and 170 MiB with 200,000
        tokens."""
        if self._seams is None:
            if self._is_large:
                self._seams = self._turns.seams(self._engine.seams)
            else:
                self._seams = self._engine.seams()
        return self._seams
