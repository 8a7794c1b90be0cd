"""A comparison on a tmpfs of its own, with huge pages: measured in a child whose mounts nobody else sees.

Only root may mount; where that is refused, the comparison is left out and the reason is told.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from dsmem import helpers
from dsmem.bench import sources
from dsmem.bench.harness import Comparison, measure
from dsmem.bench.results import Compared, Measured
from dsmem.bench.scratch import scratch
from dsmem.bench.workbench import Workbench
from dsmem.errors import DsmemError

_OPTIONS = "huge=advise,mode=0700"
_REFUSED = 3
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 1 << 18
"""sched.h and sys/mount.h of Linux."""


class NotMeasured(DsmemError, RuntimeError):
    """The child could not mount, or failed; the message says why."""


def on_huge_pages(bench: Workbench, case: str) -> list[Compared]:
    """What that case (a module of `dsmem.bench.cases`) gives in its own `on_huge_pages`, on a new tmpfs.

    Raises NotMeasured.
    """
    point = bench.place.files / "huge"
    point.mkdir()
    try:
        done = subprocess.run(
            [*helpers.command(__name__), case, str(point), bench.source.path, str(bench.runs)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=helpers.environment(),
            check=False,
        )
    finally:
        point.rmdir()
    if done.returncode:
        told = done.stderr.strip().splitlines() or [helpers.ending(done.returncode)]
        raise NotMeasured(told[-1])
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return [Compared(**{**raw, "measured": tuple(Measured(**one) for one in raw["measured"])}) for raw in found]


def main(arguments: Sequence[str]) -> None:
    """The child: its parent's pid, the case, the mount point, the file, the runs; the comparisons as JSON on stdout."""
    parent, case, point, path, runs = arguments
    helpers.end_with_parent(int(parent))
    compare: Callable[[Workbench], Iterator[Comparison]] = import_module(f"dsmem.bench.cases.{case}").on_huge_pages
    try:
        _mount(point)
    except OSError as exc:
        sys.stderr.write(f"a tmpfs of one's own can't be mounted: {exc.strerror}\n")
        sys.exit(_REFUSED)
    os.environ["DSMEM_ROOT"] = str(Path(point) / "store")
    source = sources.look_at(path)
    with scratch() as place:
        bench = Workbench(place, source, source.data_bytes, int(runs))
        compared = [measure(comparison, runs=bench.runs) for comparison in compare(bench)]
    sys.stdout.write(json.dumps([asdict(one) for one in compared]))


def _mount(point: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    _checked(libc.unshare(_CLONE_NEWNS))
    _checked(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    _checked(libc.mount(b"dsmem-bench", os.fsencode(point), b"tmpfs", 0, _OPTIONS.encode()))


def _checked(result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


if __name__ == "__main__":
    main(sys.argv[1:])
