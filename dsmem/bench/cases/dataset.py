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
from dsmem.bench import limits, recipes, texts
from dsmem.bench.harness import Comparison, Contender
from dsmem.bench.sizes import Need
from dsmem.bench.workbench import Case, Effort, Workbench

if TYPE_CHECKING:
    from datasets import Dataset

FILES = 10
_SHARE = 8
"""Of the bytes of the run: `datasets` parses JSON at a tenth of the speed at which it is copied."""
_REPEAT = 20


def compare(bench: Workbench) -> Generator[Comparison]:
    """Opening; then a first load, and a load when one file of ten is new."""
    directory = bench.new_file("rows")
    with _hugging_face(bench.place.files / "hugging-face") as cache, ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        size_bytes = _make(directory, bench.size_bytes // _SHARE)
        yield from _opening(bench, directory, size_bytes, cache)
        yield _loading(bench, directory, size_bytes)


def _opening(bench: Workbench, directory: Path, size_bytes: int, cache: str) -> Generator[Comparison]:
    pattern = f"{directory}/*.jsonl"
    with bench.place.store(), tempfile.TemporaryDirectory(dir=bench.place.files) as saved:
        _publish(pattern)
        warm = partial(recipes.load_rows, pattern, cache)
        warm().save_to_disk(saved)
        in_memory = partial(recipes.load_rows, pattern, cache, keep_in_memory=True)
        shard = min(map(str, Path(saved).glob("*.arrow")))
        yield Comparison(
            f"open {FILES} files, {units.format_bytes(size_bytes)}, in a warm process",
            0,
            [
                _opened(
                    "dsmem.load_dataset",
                    "dsmem",
                    partial(dsmem.load_dataset, "json", data_files=pattern, split="train"),
                ),
                _opened("datasets.load_dataset, cached, offline", "recipe", warm),
                _opened("datasets.load_from_disk", "recipe", partial(recipes.load_saved, saved)),
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
                    _publish(f"{place}/*.jsonl")
                os.link(file, f"{place}/{file.name}")
            yield f"{place}/*.jsonl"

    @contextmanager
    def cache() -> Iterator[str]:
        with tempfile.TemporaryDirectory(dir=bench.place.files) as place:
            yield place

    def plain(place: str) -> Dataset:
        return recipes.load_rows(f"{directory}/*.jsonl", place)

    def read(_: object) -> None:
        for file in files:
            limits.read_cached(str(file))

    return Comparison(
        f"load {FILES} files, {units.format_bytes(size_bytes)}",
        size_bytes,
        [
            Contender(
                "into the store, one file is new", "dsmem", _publish, answer=_digest, around=partial(store, FILES - 1)
            ),
            Contender("into the store, all are new", "dsmem", _publish, answer=_digest, around=partial(store, 0)),
            Contender("datasets.load_dataset, empty cache", "recipe", plain, answer=_digest, around=cache),
            Contender("read the files", "limit", read),
        ],
    )


def _publish(pattern: str) -> Dataset:
    """What the child of the server does; the rows as plain `datasets` sees them, mapped."""
    import datasets

    from dsmem.server import building
    from dsmem.server.spec import Spec
    from dsmem.store.root import make_store

    store = make_store()
    name = building.publish(store, Spec.parse(f"{pattern}"))
    found: Any = datasets.load_from_disk(store.object_path(name))
    return found["train"]


def _opened(name: str, role: Any, load: Callable[[], Any], *, repeat: int = _REPEAT) -> Contender:
    return Contender(name, role, lambda _: load(), answer=_last_row, repeat=repeat)


def _last_row(found: Any) -> str:
    return f"{len(found)} {found[-1]}"


def _digest(found: Dataset) -> str:
    digest = hashlib.md5()
    for batch in found.with_format("arrow").iter(1000):
        digest.update("\0".join(batch["text"].to_pylist()).encode())
    return digest.hexdigest()


def _make(directory: Path, size_bytes: int) -> int:
    """The files; their bytes."""
    directory.mkdir()
    for number in range(FILES):
        texts.write_jsonl(directory / f"{number}.jsonl", texts.documents(max(size_bytes // FILES, 1000)))
    return sum(path.stat().st_size for path in directory.iterdir())


@contextmanager
def _hugging_face(cache: Path) -> Iterator[str]:
    """`datasets` asks no hub, shows no bars, and has its cache there."""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE, datasets.config.HF_HUB_OFFLINE, datasets.are_progress_bars_disabled()
    datasets.config.HF_DATASETS_CACHE, datasets.config.HF_HUB_OFFLINE = cache, True
    datasets.disable_progress_bars()
    try:
        yield str(cache)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        datasets.config.HF_DATASETS_CACHE, datasets.config.HF_HUB_OFFLINE = before[:2]
        if not before[2]:
            datasets.enable_progress_bars()


CASE = Case(
    "dataset",
    "a dataset that is loaded once opens in a millisecond or two everywhere",
    compare,
    need=Need(memory=0.5, shared=0.3, files=0.8),
    effort=Effort(md5=8, fill=0.5, copy=0.5, fixed_s=6.0),
    takes_file=False,
)
