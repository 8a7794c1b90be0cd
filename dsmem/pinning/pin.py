"""`pin`: an HDF5 file into the store, once; whoever comes later finds it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from dsmem import digest, files, settings
from dsmem.arrays.summary import DatasetSummary
from dsmem.digest import cache
from dsmem.errors import Allow, BadSource, DamagedObject, Refusal, SourceBusy, SourceChanged, Unsupported, UsageError
from dsmem.files import FileIdentity
from dsmem.progress import Progress, ignore
from dsmem.store import leases, names, objects, refs
from dsmem.store.draft import Draft
from dsmem.store.obtain import Filled, Obtained, Request, attach, obtain
from dsmem.store.refs import Provenance, Ref
from dsmem.store.root import Store, make_store
from dsmem.store.sweep import sweep

if TYPE_CHECKING:
    from dsmem.pinning.filling import Loaded
    from dsmem.pinning.loading import Reader

PinnedDataset = DatasetSummary


@dataclass(frozen=True, slots=True)
class Pinned:
    """A file in the store."""

    name: str
    """The object's name: what `attach` and `dsmem shm clean` take."""
    source: str
    algo: str
    digest: str
    """Hex digest of the source file by `algo`."""
    datasets: Sequence[PinnedDataset]
    """A tuple; of more than 10,000 a sequence whose entries are made when they are looked at."""
    refused: tuple[Refusal, ...]
    """What `skip_unsupported` left out."""
    size_bytes: int
    elapsed_s: float
    already: bool
    """It was there before this call."""
    waited: bool
    """Another process was loading it, and this call waited."""
    evicted: tuple[str, ...] = ()
    """Names of the objects that had to go for it, under a budget; the longest unused first."""
    evicted_bytes: int = 0
    kept: bool = False
    """It is never evicted, and cleaned only when it is named."""


def pin(
    path: str | os.PathLike[str],
    *,
    only: Sequence[str] | None = None,
    name: str | None = None,
    algo: str = digest.DEFAULT_ALGORITHM,
    verify: bool = False,
    skip_unsupported: bool = False,
    allow: Collection[Allow] = (),
    hash_cache: bool = True,
    budget: int | None = None,
    keep: bool | None = None,
    untrusted: bool = False,
    progress: Progress | None = None,
) -> Pinned:
    """Put the arrays of an HDF5 file into shared memory, unless they are there already.

    `only`: globs of dataset paths; `name`: a name to attach by; `algo`: the digest to report (the object's identity is
    always xxh3-tree); `verify`: compare everything with h5py before it is published, not only a sample; what is there
    already is compared with the file, read once more beside it, which takes the room of another one meanwhile.
    `budget`: bytes that all objects may hold together; the longest unused of those that nobody holds, and that are not
    kept, are evicted for it. None = DSMEM_BUDGET, and without that nothing is ever evicted. `keep`: mark the object,
    also one that is there already, to be kept (False: no longer).

    `allow`: what is else refused, from a file that you trust: "external" reads through external links, external storage
    and virtual datasets into other files (what they hold now is frozen, later changes of theirs go unnoticed, hence
    such an object is attached by name only), "oversized" takes sizes over 4 GiB and over 1000 times what is stored.

    `untrusted`: read it in a child process, for files from elsewhere: one that makes HDF5 crash or hang is a BadSource
    then, and this process lives. It costs about 0.3 s.

    Raises SourceMissing, BadSource, SourceBusy (open for writing), SourceChanged, Unsupported, NoSpace, UnsafeRoot,
    UsageError, DamagedObject (what was there already is not what the file holds), WorkerLost (the child was killed).
    """
    began = time.perf_counter()
    digest.check_algorithm(algo)
    if name is not None:
        names.check_name(name)
    if only is not None and not all(only):
        raise UsageError("only takes globs of dataset paths, and one of these is empty")
    request = PinRequest(
        os.path.realpath(path), tuple(sorted(only or ())), name, algo, verify, skip_unsupported, hash_cache
    )
    if untrusted:
        request = replace(request, untrusted=True)
    if allow:
        request = replace(request, allow=checked_allow(allow))
    if budget is not None:
        request = replace(request, budget_bytes=_checked_budget(budget))
    store = make_store()
    found = obtain_file(store, request, progress or ignore)
    obtained = found.obtained
    if not obtained.loaded:
        sweep(store)  # whoever loads has done so
    ref = obtained.ref
    if keep is not None:
        objects.keep(store, ref.object, kept=keep)
    datasets = found.datasets
    if datasets is None:
        datasets = _datasets_of(store, ref.object)
    recorded_algo, _, hexdigest = ref.provenance.digest.partition(":")
    return Pinned(
        name=ref.object,
        source=request.path,
        algo=recorded_algo,
        digest=hexdigest,
        datasets=datasets,
        refused=found.refused,
        size_bytes=len(obtained.lease.map),
        elapsed_s=time.perf_counter() - began,
        already=not obtained.loaded and not obtained.waited,
        waited=obtained.waited,
        evicted=obtained.evicted.names,
        evicted_bytes=obtained.evicted.freed_bytes,
        kept=objects.is_kept(os.stat(store.object_path(ref.object))),
    )


def _datasets_of(store: Store, name: str) -> Sequence[PinnedDataset]:
    from dsmem.pinning.written import Written

    fd = leases.open_object(store.object_path(name), name)
    try:
        return Written(fd).datasets()
    except DamagedObject as exc:
        raise DamagedObject(f"{name}: {exc}", name=name) from exc
    finally:
        os.close(fd)


def _checked_budget(budget: int) -> int:
    if budget < 0:
        raise UsageError(f"a budget of {budget} bytes can't be meant")
    return budget


def checked_allow(allow: Collection[Allow]) -> frozenset[Allow]:
    """What is allowed, if all of it is known; raises UsageError."""
    known: tuple[Allow, ...] = get_args(Allow)
    if isinstance(allow, str) or not set(allow) <= set(known):
        raise UsageError(f"allow={allow!r} means nothing; it holds some of {', '.join(known)}")
    return frozenset(allow)


@dataclass(frozen=True, slots=True)
class PinRequest:
    """The arguments of `pin`, the path resolved."""

    path: str
    only: tuple[str, ...] = ()
    name: str | None = None
    algo: str = digest.DEFAULT_ALGORITHM
    verify: bool = False
    skip_unsupported: bool = False
    hash_cache: bool = True
    budget_bytes: int | None = None
    """None = what DSMEM_BUDGET says."""
    allow: frozenset[Allow] = frozenset()
    untrusted: bool = False

    def selection(self, *, skipped: bool, outside: bool = False) -> str:
        """Canonical JSON of what is taken; '' = everything, which is what `File` looks for.

        What was allowed belongs to it where it made a difference: other files were read, or less was skipped.
        """
        if not self.only and not skipped and not outside:
            return ""
        chosen: dict[str, object] = {"only": list(self.only), "skipped": skipped}
        allowed = sorted(self.allow) if skipped else ["external"] if outside else []
        if allowed:
            chosen["allow"] = allowed
        return json.dumps(chosen, separators=(",", ":"))

    def selections(self) -> Iterator[str]:
        """All that what it asks for could have become."""
        yield self.selection(skipped=False)
        if "external" in self.allow:
            yield self.selection(skipped=False, outside=True)
        if self.skip_unsupported:
            yield self.selection(skipped=True)


@dataclass(frozen=True, slots=True)
class Found:
    """The leased object of a file."""

    obtained: Obtained
    refused: tuple[Refusal, ...]
    """What was left out of it."""
    datasets: Sequence[PinnedDataset] | None = None
    """Known where it was loaded now: else its header tells them."""


def obtain_file(store: Store, request: PinRequest, progress: Progress) -> Found:
    """The object of a file, pinned if need be."""
    if request.name is not None:
        refs.check_free(store, request.name, request.path)
    fd = digest.open_source(request.path)
    try:
        there = _already(store, request, FileIdentity.of(os.fstat(fd)))
        if there is not None:
            found = Found(there, _left_out(store, request, fd, there))
        else:
            found = _load(store, request, fd, progress)
        if request.verify and not found.obtained.loaded:
            _compare_anew(store, request, fd, found.obtained, progress)
        ref = _with_digest(store, request, fd, found.obtained.ref)
    finally:
        os.close(fd)
    if request.name is not None:
        refs.write(store, replace(ref, name=request.name))
    return replace(found, obtained=replace(found.obtained, ref=ref))


def _already(store: Store, request: PinRequest, identity: FileIdentity) -> Obtained | None:
    for selection in request.selections():
        found = attach(store, request.path, selection, identity)
        if found is not None:
            return Obtained(*found, loaded=False, waited=False)
    return None


def _left_out(store: Store, request: PinRequest, fd: int, found: Obtained) -> tuple[Refusal, ...]:
    """What an object that is there does not hold of what was asked for: the file is looked through once more for it.

    Nothing is known of it while the file is open for writing; the object is good all the same.
    """
    if found.ref.provenance.selection != request.selection(skipped=True):
        return ()
    try:
        with _opened(store, request, fd) as (reader, _):
            return tuple(reader.refusals)
    except SourceBusy:
        return ()


def _load(store: Store, request: PinRequest, fd: int, progress: Progress) -> Found:
    with _opened(store, request, fd) as (reader, identity):
        wanted = Request(
            source=request.path,
            identity=identity,
            selection=request.selection(skipped=bool(reader.refusals), outside=reader.is_outside),
            stem=request.name or names.stem_of(request.path),
        )
        known = cache.look_up(identity) if request.hash_cache else {}
        stream = request.algo if request.algo != digest.DEFAULT_ALGORITHM and request.algo not in known else None

        loaded: Loaded | None = None

        def build(draft: Draft, report: Progress) -> Filled:
            need = reader.plan(_widest_provenance(wanted))
            draft.make_room(need.object_bytes, _budget(request), need.beside_bytes)
            nonlocal loaded
            loaded = reader.fill(draft, stream_algo=stream, verify=request.verify, progress=report)
            digests = loaded.digests
            _check_unchanged(request.path, fd, identity)
            computed = {digest.DEFAULT_ALGORITHM: digests.tree_hex}
            if digests.stream_hex is not None:
                computed[request.algo] = digests.stream_hex
            if request.hash_cache:
                for algo, hexdigest in computed.items():
                    cache.remember(identity, algo, hexdigest)
            reported = {**known, **computed}[request.algo]
            return Filled(f"{digest.DEFAULT_ALGORITHM}:{digests.tree_hex}", f"{request.algo}:{reported}", loaded.seal)

        obtained = obtain(store, wanted, build, progress)
        return Found(obtained, tuple(reader.refusals), loaded.datasets() if loaded and obtained.loaded else None)


@contextmanager
def _opened(store: Store, request: PinRequest, fd: int) -> Iterator[tuple[Reader, FileIdentity]]:
    """The file looked through, held against writers, and as it is now.

    What goes wrong in the block because the file changed is SourceChanged, whatever HDF5 made of it.
    """
    from dsmem.hdf5 import opening
    from dsmem.pinning import loading, untrusted
    from dsmem.pinning.filling import ReadDifferently
    from dsmem.pinning.source import Source

    opening.lock_source(fd, request.path)
    identity = files.settled_identity(fd)
    opening.check_signature(fd, request.path)
    source = Source(fd, request.path, identity.size_bytes, request.only, request.allow)
    try:
        with untrusted.opened(source, store) if request.untrusted else loading.opened(source) as reader:
            if reader.refusals and not request.skip_unsupported:
                raise _unsupported(request.path, reader.refusals)
            yield reader, identity
    except (BadSource, SourceChanged, ReadDifferently):
        _check_unchanged(request.path, fd, identity)
        raise


def _compare_anew(store: Store, request: PinRequest, fd: int, found: Obtained, progress: Progress) -> None:
    """Load the file once more into a draft that is never published, and compare; raises DamagedObject."""
    name, provenance = found.ref.object, found.ref.provenance
    with _opened(store, request, fd) as (reader, identity), Draft(store) as draft:
        need = reader.plan(provenance)
        draft.make_room(need.object_bytes, _budget(request), need.beside_bytes)
        reader.fill(draft, stream_algo=None, verify=True, progress=progress).seal(provenance)
        _check_unchanged(request.path, fd, identity)
        if not objects.is_same(store, draft.fd, name):
            raise DamagedObject(f"{name} in the store is not what {request.path} holds", name=name)


def _budget(request: PinRequest) -> int | None:
    return request.budget_bytes if request.budget_bytes is not None else settings.read().budget_bytes


def _widest_provenance(request: Request) -> Provenance:
    return Provenance(
        source=request.source,
        identity=request.identity,
        selection=request.selection,
        content=f"{digest.DEFAULT_ALGORITHM}:" + "f" * 32,
        digest="xxh3-tree:" + "f" * 64,
        created_ns=10**19,
    )


def _check_unchanged(path: str, fd: int, identity: FileIdentity) -> None:
    try:
        named = FileIdentity.of(os.stat(path))
    except FileNotFoundError:
        named = None
    if FileIdentity.of(os.fstat(fd)) != identity or named != identity:
        raise SourceChanged(f"{path} changed while it was read; nothing was published")


def _with_digest(store: Store, request: PinRequest, fd: int, ref: Ref) -> Ref:
    """The ref with the digest that was asked for, computed now if the file was pinned with another."""
    if ref.provenance.digest.startswith(f"{request.algo}:"):
        return ref
    if request.algo == digest.DEFAULT_ALGORITHM:
        found = ref.provenance.content
    else:
        known = cache.look_up(ref.provenance.identity).get(request.algo) if request.hash_cache else None
        found = f"{request.algo}:{known or _hash_now(request, fd, ref)}"
    changed = replace(ref, provenance=replace(ref.provenance, digest=found))
    refs.write(store, changed)
    return changed


def _hash_now(request: PinRequest, fd: int, ref: Ref) -> str:
    identity = ref.provenance.identity
    hexdigest = digest.hash_descriptor(fd, identity.size_bytes, request.algo)
    _check_unchanged(request.path, fd, identity)
    if request.hash_cache:
        cache.remember(identity, request.algo, hexdigest)
    return hexdigest


def _unsupported(path: str, refusals: Sequence[Refusal]) -> Unsupported:
    what = f"{len(refusals)} things" if len(refusals) > 1 else "one thing"
    return Unsupported(f"{path} holds {what} that can't be pinned exactly", refusals=refusals)
