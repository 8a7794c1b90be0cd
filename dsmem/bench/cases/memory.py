"""Memory of 1, 2 and 4 processes that use the same data: each with its own copy, or all attached to one."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

import dsmem
from dsmem.bench.harness import Comparison, Contender
from dsmem.bench.results import Role
from dsmem.bench.sizes import Need
from dsmem.bench.sources import Source
from dsmem.bench.team import Held, Team, Way, team
from dsmem.bench.workbench import Case, Effort, Workbench

PROCESSES = (1, 2, 4)


def compare(bench: Workbench) -> Generator[Comparison]:
    """A comparison for each number of processes: PSS beyond what they had before, all of them together."""
    source, small = bench.source, bench.small_file()
    with team(max(PROCESSES)) as members, bench.place.store():
        dsmem.pin(small.path)
        members.warm_up(small)
        dsmem.pin(source.path)
        for processes in PROCESSES:
            contenders = [
                _contender("dsmem.attach", "dsmem", "attach", members, source, processes),
                _contender("h5py [...] in each process", "recipe", "preload", members, source, processes),
                Contender("the data itself", "limit", lambda _: source.data_bytes, amount=int),
            ]
            title = f"memory of {processes} process{'es' if processes > 1 else ''}"
            yield Comparison(title, source.data_bytes, contenders, quantity="memory", rounds=1)


def _contender(name: str, role: Role, way: Way, members: Team, source: Source, processes: int) -> Contender:
    return Contender(
        name,
        role,
        lambda held: held,
        answer=_digest,
        around=partial(members.holding, way, source, processes=processes),
        amount=_data_pss_bytes,
    )


def _data_pss_bytes(held: Held) -> int:
    return max(held.data_pss_bytes, 1)


def _digest(held: Held) -> str:
    """The one digest of all processes; those that differ show as a list."""
    return ", ".join(sorted({answer.digest for answer in held.answers}))


CASE = Case(
    "memory",
    "any number of processes takes the memory of one",
    compare,
    need=Need(memory=6.5, shared=1.1, files=1),
    effort=Effort(md5=0, fill=8, copy=22, fixed_s=2),
    rounds=1,
)
