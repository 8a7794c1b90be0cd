"""Digests remembered by (dev, ino, size, mtime_ns, ctime_ns), one small file per inode on a local disk.

A cache, never a truth: whatever is unreadable in it counts as absent, and failing to write it only costs time.
"""

from __future__ import annotations

import json
import logging
import os
import re

from dsmem import files, settings
from dsmem.files import FileIdentity

_LIMIT_BYTES = 4096
_MOST_ENTRIES = 4096
_HEX = re.compile("(?:[0-9a-f]{32}){1,2}")
_log = logging.getLogger(__name__)


def look_up(identity: FileIdentity) -> dict[str, str]:
    """Digests known for exactly this identity: algorithm → hex."""
    try:
        record = json.loads(files.read_own(_path(identity), _LIMIT_BYTES))
        if record["identity"] != identity.as_list():
            return {}
        return {algo: digest for algo, digest in record["digests"].items() if _HEX.fullmatch(digest)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        _log.debug("digest cache entry unusable: %s", exc)
        return {}


def remember(identity: FileIdentity, algo: str, digest: str) -> None:
    """Record a digest beside those already known for this identity."""
    path = _path(identity)
    known = look_up(identity)
    if known.get(algo) == digest:
        return
    record = {"identity": identity.as_list(), "digests": {**known, algo: digest}}
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        files.write_atomic(path, json.dumps(record).encode())
        _trim(os.path.dirname(path))
    except OSError as exc:
        _log.debug("digest cache not written: %s", exc)


def _path(identity: FileIdentity) -> str:
    return str(settings.cache_directory() / "digests" / f"{identity.dev:x}-{identity.ino:x}.json")


def _trim(directory: str) -> None:
    """Drop the older half once there are too many entries."""
    with os.scandir(directory) as entries:
        found = [entry.path for entry in entries]
    if len(found) <= _MOST_ENTRIES:
        return
    by_age = sorted((os.stat(path).st_mtime_ns, path) for path in found if os.path.exists(path))
    for _, path in by_age[: len(by_age) // 2]:
        files.unlink_if_there(path)
