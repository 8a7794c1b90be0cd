"""Random samples of one dataset, one by one, into a batch: through a map that was just made, and through a warm one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import h5py
import numpy as np

import dsmem
from dsmem import units
from dsmem.bench import recipes, sources
from dsmem.bench.harness import Comparison, Contender
from dsmem.bench.results import Role
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


def compare(bench: Workbench) -> Generator[Comparison]:
    """Two comparisons, of the first and of the second pass over the same samples."""
    path, name = bench.source.path, _chosen(bench.source)
    with bench.place.store():
        dsmem.pin(path)
        ram = recipes.preload(path, [name])[name]
        sample_bytes = max(1, ram.nbytes // len(ram))
        count = max(1, min(_SAMPLES, len(ram), _BATCH_BYTES // sample_bytes))
        indices = np.random.default_rng(0).permutation(len(ram))[:count].tolist()
        samples = Pass(name, indices, np.zeros((count, *ram.shape[1:]), ram.dtype))

        @contextmanager
        def in_memory() -> Iterator[dict[str, Array]]:
            yield {name: ram}

        for order in ("first", "second"):
            contenders = [
                _contender("dsmem.attach", "dsmem", partial(dsmem.attach, path), samples, order),
                _contender("dsmem.attach, populated", "dsmem", partial(_populated, path), samples, order),
                _contender("h5py.File", "recipe", partial(h5py.File, path, "r"), samples, order),
                _contender("numpy in RAM", "limit", in_memory, samples, order),
            ]
            title = f"random samples of {name}, {units.format_bytes(sample_bytes)} each: {order} pass"
            yield Comparison(title, sample_bytes, contenders)


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
