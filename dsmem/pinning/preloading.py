"""`preload=True`: a private copy of everything in this process's memory, what people do without shared memory."""

from __future__ import annotations

import mmap
import os
import time

from dsmem import digest, files, proc, units
from dsmem.arrays import header
from dsmem.arrays.layout import TooLarge
from dsmem.arrays.views import TreeContents
from dsmem.errors import NoSpace, Unsupported
from dsmem.hdf5 import opening
from dsmem.hdf5.scan import scan
from dsmem.pinning import filling, planning
from dsmem.pinning.arrayfile import ArrayFile, as_array
from dsmem.pinning.source import Source
from dsmem.progress import ignore
from dsmem.store import hugepages
from dsmem.store.draft import Draft
from dsmem.store.refs import Provenance


def preload(path: str) -> ArrayFile:
    """Read the whole file into memory of this process (and of its forks); raises what `pin` raises."""
    fd = digest.open_source(path)
    try:
        opening.lock_source(fd, path)
        identity = files.settled_identity(fd)
        opening.check_signature(fd, path)
        with opening.opened(fd, path) as file, Draft(None) as draft:
            found = scan(file, path, file_bytes=identity.size_bytes)
            if found.refusals:
                raise Unsupported(f"{path} holds things that can't be preloaded", refusals=found.refusals)
            provenance = Provenance(os.path.realpath(path), identity, "", "", "", time.time_ns())
            try:
                plan = planning.plan(found, provenance)
            except TooLarge as exc:
                _require_memory(exc.size_bytes)
                raise
            _require_memory(plan.need_bytes)
            loaded = filling.fill(
                plan,
                draft,
                Source(fd, path, identity.size_bytes),
                file,
                stream_algo=None,
                verify=False,
                progress=ignore,
            )
            loaded.seal(provenance)
            size_bytes = os.fstat(draft.fd).st_size
            whole = hugepages.mapped(draft.fd, size_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    finally:
        os.close(fd)
    parsed = header.parse(memoryview(whole), size_bytes)
    return ArrayFile(
        TreeContents(parsed, as_array(whole), "preloaded", "preload=True", label=path),
        filename=path,
        object_name=None,
        digest=f"{digest.DEFAULT_ALGORITHM}:{loaded.digests.tree_hex}",
        reopen=(preload, (path,)),
    )


def _require_memory(need_bytes: int) -> None:
    free_bytes = proc.memory_available()
    if need_bytes > free_bytes:
        raise NoSpace(
            f"{units.format_bytes(need_bytes)} needed, {units.format_bytes(free_bytes)} of memory free",
            need_bytes=need_bytes,
            free_bytes=free_bytes,
            limit="memory of this machine",
        )
