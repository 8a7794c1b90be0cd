"""A Hugging Face dataset of jsonl files: opening it in a warm process, loading it first, and when a file has come.

`datasets` has its best cases beside it: a cache that is warm and no hub to be asked, a directory of save_to_disk. A hub
that answers over a network costs it more, and dsmem nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dsmem
from dsmem import units
from dsmem.bench import from_hub, limits, recipes, rowfiles
from dsmem.bench.harness import Comparison, Contender
from dsmem.bench.results import Compared
from dsmem.bench.sizes import Need
from dsmem.bench.workbench import Case, Effort, Workbench

if TYPE_CHECKING:
    from datasets import Dataset

_SHARE = 8
"""Of the bytes of the run: `datasets` parses JSON at a tenth of the speed at which it is copied."""
_REPEAT = 100


def compare(bench: Workbench) -> Generator[Comparison | Compared]:
    """Opening; then a first load, and a load when one file of ten is new."""
    directory = bench.new_file("rows")
    with rowfiles.hugging_face(bench.place.files / "hugging-face") as cache, ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        size_bytes = rowfiles.make(directory, bench.size_bytes // _SHARE)
        yield from _opening(bench, directory, size_bytes, cache)
        yield from_hub.opening(bench, sorted(directory.iterdir()), size_bytes)
        yield _loading(bench, directory, size_bytes)


def _opening(bench: Workbench, directory: Path, size_bytes: int, cache: str) -> Generator[Comparison]:
    pattern = f"{directory}/*.jsonl"
    with bench.place.store(), tempfile.TemporaryDirectory(dir=bench.place.files) as saved:
        rowfiles.publish(pattern)
        warm = partial(recipes.load_rows, pattern, cache)
        warm().save_to_disk(saved)
        in_memory = partial(recipes.load_rows, pattern, cache, keep_in_memory=True)
        fewer = max(_REPEAT // 5, 1)
        shard = min(map(str, Path(saved).glob("*.arrow")))
        yield Comparison(
            f"open {rowfiles.FILES} files, {units.format_bytes(size_bytes)}, in a warm process",
            0,
            [
                _opened(
                    "dsmem.load_dataset",
                    "dsmem",
                    partial(dsmem.load_dataset, "json", data_files=pattern, split="train"),
                    repeat=_REPEAT,
                ),
                _opened("datasets.load_dataset, cached, offline", "recipe", warm, repeat=fewer),
                _opened("datasets.load_from_disk", "recipe", partial(recipes.load_saved, saved), repeat=fewer),
                _opened("load_dataset(keep_in_memory=True)", "recipe", in_memory, repeat=1),
                Contender("open + mmap", "limit", lambda _: limits.open_and_map(shard), repeat=_REPEAT),
            ],
        )


def _loading(bench: Workbench, directory: Path, size_bytes: int) -> Comparison:
    files = sorted(directory.iterdir())

    @contextmanager
    def store(published: int) -> Iterator[str]:
        """A fresh store in which so many of the files are published; the pattern means all of them."""
        with bench.place.store(), tempfile.TemporaryDirectory(dir=bench.place.files) as place:
            for number, file in enumerate(files):
                if number == published and published:
                    rowfiles.publish(f"{place}/*.jsonl")
                os.link(file, f"{place}/{file.name}")
            if published == len(files):
                rowfiles.publish(f"{place}/*.jsonl")
            yield f"{place}/*.jsonl"

    @contextmanager
    def cache() -> Iterator[str]:
        with tempfile.TemporaryDirectory(dir=bench.place.files) as place:
            yield place

    def opened(pattern: str) -> Any:
        return dsmem.load_dataset("json", data_files=pattern, split="train", fallback="error")

    def plain(place: str) -> Dataset:
        return recipes.load_rows(f"{directory}/*.jsonl", place)

    def read(_: object) -> None:
        for file in files:
            limits.read_cached(str(file))

    return Comparison(
        f"load {rowfiles.FILES} files, {units.format_bytes(size_bytes)}",
        size_bytes,
        [
            Contender(
                "into the store, one file is new",
                "dsmem",
                rowfiles.publish,
                answer=_digest,
                around=partial(store, rowfiles.FILES - 1),
            ),
            Contender(
                "open what is in the store",
                "dsmem",
                opened,
                answer=_digest,
                around=partial(store, len(files)),
                repeat=_REPEAT,
            ),
            Contender(
                "into the store, all are new", "dsmem", rowfiles.publish, answer=_digest, around=partial(store, 0)
            ),
            Contender("datasets.load_dataset, empty cache", "recipe", plain, answer=_digest, around=cache),
            Contender("read the files", "limit", read),
        ],
    )


def _opened(name: str, role: Any, load: Callable[[], Any], *, repeat: int) -> Contender:
    return Contender(name, role, lambda _: load(), answer=_last_row, repeat=repeat)


def _last_row(found: Any) -> str:
    return f"{len(found)} {found[-1]}"


def _digest(found: Dataset) -> str:
    digest = hashlib.md5()
    for batch in found.with_format("arrow").iter(1000):
        digest.update("\0".join(batch["text"].to_pylist()).encode())
    return digest.hexdigest()


CASE = Case(
    "dataset",
    "a dataset that is loaded once opens in a millisecond everywhere",
    compare,
    need=Need(memory=0.5, shared=0.3, files=0.8),
    effort=Effort(md5=8, fill=0.5, copy=0.5, fixed_s=9.0),
    takes_file=False,
)
