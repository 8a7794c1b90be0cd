"""In which order a loader reads windows, and how far it is: one order for all ranks, fixed by seed and epoch.

A position counts what all ranks took together, so a run goes on exactly where it stopped when the number of ranks, or
the batch size, is another one. Of every step's batch_size * world_size samples rank r takes each world_size-th from r.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from dsmem.errors import UsageError
from dsmem.tokens.permutation import Indices, Permutation

# Named tuples where one is made for every batch: frozen dataclasses take three times as long.
Work = TypeVar("Work", covariant=True)
_SAMPLES_AT_FIRST, _SAMPLES_AT_ONCE = 256, 16384


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank takes of each step."""

    batch_size: int
    rank: int
    world_size: int
    drop_last: bool

    @property
    def samples(self) -> int:
        """Of one step, of all ranks."""
        return self.batch_size * self.world_size

    def places(self, steps: int) -> Indices:
        """[steps, batch_size]: this rank's places from the position on."""
        return (self.rank + np.arange(steps * self.batch_size) * self.world_size).reshape(steps, self.batch_size)

    def rows_of(self, left: int) -> int:
        """Rows of this rank in a last step of so many samples: the same for every rank, 0 with drop_last."""
        return 0 if self.drop_last else left // self.world_size

    def stretches(self) -> Iterator[int]:
        """Numbers of steps whose samples are worked out together: few at first, for a first batch soon."""
        samples = _SAMPLES_AT_FIRST
        while True:
            yield max(samples // self.samples, 1)
            samples = min(2 * samples, _SAMPLES_AT_ONCE)


class Step(NamedTuple, Generic[Work]):
    """What this rank reads in one step, and the position after it, for `Order.move`."""

    work: Work
    after: Any


class Order(Protocol[Work]):
    """An order of samples and a position in it."""

    kind: str
    """What a saved state must be of."""

    def about(self) -> dict[str, Any]:
        """What must be the same for a saved position to mean the same."""
        ...

    def position(self) -> dict[str, Any]:
        """Where it stands, fit for JSON."""
        ...

    def restore(self, position: Mapping[str, Any]) -> None:
        """Stand where `position` told; raises UsageError for what is no position of this order."""
        ...

    def move(self, after: Any) -> None:
        """Stand after a step."""
        ...

    def steps(self) -> Iterator[Step[Work]]:
        """From the position to the end of the epoch; the position stays until it is moved."""
        ...

    def next_epoch(self) -> None:
        """Stand at the start of the next epoch."""
        ...

    def steps_an_epoch(self) -> int | None:
        """How many there are in a whole one; None where that is not known beforehand, or where none ends."""
        ...


class Position(NamedTuple):
    """Samples that all ranks took together in an epoch."""

    epoch: int = 0
    consumed: int = 0


class InEpochs:
    """Every window once an epoch; shuffled, each epoch by itself, or one after the other."""

    kind = "epochs"

    def __init__(self, windows: int, share: Share, *, seed: int, shuffle: bool) -> None:
        self._windows, self._share = windows, share
        self._seed, self._shuffle = seed, shuffle
        self._at = Position()

    def about(self) -> dict[str, Any]:
        """See Order."""
        return {"samples": self._windows, "seed": self._seed, "shuffle": self._shuffle}

    def position(self) -> dict[str, Any]:
        """See Order."""
        return self._at._asdict()

    def restore(self, position: Mapping[str, Any]) -> None:
        """See Order."""
        at = Position(**whole_numbers(position, "epoch", "consumed"))
        if at.consumed > self._windows:
            raise UsageError(f"{at.consumed} samples consumed of {self._windows}")
        self._at = at

    def move(self, after: Position) -> None:
        """See Order."""
        self._at = after

    def next_epoch(self) -> None:
        """See Order."""
        self._at = Position(self._at.epoch + 1)

    def steps_an_epoch(self) -> int:
        """See Order."""
        full, left = divmod(self._windows, self._share.samples)
        return full + (self._share.rows_of(left) > 0)

    def steps(self) -> Iterator[Step[Indices]]:
        """See Order; the work of a step is the numbers of its windows."""
        share, epoch, consumed = self._share, self._at.epoch, self._at.consumed
        permutation = Permutation(self._windows, self._seed, epoch) if self._shuffle else None
        for most in share.stretches():
            count = min((self._windows - consumed) // share.samples, most)
            if not count:
                break
            indices = consumed + share.places(count)
            if permutation is not None:
                indices = permutation(indices)
            for row in indices:
                consumed += share.samples
                yield Step(row, Position(epoch, consumed))
        if rows := share.rows_of(self._windows - consumed):
            indices = consumed + share.rank + np.arange(rows) * share.world_size
            yield Step(permutation(indices) if permutation is not None else indices, Position(epoch, self._windows))


def mapping_of(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What a saved state has under a name, nothing where it has none; raises UsageError for what is no mapping."""
    found = state.get(name, {})
    if not isinstance(found, Mapping):
        raise UsageError(f"no position: {name} is {found!r}")
    return dict(found)


def whole_numbers(position: Mapping[str, Any], *names: str) -> dict[str, int]:
    """These counts of a saved position; raises UsageError where one is missing or no count."""
    found = {name: position.get(name) for name in names}
    for name, value in found.items():
        if type(value) is not int or value < 0:
            raise UsageError(f"no position: {name} is {value!r}")
    return {name: int(value) for name, value in found.items() if value is not None}
