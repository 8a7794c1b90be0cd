"""What the environment asks for, read once per call: DSMEM_* variables and the XDG directories.

The names of an older system (SHARED_DATASET_*) are read where the new ones are not set.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from dsmem import units
from dsmem.errors import UsageError

PinMode = Literal["never", "auto"]
HugePages = Literal["never", "auto"]


@dataclass(frozen=True, slots=True)
class Settings:
    """The environment of this process as dsmem understands it."""

    root: str | None = None
    """DSMEM_ROOT: where the store lies; None = /dev/shm/dsmem-<uid>."""
    pin: PinMode = "never"
    """DSMEM_PIN: what `dsmem.File` does with a file that is not pinned."""
    huge_pages: HugePages = "auto"
    """DSMEM_HUGE_PAGES: whether huge pages are asked for when an object is filled."""
    budget_bytes: int | None = None
    """DSMEM_BUDGET: what the objects of the store may hold together; None = nothing is ever evicted."""
    log_level: str | None = None
    """DSMEM_LOG: a level of the logging module, lower case."""
    debug: bool = False
    """DSMEM_DEBUG=1: tracebacks instead of one line."""
    no_progress: bool = False
    """DSMEM_NO_PROGRESS=1: no bars."""
    config: str | None = None
    """DSMEM_CONFIG: the configuration file; None = none."""
    data_dir: str | None = None
    """DSMEM_DATA_DIR: the directory for the server's Arrow data; None = the store."""
    overflow_dir: str | None = None
    """DSMEM_OVERFLOW_DIR: where tables go for which shared memory has no room; None = they fail."""
    pid_file: str | None = None
    """DSMEM_PID_FILE."""
    log_file: str | None = None
    """DSMEM_LOG_FILE."""
    timeout_s: float | None = None
    """DSMEM_TIMEOUT, in seconds."""
    sample_limit: int | None = None
    """DSMEM_SAMPLE_LIMIT: the first rows of each dataset."""
    auto_start: bool | None = None
    """DSMEM_AUTO_START; None = not said."""
    variables: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Which variable the server's settings came from, by the name of the field."""

    def origin(self, name: str) -> str:
        """The variable that set a field, new name or old; '' where none did."""
        return self.variables.get(name, "")


_SERVER_VARIABLES: Mapping[str, tuple[str, ...]] = {
    "config": ("DSMEM_CONFIG",),
    "data_dir": ("DSMEM_DATA_DIR", "SHARED_DATASET_MMAP_FILE"),
    "overflow_dir": ("DSMEM_OVERFLOW_DIR",),
    "pid_file": ("DSMEM_PID_FILE", "SHARED_DATASET_PID_FILE"),
    "log_file": ("DSMEM_LOG_FILE",),
    "timeout_s": ("DSMEM_TIMEOUT", "SHARED_DATASET_TIMEOUT"),
    "sample_limit": ("DSMEM_SAMPLE_LIMIT", "SHARED_DATASET_SAMPLE_LIMIT"),
    "auto_start": ("DSMEM_AUTO_START",),
}
"""Field → variables, the first that is set counts."""


def read(environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the environment; raises UsageError for a value that means nothing."""
    pin = environ.get("DSMEM_PIN") or "never"
    if pin not in ("never", "auto"):
        raise UsageError(f"DSMEM_PIN={pin!r} means nothing; it is 'never' or 'auto'")
    huge_pages = environ.get("DSMEM_HUGE_PAGES") or "auto"
    if huge_pages not in ("never", "auto"):
        raise UsageError(f"DSMEM_HUGE_PAGES={huge_pages!r} means nothing; it is 'never' or 'auto'")
    level = (environ.get("DSMEM_LOG") or "").lower() or None
    if level not in (None, "debug", "info", "warning", "error"):
        raise UsageError(f"DSMEM_LOG={level!r} means nothing; it is debug, info, warning or error")
    chosen = {
        name: next((variable for variable in variables if environ.get(variable)), None)
        for name, variables in _SERVER_VARIABLES.items()
    }
    said = {name: variable for name, variable in chosen.items() if variable is not None}
    text = {name: environ[variable] for name, variable in said.items()}
    return Settings(
        root=environ.get("DSMEM_ROOT") or None,
        pin=cast(PinMode, pin),
        huge_pages=cast(HugePages, huge_pages),
        budget_bytes=_size(environ, "DSMEM_BUDGET"),
        log_level=level,
        debug=_flag(environ, "DSMEM_DEBUG"),
        no_progress=_flag(environ, "DSMEM_NO_PROGRESS"),
        config=text.get("config"),
        data_dir=text.get("data_dir"),
        overflow_dir=text.get("overflow_dir"),
        pid_file=text.get("pid_file"),
        log_file=text.get("log_file"),
        timeout_s=seconds(text["timeout_s"], said["timeout_s"]) if "timeout_s" in said else None,
        sample_limit=rows(text["sample_limit"], said["sample_limit"]) if "sample_limit" in said else None,
        auto_start=_flag(environ, "DSMEM_AUTO_START") if "auto_start" in said else None,
        variables=said,
    )


def seconds(text: str, name: str) -> float:
    """'30' or '2m' → seconds; `name` is the variable or flag that errors speak of."""
    try:
        value = float(text)
    except ValueError:
        try:
            value = units.parse_duration(text)
        except UsageError as exc:
            raise UsageError(f"{name}={text!r} is not a time; write 30 (seconds) or 2m") from exc
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"{name}={text!r} is not a time; write 30 (seconds) or 2m")
    return value


def rows(text: str, name: str) -> int:
    """'1000' → 1000; `name` is the variable or flag that errors speak of."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise UsageError(f"{name}={text!r} is not a number of rows; write 1000, or leave it out for all")
    return int(text)


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_CACHE_HOME/dsmem`, on a disk: digests, and the store where there is no shared memory."""
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "dsmem"


def state_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_STATE_HOME/dsmem`: logs."""
    base = environ.get("XDG_STATE_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".local" / "state") / "dsmem"


def runtime_directory(environ: Mapping[str, str] = os.environ) -> str | None:
    """`$XDG_RUNTIME_DIR/dsmem`: sockets and pids, gone with the login; None where there is none of ours."""
    base = environ.get("XDG_RUNTIME_DIR")
    if not base or not base.startswith("/"):
        return None
    try:
        status = os.stat(base)
    except OSError:  # named, and not there: as in a container or after su
        return None
    return f"{base}/dsmem" if status.st_uid == os.geteuid() else None


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
