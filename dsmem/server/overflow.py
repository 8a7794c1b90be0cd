"""The second store: on a disk, for the tables that have no room in the first. A note in the first says where it is.

A table lies in one of the two. Once it has gone to the second, its later generations are built there, beside the shards
that they share; whoever publishes it in one store takes its ref from the other.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from dsmem import files, settings
from dsmem.errors import InUse, NoSpace
from dsmem.server import catalogue
from dsmem.server.records import Published
from dsmem.server.spec import Spec
from dsmem.store import objects, refs
from dsmem.store.root import Store, make_store, open_store

_LIMIT_BYTES = 4096
_log = logging.getLogger(__name__)


def note(store: Store, root: str) -> None:
    """Let clients find the second store."""
    os.makedirs(catalogue.directory(store), mode=0o700, exist_ok=True)
    path = _path(store)
    if _noted(store) != root:
        files.write_atomic(path, os.fsencode(root))


def second(store: Store | None) -> Store | None:
    """The second store: what DSMEM_OVERFLOW_DIR says, else what a server has noted; None where there is none.

    Raises UnsafeRoot for one that is not ours.
    """
    said = settings.read().overflow_dir
    root = os.path.abspath(said) if said is not None else (_noted(store) if store is not None else None)
    return open_store(root) if root is not None and (store is None or root != store.root) else None


def placed(store: Store, root: str | None, spec: Spec, publish: Callable[[Store], Published]) -> Published:
    """Publish a table in the store, or, where that has no room, in the one at `root`.

    Raises NoSpace where there is none, or where that has no room either, and what `publish` raises.
    """
    if root is None or root == store.root:
        return publish(store)
    other = make_store(root)
    if not has(other, spec):
        try:
            found = publish(store)
        except NoSpace as exc:
            _log.warning("%s goes to %s: %s", spec.label, root, exc)
        else:
            _forget(other, spec)
            return found
    found = replace(publish(other), root=root)
    _forget(store, spec)
    return found


def has(store: Store, spec: Spec) -> bool:
    """Whether a table of that request was published there and is there still."""
    ref = refs.find_source(store, spec.source, spec.selection)
    return ref is not None and os.path.lexists(store.object_path(ref.object))


def is_later(store: Store | None, spec: Spec) -> bool:
    """Whether a later generation than the store's lies in the second one.

    A sweep of the store finds the way to what has moved again; of local files the identity tells which is right.
    """
    if store is None or spec.local_paths():
        return False
    other = second(store)
    refs_of = [refs.find_source(one, spec.source, spec.selection) for one in (store, other) if one is not None]
    if len(refs_of) < 2 or refs_of[0] is None or refs_of[1] is None:
        return False
    return refs_of[1].provenance.created_ns > refs_of[0].provenance.created_ns


def _forget(store: Store, spec: Spec) -> None:
    """No source leads to what may be there of an earlier generation: it goes, or when nobody holds it any more."""
    ref = refs.find_source(store, spec.source, spec.selection)
    files.unlink_if_there(f"{store.refs}/{refs.source_file(spec.source, spec.selection)}")
    if ref is not None and all(one.object != ref.object for one in refs.all_refs(store)):
        with suppress(InUse):
            objects.remove(store, ref.object)


def _path(store: Store) -> str:
    return f"{catalogue.directory(store)}/overflow"


def _noted(store: Store) -> str | None:
    try:
        root = os.fsdecode(files.read_own(_path(store), _LIMIT_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as exc:
        _log.warning("%s", exc)
        return None
    return root if os.path.isabs(root) and "\0" not in root else None
