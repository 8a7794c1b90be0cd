"""Datasets shown as the server gets them ready: what `start`, `add` and `refresh` end with."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from dsmem import units
from dsmem.cli import progress, server_rows
from dsmem.cli.output import Output
from dsmem.errors import LoadFailed

if TYPE_CHECKING:
    from dsmem.server.plan import Plan


def follow(plan: Plan, timeout_s: float, out: Output, *, names: Collection[str] | None = None) -> dict[str, Any]:
    """Show each dataset once it is loaded, a bar meanwhile; what the server says at the end, or when time is up.

    `names`: only these; None = all.
    """
    from dsmem.server import lifecycle

    shown: set[str] = set()
    with progress.bar("loading", ["datasets"]) as bar:
        advance = bar.follow("datasets")
        facts: dict[str, Any] = {}
        for facts in lifecycle.until_loaded(plan.places, timeout_s, names=names):
            at_work = [one for one in facts["datasets"] if one["total_bytes"]]
            if at_work and any(one["state"] == "loading" or one["refreshing"] for one in at_work):
                advance(sum(one["done_bytes"] for one in at_work), sum(one["total_bytes"] for one in at_work))
            for one in facts["datasets"]:
                if out.terminal and one["state"] in ("ready", "failed") and one["name"] not in shown:
                    shown.add(one["name"])
                    with bar.aside():
                        out.line(server_rows.told(one))
    if not out.terminal and not out.as_json:
        out.table(server_rows.TOLD, [server_rows.told_cells(one) for one in facts["datasets"]])
    late = [one["name"] for one in facts["datasets"] if lifecycle.is_loading(one)]
    if late:
        out.warning(f"still loading after {units.format_duration(timeout_s)}: {', '.join(late)}")
    return facts


def complain(facts: dict[str, Any], wanted: set[str]) -> None:
    """Raise LoadFailed for what was asked for and could not be loaded; the others serve all the same."""
    failed = [one for one in facts["datasets"] if one["error"] and one["name"] in wanted]
    if len(failed) == 1:
        raise LoadFailed(f"{failed[0]['name']} could not be loaded: {failed[0]['error']}", dataset=failed[0]["name"])
    if failed:
        raise LoadFailed("; ".join(f"{one['name']} could not be loaded: {one['error']}" for one in failed))
