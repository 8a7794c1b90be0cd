"""A server's state in the text format of Prometheus (exposition_formats.md, version 0.0.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsmem.server.status import DatasetStatus, Status

_STATES = ("starting", "loading", "ready", "degraded", "stopped")


def prometheus(found: Status) -> str:
    """Text for a node exporter's textfile collector; ends with a line feed."""
    lines: list[str] = []

    def metric(name: str, kind: str, help: str, samples: Sequence[tuple[dict[str, str], float]]) -> None:
        if not samples:
            return
        lines.append(f"# HELP dsmem_{name} {help}")
        lines.append(f"# TYPE dsmem_{name} {kind}")
        lines.extend(f"dsmem_{name}{_labels(labels)} {_number(value)}" for labels, value in samples)

    def each(value: str) -> list[tuple[dict[str, str], float]]:
        return [({"dataset": one.name}, float(_value(one, value))) for one in found.datasets]

    metric("server_up", "gauge", "1 when a dataset server runs.", [({}, float(found.running))])
    states = [({"state": state}, float(found.status == state)) for state in _STATES]
    metric("server_state", "gauge", "1 for the state that the server is in.", states)
    if found.uptime_s is not None:
        metric("server_uptime_seconds", "gauge", "Since the server started.", [({}, found.uptime_s)])
        metric("server_requests_total", "counter", "Requests on the control socket.", [({}, float(found.requests))])
    metric("dataset_ready", "gauge", "1 when the dataset can be opened.", each("ready"))
    metric("dataset_rows", "gauge", "Rows of all splits.", each("rows"))
    metric("dataset_size_bytes", "gauge", "Bytes in the store.", each("size_bytes"))
    metric("dataset_generation", "gauge", "Generations since the server started.", each("generation"))
    metric("dataset_clients", "gauge", "Processes that hold it.", each("clients"))
    for name, help, counts in (
        ("dataset_loads_total", "Times that it was loaded.", found.loads),
        ("dataset_load_failures_total", "Times that loading failed.", found.failures),
    ):
        metric(name, "counter", help, [({"dataset": one}, float(count)) for one, count in (counts or {}).items()])
    about = [({"pid": str(one.pid), "command": one.command}, one) for one in found.clients]
    pss = [(labels, float(one.pss_bytes)) for labels, one in about if one.pss_bytes is not None]
    metric("client_pss_bytes", "gauge", "Proportional share of memory of a client.", pss)
    own = [(labels, float(one.anonymous_bytes)) for labels, one in about if one.anonymous_bytes is not None]
    metric("client_anonymous_bytes", "gauge", "Memory of a client that is its own.", own)
    return "\n".join(lines) + "\n"


def _value(one: DatasetStatus, name: str) -> int:
    if name == "ready":
        return one.state in ("ready", "published")
    if name == "clients":
        return len(one.clients)
    value: int = getattr(one, name)
    return value


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    escaped = (
        (key, text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for key, text in labels.items()
    )
    return "{" + ",".join(f'{key}="{text}"' for key, text in escaped) + "}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
