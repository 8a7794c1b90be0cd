"""What a case works with: a private place, the file that is measured, and the number of runs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from dsmem.bench import peer, sources
from dsmem.bench.harness import Comparison
from dsmem.bench.peer import Peer
from dsmem.bench.results import Compared
from dsmem.bench.scratch import Scratch
from dsmem.bench.sizes import Need
from dsmem.bench.sources import Source


def _silent(text: str) -> None:
    """For who does not listen."""


@dataclass(frozen=True, slots=True)
class Workbench:
    """Given to every case of a run. Files that a case makes itself go to `new_file`'s directory."""

    place: Scratch
    source: Source
    """The file to measure: the user's, or one that was made."""
    size_bytes: int
    """How much data the files that a case makes should hold."""
    runs: int = 1
    """How often each contender is measured, for what measures itself."""
    note: Callable[[str], None] = _silent
    """Told what is left out, and why."""
    peers: tuple[Peer, ...] = ()
    """Tools in environments of their own, to be measured beside dsmem."""

    def peers_of(self, case: str) -> tuple[Peer, ...]:
        """Those that are measured in a case; it is told which are left out."""
        there = tuple(one for one in self.peers if one.tool.case == case)
        left_out = peer.without(there, case)
        if left_out is not None:
            self.note(f"{case}: {left_out}")
        return there

    def new_file(self, name: str) -> Path:
        """A path for a file of this run; whoever makes it removes it when it is large."""
        return self.place.files / name

    def small_file(self) -> Source:
        """A file like the large one, of about 1 MiB."""
        return sources.make_training_file(self.new_file("small.h5"), 1 << 20)


@dataclass(frozen=True, slots=True)
class Effort:
    """How often, in a round, each byte of the data is hashed by MD5, written to new memory, read or copied."""

    md5: float
    fill: float
    copy: float
    fixed_s: float = 0.5
    """What it takes besides, in all, whatever the size."""


@dataclass(frozen=True, slots=True)
class Case:
    """One claim and how it is measured."""

    name: str
    claim: str
    compare: Callable[[Workbench], Generator[Comparison | Compared]]
    """Yields comparisons one by one, some measured already; what it sets up, it removes when it is closed."""
    need: Need
    effort: Effort
    rounds: int | None = None
    """Its number of rounds, whatever number of runs is asked for."""
    takes_file: bool = True
    """Whether it measures the user's file; else it makes what it measures."""
    takes_peers: bool = False
    """Whether tools in environments of their own do the same."""
