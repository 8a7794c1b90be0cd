"""What killed processes leave behind is put right: free locks and hidden files go, missing refs are rebuilt."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress

from dsmem import files
from dsmem.errors import UnsafeRoot
from dsmem.store import areas, directories, objects, refs
from dsmem.store.draft import HIDDEN_PREFIX
from dsmem.store.refs import Ref
from dsmem.store.root import Store

TEMPORARY_AGE_S = 60.0
_HIDDEN = (HIDDEN_PREFIX, objects.TRASH_PREFIX, areas.PREFIX)
_log = logging.getLogger(__name__)


def sweep(store: Store) -> list[Ref]:
    """Remove locks and areas nobody holds, drafts and trash nobody works on, refs to nothing; rebuild missing refs.

    Returns every ref there is then.
    """
    _sweep_hidden(store)
    _sweep_locks(store)
    return _sweep_refs(store)


def _sweep_hidden(store: Store) -> None:
    with os.scandir(store.objects) as entries:
        hidden = [entry for entry in entries if entry.name.startswith(_HIDDEN)]
    for entry in hidden:
        if entry.is_dir(follow_symlinks=False):
            _delete_if_abandoned(entry.path)
        else:
            _unlink_if_free(entry.path)
    with os.scandir(store.refs) as entries:
        temporary = [entry for entry in entries if entry.name.startswith(".tmp-")]
    for entry in temporary:
        try:
            age_s = time.time() - entry.stat(follow_symlinks=False).st_mtime
        except FileNotFoundError:  # another process has just put it in its place
            continue
        if age_s > TEMPORARY_AGE_S:
            files.unlink_if_there(entry.path)


def _delete_if_abandoned(path: str) -> None:
    """Trash goes whoever is at it; a draft when nobody has it locked."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if files.try_lock(fd, exclusive=True) and files.names_inode(path, os.fstat(fd)):
            with suppress(OSError):  # another sweep is at it, too; what stays, the next one takes
                directories.delete(path)
    finally:
        os.close(fd)


def _sweep_locks(store: Store) -> None:
    with os.scandir(store.locks) as entries:
        paths = [entry.path for entry in entries]
    for path in paths:
        _unlink_if_free(path)


def _unlink_if_free(path: str) -> None:
    try:
        fd = files.open_own(path)
    except FileNotFoundError:
        return
    except UnsafeRoot as exc:
        _log.warning("left alone: %s", exc)
        return
    try:
        if files.try_lock(fd, exclusive=True) and files.names_inode(path, os.fstat(fd)):
            files.unlink_if_there(path)
    finally:
        os.close(fd)


def _sweep_refs(store: Store) -> list[Ref]:
    read = list(refs.all_refs(store))
    there = objects.listed(store)  # after the refs: what leads to something now was published before
    known = {}
    for ref in read:
        if ref.object in there:
            known[ref.file_name()] = ref
        else:
            files.unlink_if_there(f"{store.refs}/{ref.file_name()}")
    led_to = {ref.object for ref in known.values() if not ref.name}
    for found in objects.scan(store, there - led_to):
        if found.provenance is None:
            continue
        ref = Ref(found.name, found.provenance)
        older = known.get(ref.file_name())
        if older is None or older.provenance.created_ns < found.provenance.created_ns:
            refs.write(store, ref)
            known[ref.file_name()] = ref
    return list(known.values())
