"""The main job on data made for it: one copy in shared memory, used by several processes, beside a copy for each.

Everything happens in a private place that is gone at the end; the user's own store is neither used nor seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import dsmem
from dsmem import Pinned, units
from dsmem.bench import sizes, sources
from dsmem.bench.harness import ResultsDiffer
from dsmem.bench.scratch import scratch
from dsmem.bench.sizes import Need
from dsmem.bench.team import Held, team
from dsmem.errors import UsageError
from dsmem.shm.listing import Listing, list_objects

DEFAULT_BYTES = 256 << 20
PROCESSES = 4
_NEED = Need(memory=PROCESSES + 1.2, shared=1.05, files=1.05)


@dataclass(frozen=True, slots=True)
class Demo:
    """What was done and seen."""

    size_bytes: int
    """Of the data in the file."""
    asked_bytes: int
    why_smaller: str | None
    """What made it smaller than asked for; None when it was not."""
    pinned: Pinned
    plain: Held
    """Every process loaded a copy of its own with h5py."""
    attached: Held
    """Every process attached to the one copy."""
    listing: Listing
    """What `dsmem shm ls` saw while they were attached."""
    elapsed_s: float


def demo(*, size_bytes: int = DEFAULT_BYTES, say: Callable[[str], None] | None = None) -> Demo:
    """Run the demo; `say` is told each step. Smaller than asked for where memory is short.

    Raises NoSpace when not even 1 MiB fits, UsageError for a smaller size, ResultsDiffer should the two ways of reading
    disagree.
    """
    began = time.monotonic()
    if size_bytes < sizes.LEAST_BYTES:
        least = units.format_bytes(sizes.LEAST_BYTES)
        raise UsageError(f"{units.format_bytes(size_bytes)} is too little to show; at least {least}")

    def step(text: str) -> None:
        if say is not None:
            say(text)

    with scratch() as place, team(PROCESSES) as members:
        size = sizes.fit(size_bytes, _NEED, sizes.room(place))
        step(f"making an HDF5 file of {units.format_bytes(size.size_bytes)}")
        source = sources.make_training_file(place.files / "train.h5", size.size_bytes)
        small = sources.make_training_file(place.files / "small.h5", sizes.LEAST_BYTES)
        with place.store():
            dsmem.pin(small.path)
            members.warm_up(small)
        step(f"{PROCESSES} processes load it with h5py")
        with members.holding("preload", source, processes=PROCESSES) as plain:
            digests = {answer.digest for answer in plain.answers}
        with place.store():
            step("pinning it")
            pinned = dsmem.pin(source.path)
            step(f"{PROCESSES} processes attach to it")
            with members.holding("attach", source, processes=PROCESSES) as attached:
                digests |= {answer.digest for answer in attached.answers}
                listing = list_objects()
    if len(digests) != 1:
        raise ResultsDiffer("the processes that attached did not read what h5py reads")
    return Demo(
        size_bytes=source.data_bytes,
        asked_bytes=size.asked_bytes,
        why_smaller=size.why,
        pinned=pinned,
        plain=plain,
        attached=attached,
        listing=listing,
        elapsed_s=time.monotonic() - began,
    )
