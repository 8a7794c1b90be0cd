"""Names of objects: `<stem>-<key>`, the stem for people, the key (16 hex digits) for what the object is made of."""

from __future__ import annotations

import hashlib
import json
import re

from dsmem.errors import UsageError

LAYOUT_VERSION = 1
_OBJECT = re.compile(r"(?P<stem>.+)-(?P<key>[0-9a-f]{16})")
_STEM_BYTES = 120


def object_key(content: str, selection: str, attempt: int = 0) -> str:
    """Key of what is made from that content and selection; `attempt` tells apart contents whose digests collide."""
    identity = json.dumps([LAYOUT_VERSION, content, selection, attempt]).encode()
    return hashlib.blake2b(identity, digest_size=8).hexdigest()


def split(name: str) -> tuple[str, str] | None:
    """Stem and key of an object's name; None for any other name."""
    match = _OBJECT.fullmatch(name)
    return None if match is None else (match["stem"], match["key"])


def stem_of(path: str) -> str:
    """The stem for a source: its file name without the last suffix, only letters, digits, `_`, `-` and `.` in it."""
    base = path.rstrip("/").rpartition("/")[2]
    stem = base.rpartition(".")[0] or base
    safe = re.sub(r"[^\w.-]", "_", stem.encode("utf-8", "replace").decode("utf-8")).lstrip(".-")
    return safe.encode()[:_STEM_BYTES].decode("utf-8", "ignore") or "data"


def check_name(name: str) -> None:
    """Raise UsageError for a name that a user may not give to an object."""
    if not name or stem_of(name + ".x") != name:
        raise UsageError(f"{name!r} can't be a name: letters, digits, '_', '-' and '.', not first '.' or '-'")
    if split(name) is not None:
        raise UsageError(f"{name!r} looks like an object's full name; choose another")
