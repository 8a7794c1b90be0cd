"""A server's state as metrics of Prometheus, by prometheus_client: names, help and escaping are in one place.

`prometheus` is what the command line prints, also without a server; `of_server` what the daemon answers on its socket,
where nothing is looked for in /proc but the daemon itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from dsmem.server import status

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from dsmem.server.status import DatasetStatus, Status

_STATES = ("starting", "loading", "ready", "degraded", "stopped")


def prometheus(found: Status) -> str:
    """Text for a node exporter's textfile collector; ends with a line feed."""
    return _text([*_server(found), *_datasets(found), *_holders(found.datasets), *_clients(found)])


def of_server(facts: Mapping[str, Any]) -> str:
    """The same of a running server, by what it knows itself, and what its own process takes."""
    found = status.of_facts(facts)
    return _text([*_server(found), *_datasets(found), *ProcessCollector(registry=None).collect()])


class _Collected(Collector):
    """Metrics that are there already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _text(metrics: Iterable[Metric]) -> str:
    return generate_latest(_Collected(one for one in metrics if one.samples)).decode()


def _server(found: Status) -> Iterator[Metric]:
    yield GaugeMetricFamily("dsmem_server_up", "1 when a dataset server runs.", float(found.running))
    states = GaugeMetricFamily("dsmem_server_state", "1 for the state that the server is in.", labels=["state"])
    for state in _STATES:
        states.add_metric([state], float(found.status == state))
    yield states
    if found.uptime_s is not None:
        yield GaugeMetricFamily("dsmem_server_uptime_seconds", "Since the server started.", found.uptime_s)
        yield CounterMetricFamily("dsmem_server_requests", "Requests on the control socket.", found.requests)


def _datasets(found: Status) -> Iterator[Metric]:
    shown = {one.name: one for one in found.datasets}
    ready = {name: one.state in ("ready", "published") for name, one in shown.items()}
    yield _gauge("dataset_ready", "1 when the dataset can be opened.", ready)
    yield _gauge("dataset_rows", "Rows of all splits.", {name: one.rows for name, one in shown.items()})
    yield _gauge("dataset_size_bytes", "Bytes in the store.", {name: one.size_bytes for name, one in shown.items()})
    generations = {name: one.generation for name, one in shown.items()}
    yield _gauge("dataset_generation", "How often its rows have changed, from 1 on.", generations)
    for name, help, counts in (
        ("dataset_loads", "Times that it was loaded.", found.loads),
        ("dataset_load_failures", "Times that loading failed.", found.failures),
    ):
        counter = CounterMetricFamily(f"dsmem_{name}", help, labels=["dataset"])
        for dataset, count in (counts or {}).items():
            counter.add_metric([dataset], count)
        yield counter


def _holders(datasets: Iterable[DatasetStatus]) -> Iterator[Metric]:
    yield _gauge("dataset_clients", "Processes that hold it.", {one.name: len(one.clients) for one in datasets})


def _clients(found: Status) -> Iterator[Metric]:
    pss = GaugeMetricFamily(
        "dsmem_client_pss_bytes", "Proportional share of memory of a client.", labels=["pid", "command"]
    )
    own = GaugeMetricFamily(
        "dsmem_client_anonymous_bytes", "Memory of a client that is its own.", labels=["pid", "command"]
    )
    for one in found.clients:
        for family, value in ((pss, one.pss_bytes), (own, one.anonymous_bytes)):
            if value is not None:
                family.add_metric([str(one.pid), one.command], value)
    yield pss
    yield own


def _gauge(name: str, help: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"dsmem_{name}", help, labels=["dataset"])
    for dataset, value in values.items():
        family.add_metric([dataset], float(value))
    return family
