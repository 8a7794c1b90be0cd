"""What a daemon is to do, as whoever starts it hands it over."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from dsmem.server.loading import CHILD
from dsmem.server.places import Places
from dsmem.server.spec import Spec
from dsmem.server.watching import HUB_S, WATCH_S


@dataclass(frozen=True, slots=True)
class Plan:
    """A daemon's places, datasets and habits."""

    places: Places
    datasets: tuple[tuple[str, Spec], ...] = ()
    settings: tuple[tuple[str, object, str], ...] = ()
    """(name, value, origin), for `dsmem server status --verbose`."""
    log_level: str = "info"
    loader: str = CHILD
    """The module of the child that loads a dataset."""
    watch_s: float = WATCH_S
    hub_s: float = HUB_S

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "places": {one.name: getattr(self.places, one.name) for one in fields(Places)},
            "datasets": [[name, spec.as_dict()] for name, spec in self.datasets],
            "settings": [list(row) for row in self.settings],
            "log_level": self.log_level,
            "loader": self.loader,
            "watch_s": self.watch_s,
            "hub_s": self.hub_s,
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Plan:
        """The inverse of `as_dict`."""
        plain = {name: record[name] for name in ("log_level", "loader", "watch_s", "hub_s")}
        return cls(
            places=Places(**record["places"]),
            datasets=tuple((name, Spec.from_dict(spec)) for name, spec in record["datasets"]),
            settings=tuple((name, value, origin) for name, value, origin in record["settings"]),
            **plain,
        )
