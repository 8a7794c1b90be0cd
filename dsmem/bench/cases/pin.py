"""Pinning a warm file: against sharing it by hand, and against the fastest plain way to fill the same memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import BinaryIO, TypeVar

import dsmem
from dsmem import proc
from dsmem.bench import limits, mounted, recipes, scratch, sources
from dsmem.bench.harness import Comparison, Contender
from dsmem.bench.limits import Fill, Way
from dsmem.bench.mounted import NotMeasured
from dsmem.bench.results import Compared
from dsmem.bench.sizes import Need
from dsmem.bench.sources import Array, Source
from dsmem.bench.workbench import Case, Effort, Workbench
from dsmem.digest import DEFAULT_ALGORITHM, hash_descriptor, hash_file
from dsmem.store import hugepages

Segments = dict[str, tuple[SharedMemory, Array]]
T = TypeVar("T")
_COPY = "the bytes of the file"


def compare(bench: Workbench) -> Generator[Comparison | Compared]:
    """On the mount of the store, there on 4 KiB pages, and, where root allows, on one with huge pages."""
    mount = proc.mount_of(bench.place.shared)
    ways = limits.MAPPED
    if proc.huge_pages(mount) == "never":
        ways = limits.TAKEN if hugepages.can_be_taken(mount) else limits.WRITTEN
    yield comparison(bench, "a warm file into shared memory, digest included", ways)
    if ways is not limits.WRITTEN:
        with scratch.environment(DSMEM_HUGE_PAGES="never"):
            yield comparison(bench, "the same on 4 KiB pages (DSMEM_HUGE_PAGES=never)", limits.WRITTEN)
    try:
        yield from mounted.on_huge_pages(bench, "pin")
    except NotMeasured as exc:
        bench.note(f"pin on huge pages: not measured: {exc}")


def on_huge_pages(bench: Workbench) -> Iterator[Comparison]:
    """The same where the store, and all else, lies on a mount with huge pages."""
    yield comparison(bench, "the same on huge pages (a tmpfs with huge=advise)", limits.MAPPED)


def comparison(bench: Workbench, title: str, ways: Sequence[Way]) -> Comparison:
    """Against the recipe, and plain ways to fill the same memory.

    Every turn has a store, or a file, of its own, which is removed after it. Before it the same memory was filled once
    by the first of the ways, and freed: a virtual machine gives back to its host what was free for a while, and whoever
    comes next would pay for that.
    """
    source, place = bench.source, bench.place
    limits.read_cached(source.path)
    warm = partial(_filled_once, place.shared, ways[0][1], source.path)
    ours = Contender(
        "dsmem.pin",
        "dsmem",
        lambda _: dsmem.pin(source.path),
        answer=lambda _: attached(source),
        around=partial(warm, place.store),
    )
    recipe = Contender(
        "md5 + h5py + SharedMemory",
        "recipe",
        partial(pin_by_hand, source),
        answer=in_segments,
        around=partial(warm, segments),
    )
    fills = [
        Contender(
            name,
            "limit",
            partial(_fill, fill, source.path),
            answer=_content if copies else _size_bytes,
            question=_COPY if copies else "size",
            around=partial(warm, partial(limits.new_file, place.shared)),
        )
        for name, fill, copies in ways
    ]
    expected = {
        _COPY: hash_file(source.path, cache=False).hex,
        "size": os.stat(source.path).st_size,
    }
    contenders = [ours, recipe, *fills]
    return Comparison(title, source.data_bytes, contenders, expected=expected, watch=str(place.shared))


@contextmanager
def _filled_once(
    directory: Path, fill: Fill, path: str, around: Callable[[], AbstractContextManager[T]]
) -> Iterator[T]:
    with limits.new_file(directory) as memory:
        fill(path, memory)
    with around() as subject:
        yield subject


def attached(source: Source) -> str:
    """Attach what is pinned, and digest all of it."""
    with dsmem.attach(source.path) as file:
        return sources.content_digest({name: file[name][()] for name in source.names})


def pin_by_hand(source: Source, held: Segments) -> Segments:
    """The recipe, its segments recorded where `segments` removes them."""
    held.update(recipes.pin(source.path, source.names)[1])
    return held


def in_segments(held: Segments) -> str:
    """Digest what lies in the segments."""
    return sources.content_digest({name: array for name, (_, array) in held.items()})


@contextmanager
def segments() -> Iterator[Segments]:
    """Segments of one turn, removed after it."""
    held: Segments = {}
    try:
        yield held
    finally:
        for name in list(held):
            segment, array = held.pop(name)
            segment.unlink()
            del array
            # After an error a traceback may still hold the array; the memory is freed with it.
            with suppress(BufferError):
                segment.close()


def _fill(fill: Fill, path: str, target: BinaryIO) -> BinaryIO:
    fill(path, target)
    return target


def _content(target: BinaryIO) -> str:
    return hash_descriptor(target.fileno(), _size_bytes(target), DEFAULT_ALGORITHM)


def _size_bytes(target: BinaryIO) -> int:
    return os.fstat(target.fileno()).st_size


CASE = Case(
    "pin",
    "a file is shared as fast as memory can be filled",
    compare,
    need=Need(memory=3.2, shared=1.1, files=1),
    effort=Effort(md5=2.8, fill=22, copy=17),
)
