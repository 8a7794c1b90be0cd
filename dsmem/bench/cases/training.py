"""Training on episodes: seconds per batch beside the Dataset that people write, and the memory of several processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsmem.bench.harness import Comparison, Contender
from dsmem.bench.results import Role
from dsmem.bench.sizes import Need
from dsmem.bench.workbench import Case, Effort, Workbench

if TYPE_CHECKING:
    from dsmem.bench.episodes import Holders
    from dsmem.bench.loading import Loader

FILES = 50
BATCH = 8
WORKERS = 2
PROCESSES = (1, 2, 4)
_SHARE = 4
"""Of the size of the run: plain h5py decodes 0.2 GB/s, and every contender reads all of it twice a round."""


_LATER = ("EpisodicDataset, one cache for all", "dsmem.File in __getitem__")
"""Not in the comparison of first passes: they do what others do there."""


def compare(bench: Workbench) -> Generator[Comparison]:
    """A pass over files on the disk, one with everything in its place, the very first, opening included; memory."""
    from dsmem.bench import episodes

    directory = bench.new_file("episodes")
    directory.mkdir()
    try:
        files = FILES if bench.size_bytes >= 256 << 20 else 4
        paths, data_bytes = episodes.make(directory, bench.size_bytes // _SHARE, files=files)
        with bench.place.store():
            yield from _passes(paths)
        yield _first_pass(bench, paths)
        yield from _memory(bench, paths, data_bytes, directory)
    finally:
        shutil.rmtree(directory)


def _datasets(paths: list[str]) -> list[tuple[str, Role, Callable[[], Any]]]:
    from dsmem.bench import episodes, loading

    ours = partial(loading.Episodes, paths, episodes.CAMERAS, chunk_size=episodes.CHUNK_SIZE)
    unpinned = partial(ours, use_shared_memory=False, cache_bytes="64GiB")
    return [
        ("EpisodicDataset, pinned", "dsmem", ours),
        ("EpisodicDataset, one cache for all", "dsmem", partial(unpinned, cache_scope="shared")),
        ("EpisodicDataset, cache of each worker", "dsmem", unpinned),
        ("dsmem.File in __getitem__", "dsmem", partial(episodes.FileEpisodes, paths)),
        ("h5py in __getitem__", "recipe", partial(episodes.PlainEpisodes, paths)),
        ("arrays in memory of each worker, plain DataLoader", "limit", partial(episodes.InMemory, paths)),
    ]


def _passes(paths: list[str]) -> Generator[Comparison]:
    """Every loader is made once; its workers run when it is timed."""
    from dsmem.bench.loading import Loader, answer, drop_pages

    made = [(name, role, Loader(make(), batch=BATCH, workers=WORKERS)) for name, role, make in _datasets(paths)]

    @contextmanager
    def cold(loader: Loader) -> Iterator[None]:
        loader.forget()
        drop_pages(paths)
        yield

    def contenders(around: Callable[[Loader], AbstractContextManager[Any]]) -> list[Contender]:
        return [
            Contender(
                name,
                role,
                partial(_read, loader),
                answer=answer,
                around=partial(around, loader),
                operations=len(loader),
            )
            for name, role, loader in made
        ]

    what = f"a batch of {BATCH}, {WORKERS} workers"
    yield Comparison(f"{what}, caches empty and files not in the page cache", 0, contenders(cold))
    for _, _, loader in made:
        for _ in range(3):  # a cache that is full is larger after each
            loader.read()
    yield Comparison(f"{what}, warm", 0, contenders(lambda _: nullcontext()))


def _read(loader: Loader, _: object) -> list[Any]:
    return loader.read()


def _first_pass(bench: Workbench, paths: list[str]) -> Comparison:
    from dsmem.bench.loading import Loader, answer, drop_pages

    @contextmanager
    def empty_store() -> Iterator[None]:
        drop_pages(paths)
        with bench.place.store():
            yield

    def run(make: Callable[[], Any], _: object) -> Any:
        return Loader(make(), batch=BATCH, workers=WORKERS).read()

    contenders = [
        Contender(name, role, partial(run, make), answer=answer, around=empty_store)
        for name, role, make in _datasets(paths)
        if name not in _LATER
    ]
    return Comparison("the first pass, from nothing: pinning and starting workers included", 0, contenders)


def _memory(bench: Workbench, paths: list[str], data_bytes: int, directory: Path) -> Generator[Comparison]:
    from dsmem.bench import episodes

    small = directory / "small"
    small.mkdir()
    few, _ = episodes.make(small, 1 << 20, files=1)
    with episodes.holders(max(PROCESSES)) as members, bench.place.store():
        for way in ("dsmem", "preload"):  # imports and first allocations count neither
            with members.holding(way, few, processes=max(PROCESSES)):
                continue
        for processes in PROCESSES:
            contenders = [
                _held("EpisodicDataset", "dsmem", members, "dsmem", paths, processes),
                _held("arrays in memory of each process", "recipe", members, "preload", paths, processes),
                Contender("the data itself", "limit", lambda _: data_bytes, amount=int),
            ]
            title = f"memory of {processes} process{'es' if processes > 1 else ''}"
            yield Comparison(title, data_bytes, contenders, quantity="memory", rounds=1)


def _held(name: str, role: Role, members: Holders, way: Any, paths: list[str], processes: int) -> Contender:
    around = partial(members.holding, way, paths, processes=processes)
    return Contender(name, role, lambda held: max(held, 1), around=around, amount=int)


CASE = Case(
    "training",
    "batches of episodes come several times faster, and four processes take the memory of one",
    compare,
    need=Need(memory=3.5, shared=1, files=0.5),
    effort=Effort(md5=3, fill=3, copy=30, fixed_s=25),
    takes_file=False,
)
