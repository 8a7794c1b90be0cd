"""The catalogue: which name means which request. The daemon writes it; clients read it, also when no daemon lives."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping

from dsmem import files
from dsmem.server.spec import Spec
from dsmem.store.root import Store

_LIMIT_BYTES = 16 << 20
_log = logging.getLogger(__name__)


def directory(store: Store) -> str:
    """Where the daemon keeps its own small files, in the store's root."""
    return f"{store.root}/server"


def path(store: Store) -> str:
    """Of the catalogue."""
    return f"{directory(store)}/catalogue.json"


def read(store: Store) -> dict[str, Spec]:
    """Name → request; empty when there is no catalogue. Raises UnsafeRoot for one that is not ours."""
    try:
        record = json.loads(files.read_own(path(store), _LIMIT_BYTES))
        if not isinstance(record, dict):
            raise ValueError("not a mapping")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, RecursionError) as exc:
        _log.warning("unreadable catalogue %s: %s", path(store), exc)
        return {}
    found = {}
    for name, one in record.items():
        try:
            found[name] = Spec.from_dict(one)
        except ValueError as exc:
            _log.warning("%s: %s: %s", path(store), name, exc)
    return found


def write(store: Store, mapping: Mapping[str, Spec]) -> None:
    """Replace the catalogue whole."""
    os.makedirs(directory(store), mode=0o700, exist_ok=True)
    record = {name: spec.as_dict() for name, spec in sorted(mapping.items())}
    files.write_atomic(path(store), json.dumps(record, indent=1).encode())
