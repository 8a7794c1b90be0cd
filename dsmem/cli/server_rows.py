"""Datasets of the server as rows: the same columns wherever a command shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dsmem import units
from dsmem.cli.output import Column, escape

if TYPE_CHECKING:
    from dsmem.server.status import Client, DatasetStatus


def _count(number: int) -> str:
    return f"{number:,}"


_ANY = (
    Column("name", "name"),
    Column("state", "state"),
    Column("rows", "rows", show=_count, right=True),
    Column("size", "size_bytes", show=units.format_bytes, right=True),
    Column("generation", "generation", right=True),
)
TOLD = (*_ANY, Column("error", "error"))
DATASET = (*_ANY, Column("clients", "clients", right=True), Column("source", "source"))
CLIENT = (
    Column("pid", "pid", right=True),
    Column("command", "command"),
    Column("datasets", "datasets"),
    Column("PSS", "pss_bytes", show=units.format_bytes, right=True),
    Column("anonymous", "anonymous_bytes", show=units.format_bytes, right=True),
)
SETTING = (Column("setting", "setting"), Column("value", "value"), Column("from", "from"))


def told_cells(one: Mapping[str, Any]) -> list[object]:
    """Cells for TOLD, of what the server says of a dataset."""
    return [one["name"], state(one), one["rows"], one["size_bytes"], one["generation"], one["error"] or None]


def told(one: Mapping[str, Any]) -> str:
    """The same as a line for people."""
    name = escape(one["name"])
    if one["state"] == "failed":
        return f"{name}  failed  {escape(one['error'])}"
    return f"{name}  {state(one)}  {_count(one['rows'])} rows  {units.format_bytes(one['size_bytes'])}"


def state(one: Mapping[str, Any]) -> str:
    """'ready', or what else is to be said."""
    if one["state"] == "ready" and one["refreshing"]:
        return "refreshing"
    return "stale" if one["state"] == "ready" and one["error"] else str(one["state"])


def dataset(one: DatasetStatus) -> list[object]:
    """Cells for DATASET."""
    shown = state({"state": one.state, "refreshing": one.refreshing, "error": one.error})
    return [one.name, shown, one.rows, one.size_bytes, one.generation, len(one.clients), one.source]


def client(one: Client) -> list[object]:
    """Cells for CLIENT."""
    return [one.pid, one.command, list(one.datasets), one.pss_bytes, one.anonymous_bytes]


def setting(row: tuple[str, object, str]) -> list[object]:
    """Cells for SETTING."""
    name, value, origin = row
    return [name, value if not isinstance(value, bool) else str(value).lower(), origin]
