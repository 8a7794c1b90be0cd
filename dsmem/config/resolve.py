"""The server's settings, each with where it came from: flag > DSMEM_* > SHARED_DATASET_* > file > default.

The file is read only where one is named (`--config`, DSMEM_CONFIG): a file that happens to lie about changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from dsmem import settings
from dsmem.errors import UsageError

if TYPE_CHECKING:
    from dsmem.config.schema import Config, DatasetEntry

T = TypeVar("T")
DEFAULT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Sourced(Generic[T]):
    """A value and who said so: '--timeout', 'DSMEM_TIMEOUT', 'dsmem.yaml:4' or 'default'."""

    value: T
    origin: str


@dataclass(frozen=True, slots=True)
class Flags:
    """What was typed; None = not typed."""

    config: str | None = None
    data_dir: str | None = None
    overflow_dir: str | None = None
    pid_file: str | None = None
    log_file: str | None = None
    timeout_s: float | None = None
    sample_limit: int | None = None
    auto_start: bool | None = None


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """All settings of the server and of its clients; paths are absolute."""

    config: Sourced[str | None]
    data_dir: Sourced[str | None]
    """The directory that holds the Arrow data; None = the store."""
    overflow_dir: Sourced[str | None]
    """The directory for the tables that have no room there; None = they fail."""
    pid_file: Sourced[str | None]
    log_file: Sourced[str | None]
    timeout_s: Sourced[float]
    sample_limit: Sourced[int | None]
    auto_start: Sourced[bool]
    use_shared_memory: Sourced[bool]
    datasets: Sourced[tuple[DatasetEntry, ...]]

    def rows(self) -> list[tuple[str, object, str]]:
        """(name, value, origin) of each, for `dsmem server status --verbose`."""
        pairs = [(one.name, getattr(self, one.name)) for one in fields(self)]
        return [(name, _shown(sourced.value), sourced.origin) for name, sourced in pairs]


def resolve(flags: Flags = Flags(), *, environ: Mapping[str, str] = os.environ) -> ServerSettings:
    """The settings that hold here; raises UsageError for what means nothing, SourceMissing for a missing file."""
    typed = settings.read(environ)
    config = _pick(flags.config, "--config", typed.config, typed.origin("config"), None, None)
    file: Config | None = None
    if config.value is not None:
        from dsmem.config import schema

        file = schema.read(config.value)

    def pick(flag: str, name: str, key: str, default: object) -> Sourced[Any]:
        """One setting; `key` is its place below `dataset.` in the file."""
        value, line = _from_file(file, f"dataset.{key}")
        place = None if line is None else f"{config.value}:{line}"
        from_flags, from_environment = getattr(flags, name, None), getattr(typed, name, None)
        return _pick(from_flags, flag, from_environment, typed.origin(name), value, place, default)

    return ServerSettings(
        config=config,
        data_dir=_path(pick("--data-dir", "data_dir", "shared_memory.data_dir", None)),
        overflow_dir=_path(pick("--overflow-dir", "overflow_dir", "shared_memory.overflow_dir", None)),
        pid_file=_path(pick("--pid-file", "pid_file", "shared_memory.pid_file", None)),
        log_file=_path(pick("--log-file", "log_file", "shared_memory.log_file", None)),
        timeout_s=pick("--timeout", "timeout_s", "shared_memory.server_timeout", DEFAULT_TIMEOUT_S),
        sample_limit=pick("--sample-limit", "sample_limit", "shared_memory.sample_limit", None),
        auto_start=pick("--auto-start", "auto_start", "shared_memory.auto_start", False),
        use_shared_memory=pick("", "use_shared_memory", "use_shared_memory", False),
        datasets=pick("", "datasets", "datasets", ()),
    )


def _pick(
    flag: object, flag_name: str, variable: object, variable_name: str, value: object, place: str | None,
    default: object = None,
) -> Sourced[Any]:  # fmt: skip
    if flag is not None:
        return Sourced(flag, flag_name)
    if variable is not None:
        return Sourced(variable, variable_name)
    if place is not None:
        return Sourced(value, place)
    return Sourced(default, "default")


def _from_file(file: Config | None, key: str) -> tuple[object, int | None]:
    """The value and its line; no line when the file does not say."""
    if file is None or key not in file.lines:
        return None, None
    value: object = file
    for part in key.split("."):
        value = getattr(value, part)
    return value, file.lines[key]


def _path(found: Sourced[Any]) -> Sourced[str | None]:
    if found.value is None:
        return cast("Sourced[str | None]", found)
    if "\0" in found.value:
        raise UsageError(f"{found.origin}: a path can't hold a null byte")
    return Sourced(os.path.abspath(os.path.expanduser(found.value)), found.origin)


def _shown(value: object) -> object:
    if isinstance(value, tuple):
        return [one.dataset_name or one.name for one in cast("tuple[DatasetEntry, ...]", value)]
    return value
