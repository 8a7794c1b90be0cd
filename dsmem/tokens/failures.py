"""Errors of workers, which become errors of the process that was asked: as JSON in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dsmem.errors import BadDocument, BadSource, DsmemError, EngineDiffers, TableTooLarge, WrongIds


def again(value: dict[str, Any]) -> Exception:
    """What `described` was about."""
    kind, message, facts = value["kind"], value["message"], value["facts"]
    if kind == "OSError":
        return OSError(facts["errno"], message, facts["filename"])
    if kind == BadDocument.__name__:
        return BadDocument(message, path=facts["path"], place=facts["place"], fields=facts["fields"])
    if kind == EngineDiffers.__name__:
        return EngineDiffers(message, path=facts["path"], place=facts["place"])
    if kind == TableTooLarge.__name__:
        return TableTooLarge(
            message, path=facts["path"], text_field=facts["text_field"], is_parquet=facts["is_parquet"]
        )
    if kind == WrongIds.__name__:
        return WrongIds(message)
    return BadSource(message)


@contextmanager
def translated(path: str) -> Iterator[None]:
    """While an engine encodes some of that file: what it raises of its own becomes BadSource."""
    try:
        yield
    except (DsmemError, OSError, MemoryError):
        raise
    except Exception as exc:
        told = (str(exc).splitlines() or [""])[0]
        raise BadSource(f"{path} can't be encoded: {type(exc).__name__}: {told}") from exc


def described(error: Exception) -> dict[str, Any]:
    """An error that encoding raises, as JSON."""
    if isinstance(error, OSError) and error.errno is not None:
        facts: dict[str, Any] = {"errno": error.errno, "filename": error.filename}
        return {"kind": "OSError", "message": error.strerror or str(error), "facts": facts}
    facts = {name: getattr(error, name, "") for name in ("path", "place", "fields", "text_field", "is_parquet")}
    message = str(error) if isinstance(error, DsmemError) else f"{type(error).__name__}: {error}"
    return {"kind": type(error).__name__, "message": message, "facts": facts}
