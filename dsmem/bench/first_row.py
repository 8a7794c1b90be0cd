"""A training script that starts: what it imports, then opens a dataset and reads a row; nothing was imported before.

`python -m dsmem.bench.first_row shared|cached PATTERN CACHE` prints the seconds of both, and the row, as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Literal

Way = Literal["shared", "cached"]


@dataclass(frozen=True, slots=True)
class Started:
    """How long it took."""

    import_s: float
    row_s: float
    row: str
    """As JSON."""


def start(way: Way, pattern: str, cache: str) -> Started:
    """Run it in a fresh interpreter; raises CalledProcessError."""
    from dsmem import helpers

    done = subprocess.run(
        [sys.executable, "-P", "-m", "dsmem.bench.first_row", way, pattern, cache],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**helpers.environment(), "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"},
        check=True,
    )
    return Started(**json.loads(done.stdout))


def main() -> None:
    """The script."""
    way, pattern, cache = sys.argv[1:]
    began = time.perf_counter()
    import datasets

    if way == "shared":
        import dsmem

        _ = dsmem.load_dataset
    imported = time.perf_counter()
    if way == "shared":
        found = dsmem.load_dataset("json", data_files=pattern, split="train", fallback="error")
    else:
        found = datasets.load_dataset("json", data_files=pattern, split="train", cache_dir=cache)
    row = json.dumps(found[0], default=str)
    ended = time.perf_counter()
    sys.stdout.write(json.dumps({"import_s": imported - began, "row_s": ended - imported, "row": row}))


if __name__ == "__main__":
    main()
