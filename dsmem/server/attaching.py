"""A published table as a `datasets.Dataset` over shared memory: no server is asked, nothing is copied or hashed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsmem.arrow import opening, writing
from dsmem.arrow.opening import Split
from dsmem.arrow.writing import Table
from dsmem.errors import DamagedObject, DsmemError, NotPinned, SourceMissing
from dsmem.server import views
from dsmem.server.generations import Facts
from dsmem.server.spec import Spec
from dsmem.store import directories, leases, refs
from dsmem.store.directories import Anchor
from dsmem.store.leases import Lease
from dsmem.store.root import Store

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_SPLIT_CHARACTERS = frozenset("[]+%:()")
"""Of a split that is a part, or several together."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a table can't be had from the store."""

    reason: str
    expected: bool
    """Nothing is wrong: it was never published."""


def attach(store: Store, spec: Spec) -> Dataset | DatasetDict | Missing:
    """The table of a request, also where it was published with all of its splits.

    Raises DamagedObject, InUse, and PermissionError as UnsafeRoot.
    """
    found = _leased(store, spec)
    if isinstance(found, Lease):
        return _opened(store, found, None)
    if spec.split is None or not _SPLIT_CHARACTERS.isdisjoint(spec.split):
        return found
    whole = _leased(store, spec.with_split(None))
    if isinstance(whole, Lease):
        return _opened(store, whole, spec.split)
    return found if whole.expected else whole


def _leased(store: Store, spec: Spec) -> Lease | Missing:
    source = spec.source
    ref = refs.find_source(store, source, spec.selection)
    if ref is None:
        return Missing(f"{spec.label} is not in the store", expected=True)
    if spec.local_paths():
        try:
            if spec.identity() != ref.provenance.identity:
                return Missing(f"{spec.label} has changed since it was published", expected=False)
        except SourceMissing as exc:
            return Missing(str(exc), expected=False)
    try:
        return leases.lease(store, ref.object)
    except NotPinned:
        return Missing(f"{spec.label} was removed from the store", expected=True)


def _opened(store: Store, held: Lease, split: str | None) -> Dataset | DatasetDict | Missing:
    path = store.object_path(held.name)
    try:
        anchor = Anchor.load(held.map[:])
        facts = Facts.from_dict(anchor.facts)
        directories.check(path, anchor)
        if split is not None and split not in facts.tables:
            return Missing(f"{held.name} has no split {split!r}", expected=True)
        keys = list(facts.tables) if split is None else [split]
        found = {key: _dataset(path, key, facts.tables[key], held) for key in keys}
    except (ValueError, OSError) as exc:
        if isinstance(exc, DsmemError):
            raise
        raise DamagedObject(f"{held.name} in the store is damaged: {exc}", name=held.name) from exc
    if split is not None or "" in found:
        return found[keys[0]]
    from datasets import DatasetDict

    return DatasetDict(found)


def _dataset(path: str, key: str, table: Table, held: Lease) -> Dataset:
    directory = f"{path}/{key}" if key else path
    files = opening.file_paths(directory, [writing.shard_name(number) for number in range(len(table.shards))])
    paths = views.make(table.fingerprint, files)
    split = Split(files, paths, table.fingerprint, table.info, table.split)
    return opening.open_split(split, held.map)
