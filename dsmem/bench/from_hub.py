"""Opening a dataset of a hub: measured in a child, because a process learns at its start where its hub is.

`python -m dsmem.bench.from_hub PARENT RUNS SIZE_BYTES` prints the comparison as JSON; the hub is its parent's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from dsmem import helpers, units
from dsmem.bench import hub, limits
from dsmem.bench.harness import Comparison, Contender, measure
from dsmem.bench.results import Compared, Measured
from dsmem.bench.workbench import Workbench
from dsmem.errors import DsmemError

ANSWER_S = 0.05
_REPEAT = 100


class HubFailed(DsmemError, RuntimeError):
    """The child failed; the message is its last line."""


def opening(bench: Workbench, files: Sequence[Path], size_bytes: int) -> Compared:
    """A dataset of these files on a hub that takes its time, opened in a process that has opened it before."""
    home = bench.new_file("hub")
    with hub.serving(files, answer_s=ANSWER_S) as address, bench.place.store():
        done = subprocess.run(
            helpers.command(__name__, bench.runs, size_bytes, _REPEAT),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**helpers.environment(), "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"},
            check=False,
        )
    if done.returncode:
        told = done.stderr.strip().splitlines() or [helpers.ending(done.returncode)]
        raise HubFailed(f"opening from a hub: {told[-1]}")
    raw: dict[str, Any] = json.loads(done.stdout)
    return Compared(**{**raw, "measured": tuple(Measured(**one) for one in raw["measured"])})


def main(arguments: Sequence[str]) -> None:
    """The child."""
    parent, runs, size_bytes, repeat = map(int, arguments)
    helpers.end_with_parent(parent)
    import datasets

    datasets.disable_progress_bars()
    sys.stdout.write(json.dumps(asdict(measure(_comparison(size_bytes, repeat), runs=runs))))


def _comparison(size_bytes: int, repeat: int) -> Comparison:
    import datasets

    import dsmem
    from dsmem.server import building
    from dsmem.server.spec import Spec
    from dsmem.store.root import make_store

    load = partial(datasets.load_dataset, hub.REPOSITORY, split="train")
    load()
    store = make_store()
    name = building.publish(store, Spec.parse(hub.REPOSITORY))
    shard = min(map(str, Path(store.object_path(name)).rglob("*.arrow")))
    shared = partial(dsmem.load_dataset, hub.REPOSITORY, split="train")
    return Comparison(
        f"open a dataset of a hub, {units.format_bytes(size_bytes)}, in a warm process",
        0,
        [
            Contender("dsmem.load_dataset", "dsmem", lambda _: shared(), answer=_last_row, repeat=repeat),
            Contender(
                "datasets.load_dataset, cached, offline",
                "recipe",
                lambda _: load(),
                answer=_last_row,
                around=_offline,
                repeat=max(repeat // 5, 1),
            ),
            Contender(
                f"datasets.load_dataset, cached, the hub answers in {units.format_duration(ANSWER_S)}",
                "recipe",
                lambda _: load(),
                answer=_last_row,
            ),
            Contender(
                "datasets.load_dataset, the first time",
                "recipe",
                lambda place: load(cache_dir=place, download_mode="force_redownload"),
                answer=_last_row,
                around=tempfile.TemporaryDirectory,
            ),
            Contender("open + mmap", "limit", lambda _: limits.open_and_map(shard), repeat=repeat),
        ],
    )


@contextmanager
def _offline() -> Iterator[None]:
    """As with HF_HUB_OFFLINE=1, and without its two lines of log."""
    import datasets
    from huggingface_hub import constants

    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity_error()
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = False
        datasets.logging.set_verbosity(verbosity)


def _last_row(found: Any) -> str:
    return f"{len(found)} {found[-1]}"


if __name__ == "__main__":
    main(sys.argv[1:])
