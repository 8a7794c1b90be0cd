"""The child that loads one dataset: it may import anything, take any memory, crash; the daemon goes on."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence

from dsmem import helpers
from dsmem.progress import Progress
from dsmem.server import frames, overflow
from dsmem.server.records import Published
from dsmem.server.spec import Spec
from dsmem.store.root import Store, make_store

Publish = Callable[[Store, Spec, Progress], Published]
_TELL_S = 0.05


def publish(store: Store, spec: Spec, progress: Progress) -> Published:
    """Load a dataset into the store."""
    from dsmem.server import building

    return building.published(store, spec, progress=progress)


def run(arguments: Sequence[str], work: Publish = publish) -> int:
    """Do what the daemon asks and tell it how it went; the exit code."""
    parent, request_fd, pipe = map(int, arguments)
    helpers.end_with_parent(parent)
    os.set_inheritable(pipe, False)
    with os.fdopen(request_fd, "rb") as file:
        request = json.loads(file.read())
    told_s = 0.0

    def tell(message: dict[str, object]) -> None:
        rest = memoryview(frames.encode(message))
        while rest:
            rest = rest[os.write(pipe, rest) :]

    def progress(done_bytes: int, total_bytes: int, /) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= _TELL_S:
            told_s = time.monotonic()
            tell({"kind": "progress", "done_bytes": done_bytes, "total_bytes": total_bytes})

    try:
        spec = Spec.from_dict(request["spec"])
        store = make_store(request["root"])
        found = overflow.placed(store, request["overflow"], spec, lambda store: work(store, spec, progress))
    except Exception as exc:  # noqa: BLE001 - the edge of this process: the daemon is told, the traceback is logged
        traceback.print_exc()
        tell({"kind": "failed", "error": f"{type(exc).__name__}: {exc}"})
        return 0
    tell({"kind": "done", **found.as_dict()})
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
