"""Status with and without a server, metrics for Prometheus, and the unit for systemd."""

from __future__ import annotations

import mmap
import os
import re
import signal
import sys
from pathlib import Path

import children
from daemons import Plans, eventually

from dsmem.server import building, catalogue, lifecycle, metrics, places
from dsmem.server.places import Places
from dsmem.server.spec import Spec
from dsmem.server.status import DEAD, RUNNING, STOPPED, Client, DatasetStatus, Status, status
from dsmem.server.unit import unit
from dsmem.store import leases
from dsmem.store.root import make_store

SAMPLE = re.compile(r'[a-z_]+(\{[a-z]+="(?:[^"\\\n]|\\.)*"(,[a-z]+="(?:[^"\\\n]|\\.)*")*\})? -?[0-9.e+-]+')


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


def test_prometheus_text() -> None:
    text = metrics.prometheus(record())
    assert text.endswith("\n")
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(SAMPLE.fullmatch(line) for line in samples)
    assert r'dsmem_dataset_rows{dataset="a\"b\\c\nd"} 5' in samples
    assert 'dsmem_server_state{state="degraded"} 1' in samples and 'dsmem_server_state{state="ready"} 0' in samples
    assert "dsmem_server_uptime_seconds 1.5" in samples
    assert r'dsmem_dataset_clients{dataset="a\"b\\c\nd"} 2' in samples
    assert 'dsmem_dataset_load_failures_total{dataset="a"} 1' in samples
    assert 'dsmem_client_pss_bytes{pid="41",command="python x"} 100' in samples
    assert not any("gone" in line for line in samples)
    named = {line.split("{")[0].split(" ")[0] for line in samples}
    assert named == {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}


def test_prometheus_of_nothing() -> None:
    stopped = record(running=False, status="stopped", datasets=(), clients=(), uptime_s=None, loads=None, failures=None)
    lines = metrics.prometheus(stopped).splitlines()
    assert "dsmem_server_up 0" in lines and 'dsmem_server_state{state="stopped"} 1' in lines
    assert not any("uptime" in line or "dataset" in line for line in lines if not line.startswith("#"))


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
