"""`dsmem server run`, `start` and `restart`: a server in the foreground, or one that stays when the shell is gone."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dsmem import units
from dsmem.cli.commands import Json
from dsmem.cli.output import Output
from dsmem.cli.server_following import complain, follow
from dsmem.cli.server_options import Serving, Timeout, serving

if TYPE_CHECKING:
    from dsmem.server.plan import Plan

RUN_EXAMPLES = ("dsmem server run --config dsmem.yaml", "dsmem server run --dataset train=train.jsonl")
START_EXAMPLES = (
    "dsmem server start --dataset train=train.jsonl",
    "dsmem server start --dataset wiki=wikitext:wikitext-2-raw-v1/train --sample-limit 1000",
    "dsmem server start --config dsmem.yaml --timeout 5m",
)
RESTART_EXAMPLES = ("dsmem server restart", "dsmem server restart --config dsmem.yaml")


@serving
def run(given: Serving) -> None:
    """Serve in the foreground until Ctrl-C or SIGTERM.

    For systemd, for containers, and to watch what it does.
    """
    import logging

    from dsmem.server import daemon, logs

    plan = given.planned(given.chosen())
    logger = logging.getLogger("dsmem")
    logger.setLevel(min(logger.level, logging.getLevelName(plan.log_level.upper())))
    handler = logs.RotatingFile(plan.places.log)
    logger.addHandler(handler)
    try:
        daemon.serve(plan, ready=lambda: daemon.notify("READY=1"), stderr=sys.stderr.fileno())
        daemon.notify("STOPPING=1")
    finally:
        logger.removeHandler(handler)
        handler.close()


@serving
def start(given: Serving, timeout: Timeout = None, json: Json = False) -> None:
    """Start the server, and wait until its datasets are loaded.

    A server that runs already gets what is new.
    """
    found = given.chosen(timeout=timeout)
    _start(given.planned(found), found.timeout_s.value, Output(as_json=json))


@serving
def restart(given: Serving, timeout: Timeout = None, json: Json = False) -> None:
    """Stop the server and start it anew.

    It gets the datasets that it had, and what is typed.
    """
    from dsmem.server import lifecycle
    from dsmem.server.spec import Spec

    found = given.chosen(timeout=timeout)
    plan = given.planned(found)
    stopped = lifecycle.stop(plan.places)
    had = {one["name"]: Spec.from_dict(one["spec"]) for one in stopped.facts.get("datasets", ())}
    plan = replace(plan, datasets=tuple({**had, **dict(plan.datasets)}.items()))
    _start(plan, found.timeout_s.value, Output(as_json=json))


def _start(plan: Plan, timeout_s: float, out: Output) -> None:
    from dsmem.server import control, lifecycle

    started = lifecycle.ensure_started(max(timeout_s, 1.0), plan=plan)
    if started.already:
        for name, spec in plan.datasets:
            control.ask({"op": "add", "name": name, "spec": spec.as_dict()}, where=plan.places)
    facts = control.ask({"op": "status"}, where=plan.places)
    if not out.as_json:
        about = [("pid", str(started.pid)), ("socket", facts["socket"]), ("log", facts["log"])]
        out.record([*about, ("data", facts["root"])])
        if started.already:
            out.result("the server runs already")
        else:
            out.result(f"started in {units.format_duration(started.elapsed_s)}")
        if facts["root"] != plan.places.data_root:
            out.warning(f"it keeps its data in {facts['root']}; to change that: dsmem server restart --data-dir DIR")
    facts = follow(plan, timeout_s, out)
    if out.as_json:
        out.json({"already": started.already, "elapsed_s": started.elapsed_s, **_without(facts, "ok")})
    if not facts["datasets"]:
        out.hint("it serves nothing yet: dsmem server add NAME=SOURCE")
    elif not out.as_json:
        out.hint(f"in Python: dsmem.load_dataset({facts['datasets'][0]['name']!r}); see it: dsmem server status")
    wanted = {name for name, _ in plan.datasets}
    complain(facts, wanted)


def _without(facts: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != key}
