"""Files of rows for `datasets` to load, and `datasets` itself with no hub, no bars and a cache of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsmem.bench import texts

if TYPE_CHECKING:
    from datasets import Dataset

FILES = 10


def make(directory: Path, size_bytes: int) -> int:
    """The files; their bytes."""
    directory.mkdir()
    rows = texts.documents(max(size_bytes // FILES, 1000))
    for number in range(FILES):
        texts.write_jsonl(directory / f"{number}.jsonl", rows)
    return sum(path.stat().st_size for path in directory.iterdir())


@contextmanager
def hugging_face(cache: Path) -> Iterator[str]:
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


def publish(pattern: str) -> Dataset:
    """What the child of the server does; the rows as plain `datasets` sees them, mapped."""
    import datasets

    from dsmem.server import building
    from dsmem.server.spec import Spec
    from dsmem.store.root import make_store

    store = make_store()
    name = building.publish(store, Spec.parse(f"{pattern}"))
    found: Any = datasets.load_from_disk(store.object_path(name))
    return found["train"]
