"""The child that reads an untrusted file (`python -m`): limited in memory and processor time, gone with its parent.

It looks through the file when it starts, plans and fills when it is told, and then ends.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsmem import helpers, proc
from dsmem.errors import DsmemError
from dsmem.pinning import explaining, loading, messages
from dsmem.pinning.loading import Reader
from dsmem.pinning.messages import Channel
from dsmem.pinning.source import Source
from dsmem.store.draft import Draft
from dsmem.store.refs import Provenance
from dsmem.store.root import Store

_REPORT_S = 0.05
_LEAST_GROWTH_BYTES = 1 << 30
_THREAD_BYTES = 256 << 20
"""Address space that a thread takes: its stack, and malloc's arena (64 MiB, aligned)."""
_LEAST_CPU_S = 600
_CPU_S_PER_GIB = 120
"""The slowest filters decode 20 MiB/s; whoever takes five times as long is stuck."""


def main(arguments: Sequence[str]) -> None:
    """Serve one parent: its pid, and the descriptors of the socket to it and of the file."""
    parent, end, fd = (int(argument) for argument in arguments)
    helpers.end_with_parent(parent)
    helpers.ignore_interrupts()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    channel = Channel(socket.socket(fileno=end))
    try:
        _serve(channel, fd)
    except (DsmemError, MemoryError, OSError, RuntimeError, ValueError, TypeError, LookupError, AssertionError) as exc:
        channel.send("failed", messages.error_to_json(exc))
        if not isinstance(exc, DsmemError):
            raise


def _serve(channel: Channel, fd: int) -> None:
    kind, wanted = _expect(channel, "scan", "explain")
    source = Source(
        fd=fd,
        path=wanted["path"],
        size_bytes=wanted["size_bytes"],
        only=tuple(wanted["only"]),
        allow=frozenset(wanted["allow"]),
        is_distrusted=True,
    )
    report = _Report(channel)
    _limit(source.size_bytes, 0)
    if kind == "explain":
        channel.send("explained", messages.explained_to_json(explaining.explain_source(source, report.seen)))
        return
    store = Store(wanted["store"])
    with loading.opened(source, report.seen) as reader:
        found = {"refusals": messages.refusals_to_json(reader.refusals), "is_outside": reader.is_outside}
        channel.send("scanned", found)
        _, planned = _expect(channel, "plan")
        provenance = Provenance.load(planned)
        need = reader.plan(provenance)
        channel.send("planned", [min(size_bytes, messages.LARGEST_COUNT) for size_bytes in need])
        _limit(source.size_bytes, need.object_bytes)
        channel.send("filled", _fill(reader, channel, store, provenance, report))


def _fill(
    reader: Reader, channel: Channel, store: Store, provenance: Provenance, report: _Report
) -> dict[str, str | None]:
    _, request = _expect(channel, "fill")
    draft = Draft(store, fd=channel.take_fd())  # never closed here: it is the parent's to publish or to drop
    loaded = reader.fill(draft, stream_algo=request["stream_algo"], verify=request["verify"], progress=report.progress)
    loaded.seal(provenance)
    return {"tree": loaded.digests.tree_hex, "stream": loaded.digests.stream_hex}


def _expect(channel: Channel, *kinds: str) -> tuple[str, Any]:
    message = channel.receive()
    if message is None:
        sys.exit("not wanted any more")
    assert message[0] in kinds, message[0]
    return message


class _Report:
    """Tells the parent that it goes on, some times a second."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._due_s = 0.0
        self._last = [0, 1]

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        self._say([done_bytes, total_bytes], at_once=done_bytes >= total_bytes)

    def seen(self) -> None:
        """Nothing more was read, but it goes on."""
        self._say(None)

    def _say(self, done: list[int] | None, *, at_once: bool = False) -> None:
        with self._lock:
            done = self._last = done or self._last
            if time.monotonic() < self._due_s and not at_once:
                return
            self._due_s = time.monotonic() + _REPORT_S
        self._channel.send("progress", done)


def _limit(source_bytes: int, object_bytes: int) -> None:
    """Bound address space (the object's map, half of what memory is free, a share for each thread), processor time."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    growth = max(proc.memory_available() // 2, _LEAST_GROWTH_BYTES) + _THREAD_BYTES * proc.usable_cpus()
    _lower(resource.RLIMIT_AS, taken + growth + object_bytes)
    gib = (source_bytes + object_bytes) >> 30
    _lower(resource.RLIMIT_CPU, int(time.process_time()) + _LEAST_CPU_S + _CPU_S_PER_GIB * gib)


def _lower(what: int, limit: int) -> None:
    """Set a soft limit, which the hard one that we came with bounds."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)  # nothing is left to tidy, and HDF5 may hang on a damaged file when it closes it
