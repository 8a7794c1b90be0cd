"""Batches of token windows in random order, beside a DataLoader; and opening a sparse file of 2 TiB in a fresh process.

All contenders of the first read the same windows in the same order; the maps are warm, as after some batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import dsmem
from dsmem import units
from dsmem.bench import limits, opener
from dsmem.bench.harness import Comparison, Contender
from dsmem.bench.opener import Opened, Opener, Way
from dsmem.bench.results import Role
from dsmem.bench.sizes import Need
from dsmem.bench.workbench import Case, Effort, Workbench

_BATCH_SIZE, _SEQ_LEN = opener.BATCH_SIZE, opener.SEQ_LEN
_FEWEST_BYTES, _MOST_BYTES = 2 << 20, 256 << 20
_MOST_BATCHES, _FEWEST_BATCHES = 256, 4
_SPARSE_BYTES = 2 << 40


def compare(bench: Workbench) -> Generator[Comparison]:
    """Three comparisons: batches, the time to open a huge file, the memory that takes."""
    path = bench.new_file("tokens.bin")
    size_bytes = max(_FEWEST_BYTES, min(bench.size_bytes, _MOST_BYTES))
    _make(path, size_bytes)
    yield _batches(str(path), max(_FEWEST_BATCHES, min(_MOST_BATCHES, size_bytes >> 20)))
    path.unlink()
    huge = bench.new_file("huge.bin")
    with huge.open("wb") as file:
        file.truncate(_SPARSE_BYTES)
    with opener.opener(str(huge)) as process:
        yield _opening(str(huge), process)
        yield _memory(process)
    huge.unlink()


def _batches(path: str, count: int) -> Comparison:
    import torch
    from torch.utils.data import DataLoader

    from dsmem.bench.token_recipes import PlainTokens

    tokens = dsmem.TokenDataset(path, _SEQ_LEN)
    plain = PlainTokens(path, _SEQ_LEN)
    loaders = [dsmem.TokenLoader(path, _BATCH_SIZE, _SEQ_LEN, stride=1, buffers=2, prefetch=n) for n in (0, 2)]
    source = np.memmap(path, dtype=np.uint16, mode="r").view(np.ndarray)
    target = np.zeros((_BATCH_SIZE, _SEQ_LEN + 1), np.int64)

    def again(loader: dsmem.TokenLoader) -> Iterator[Any]:
        loader.set_epoch(0)
        return iter(loader)

    def loaded(dataset: Any, **options: Any) -> Iterator[Any]:
        # The sampler is dsmem's for all: torch's own makes a permutation of every window first.
        return iter(DataLoader(dataset, batch_size=_BATCH_SIZE, sampler=tokens.sampler(), **options))

    def take(batches: Iterator[Any]) -> list[Any]:
        """What a training loop does with a batch, less the training: look at it and let it go."""
        return [(x[:, 0].clone(), y[:, -1].clone()) for x, y in islice(batches, count)]

    def widened() -> Iterator[Any]:
        block = torch.from_numpy(target)
        for number in range(count):
            start = number * target.size % (len(source) - target.size)
            np.copyto(target, source[start : start + target.size].reshape(target.shape))
            yield block[:, :-1], block[:, 1:]

    def contender(name: str, role: Role, make: Callable[[], Iterator[Any]]) -> Contender:
        @contextmanager
        def around() -> Iterator[Iterator[Any]]:
            batches = make()
            next(batches)  # workers and threads have started
            yield batches

        return Contender(name, role, take, answer=_digest, around=around, operations=count)

    contenders = [
        contender("TokenLoader", "dsmem", lambda: again(loaders[0])),
        contender("TokenLoader, prefetch=2", "dsmem", lambda: again(loaders[1])),
        contender("TokenDataset in a DataLoader", "dsmem", lambda: loaded(tokens, collate_fn=tokens.collate)),
        contender("DataLoader over np.memmap", "recipe", lambda: loaded(plain)),
        Contender("uint16 → int64, in file order, looked at", "limit", lambda _: take(widened()), operations=count),
    ]
    title = f"batches of {_BATCH_SIZE} windows of {_SEQ_LEN:,} tokens at random places, as int64"
    return Comparison(title, 2 * _BATCH_SIZE * _SEQ_LEN, contenders)


def _opening(path: str, process: Opener) -> Comparison:
    contenders = [
        _opens("TokenLoader: shuffled, in mid-epoch", "dsmem", process, "l"),
        _opens("np.memmap + torch.randint", "recipe", process, "p"),
        Contender("open + mmap", "limit", lambda _: limits.open_and_map(path)),
    ]
    what = f"a sparse file of {units.format_bytes(_SPARSE_BYTES)}: open it and read the first batch"
    return Comparison(f"{what}, in a fresh process", 0, contenders)


def _opens(name: str, role: Role, process: Opener, way: Way) -> Contender:
    return Contender(name, role, lambda fork: fork.open(), answer=_same, around=lambda: process.fresh(way))


def _memory(process: Opener) -> Comparison:
    batch_bytes = 2 * 8 * _BATCH_SIZE * _SEQ_LEN
    contenders = [
        _grows("TokenLoader: shuffled, in mid-epoch", "dsmem", process, "l"),
        _grows("np.memmap + torch.randint", "recipe", process, "p"),
        Contender("x and y of the batch", "limit", lambda _: batch_bytes, amount=int),
    ]
    title = "the same: memory beyond the imports"
    return Comparison(title, _SPARSE_BYTES, contenders, quantity="memory", rounds=1)


def _grows(name: str, role: Role, process: Opener, way: Way) -> Contender:
    def run(_: object) -> int:
        with process.fresh(way) as fork:
            fork.open()
        return process.grown_bytes

    return Contender(name, role, run, amount=int)


def _same(opened: Opened) -> object:
    return opened.shape, opened.largest


def _digest(taken: list[Any]) -> str:
    digest = hashlib.sha256()
    for ends in taken:
        for one in ends:
            digest.update(one.numpy().tobytes())
    return digest.hexdigest()


def _make(path: Path, size_bytes: int) -> None:
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, size_bytes, 32 << 20):
            count = (min(size_bytes, start + (32 << 20)) - start) // 2
            file.write(rng.integers(0, 50_000, count, dtype=np.uint16).tobytes())


CASE = Case(
    "tokens",
    "batches of tokens come at half the speed of widening them; a file of any size opens at once",
    compare,
    need=Need(memory=2, shared=0.1, files=1.1),
    effort=Effort(md5=0, fill=0.1, copy=0, fixed_s=14),
    takes_file=False,
)
