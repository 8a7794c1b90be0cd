"""Attaching what is pinned and reading one element: few arrays and many, small files and large ones."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import dsmem
from dsmem import units
from dsmem.bench import limits, recipes, sources
from dsmem.bench.harness import Comparison, Contender
from dsmem.bench.sizes import Need
from dsmem.bench.sources import Source
from dsmem.bench.workbench import Case, Effort, Workbench

MANY = 2000
_REPEAT = 20
_SMALL_BYTES = 1 << 20


def compare(bench: Workbench) -> Generator[Comparison]:
    """A comparison for each file: small, large, many arrays small, many arrays large."""
    yield from _pinned(bench, bench.small_file())
    yield from _pinned(bench, bench.source)
    for name, size_bytes in (("many-small.h5", _SMALL_BYTES), ("many-large.h5", bench.size_bytes)):
        path = bench.new_file(name)
        yield from _pinned(bench, sources.make_many_arrays(path, size_bytes, arrays=MANY))
        path.unlink()


def _pinned(bench: Workbench, source: Source) -> Generator[Comparison]:
    with bench.place.store():
        dsmem.pin(source.path)
        name = source.names[-1]
        ours = _contender("dsmem.attach", "dsmem", partial(attach_and_read_one_element, source.path, name))
        open_ = _contender("h5py.File", "recipe", partial(recipes.read_one_element, source.path, name))
        load = Contender(
            "h5py, everything [...]",
            "recipe",
            lambda _: recipes.load_and_read_one_element(source.path, source.names, name),
            answer=_element,
        )
        limit = Contender("open + mmap", "limit", lambda _: limits.open_and_map(source.path), repeat=_REPEAT)
        arrays = f"{len(source.names)} arrays" if len(source.names) != 1 else "1 array"
        title = f"{arrays}, {units.format_bytes(source.data_bytes)}: open and read one element"
        yield Comparison(title, 0, [ours, open_, load, limit])


def attach_and_read_one_element(path: str, name: str) -> Any:
    """The counterpart of `recipes.read_one_element`."""
    with dsmem.attach(path) as file:
        dataset = file[name]
        return dataset[(0,) * dataset.ndim]


def _contender(name: str, role: Any, read: Callable[[], Any]) -> Contender:
    return Contender(name, role, lambda _: read(), answer=_element, repeat=_REPEAT)


def _element(value: Any) -> str:
    return f"{value.dtype} {value!r}"


CASE = Case(
    "attach",
    "attaching takes the same fraction of a millisecond, however large the data",
    compare,
    need=Need(memory=3, shared=1.1, files=2),
    effort=Effort(md5=0, fill=3, copy=3, fixed_s=5),
)
