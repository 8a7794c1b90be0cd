"""Errors of workers, which become errors of the process that was asked: as JSON in between.

Whoever asked meets public errors only, the same ones for any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from dsmem import errors
from dsmem.errors import BadSource, DsmemError

_PANICS = "pyo3_runtime"
"""The module of what a Rust library that gives up raises: no Exception."""


def again(value: dict[str, Any]) -> Exception:
    """What `described` was about."""
    kind, message, facts = value["kind"], value["message"], value["facts"]
    if kind == "OSError":
        return OSError(facts["errno"], message, facts["filename"])
    if kind == "MemoryError":
        return MemoryError(message)
    found: Exception = getattr(errors, kind)(message, **facts)
    return found


def described(error: Exception) -> dict[str, Any]:
    """An error that encoding raises, as JSON."""
    if isinstance(error, DsmemError):
        kind = _public(error)
        names: Iterable[str] = getattr(kind.__init__, "__kwdefaults__", None) or ()
        return {"kind": kind.__name__, "message": str(error), "facts": {name: getattr(error, name) for name in names}}
    if isinstance(error, MemoryError):
        return {"kind": "MemoryError", "message": str(error), "facts": {}}
    if isinstance(error, OSError) and error.errno is not None:
        facts = {"errno": error.errno, "filename": error.filename}
        return {"kind": "OSError", "message": error.strerror or str(error), "facts": facts}
    return {"kind": BadSource.__name__, "message": f"{type(error).__name__}: {error}", "facts": {}}


def _public(error: DsmemError) -> type[DsmemError]:
    return next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)


@contextmanager
def made_public() -> Iterator[None]:
    """Errors that are subclasses for use within this package leave it as what they are to others."""
    try:
        yield
    except DsmemError as exc:
        if _public(exc) is type(exc):
            raise
        raise again(described(exc)) from exc


@contextmanager
def translated(path: str) -> Iterator[None]:
    """While an engine encodes some of that file: what it raises of its own becomes BadSource."""
    try:
        yield
    except (DsmemError, OSError, MemoryError):
        raise
    except BaseException as exc:
        if not (isinstance(exc, Exception) or type(exc).__module__ == _PANICS):
            raise
        told = (str(exc).splitlines() or [""])[0]
        raise BadSource(f"{path} can't be encoded: {type(exc).__name__}: {told}") from exc
