"""Status with and without a server, metrics for Prometheus, and the unit for systemd."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import sys
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import children
from daemons import Plans, eventually
from prometheus_client.parser import text_string_to_metric_families

from dsmem.server import building, catalogue, control, lifecycle, metrics, places
from dsmem.server.places import Places
from dsmem.server.spec import Spec
from dsmem.server.status import DEAD, RUNNING, STOPPED, Client, DatasetStatus, Status, status
from dsmem.server.unit import unit
from dsmem.store import leases
from dsmem.store.root import make_store


def record(**changes: object) -> Status:
    made: dict[str, object] = {
        "running": True,
        "pid": 7,
        "mmap_file": "/s",
        "mmap_size_mb": 1.0,
        "status": "degraded",
        "datasets": (DatasetStatus('a"b\\c\nd', "/src", "ready", 5, 1 << 20, 2, "a-1", (41, 42)),),
        "uptime_s": 1.5,
        "socket": "",
        "pid_file": "",
        "log": "",
        "exit_code": 0,
        "clients": (Client(41, "python x", ("a",), 100, 50), Client(42, "gone", ("a",))),
        "requests": 3,
        "loads": {"a": 2},
        "failures": {"a": 1},
    }
    return Status(**{**made, **changes})  # type: ignore[arg-type]


def parsed(text: str) -> dict[str, dict[str, Any]]:
    """Family → its type and samples by their labels, as prometheus_client reads them."""
    return {
        family.name: {
            "type": family.type,
            "help": family.documentation,
            **{" ".join(one.labels[key] for key in sorted(one.labels)): one.value for one in family.samples},
        }
        for family in text_string_to_metric_families(text)
    }


def test_prometheus_text() -> None:
    text = metrics.prometheus(record())
    assert text.endswith("\n")
    found = parsed(text)
    assert all(one["help"] and one["type"] in ("gauge", "counter") for one in found.values())
    assert found["dsmem_dataset_rows"]['a"b\\c\nd'] == 5
    assert found["dsmem_dataset_generation"]['a"b\\c\nd'] == 2 and found["dsmem_dataset_clients"]['a"b\\c\nd'] == 2
    assert found["dsmem_server_state"]["degraded"] == 1 and found["dsmem_server_state"]["ready"] == 0
    assert found["dsmem_server_uptime_seconds"][""] == 1.5 and found["dsmem_server_requests"][""] == 3
    assert found["dsmem_dataset_load_failures"]["a"] == 1 and "dsmem_dataset_load_failures_total" in text
    assert found["dsmem_client_pss_bytes"]["python x 41"] == 100
    assert "gone" not in text


def test_prometheus_of_nothing() -> None:
    stopped = record(running=False, status="stopped", datasets=(), clients=(), uptime_s=None, loads=None, failures=None)
    found = parsed(metrics.prometheus(stopped))
    assert found.keys() == {"dsmem_server_up", "dsmem_server_state"}
    assert found["dsmem_server_up"][""] == 0 and found["dsmem_server_state"]["stopped"] == 1


def test_prometheus_by_http_on_the_socket(plan: Plans, where: Places) -> None:
    """The server answers what curl --unix-socket asks, with what its own process takes."""
    pid = lifecycle.ensure_started(plan=plan(a="ok:")).pid
    eventually(lambda: control.ask({"op": "status"}, where=where)["datasets"][0]["state"] == "ready")

    def get(path: str) -> tuple[int, str, str]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(where.socket)
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: here\r\n".encode())
            connection.sendall(b"Accept: */*\r\n\r\n")
            answer = HTTPResponse(connection)
            answer.begin()
            return answer.status, answer.headers["Content-Type"], answer.read().decode()

    status, kind, text = get("/metrics")
    assert status == 200 and kind.startswith("text/plain; version=0.0.4")
    found = parsed(text)
    assert found["dsmem_dataset_ready"]["a"] == 1 and found["dsmem_dataset_loads"]["a"] == 1
    started = os.stat(f"/proc/{pid}").st_ctime
    assert abs(found["process_start_time_seconds"][""] - started) < 60 and found["process_open_fds"][""] > 3
    assert "dsmem_dataset_clients" not in text  # that would be a search through /proc
    assert get("/")[0] == 404
    assert lifecycle.answering(where) == pid
    assert parsed(control.ask({"op": "metrics"}, where=where)["text"])["dsmem_server_up"][""] == 1


def test_exit_codes_of_the_lsb(plan: Plans, where: Places) -> None:
    found = status(where, settings=[("timeout_s", 30.0, "default")])
    assert (found.running, found.status, found.pid, found.exit_code) == (False, "stopped", None, STOPPED)
    assert found.settings == (("timeout_s", 30.0, "default"),)
    pid = lifecycle.ensure_started(plan=plan(a="ok:")).pid
    *_, _facts = lifecycle.until_loaded(where, 20)
    found = status(where)
    assert (found.running, found.status, found.pid, found.exit_code) == (True, "ready", pid, RUNNING)
    assert (found.datasets[0].rows, found.mmap_size_mb) == (10, round(1000 / (1 << 20), 3))
    os.kill(pid, signal.SIGSTOP)
    found = status(where, timeout_s=0.1)
    assert (found.running, found.status, found.pid, found.exit_code) == (True, "starting", pid, RUNNING)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: places.holder(where) is None)
    found = status(where)
    assert (found.running, found.status, found.pid, found.exit_code) == (False, "stopped", pid, DEAD)
    lifecycle.stop(where)
    assert status(where).exit_code == STOPPED


def test_without_a_server_it_says_what_is_in_the_store(where: Places, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n{"x": 2}\n')
    spec = Spec.parse(str(tmp_path / "a.jsonl"))
    store = make_store(where.data_root)
    name = building.publish(store, spec)
    catalogue.write(store, {"a": spec, "b": Spec("hub/none")})
    published, absent = status(where).datasets
    assert (published.state, published.object, published.rows, absent.state) == ("published", name, 2, "absent")
    assert published.size_bytes > 0 and published.clients == ()


def test_memory_of_clients(where: Places, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n')
    spec = Spec.parse(str(tmp_path / "a.jsonl"))
    store = make_store(where.data_root)
    name = building.publish(store, spec)
    catalogue.write(store, {"a": spec})
    reading, writing = os.pipe()

    def hold() -> None:
        held = leases.lease(store, name)
        private = mmap.mmap(-1, 8 << 20)
        private.write(b"x" * len(private))
        os.write(writing, b"!")
        os.read(reading, 0)
        signal.pause()
        held.map.close()

    with children.started(hold) as holder:
        os.read(reading, 1)
        (client,) = status(where, memory=True).clients
        assert (client.pid, client.datasets) == (holder.pid, ("a",))
        assert client.anonymous_bytes is not None and client.pss_bytes is not None
        assert status(where).datasets[0].clients == (holder.pid,)
        assert status(where).clients == ()
    os.close(reading)
    os.close(writing)


def test_the_unit() -> None:
    environ = {"DSMEM_ROOT": "/r", "HF_TOKEN": "secret", "HF_HOME": 'a "b" 100%', "PATH": "/bin", "HF_X": "$y"}
    text = unit(["--config", "/my files/$a.yaml"], environ=environ)
    assert "Type=notify\n" in text and "WantedBy=default.target" in text
    assert f'ExecStart={sys.executable} -m dsmem server run --config "/my files/$$a.yaml"\n' in text
    assert "Environment=DSMEM_ROOT=/r\n" in text
    assert r'Environment="HF_HOME=a \"b\" 100%%"' + "\n" in text
    assert "Environment=HF_X=$y\n" in text
    assert "secret" not in text and "PATH" not in text
