"""`dsmem server add`, `remove` and `refresh`: the datasets of a server that runs."""

from __future__ import annotations

from typing import Annotated

import typer

from dsmem import units
from dsmem.cli import server_rows
from dsmem.cli.commands import Json
from dsmem.cli.output import Output
from dsmem.cli.server_following import complain, follow
from dsmem.cli.server_options import SampleLimit, Timeout, chosen, named, planned
from dsmem.errors import NotPinned

ADD_EXAMPLES = ("dsmem server add train=train.jsonl", "dsmem server add wiki=wikitext:wikitext-2-raw-v1/train")
REMOVE_EXAMPLES = ("dsmem server remove train", "dsmem server remove train --json")
REFRESH_EXAMPLES = ("dsmem server refresh", "dsmem server refresh train --timeout 5m")

Name = Annotated[str, typer.Argument(metavar="NAME", help="As `dsmem server ls` shows it.")]


def add(
    datasets: Annotated[
        list[str], typer.Argument(metavar="NAME=SOURCE...", help="A path, or HUB_ID:subset/split@revision.")
    ],
    sample_limit: SampleLimit = None,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Have the server load more datasets, and wait for them."""
    from dsmem.server import control

    out = Output(as_json=json)
    settings = chosen(sample_limit=sample_limit, timeout=timeout)
    plan = planned(settings, None, None)
    wanted = dict(named(text, settings.sample_limit.value) for text in datasets)
    for name, spec in wanted.items():
        control.ask({"op": "add", "name": name, "spec": spec.as_dict()}, where=plan.places)
    facts = follow(plan, settings.timeout_s.value, out, names=wanted)
    if json:
        out.json(facts["datasets"])
    complain(facts, set(wanted))


def remove(name: Name, json: Json = False) -> None:
    """Have the server forget a dataset.

    Its data stays in the store.
    """
    from dsmem.server import control, places

    out = Output(as_json=json)
    removed = control.ask({"op": "remove", "dataset": name}, where=places.find(chosen()))["dataset"]
    if json:
        out.json(removed)
        return
    out.result(f"{name} is served no longer")
    if removed["object"]:
        out.result(f"its {units.format_bytes(removed['size_bytes'])} stay in the store as {removed['object']}")
        out.hint(f"to free them: dsmem shm clean {removed['object']}")


def refresh(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this dataset; else all.")] = None,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Look whether sources have changed, and load what is new.

    Readers keep what they have.
    """
    from dsmem.server import control, places

    out = Output(as_json=json)
    settings = chosen(timeout=timeout)
    plan = planned(settings, None, None)
    where = places.find(settings)
    before = {one["name"]: one for one in control.ask({"op": "status"}, where=where)["datasets"]}
    if name is not None and name not in before:
        raise NotPinned(f"the server has no dataset {name!r}")
    request = {"op": "refresh"} if name is None else {"op": "refresh", "dataset": name}
    names = control.ask(request, where=where)["datasets"]
    facts = follow(plan, settings.timeout_s.value, out, names=names)
    found = facts["datasets"]
    if json:
        out.json([{**one, "changed": one["object"] != before[one["name"]]["object"]} for one in found])
    else:
        for one in found:
            changed = one["object"] != before[one["name"]]["object"]
            out.result(f"{one['name']}: {'new rows' if changed else 'unchanged'} ({server_rows.state(one)})")
    complain(facts, set(names))
