"""What the environment asks for, read once per call: DSMEM_* variables and the XDG directories."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from dsmem import units
from dsmem.errors import UsageError

PinMode = Literal["never", "auto"]


@dataclass(frozen=True, slots=True)
class Settings:
    """The environment of this process as dsmem understands it."""

    root: str | None = None
    """DSMEM_ROOT: where the store lies; None = /dev/shm/dsmem-<uid>."""
    pin: PinMode = "never"
    """DSMEM_PIN: what `dsmem.File` does with a file that is not pinned."""
    budget_bytes: int | None = None
    """DSMEM_BUDGET: what the objects of the store may hold together; None = nothing is ever evicted."""
    log_level: str | None = None
    """DSMEM_LOG: a level of the logging module, lower case."""
    debug: bool = False
    """DSMEM_DEBUG=1: tracebacks instead of one line."""
    no_progress: bool = False
    """DSMEM_NO_PROGRESS=1: no bars."""


def read(environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the environment; raises UsageError for a value that means nothing."""
    pin = environ.get("DSMEM_PIN") or "never"
    if pin not in ("never", "auto"):
        raise UsageError(f"DSMEM_PIN={pin!r} means nothing; it is 'never' or 'auto'")
    level = (environ.get("DSMEM_LOG") or "").lower() or None
    if level not in (None, "debug", "info", "warning", "error"):
        raise UsageError(f"DSMEM_LOG={level!r} means nothing; it is debug, info, warning or error")
    return Settings(
        root=environ.get("DSMEM_ROOT") or None,
        pin=cast(PinMode, pin),
        budget_bytes=_size(environ, "DSMEM_BUDGET"),
        log_level=level,
        debug=_flag(environ, "DSMEM_DEBUG"),
        no_progress=_flag(environ, "DSMEM_NO_PROGRESS"),
    )


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_CACHE_HOME/dsmem`, on a disk: digests, and the store where there is no shared memory."""
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "dsmem"


def _size(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if not text:
        return None
    try:
        return units.parse_bytes(text)
    except UsageError as exc:
        raise UsageError(f"{name}: {exc}") from exc


def _flag(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "") not in ("", "0", "false", "no")
