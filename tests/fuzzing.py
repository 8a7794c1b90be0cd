"""Mutated HDF5 files: small valid ones of every kind, damaged by chance, and work on each in forks that may crash.

A mutant is made from its seed alone, so a number in a failure's message makes the same file again (`mutant`).
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import select
import signal
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import children
import h5py
import hdf5plugin
import numpy as np
import zoo
from lookup3 import lookup3

PATIENCE_S = 10.0
"""What one file may take; longer is a hang."""
_CPU_SHARE = 0.4
"""So much of that as CPU time is a hang, too: the usual one spins, and where it spins tells as much after 4 s."""
_GROWTH_BYTES = 1 << 30
_BATCH = 100
_TOLD_LINES = 12
FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "gzip": {"compression": "gzip"},
    "shuffle gzip fletcher32": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    "fletcher32": {"fletcher32": True},
    "lzf": {"compression": "lzf", "shuffle": True},
    "szip": {"compression": "szip"},
    "scaleoffset": {"scaleoffset": 3},
    "lz4": dict(hdf5plugin.LZ4()),
    "zstd": dict(hdf5plugin.Zstd()),
    "blosc": dict(hdf5plugin.Blosc(cname="lz4", shuffle=1)),
    "blosc zstd": dict(hdf5plugin.Blosc(cname="zstd", shuffle=2)),
    "blosc2": dict(hdf5plugin.Blosc2()),
    "bitshuffle": dict(hdf5plugin.Bitshuffle(cname="none")),
    "bitshuffle lz4": dict(hdf5plugin.Bitshuffle(cname="lz4")),
    "bitshuffle zstd": dict(hdf5plugin.Bitshuffle(cname="zstd")),
}
_LAYOUTS: dict[str, dict[str, Any]] = {
    "latest": {"libver": "latest"},
    "earliest": {"libver": "earliest"},
    "tracked": {"track_order": True, "libver": "latest"},
    "userblock": {"userblock_size": 512},
}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A damaged file: what it was made from, by which changes."""

    seed: int
    kind: str
    path: str
    changes: str

    def __str__(self) -> str:
        return f"mutant {self.seed} ({self.kind}: {self.changes})"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a mutant: a word to count by, and particulars."""

    what: str
    message: str = ""


def _build(kind: str, path: Path) -> None:
    """Write the valid file of a kind."""
    if kind in zoo.OPTIONS:
        builder = zoo.HELD.get(kind) or zoo.REFUSED[kind][0]
        with h5py.File(path, "w", **zoo.OPTIONS[kind]) as file:
            builder(file)
        return
    filters, _, layout = kind.partition(" / ")
    values = np.cumsum(np.random.default_rng(1).integers(0, 4, (6, 5, 12)), axis=2)
    with h5py.File(path, "w", **_LAYOUTS[layout]) as file:
        for name, chunks in (("a", (2, 5, 12)), ("b", (4, 3, 7))):
            file.create_dataset(
                name, data=values.astype("<i4"), chunks=chunks, maxshape=(None,) * 3, **FILTERS[filters]
            )
        file["whole"] = values.astype("<f8")
        file.attrs["unit"] = "counts"


KINDS: tuple[str, ...] = (
    *(name for name in zoo.OPTIONS),
    *(f"{filters} / {layout}" for filters in FILTERS for layout in _LAYOUTS),
)


@cache
def valid(kind: str, directory: Path) -> bytes:
    """The bytes of the valid file of a kind; empty where this h5py writes none."""
    path = directory / "valid.h5"
    try:
        _build(kind, path)
    except (ValueError, OSError, TypeError):
        return b""
    return path.read_bytes()


def mutant(seed: int, directory: Path) -> Mutant:
    """Write the mutant of that seed."""
    chance = random.Random(seed)
    kind = chance.choice(KINDS)
    while not (content := bytearray(valid(kind, directory))):
        kind = chance.choice(KINDS)
    changes = damage(content, chance)
    if chance.random() < 0.8:
        mend_checksums(content)
    path = directory / f"{seed}.h5"
    path.write_bytes(content)
    return Mutant(seed, kind, str(path), changes)


def damage(content: bytearray, chance: random.Random) -> str:
    """Change some bytes, at least one, and say how."""
    changes: list[str] = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        change = chance.choices(list(_CHANGES), list(_CHANGES.values()))[0]
        changes.append(f"{change.__name__.strip('_')} {change(content, chance)}")
    return ", ".join(changes)


def _flip_bits(content: bytearray, chance: random.Random) -> str:
    where = [chance.randrange(len(content)) for _ in range(chance.choice((1, 1, 2, 4, 16)))]
    for at in where:
        content[at] ^= 1 << chance.randrange(8)
    return f"at {where[0]}"


def _overwrite(content: bytearray, chance: random.Random) -> str:
    at, count = chance.randrange(len(content)), chance.choice((1, 2, 4, 8, 16, 64, 512))
    count = min(count, len(content) - at)
    content[at : at + count] = chance.choice((b"\0" * count, b"\xff" * count, chance.randbytes(count)))
    return f"{count} at {at}"


def _truncate(content: bytearray, chance: random.Random) -> str:
    del content[chance.randrange(1, len(content)) :]
    return f"to {len(content)}"


def _offsets(content: bytearray) -> list[int]:
    """Where something lies that may be the address of something: 8 bytes, a number within the file."""
    return [
        at
        for at in range(len(content) - 7)
        if 0 < int.from_bytes(content[at : at + 8], "little") < len(content) and content[at]
    ]


def _swap_offsets(content: bytearray, chance: random.Random) -> str:
    found = _offsets(content)
    if len(found) < 2:
        return "nothing"
    one, other = chance.sample(found, 2)
    if abs(one - other) < 8:
        return "nothing"
    kept = bytes(content[one : one + 8])
    content[one : one + 8] = content[other : other + 8]
    content[other : other + 8] = kept
    return f"{one} and {other}"


def _change_offset(content: bytearray, chance: random.Random) -> str:
    found = _offsets(content)
    if not found:
        return "nothing"
    at = chance.choice(found)
    old = int.from_bytes(content[at : at + 8], "little")
    other = int.from_bytes(content[(where := chance.choice(found)) : where + 8], "little")
    new = chance.choice(
        (
            old + 8,
            old - 8,
            old + 1,
            old * 2,
            0,
            len(content),
            2**64 - 1,
            2**63 - 1,
            2**32,
            other,
            at,
            chance.randrange(len(content)),
        )
    )
    content[at : at + 8] = (new % 2**64).to_bytes(8, "little")
    return f"{at} from {old} to {new}"


def _change_number(content: bytearray, chance: random.Random) -> str:
    """Sizes, counts, extents: 1 to 8 bytes that hold a small number become another one."""
    width = chance.choice((1, 2, 4, 8))
    numbers = [
        at
        for at in range(len(content) - width + 1)
        if 0 < int.from_bytes(content[at : at + width], "little") < 4096 and content[at]
    ]
    if not numbers:
        return "nothing"
    at = chance.choice(numbers)
    old = int.from_bytes(content[at : at + width], "little")
    top = 1 << 8 * width
    new = (
        chance.choice((0, 1, old + 1, old - 1, old * 2, old * 16, old << 20, top - 1, top // 2, top // 2 - 1, old // 2))
        % top
    )
    content[at : at + width] = new.to_bytes(width, "little")
    return f"{width} bytes at {at} from {old} to {new}"


def _duplicate_block(content: bytearray, chance: random.Random) -> str:
    count = chance.choice((8, 16, 24, 64, 256, 512))
    if len(content) <= count:
        return "nothing"
    one, other = (chance.randrange(len(content) - count) for _ in range(2))
    content[other : other + count] = content[one : one + count]
    return f"{count} from {one} to {other}"


def _shift(content: bytearray, chance: random.Random) -> str:
    at, count = chance.randrange(len(content)), chance.choice((1, 2, 4, 8, 64))
    if chance.random() < 0.5:
        del content[at : at + count]
        return f"-{count} at {at}"
    content[at:at] = chance.randbytes(count)
    return f"+{count} at {at}"


_CHANGES: dict[Callable[[bytearray, random.Random], str], int] = {
    _flip_bits: 5,
    _overwrite: 3,
    _truncate: 1,
    _swap_offsets: 2,
    _change_offset: 4,
    _change_number: 6,
    _duplicate_block: 2,
    _shift: 1,
}


def mend_checksums(content: bytearray) -> None:
    """Make the checksums of changed metadata right again, where their places are known: else a change is seen at once.

    https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html: superblocks and object headers of version 2 on.
    """
    start = content.find(b"\x89HDF\r\n\x1a\n")
    if start >= 0 and len(content) >= start + 48 and content[start + 8] in (2, 3):
        _mend(content, start, 44)
    at = content.find(b"OHDR")
    while at >= 0 and at + 16 < len(content):
        flags = content[at + 5]
        prefix = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        size = int.from_bytes(content[at + prefix : at + prefix + width], "little")
        _mend(content, at, prefix + width + size)
        at = content.find(b"OHDR", at + 4)


def _mend(content: bytearray, start: int, count: int) -> None:
    if start + count + 4 <= len(content):
        content[start + count : start + count + 4] = struct.pack("<I", lookup3(bytes(content[start : start + count])))


def each(
    mutants: Sequence[Mutant], work: Callable[[Mutant], Outcome], patience_s: float = PATIENCE_S
) -> Iterator[tuple[Mutant, Outcome]]:
    """The work on every mutant, done in forks: one that kills its fork, or takes too long, is an outcome too.

    A fork does many; after a crash another one goes on behind the mutant that crashed. The outcome of a crash is
    "crashed" or "hung", the message says with what, and where Python was.
    """
    waiting = deque(mutants)
    while waiting:
        stack = Path(waiting[0].path).with_suffix(".stack")
        reading, writing = os.pipe()
        batch = list(waiting)[:_BATCH]
        with children.started(partial(_work_through, batch, work, writing, stack, patience_s)) as child:
            os.close(writing)
            with os.fdopen(reading, "rb", buffering=0) as pipe:
                for line in _lines(pipe.fileno(), patience_s):
                    yield waiting.popleft(), Outcome(*json.loads(line))
                    batch.pop(0)
            if not batch:
                continue
            try:
                code = os.waitstatus_to_exitcode(child.wait(time.monotonic() + 0.5))
                if code == -signal.SIGPROF:
                    told = Outcome("hung", f"for {_CPU_SHARE * patience_s} s of CPU time{_told(stack)}")
                else:
                    told = Outcome("crashed", f"exit {code}{_told(stack)}")
            except TimeoutError:
                os.kill(child.pid, signal.SIGABRT)  # faulthandler tells where it was
                time.sleep(0.2)
                child.kill_group()
                told = Outcome("hung", f"for {patience_s} s{_told(stack)}")
        yield waiting.popleft(), told


def _told(stack: Path) -> str:
    return "\n" + "\n".join(stack.read_text().splitlines()[:_TOLD_LINES]) if stack.exists() else ""


def _lines(fd: int, patience_s: float) -> Iterator[bytes]:
    """Lines until the end, or until nothing comes for too long."""
    rest = b""
    while select.select([fd], [], [], patience_s)[0]:
        part = os.read(fd, 1 << 16)
        if not part:
            return
        *lines, rest = (rest + part).split(b"\n")
        yield from lines


def _work_through(
    batch: Sequence[Mutant], work: Callable[[Mutant], Outcome], writing: int, stack: Path, patience_s: float
) -> None:
    bound_memory()
    for mutant in batch:
        with stack.open("w") as file:
            faulthandler.enable(file)
            faulthandler.register(signal.SIGPROF, file, chain=True)  # which ends this process
            signal.setitimer(signal.ITIMER_PROF, _CPU_SHARE * patience_s)
            outcome = work(mutant)
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.unregister(signal.SIGPROF)
            faulthandler.disable()
        os.write(writing, json.dumps([outcome.what, outcome.message]).encode() + b"\n")
    stack.unlink()


def bound_memory() -> None:
    """Let this process grow by a GiB at most, and dump no core."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _GROWTH_BYTES, used + _GROWTH_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
