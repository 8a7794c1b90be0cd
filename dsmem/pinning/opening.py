"""`attach` and `File`: a path or a name as arrays, from shared memory where it is pinned, else as well as may be."""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import Literal

from dsmem import settings
from dsmem.arrays import header as headers
from dsmem.arrays import views
from dsmem.arrays.views import TreeContents
from dsmem.errors import (
    DamagedObject,
    NoSpace,
    NotPinned,
    SourceMissing,
    UnsafeRoot,
    Unsupported,
    UsageError,
)
from dsmem.files import FileIdentity
from dsmem.pinning import populating
from dsmem.pinning.arrayfile import ArrayFile, as_array
from dsmem.settings import PinMode
from dsmem.store import directories, leases, objects, obtain, refs
from dsmem.store.leases import Lease
from dsmem.store.objects import KIND_KEY, PROVENANCE_KEY
from dsmem.store.refs import Provenance
from dsmem.store.root import Store, make_store, open_store

_log = logging.getLogger(__name__)


def attach(target: str | os.PathLike[str], *, populate: bool = False) -> ArrayFile:
    """Map what is pinned of a path, or under a name: no hashing, no HDF5, constant in bytes.

    `populate`: a thread maps all of its pages meanwhile (70 ms of one core for each GiB), so that the first pass over
    the data is as fast as the others; `populated()` waits for it.
    A target with a `/`, or that exists, is a path; anything else a name. Raises NotPinned (also when the file has
    changed since), Ambiguous, SourceMissing, DamagedObject, UnsafeRoot, InUse, UsageError for a dataset.
    """
    text = os.fspath(target)
    store = open_store()
    if not refs.means_path(store, target):
        if store is None:
            raise NotPinned(f"nothing called {text!r} is in the store", target=text)
        return _attach_object(store, objects.find(store, text), None, populate)
    found = _attach_path(store, text, populate) if store is not None else None
    if found is None:
        _stat(text)
        raise _not_pinned(store, text)
    return found


def File(
    path: str | os.PathLike[str],
    mode: Literal["r"] = "r",
    *,
    pin: PinMode | None = None,
    preload: bool = False,
    populate: bool = False,
) -> ArrayFile:
    """Open an HDF5 file for reading, as h5py.File does: `.source` says where its arrays come from, `.why` why.

    Pinned and unchanged → shared memory. Else, with `pin="auto"` (or DSMEM_PIN=auto), it is pinned now; whoever is
    first loads, others wait. Else contiguous → mapped from the file; else h5py. `preload=True`: a private copy in RAM.
    `populate=True` is that of `attach`; it does nothing for what is not pinned.
    Raises SourceMissing, BadSource, SourceBusy, UsageError; a store that can't be used is logged and done without.
    """
    if mode != "r":
        raise UsageError(f"dsmem.File reads only: mode {mode!r} is not 'r'")
    text = os.fspath(path)
    if preload:
        from dsmem.pinning.preloading import preload as preloaded

        return preloaded(text)
    chosen = pin if pin is not None else settings.read().pin
    if chosen not in ("never", "auto"):
        raise UsageError(f"pin={chosen!r} means nothing; it is 'never' or 'auto'")
    why = "not pinned"
    try:
        store = open_store()
        found = _attach_path(store, text, populate) if store is not None else None
        if found is None and chosen == "auto":
            found = _pin_and_attach(text, populate)
        if found is not None:
            return found
    except (NoSpace, Unsupported, UnsafeRoot, DamagedObject) as exc:
        why = str(exc)
        _log.warning("%s: done without shared memory: %s", text, exc)
    from dsmem.pinning import unpinned

    return unpinned.open_unpinned(text, why)


def _attach_path(store: Store, text: str, populate: bool) -> ArrayFile | None:
    path = os.path.realpath(text)
    found = obtain.attach(store, path, "", FileIdentity.of(_stat(text)))
    return None if found is None else open_lease(store, found[1], found[0].provenance, text, populate=populate)


def _pin_and_attach(text: str, populate: bool) -> ArrayFile:
    from dsmem.pinning.pin import PinRequest, obtain_file
    from dsmem.progress import ignore

    store = make_store()
    obtained = obtain_file(store, PinRequest(os.path.realpath(text)), ignore).obtained
    return open_lease(store, obtained.lease, obtained.ref.provenance, text, populate=populate)


def _attach_object(store: Store, name: str, filename: str | None, populate: bool) -> ArrayFile:
    path = store.object_path(name)
    if os.path.isdir(path):
        directories.read_anchor(path)
        raise UsageError(f"{name} is a dataset, which dsmem.load_dataset opens")
    return open_lease(store, leases.lease(store, name), None, filename, populate=populate)


def open_lease(
    store: Store, held: Lease, provenance: Provenance | None, filename: str | None, *, populate: bool = False
) -> ArrayFile:
    """An ArrayFile over a leased object; `filename` None when it was attached by name."""
    try:
        with memoryview(held.map) as view:
            header = headers.parse(view, len(view))
        if header.metadata.get(views.DATA_BYTES_KEY) != str(header.data_bytes):
            raise DamagedObject("its size is not the one it was published with")
        if provenance is None:
            provenance = Provenance.load(header.metadata[PROVENANCE_KEY])
    except (DamagedObject, ValueError, KeyError) as exc:
        held.map.close()  # else the error's traceback would hold the lease, and nobody could remove the object
        raise DamagedObject(f"{held.name} in the store is damaged: {exc}", name=held.name) from exc
    if header.metadata.get(KIND_KEY) == "checkpoint":
        held.map.close()
        raise UsageError(f"{held.name} is a checkpoint, which dsmem.checkpoint.attach opens")
    array = as_array(held.map)
    contents = TreeContents(header, array, "pinned", f"pinned as {held.name}", label=filename or held.name)
    return ArrayFile(
        contents,
        filename=filename or held.name,
        object_name=held.name,
        digest=provenance.digest,
        reopen=(_reopen, (held.name, filename, populate)),
        private=partial(_private, store, held, header),
        populating=populating.start(array) if populate else None,
    )


def _private(store: Store, held: Lease, header: headers.Header) -> TreeContents | None:
    private = leases.private_map(store, held)
    if private is None:
        return None
    return TreeContents(header, as_array(private), "pinned", "", label=held.name)


def _reopen(object_name: str, filename: str | None, populate: bool) -> ArrayFile:
    """What a pickled file becomes in another process: the very same object, or, once that is gone, the file."""
    store = open_store()
    try:
        if store is not None:
            return _attach_object(store, object_name, filename, populate)
    except NotPinned:
        if filename is None:
            raise
    if filename is None:
        raise NotPinned(f"{object_name} is not in the store", target=object_name)
    return File(filename, populate=populate)


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise SourceMissing(f"{path}: no such file") from exc


def _not_pinned(store: Store | None, text: str) -> NotPinned:
    path = os.path.realpath(text)
    parts: list[str] = []
    changed = False
    for ref in refs.all_refs(store) if store is not None else ():
        if ref.provenance.source == path and not ref.name:
            changed = changed or not ref.provenance.selection
            if ref.provenance.selection:
                parts.append(ref.object)
    if changed:
        return NotPinned(f"{text} has changed since it was pinned", target=text)
    if parts:
        listed = ", ".join(sorted(parts))
        what = "only in part, or with what lies in other files"
        return NotPinned(f"{text} is pinned {what}, as {listed}: attach that by its name", target=text)
    return NotPinned(f"{text} is not pinned", target=text)
