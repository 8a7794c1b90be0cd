"""Small tables on disk, and `datasets` kept within a test's own directory."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def own_hugging_face(tmp_path: Path) -> Iterator[Path]:
    """Caches below tmp_path, no hub, no bars; for this process and those that it starts."""
    import datasets

    cache = tmp_path / "hf" / "datasets"
    bars = datasets.are_progress_bars_disabled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setenv("HF_HOME", str(tmp_path / "hf"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        datasets.disable_progress_bars()
        try:
            yield cache
        finally:
            if not bars:
                datasets.enable_progress_bars()


def rows(begin: int, count: int) -> list[dict[str, Any]]:
    """Rows with a number, a text, and a nested list."""
    return [{"id": n, "text": f"row {n}", "meta": {"tags": [n, n + 1]}} for n in range(begin, begin + count)]


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    """A file of JSON lines, its times old enough that nobody waits for them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    time.sleep(0.06)
    return path
