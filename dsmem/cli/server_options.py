"""Options that several commands of `dsmem server` have, and what they mean together with file and environment."""

from __future__ import annotations

import inspect
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from inspect import Parameter
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from dsmem import settings
from dsmem.config.resolve import Flags, ServerSettings, resolve

if TYPE_CHECKING:
    from dsmem.server.plan import Plan
    from dsmem.server.spec import Spec

LogLevel = Literal["debug", "info", "warning", "error"]

Config = Annotated[str | None, typer.Option("--config", metavar="FILE", help="The configuration, a dsmem.yaml.")]
Datasets = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset",
        metavar="NAME=SOURCE",
        help="Serve this; may be repeated. A path, or HUB_ID:subset/split@revision.",
    ),
]
SampleLimit = Annotated[
    int | None, typer.Option("--sample-limit", metavar="N", min=1, help="Only the first N rows of each dataset.")
]
DataDir = Annotated[
    str | None,
    typer.Option("--data-dir", "--mmap-file", metavar="DIR", help="Keep the data there instead of in the store."),
]
OverflowDir = Annotated[
    str | None,
    typer.Option("--overflow-dir", metavar="DIR", help="Keep there, on a disk, what has no room in shared memory."),
]
PidFile = Annotated[str | None, typer.Option("--pid-file", metavar="FILE", help="Write the pid there.")]
LogFile = Annotated[str | None, typer.Option("--log-file", metavar="FILE", help="Log there.")]
Timeout = Annotated[
    str | None, typer.Option("--timeout", metavar="TIME", help="How long to wait for what is loading: 30 (s), 5m.")
]
Level = Annotated[LogLevel | None, typer.Option("--log-level", help="What the server logs from this level on.")]


@dataclass(frozen=True, slots=True)
class Serving:
    """What `run`, `start` and `restart` are told, as options of those names."""

    config: Config = None
    dataset: Datasets = None
    sample_limit: SampleLimit = None
    data_dir: DataDir = None
    overflow_dir: OverflowDir = None
    pid_file: PidFile = None
    log_file: LogFile = None
    log_level: Level = None

    def chosen(self, *, timeout: str | None = None) -> ServerSettings:
        """The settings that hold, with these."""
        return chosen(
            config=self.config,
            sample_limit=self.sample_limit,
            data_dir=self.data_dir,
            overflow_dir=self.overflow_dir,
            pid_file=self.pid_file,
            log_file=self.log_file,
            timeout=timeout,
        )

    def planned(self, found: ServerSettings) -> Plan:
        """What a daemon is to do."""
        return planned(found, self.dataset, self.log_level)


def serving(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter, a `Serving`, is typed as options, before those that the command names itself."""
    hints = get_type_hints(Serving, include_extras=True)
    options = [Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=hint) for name, hint in hints.items()]
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @wraps(command)
    def typed(**given: Any) -> None:
        command(Serving(**{name: given.pop(name) for name in hints}), **given)

    parameters = [*options, *(one.replace(kind=Parameter.KEYWORD_ONLY) for one in own)]
    typed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # functions take attributes
    typed.__annotations__ = {one.name: one.annotation for one in parameters}
    return typed


_NAMED = re.compile(r"(?P<name>[\w.-]+)=(?P<source>.+)", re.DOTALL)


def chosen(
    *,
    config: str | None = None,
    sample_limit: int | None = None,
    data_dir: str | None = None,
    overflow_dir: str | None = None,
    pid_file: str | None = None,
    log_file: str | None = None,
    timeout: str | None = None,
) -> ServerSettings:
    """The settings that hold, with what was typed."""
    return resolve(
        Flags(
            config=config,
            data_dir=data_dir,
            overflow_dir=overflow_dir,
            pid_file=pid_file,
            log_file=log_file,
            timeout_s=None if timeout is None else settings.seconds(timeout, "--timeout"),
            sample_limit=sample_limit,
        )
    )


def planned(found: ServerSettings, datasets: Sequence[str] | None, level: LogLevel | None) -> Plan:
    """What a daemon is to do: what was typed goes over what the file says under the same name."""
    from dsmem.server.lifecycle import plan_of

    plan = plan_of(found, log_level=level or _level())
    typed = dict(named(text, found.sample_limit.value) for text in datasets or ())
    return replace(plan, datasets=tuple({**dict(plan.datasets), **typed}.items()))


def named(text: str, sample_limit: int | None) -> tuple[str, Spec]:
    """NAME=SOURCE, or SOURCE alone under the name that the source itself has."""
    from dsmem.server.spec import Spec

    match = _NAMED.fullmatch(text)
    spec = Spec.parse(match["source"] if match is not None else text, sample_limit=sample_limit)
    return (match["name"] if match is not None else spec.stem), spec


def absolute(text: str) -> str:
    """NAME=SOURCE with the path made absolute, where the source is one."""
    match = _NAMED.fullmatch(text)
    source = match["source"] if match is not None else text
    if not named(text, None)[1].local_paths():
        return text
    path = os.path.abspath(os.path.expanduser(source))
    return f"{match['name']}={path}" if match is not None else path


def _level() -> str:
    """What -v and DSMEM_LOG say, where that is more than the server logs anyway."""
    return "debug" if logging.getLogger("dsmem").level == logging.DEBUG else "info"
