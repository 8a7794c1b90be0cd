"""What clients may ask of the daemon, and those who wait for a dataset that is still loading.

`op` is one of ping, status, metrics (as text), wait (dataset, timeout_s), add (spec, name; without one the server finds
one), remove (dataset), refresh (dataset; without one, all), stop. Every answer has `ok`; what went wrong has `kind`,
the name of an error of dsmem, and `error`, its message.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dsmem.errors import DsmemError, LoadFailed, NotPinned, ServerTimeout, UsageError
from dsmem.server import control
from dsmem.server.listening import Connection
from dsmem.server.records import Record
from dsmem.server.shelf import Shelf
from dsmem.server.spec import Spec

LONGEST_S = 86_400.0
"""That a client may wait."""
NAME_CHARACTERS = 5000
_GRACE_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Waiting:
    client: Connection
    dataset: str
    deadline: float


class Requests:
    """Answers requests. `facts` is what `status` tells; `stop` ends the daemon after the answer."""

    def __init__(self, *, facts: Callable[[], dict[str, object]], stop: Callable[[], None], root: str) -> None:
        self._facts, self._stop, self._root = facts, stop, root
        self._shelf: Shelf | None = None
        self._waiting: list[_Waiting] = []
        self.count = 0
        self._handlers: dict[str, Callable[[dict[str, Any], Connection], None]] = {
            "ping": self._ping,
            "status": self._status,
            "metrics": self._metrics,
            "wait": self._wait,
            "add": self._add,
            "remove": self._remove,
            "refresh": self._refresh,
            "stop": self._end,
        }

    def serve(self, shelf: Shelf) -> None:
        """Whose datasets they are about."""
        self._shelf = shelf

    def handle(self, message: dict[str, Any], client: Connection) -> None:
        """Answer a request, now or when its dataset is ready; one that goes wrong ends nobody else's."""
        self.count += 1
        try:
            handler = self._handlers.get(str(message.get("op")))
            if handler is None:
                raise UsageError(f"no request: {message.get('op')!r:.60}; there are {', '.join(self._handlers)}")
            handler(message, client)
        except DsmemError as exc:
            client.answer(control.report(exc))
        except Exception as exc:  # noqa: BLE001 - logged, and told to who asked
            _log.exception("a request went wrong")
            client.answer(control.report(DsmemError(f"{type(exc).__name__}: {exc}")))

    def settled(self, record: Record) -> None:
        """Answer those who wait for this dataset, unless it is loading again."""
        if record.state in ("waiting", "loading"):
            return
        mine = [one for one in self._waiting if one.dataset == record.name]
        self._waiting = [one for one in self._waiting if one.dataset != record.name]
        for one in mine:
            if record.state == "failed":
                error = LoadFailed(f"{record.name} could not be loaded: {record.error}", dataset=record.name)
                one.client.answer(control.report(error))
            else:
                one.client.answer({"ok": True, "root": record.root or self._root, "dataset": record.as_dict()})

    def next_deadline(self) -> float:
        """When `expire` is due, by the monotonic clock."""
        return min((one.deadline for one in self._waiting), default=float("inf"))

    def expire(self) -> None:
        """Answer those whose time to wait is up."""
        now = time.monotonic()
        late = [one for one in self._waiting if one.deadline <= now]
        self._waiting = [one for one in self._waiting if one.deadline > now and not one.client.gone]
        for one in late:
            one.client.answer(control.report(ServerTimeout(f"{one.dataset} is still loading", dataset=one.dataset)))

    def _datasets(self) -> Shelf:
        if self._shelf is None:
            raise DsmemError("the server is not ready yet")
        return self._shelf

    def _meant(self, message: dict[str, Any]) -> Record:
        name = message.get("dataset")
        record = self._datasets().get(name) if isinstance(name, str) else None
        if record is None:
            raise NotPinned(f"the server has no dataset {name!r:.200}")
        return record

    def _ping(self, message: dict[str, Any], client: Connection) -> None:
        client.answer({"ok": True, "pid": os.getpid(), "root": self._root})

    def _status(self, message: dict[str, Any], client: Connection) -> None:
        client.answer({"ok": True, **self._facts()})

    def _metrics(self, message: dict[str, Any], client: Connection) -> None:
        from dsmem.server import metrics  # 60 ms, once: not before anybody asks

        client.answer({"ok": True, "text": metrics.of_server(self._facts())})

    def _wait(self, message: dict[str, Any], client: Connection) -> None:
        if isinstance(message.get("dataset"), str):
            self._datasets().known(message["dataset"])
        record = self._meant(message)
        timeout_s = message.get("timeout_s", 0)
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 <= timeout_s < float("inf"):
            raise UsageError("timeout_s is a number of seconds")
        deadline = time.monotonic() + min(timeout_s, LONGEST_S)
        client.deadline = deadline + _GRACE_S
        if record.state == "evicted":
            self._datasets().refresh(record.name)
        self._waiting.append(_Waiting(client, record.name, deadline))
        self.settled(record)

    def _add(self, message: dict[str, Any], client: Connection) -> None:
        try:
            spec = Spec.from_dict(message.get("spec"))
        except ValueError as exc:
            raise UsageError(f"{exc!s:.200}") from exc
        name = message.get("name")
        if name is None:
            name = self._datasets().name_for(spec)
        if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARACTERS or not name.isprintable():
            raise UsageError(f"not a name for a dataset: {name!r:.60}")
        client.answer({"ok": True, "dataset": self._datasets().add(name, spec).as_dict()})

    def _remove(self, message: dict[str, Any], client: Connection) -> None:
        record = self._meant(message)
        client.answer({"ok": True, "dataset": self._datasets().remove(record.name).as_dict()})

    def _refresh(self, message: dict[str, Any], client: Connection) -> None:
        records = [self._meant(message)] if message.get("dataset") is not None else self._datasets().records()
        for record in records:
            self._datasets().refresh(record.name)
        client.answer({"ok": True, "datasets": [record.name for record in records]})

    def _end(self, message: dict[str, Any], client: Connection) -> None:
        client.answer({"ok": True, **self._facts()})
        self._stop()
