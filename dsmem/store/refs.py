"""Refs: small files that lead from a source (a path, as it was when it was read) or from a given name to an object.

A ref is replaced whole and is never the only truth: the object itself records what it was first made from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from dsmem import files
from dsmem.errors import Ambiguous, UsageError
from dsmem.files import FileIdentity
from dsmem.store import names, sources
from dsmem.store.root import Store

_LIMIT_BYTES = 1 << 20
_NAME_BYTES = 255
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Provenance:
    """What an object was made from: recorded in the object, and in the ref of every source that led to it."""

    source: str
    """Real path of the source; of a table the text of `dsmem.store.sources`."""
    identity: FileIdentity
    """Of the source when it was read."""
    selection: str
    """Canonical JSON of what was chosen from the source; '' = everything."""
    content: str
    """'xxh3-tree:<hex>' of the source's bytes: the identity of what it holds."""
    digest: str
    """'<algo>:<hex>' as the user asked for it."""
    created_ns: int
    """When it was made, nanoseconds since 1970."""

    def dump(self) -> str:
        """As JSON."""
        return json.dumps({**asdict(self), "identity": self.identity.as_list()})

    @classmethod
    def load(cls, text: str | bytes) -> Provenance:
        """The inverse of `dump`; raises ValueError."""
        try:
            record = json.loads(text)
            identity = FileIdentity.from_list(record.pop("identity"))
            strings = {name: record[name] for name in ("source", "selection", "content", "digest")}
            if not all(isinstance(value, str) for value in strings.values()):
                raise TypeError("a text is not a text")
            if type(record["created_ns"]) is not int:
                raise TypeError("a number is not a number")
            os.fsencode(strings["source"])
            return cls(identity=identity, created_ns=record["created_ns"], **strings)
        except (KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise ValueError("not a provenance record") from exc


@dataclass(frozen=True, slots=True)
class Ref:
    """One way to an object: from its source, or (`name` not empty) from a name that a user gave."""

    object: str
    provenance: Provenance
    name: str = ""

    def file_name(self) -> str:
        """Where it lies in the refs directory."""
        return name_file(self.name) if self.name else source_file(self.provenance.source, self.provenance.selection)


def source_file(source: str, selection: str) -> str:
    """File name of the ref for a source and selection."""
    return hashlib.blake2b(os.fsencode(f"{source}\0{selection}"), digest_size=16).hexdigest() + ".json"


def name_file(name: str) -> str:
    """File name of the ref for a given name."""
    return f"name-{name}.json"


def find_source(store: Store, source: str, selection: str) -> Ref | None:
    """The ref of a source, whatever state the source is in now."""
    return _read(f"{store.refs}/{source_file(source, selection)}")


def find_name(store: Store, name: str) -> Ref | None:
    """The ref of a given name."""
    return _read(f"{store.refs}/{name_file(name)}") if "/" not in name else None


def check_free(store: Store, name: str, source: str) -> None:
    """Raise UsageError for a name that leads to an object of another source."""
    there = find_name(store, name)
    if there is None or there.provenance.source == source:
        return
    if os.path.exists(store.object_path(there.object)):
        raise UsageError(f"the name {name!r} is taken by {sources.label(there.provenance.source)}")


def write(store: Store, ref: Ref) -> None:
    """Publish a ref, replacing the one for the same source and selection, or the same name."""
    text = json.dumps({"object": ref.object, "name": ref.name, "provenance": ref.provenance.dump()})
    files.write_atomic(f"{store.refs}/{ref.file_name()}", text.encode())


def all_refs(store: Store) -> Iterator[Ref]:
    """Every readable ref."""
    try:
        with os.scandir(store.refs) as entries:
            paths = sorted(entry.path for entry in entries if entry.name.endswith(".json"))
    except FileNotFoundError:
        return
    for path in paths:
        ref = _read(path)
        if ref is not None:
            yield ref


def drop_to(store: Store, objects: set[str]) -> None:
    """Remove every ref that leads to one of these objects."""
    for ref in list(all_refs(store)):
        if ref.object in objects:
            files.unlink_if_there(f"{store.refs}/{ref.file_name()}")


def _is_name(text: str) -> bool:
    if names.split(text) is None or text.startswith(".") or "/" in text or not text.isprintable():
        return False
    return len(os.fsencode(text)) <= _NAME_BYTES


def _read(path: str) -> Ref | None:
    try:
        record = json.loads(files.read_own(path, _LIMIT_BYTES))
        ref = Ref(record["object"], Provenance.load(record["provenance"]), record["name"])
        if not (isinstance(ref.object, str) and isinstance(ref.name, str)) or not _is_name(ref.object):
            raise ValueError("not an object's name")
        if os.path.basename(path) != ref.file_name():
            raise ValueError("the ref of another source")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
        _log.warning("unreadable ref %s: %s", path, str(exc))  # the error itself holds frames, and they a lease
        return None
    return ref


def means_path(store: Store | None, target: str | os.PathLike[str]) -> bool:
    """Whether a target is a path: it has a `/`, or exists. Anything else is a name; what is both is Ambiguous."""
    text = os.fspath(target)
    if "/" in text or isinstance(target, os.PathLike):
        return True
    if not os.path.exists(text):
        return False
    if store is not None and find_name(store, text) is not None:
        raise Ambiguous(
            f"{text!r} is both a file here and a name in the store", candidates=[f"./{text}", f"name {text}"]
        )
    return True
