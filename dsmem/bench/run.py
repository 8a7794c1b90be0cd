"""One run of the bench: choose a size, make the file, measure case by case, report everything as data."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing

from dsmem import units
from dsmem.bench import machine, peer, sizes, sources
from dsmem.bench.cases import CASES
from dsmem.bench.harness import Comparison, measure
from dsmem.bench.machine import Speeds
from dsmem.bench.results import SCHEMA, CaseResult, Compared, Report
from dsmem.bench.scratch import Scratch, scratch
from dsmem.bench.sizes import Need, Size
from dsmem.bench.sources import Source
from dsmem.bench.workbench import Case, Workbench
from dsmem.digest import open_source
from dsmem.errors import BadSource, NoSpace, UsageError

DEFAULT_BYTES = 1 << 30
DEFAULT_RUNS = 5
_WITHIN_S = 25.0
"""What a size is chosen for when none is asked for. An estimate: on a busy machine it may take twice as long."""
_DEADLINE_S = 45.0
"""Then rounds are left out, of each case in proportion; every comparison has one that counts, so it may take longer."""
_LONG_S = 5.0
"""A case that takes longer to set up is run only by its name, or with all."""


def run(
    names: Sequence[str] = (),
    *,
    file: str | None = None,
    size_bytes: int | None = None,
    runs: int = DEFAULT_RUNS,
    peers: Sequence[str] = (),
    show: Callable[[Case, Compared], None] | None = None,
    say: Callable[[str], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Report:
    """Run the cases of these names on `file`, or on a file that is made.

    Without a size it is chosen so that the run ends within a minute (with "all", a minute a case), but for `peers`:
    other tools, NAME=PYTHON, each in an environment of its own. Without names, too, long cases are left out, else it is
    all of them. Callbacks: `show` gets each comparison once it is complete, `say` what is being done,
    `warn` what is less than was asked for. Raises UsageError, NoSpace, ResultsDiffer, PeerFailed, and what reading and
    pinning the file raise.
    """
    began = time.monotonic()
    cases = _chosen(names, file)
    _check(file, size_bytes, runs)
    if peers and not any(case.takes_peers for case in cases):
        raise UsageError(f"only {', '.join(case.name for case in CASES if case.takes_peers)} takes peers")
    found = peer.find(peers)
    for one in found:
        if one.tool.case not in [case.name for case in cases]:
            raise UsageError(f"--peer {one.tool.name} is measured in the case {one.tool.case}")
    hurried = file is None and size_bytes is None
    minutes = len(cases) if "all" in names else 1
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        if warn is not None:
            warn(text)

    if hurried and not names:
        left_out = [case.name for case in cases if case.effort.fixed_s > _LONG_S]
        cases = tuple(case for case in cases if case.name not in left_out)
        note(f"left out, to end within a minute: {', '.join(left_out)}; dsmem bench all takes a minute each")
    with scratch() as place:
        speeds = machine.speeds(place.shared)
        facts = machine.machine(place.shared, speeds)
        if file is None:
            size = _size(cases, place, speeds, asked_bytes=size_bytes, runs=runs, within_s=minutes * _WITHIN_S)
            if size.why is not None:
                used, asked = units.format_bytes(size.size_bytes), units.format_bytes(size.asked_bytes)
                note(f"{used} instead of {asked}: {size.why}")
            needs_file = any(case.takes_file for case in cases)
            made_bytes = size.size_bytes if needs_file else sizes.LEAST_BYTES
            if say is not None:
                say(f"making a file of {units.format_bytes(made_bytes)}")
            source = sources.make_training_file(place.files / "train.h5", made_bytes)
            data_bytes = source.data_bytes if needs_file else size.size_bytes
        else:
            source = _users_file(file)
            data_bytes = source.data_bytes
            size = Size(data_bytes, data_bytes)
            _require(cases, place, size)
        bench = Workbench(place, source, size.size_bytes, 1 if hurried else runs, note, found)
        end = began + minutes * _DEADLINE_S if hurried else float("inf")
        results = []
        for index, case in enumerate(cases):
            expected_s = [_expected_s(one, speeds, data_bytes, runs) for one in cases[index:]]
            now = time.monotonic()
            deadline = now + (end - now) * expected_s[0] / sum(expected_s)
            results.append(_run_case(case, bench, runs, deadline, show, say, note))
    return Report(
        schema=SCHEMA,
        machine=facts,
        size_bytes=data_bytes,
        asked_bytes=size.asked_bytes,
        runs=runs,
        file=file,
        notes=tuple(notes),
        cases=tuple(results),
        elapsed_s=time.monotonic() - began,
    )


def _run_case(
    case: Case,
    bench: Workbench,
    runs: int,
    deadline: float,
    show: Callable[[Case, Compared], None] | None,
    say: Callable[[str], None] | None,
    note: Callable[[str], None],
) -> CaseResult:
    compared: list[Compared] = []
    fewest = runs
    with closing(case.compare(bench)) as comparisons:
        for comparison in comparisons:
            if say is not None:
                say(f"{case.name}: {comparison.title}")
            if isinstance(comparison, Comparison):
                one = measure(comparison, runs=runs, deadline=deadline)
                fewest = fewest if comparison.rounds is not None else min(fewest, one.runs)
            else:
                one = comparison
            if show is not None:
                show(case, one)
            compared.append(one)
    if case.rounds is None and fewest < runs:
        note(f"{case.name}: {fewest} of {runs} runs, to end within a minute")
    return CaseResult(case.name, case.claim, tuple(compared))


def _chosen(names: Sequence[str], file: str | None) -> tuple[Case, ...]:
    """The cases of these names; without names all, or all that measure a file where one is given."""
    possible = {case.name: case for case in CASES if case.takes_file or file is None}
    if not names or "all" in names:
        return tuple(possible.values())
    known = {case.name: case for case in CASES}
    for name in names:
        if name not in known:
            raise UsageError(f"there is no case {name!r}; the cases are {', '.join(known)}")
        if name not in possible:
            raise UsageError(f"{name} makes what it measures, and takes no --file; these do: {', '.join(possible)}")
    return tuple(possible[name] for name in dict.fromkeys(names))


def _check(file: str | None, size_bytes: int | None, runs: int) -> None:
    if runs < 1:
        raise UsageError(f"{runs} runs are none; at least 1")
    if file is not None and size_bytes is not None:
        raise UsageError("a file has its own size: give --file or --size, not both")
    if size_bytes is not None and size_bytes < sizes.LEAST_BYTES:
        least = units.format_bytes(sizes.LEAST_BYTES)
        raise UsageError(f"{units.format_bytes(size_bytes)} is too little to measure; at least {least}")


def _size(
    cases: Sequence[Case], place: Scratch, speeds: Speeds, *, asked_bytes: int | None, runs: int, within_s: float
) -> Size:
    need, free = _need(cases), sizes.room(place)
    if asked_bytes is not None:
        return sizes.fit(asked_bytes, need, free)
    fixed_s = sum(_expected_s(case, speeds, 0, runs) for case in cases)
    per_byte_s = (sum(_expected_s(case, speeds, 1 << 30, runs) for case in cases) - fixed_s) / (1 << 30)
    return sizes.fit(DEFAULT_BYTES, need, free, seconds_per_byte=per_byte_s, within_s=max(within_s - fixed_s, 1.0))


def _need(cases: Sequence[Case]) -> Need:
    """Cases run one after the other: the hungriest counts."""
    return Need(
        memory=max(case.need.memory for case in cases),
        shared=max(case.need.shared for case in cases),
        files=max(case.need.files for case in cases),
    )


def _expected_s(case: Case, speeds: Speeds, size_bytes: int, runs: int) -> float:
    effort = case.effort
    round_s = size_bytes * (effort.md5 / speeds.md5 + effort.fill / speeds.fill + effort.copy / speeds.memcpy)
    return effort.fixed_s + round_s * (case.rounds or runs + 1)


def _users_file(file: str) -> Source:
    os.close(open_source(file))
    try:
        source = sources.look_at(file)
    except OSError as exc:
        raise BadSource(f"{file} can't be read as HDF5: {exc}") from exc
    if not source.names:
        raise BadSource(f"{file} has no datasets of a fixed size to measure")
    return source


def _require(cases: Sequence[Case], place: Scratch, size: Size) -> None:
    fitted = sizes.fit(size.size_bytes, _need(cases), sizes.room(place))
    if fitted.why is not None:
        raise NoSpace(f"{units.format_bytes(size.size_bytes)} of data are too much here: {fitted.why}")
