"""Training on episodes: seconds per batch beside the Dataset that people write, and the memory of several processes."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsmem.bench.harness import Comparison, Contender
from dsmem.bench.results import Role
from dsmem.bench.sizes import Need
from dsmem.bench.workbench import Case, Effort, Workbench

if TYPE_CHECKING:
    from dsmem.bench.episodes import Holders

FILES = 50
BATCH = 8
WORKERS = 2
PROCESSES = (1, 2, 4)
_SHARE = 4
"""Of the size of the run: plain h5py decodes 0.2 GB/s, and every contender reads all of it twice a round."""


def compare(bench: Workbench) -> Generator[Comparison]:
    """A further pass, with everything in its place; the first pass, opening included; memory."""
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
    from dsmem.bench import episodes
    from dsmem.training import EpisodicDataset

    ours = partial(EpisodicDataset, paths, episodes.CAMERAS, chunk_size=episodes.CHUNK_SIZE)
    return [
        ("EpisodicDataset, pinned", "dsmem", ours),
        ("EpisodicDataset, cache of each worker", "dsmem", partial(ours, use_shared_memory=False, cache_bytes="64GiB")),
        ("h5py in __getitem__", "recipe", partial(episodes.PlainEpisodes, paths)),
        ("arrays in memory", "limit", partial(episodes.InMemory, paths)),
    ]


def _passes(paths: list[str]) -> Generator[Comparison]:
    """Every loader is made once, with workers that persist, and went through the data before it is timed."""
    contenders = []
    batches = 0
    for name, role, make in _datasets(paths):
        loader = _loader(make())
        batches = len(loader)
        for _ in range(3):  # a worker's cache holds what this worker was given: each pass the same
            _pass(loader)
        run = partial(_again, loader)
        contenders.append(Contender(name, role, run, answer=_answer, operations=batches))
    yield Comparison(f"a batch of {BATCH}, {WORKERS} workers, warm", 0, contenders)


def _first_pass(bench: Workbench, paths: list[str]) -> Comparison:
    @contextmanager
    def empty_store() -> Iterator[None]:
        with bench.place.store():
            yield

    def run(make: Callable[[], Any], _: object) -> Any:
        return _pass(_loader(make()))

    contenders = [
        Contender(name, role, partial(run, make), answer=_answer, around=empty_store)
        for name, role, make in _datasets(paths)
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


def _loader(dataset: Any) -> Any:
    from torch.utils.data import DataLoader

    from dsmem.training import EpisodicDataset
    from dsmem.training.batches import collate

    options: dict[str, Any] = {}
    if WORKERS:
        # Not forked: a process of many threads that forks may leave its children a lock that nobody frees.
        options = {"persistent_workers": True, "multiprocessing_context": "spawn"}
    if isinstance(dataset, EpisodicDataset):
        options["collate_fn"] = collate  # as create_optimized_dataloader has it
    return DataLoader(dataset, BATCH, sampler=_order(len(dataset)), num_workers=WORKERS, **options)


def _order(count: int) -> list[int]:
    """A shuffled order, the same each time: batch n goes to the same worker."""
    import numpy as np

    order: list[int] = np.random.default_rng(0).permutation(count).tolist()
    return order


def _pass(loader: Any) -> list[Any]:
    """All batches, as a training loop takes them; of each, what tells it from others."""
    return [
        (
            batch["episode"].tolist(),
            batch["step"].tolist(),
            batch["action"].sum().item(),
            batch["state"].sum().item(),
            [image[:, ::16, ::16].clone() for image in batch["images"].values()],
        )
        for batch in loader
    ]


def _again(loader: Any, _: object) -> list[Any]:
    return _pass(loader)


def _answer(seen: list[Any]) -> tuple[object, ...]:
    frames = 0
    for *_, images in seen:
        for image in images:
            frames = zlib.crc32(image.numpy(), frames)
    return (frames, *((tuple(numbers), tuple(steps), action, state) for numbers, steps, action, state, _ in seen))


CASE = Case(
    "training",
    "batches of episodes come several times faster, and four processes take the memory of one",
    compare,
    need=Need(memory=3, shared=0.5, files=0.5),
    effort=Effort(md5=2, fill=2, copy=20, fixed_s=20),
    takes_file=False,
)
