"""Random samples of one dataset, one by one, into a batch, in a process that did not pin it.

Through a map that was just made, and through a warm one.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import h5py
import numpy as np

import dsmem
from dsmem import units
from dsmem.bench import limits, mounted, peer, recipes, sources
from dsmem.bench.harness import Comparison, Contender
from dsmem.bench.mounted import NotMeasured
from dsmem.bench.results import Compared, Role
from dsmem.bench.sizes import Need
from dsmem.bench.sources import Array, Source
from dsmem.bench.workbench import Case, Effort, Workbench
from dsmem.errors import UsageError

_SAMPLES = 512
_BATCH_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Pass:
    """Some samples of a dataset, in random order, and the batch that they are copied to."""

    name: str
    indices: Sequence[int]
    batch: Array

    def read(self, file: Any) -> Array:
        """Copy the samples; `file` is whatever gives the dataset by its name."""
        return recipes.read_samples(file[self.name], self.indices, self.batch)


def compare(bench: Workbench) -> Generator[Comparison | Compared]:
    """The first and the second pass over the same samples; the first one also, where root allows, on huge pages."""
    yield from _passes(bench, ("first", "second"))
    try:
        yield from mounted.on_huge_pages(bench, "read")
    except NotMeasured as exc:
        bench.note(f"read on huge pages: not measured: {exc}")


def on_huge_pages(bench: Workbench) -> Iterator[Comparison]:
    """The first pass where the store lies on a mount with huge pages."""
    yield from _passes(bench, ("first",), where=", on huge pages (a tmpfs with huge=advise)")


def _passes(bench: Workbench, orders: Sequence[str], where: str = "") -> Iterator[Comparison]:
    path, name = bench.source.path, _chosen(bench.source)
    limits.fill_once(bench.place.shared, limits.ways(bench.place.shared)[0][1], path)
    with bench.place.store():
        peer.run_dsmem("pin", path)  # what this process maps is another's
        ram = recipes.preload(path, [name])[name]
        sample_bytes = max(1, ram.nbytes // len(ram))
        count = max(1, min(_SAMPLES, len(ram), _BATCH_BYTES // sample_bytes))
        indices = np.random.default_rng(0).permutation(len(ram))[:count].tolist()
        samples = Pass(name, indices, _in_pages((count, *ram.shape[1:]), ram.dtype, mmap.MADV_HUGEPAGE))
        large_pages, small_pages = _copied(ram, mmap.MADV_HUGEPAGE), _copied(ram, mmap.MADV_NOHUGEPAGE)

        for order in orders:
            contenders = [
                _contender("dsmem.attach", "dsmem", partial(dsmem.attach, path), samples, order),
                _contender("dsmem.attach, populated", "dsmem", partial(_populated, path), samples, order),
                _contender("h5py.File", "recipe", partial(h5py.File, path, "r"), samples, order),
                _contender("numpy in RAM", "limit", partial(nullcontext, {name: large_pages}), samples, order),
                _contender(
                    "numpy in RAM, on 4 KiB pages", "limit", partial(nullcontext, {name: small_pages}), samples, order
                ),
            ]
            title = f"random samples of {name}, {units.format_bytes(sample_bytes)} each: {order} pass{where}"
            yield Comparison(title, sample_bytes, contenders)


def _in_pages(shape: tuple[int, ...], dtype: np.dtype[Any], advice: int) -> Array:
    """A new array at the start of a page, on pages of the advised size.

    numpy's own memory begins 16 bytes later: copying between arrays that differ in this takes up to twice the time.
    """
    memory = mmap.mmap(-1, max(1, math.prod(shape) * dtype.itemsize), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(advice)
    return np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)


def _copied(array: Array, advice: int) -> Array:
    copy = _in_pages(array.shape, array.dtype, advice)
    copy[...] = array
    return copy


@contextmanager
def _populated(path: str) -> Iterator[Any]:
    """A new map all of whose pages are there: what a training process has once its model is built."""
    with dsmem.attach(path, populate=True) as file:
        file.populated()
        yield file


def _contender(
    name: str, role: Role, opened: Callable[[], AbstractContextManager[Any]], samples: Pass, order: str
) -> Contender:
    @contextmanager
    def around() -> Iterator[Any]:
        samples.batch.fill(0)  # what an earlier contender read is no result of this one
        with opened() as file:
            if order == "second":
                samples.read(file)
            yield file

    operations = len(samples.indices)
    return Contender(name, role, samples.read, answer=_digest, around=around, operations=operations)


def _digest(batch: Array) -> str:
    return sources.content_digest({"batch": batch})


def _chosen(source: Source) -> str:
    """`images`, or else the largest dataset that has samples: what a training process spends its time on."""
    sizes = {}
    with h5py.File(source.path, "r") as file:
        for name in source.names:
            dataset = file[name]
            if dataset.ndim and dataset.size:
                sizes[name] = dataset.nbytes
    if not sizes:
        raise UsageError(f"{source.path} has no dataset with samples to read")
    return "images" if "images" in sizes else max(sizes, key=lambda name: sizes[name])


CASE = Case(
    "read",
    "random samples are read as fast as from private memory",
    compare,
    need=Need(memory=3.2, shared=1.1, files=1),
    effort=Effort(md5=0, fill=0.6, copy=0.6),
)
