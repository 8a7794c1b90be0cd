"""Pinning a warm file: against sharing it by hand, and against the fastest plain way to fill the same memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import dsmem
from dsmem.bench import limits, mounted, recipes, scratch, sources
from dsmem.bench.harness import Comparison, Contender
from dsmem.bench.limits import Fill, Way
from dsmem.bench.mounted import NotMeasured
from dsmem.bench.results import Compared
from dsmem.bench.sizes import Need
from dsmem.bench.sources import Array, Source
from dsmem.bench.workbench import Case, Effort, Workbench
from dsmem.digest import DEFAULT_ALGORITHM, hash_descriptor, hash_file

Segments = dict[str, tuple[SharedMemory, Array]]
T = TypeVar("T")
Warm = Callable[[Callable[[], AbstractContextManager[Any]]], AbstractContextManager[Any]]
"""Set-up and clean-up of a turn, with memory warmed up before it."""
Other = Callable[[Workbench, Warm], Contender]
_COPY = "the bytes of the file"


def compare(bench: Workbench) -> Generator[Comparison | Compared]:
    """Against the recipe; then against memory filled by plain means: on the mount of the store, there on 4 KiB pages,
    and, where root allows, on one with huge pages.

    The recipe has a comparison of its own: it takes as long as thirty fills, and leaves memory as none of them does.
    """
    ways = limits.ways(bench.place.shared)
    yield comparison(bench, "a warm file into shared memory, digest included", ways, [_recipe])
    yield beside_fills(bench, "the same, and the same memory filled by plain means", ways)
    if ways is not limits.WRITTEN:
        with scratch.environment(DSMEM_HUGE_PAGES="never"):
            yield beside_fills(bench, "that on 4 KiB pages (DSMEM_HUGE_PAGES=never)", limits.WRITTEN)
    try:
        yield from mounted.on_huge_pages(bench, "pin")
    except NotMeasured as exc:
        bench.note(f"pin on huge pages: not measured: {exc}")


def on_huge_pages(bench: Workbench) -> Iterator[Comparison]:
    """The same where the store, and all else, lies on a mount with huge pages."""
    yield beside_fills(bench, "that on huge pages (a tmpfs with huge=advise)", limits.MAPPED)


def beside_fills(bench: Workbench, title: str, ways: Sequence[Way]) -> Comparison:
    """Against plain ways to fill the same memory."""
    return comparison(bench, title, ways, [partial(_filler, way) for way in ways])


def comparison(bench: Workbench, title: str, ways: Sequence[Way], others: Sequence[Other]) -> Comparison:
    """Pinning, and others beside it.

    Every turn has a store, or a file, of its own, which is removed after it. Before it the same memory was filled once
    by the first of the ways (`limits.fill_once`).
    """
    source = bench.source
    limits.read_cached(source.path)
    warm = partial(_filled_once, bench.place.shared, ways[0][1], source.path)
    expected = {
        _COPY: hash_file(source.path, cache=False).hex,
        "size": os.stat(source.path).st_size,
    }
    contenders = [other(bench, warm) for other in (_ours, *others)]
    return Comparison(title, source.data_bytes, contenders, expected=expected, watch=str(bench.place.shared))


def _ours(bench: Workbench, warm: Warm) -> Contender:
    source = bench.source
    return Contender(
        "dsmem.pin",
        "dsmem",
        lambda _: dsmem.pin(source.path),
        answer=lambda _: attached(source),
        around=partial(warm, bench.place.store),
    )


def _recipe(bench: Workbench, warm: Warm) -> Contender:
    return Contender(
        "md5 + h5py + SharedMemory",
        "recipe",
        partial(pin_by_hand, bench.source),
        answer=in_segments,
        around=partial(warm, segments),
    )


def _filler(way: Way, bench: Workbench, warm: Warm) -> Contender:
    name, fill, copies = way
    return Contender(
        name,
        "limit",
        partial(_fill, fill, bench.source.path),
        answer=_content if copies else _size_bytes,
        question=_COPY if copies else "size",
        around=partial(warm, partial(limits.new_file, bench.place.shared)),
    )


@contextmanager
def _filled_once(
    directory: Path, fill: Fill, path: str, around: Callable[[], AbstractContextManager[T]]
) -> Iterator[T]:
    limits.fill_once(directory, fill, path)
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
