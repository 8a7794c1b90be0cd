"""`obtain`: the one way by which an object comes to be. Whoever is first loads; the others wait, or take over.

Ref → lock → build → publish → ref. One loader per (source identity, selection): its lock file holds (done, total) for
those who wait, and is unlinked by its holder. A killed loader leaves a free lock and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, TypeVar

from dsmem import files
from dsmem.errors import InUse, NoSpace, NotPinned
from dsmem.files import FileIdentity
from dsmem.progress import Progress
from dsmem.store import leases, locks, names, objects, refs, space
from dsmem.store.budget import NOTHING, Evicted
from dsmem.store.draft import Draft
from dsmem.store.leases import Lease
from dsmem.store.refs import Provenance, Ref
from dsmem.store.root import Store, occupied
from dsmem.store.sweep import sweep

_PROGRESS = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Request:
    """What is wanted: a selection from a source as it is now."""

    source: str
    identity: FileIdentity
    selection: str
    """Canonical JSON; '' = everything."""
    stem: str


class Unpublished(Protocol):
    """An object that is being made: a `Draft`, or a `DirectoryDraft`."""

    @property
    def published(self) -> bool: ...
    @property
    def evicted(self) -> Evicted: ...
    def is_same(self, name: str, /) -> bool: ...
    def publish(self, name: str, /) -> bool: ...
    def __enter__(self) -> object: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


D = TypeVar("D", bound=Unpublished)


@dataclass(frozen=True, slots=True)
class Filled:
    """What a build has put into its draft; `seal` writes the header, the provenance in it, which ends the filling."""

    content: str
    digest: str
    seal: Callable[[Provenance], None]


Build = Callable[[Draft, Progress], Filled]


@dataclass(frozen=True, slots=True)
class Obtained:
    """An object, and the lease that holds it."""

    ref: Ref
    lease: Lease
    loaded: bool
    """Whether this call built it."""
    waited: bool
    """Whether another process was loading it meanwhile."""
    evicted: Evicted = NOTHING
    """What had to go for it."""


def obtain(store: Store, request: Request, build: Build, progress: Progress) -> Obtained:
    """The arrays for a request: found, waited for, or built; raises whatever `build` raises."""
    return obtain_as(Draft, store, request, build, progress)


def obtain_as(
    draft_of: Callable[[Store], D],
    store: Store,
    request: Request,
    build: Callable[[D, Progress], Filled],
    progress: Progress,
) -> Obtained:
    """The same for an object of any kind: `draft_of` makes what `build` fills."""
    waited = False
    while True:
        found = attach(store, request.source, request.selection, request.identity)
        if found is not None:
            return Obtained(*found, loaded=False, waited=waited)
        with occupied(store), _loader_lock(store, request, progress) as (lock, had_to_wait):
            waited = waited or had_to_wait
            if lock is None:
                continue
            found = _found_under_lock(store, request)
            if found is not None:
                return Obtained(*found, loaded=False, waited=waited)

            def report(done: int, total: int, lock: int = lock) -> None:
                os.pwrite(lock, _PROGRESS.pack(done, total), 0)
                progress(done, total)

            draft = draft_of(store)
            with draft:
                ref = _publish(store, request, draft, build(draft, report))
                try:
                    lease = leases.lease(store, ref.object)  # before the draft lets go of what it has published
                except NotPinned:
                    continue  # the equal object that was there has been removed: someone cleans while we pin
            _write_ref(store, ref, draft, lease)
            return Obtained(ref, lease, loaded=True, waited=waited, evicted=draft.evicted)


def attach(store: Store, source: str, selection: str, identity: FileIdentity) -> tuple[Ref, Lease] | None:
    """The leased object of a source that is still as it was when it was read; None when there is none."""
    ref = refs.find_source(store, source, selection)
    if ref is None or ref.provenance.identity != identity:
        return None
    try:
        return ref, leases.lease(store, ref.object)
    except NotPinned:
        return None


def _found_under_lock(store: Store, request: Request) -> tuple[Ref, Lease] | None:
    """What became known since we looked, under this path or another one of the same file."""
    for ref in sweep(store):
        known = ref.provenance
        if not ref.name and known.identity == request.identity and known.selection == request.selection:
            if known.source != request.source:
                ours = Provenance(
                    request.source,
                    known.identity,
                    known.selection,
                    known.content,
                    known.digest,
                    known.created_ns,
                )
                refs.write(store, Ref(ref.object, ours))
            found = attach(store, request.source, request.selection, request.identity)
            if found is not None:
                return found
    return None


def _publish(store: Store, request: Request, draft: Unpublished, filled: Filled) -> Ref:
    """Name the draft, or find that an equal object is there already: merged only if every byte is the same."""
    provenance = Provenance(
        source=request.source,
        identity=request.identity,
        selection=request.selection,
        content=filled.content,
        digest=filled.digest,
        created_ns=time.time_ns(),
    )
    filled.seal(provenance)
    attempt = 0
    while True:
        key = names.object_key(filled.content, request.selection, attempt)
        with locks.exclusive(store, f"key-{key}"):  # for a link, or for comparing two equal objects
            existing = objects.with_key(store, key)
            if not existing:
                name = f"{request.stem}-{key}"
                if draft.publish(name):
                    return Ref(name, provenance)
            for name in existing:
                if draft.is_same(name):
                    return Ref(name, provenance)
        attempt += 1


def _write_ref(store: Store, ref: Ref, draft: Unpublished, lease: Lease) -> None:
    """Without room even for the ref, the object goes again: what failed takes no memory."""
    try:
        with space.translated(store):
            refs.write(store, ref)
    except NoSpace:
        lease.map.close()
        with suppress(InUse):
            if draft.published:
                objects.remove(store, ref.object)
        raise


@contextmanager
def _loader_lock(store: Store, request: Request, progress: Progress) -> Iterator[tuple[int | None, bool]]:
    """The loader's lock, and whether we waited; None instead of a lock when its holder has finished: look again."""
    identity = json.dumps([request.identity.as_list(), request.selection]).encode()
    path = f"{store.locks}/{hashlib.blake2b(identity, digest_size=16).hexdigest()}"
    with space.translated(store):
        fd = files.open_own(path, os.O_RDWR | os.O_CREAT)
    waited = False
    pause_s = locks.FIRST_PAUSE_S
    try:
        while not files.try_lock(fd, exclusive=True):
            waited = True
            state = os.pread(fd, _PROGRESS.size, 0)
            if len(state) == _PROGRESS.size:
                progress(*_PROGRESS.unpack(state))
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, locks.LONGEST_PAUSE_S)
        if not files.names_inode(path, os.fstat(fd)):
            yield None, waited
            return
        try:
            with space.translated(store):
                os.pwrite(fd, _PROGRESS.pack(0, 0), 0)
            yield fd, waited
        finally:
            files.unlink_if_there(path)
    finally:
        os.close(fd)
