"""`dsmem server`: what it shows on a terminal, on a pipe and as JSON, and what it does from start to stop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import end

from dsmem.cli.server_options import absolute, named
from dsmem.config.resolve import resolve
from dsmem.errors import UsageError
from dsmem.server import logs, places
from dsmem.server.places import Places
from dsmem.server.spec import Spec
from dsmem.server.status import Client, DatasetStatus, Status

from .conftest import Dsmem, Fake


@pytest.fixture(autouse=True)
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_leftovers: set[str]) -> Iterator[Places]:
    """A server of this test alone; killed at its end if it still runs."""
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    expected_leftovers.add("server/catalogue.json")
    found = places.find(resolve())
    yield found
    end(found)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"x": {number}}}\n' for number in range(3)))
    return path


GIB = 1 << 30
READY = DatasetStatus("train", "/data/train.jsonl", "ready", 12345, GIB, 2, "train-1", (41, 42))
STALE = DatasetStatus(
    "wiki", "hf:wikitext", "ready", 5, 10, 1, "wiki-1", (), error="BadSource: no\x1b", refreshing=False
)
BUSY = DatasetStatus("big", "/data/big", "loading", 0, 0, 0, "", (), done_bytes=1, total_bytes=4)


def found(*datasets: DatasetStatus, **changes: object) -> Status:
    made: dict[str, object] = {
        "running": True,
        "pid": 77,
        "mmap_file": "/dev/shm/dsmem-0",
        "mmap_size_mb": 1024.0,
        "status": "ready",
        "datasets": datasets,
        "uptime_s": 3600.0,
        "socket": "/run/s",
        "pid_file": "/run/p",
        "log": "/log",
        "exit_code": 0,
        "settings": (("timeout_s", 30.0, "default"), ("auto_start", True, "DSMEM_AUTO_START")),
        "clients": (Client(41, "python", ("train",), GIB, 1024),),
    }
    return Status(**{**made, **changes})  # type: ignore[arg-type]


def test_status_on_a_terminal(dsmem: Dsmem, fake: Fake) -> None:
    fake("dsmem.server.status", status=lambda where, **options: found(READY, STALE, status="degraded"))
    ran = dsmem("server", "status", "--memory", "--verbose", terminal=True)
    assert ran.exit_code == 0
    assert ran.out == (
        "running  yes\nstatus   degraded\npid      77\nuptime   1 h 00 min\n"
        "data     /dev/shm/dsmem-0\nsize     1024.0 MiB\nsocket   /run/s\nlog      /log\n"
        "name   state    rows     size  generation  clients  source\n"
        "train  ready  12,345  1.0 GiB           2        2  /data/train.jsonl\n"
        "wiki   stale       5     10 B           1        0  hf:wikitext\n"
        "pid  command  datasets      PSS  anonymous\n"
        " 41  python   train     1.0 GiB    1.0 KiB\n"
        "setting     value  from\n"
        "timeout_s   30.0   default\n"
        "auto_start  true   DSMEM_AUTO_START\n"
    )
    assert ran.err == "warning: wiki: BadSource: no\\x1b\n"


def test_status_as_json(dsmem: Dsmem, fake: Fake) -> None:
    fake("dsmem.server.status", status=lambda where, **options: found(READY, BUSY))
    read = json.loads(dsmem("server", "status", "--json").out)
    assert {"running", "pid", "mmap_file", "mmap_size_mb", "status", "datasets"} <= set(read)
    assert (read["running"], read["pid"], read["mmap_size_mb"], read["status"]) == (True, 77, 1024.0, "ready")
    assert read["datasets"][0]["clients"] == [41, 42]
    assert "settings" not in read
    assert json.loads(dsmem("server", "status", "--json", "-v").out)["settings"][0] == ["timeout_s", 30.0, "default"]
    assert dsmem("server", "status", "--json", "--prometheus").exit_code == 2


@pytest.mark.parametrize(("exit_code", "hint"), [(1, "it died"), (3, "start it")])
def test_status_of_none(exit_code: int, hint: str, dsmem: Dsmem, fake: Fake) -> None:
    none = found(running=False, pid=None, status="stopped", uptime_s=None, exit_code=exit_code)
    fake("dsmem.server.status", status=lambda where, **options: none)
    ran = dsmem("server", "status")
    assert ran.exit_code == exit_code and ran.out.startswith("running\tno\nstatus\tstopped\npid\tnone\n")
    assert ran.err.startswith(f"hint: {hint}")
    assert dsmem("server", "status", "--json").exit_code == exit_code
    assert dsmem("server", "status", "--prometheus").out.splitlines()[2] == "dsmem_server_up 0.0"


def test_ls(dsmem: Dsmem, fake: Fake) -> None:
    fake("dsmem.server.status", status=lambda where, **options: found(READY, BUSY))
    assert dsmem("server", "ls").out == (
        "name\tstate\trows\tsize_bytes\tgeneration\tclients\tsource\n"
        "train\tready\t12345\t1073741824\t2\t2\t/data/train.jsonl\n"
        "big\tloading\t0\t0\t0\t0\t/data/big\n"
    )
    assert [one["name"] for one in json.loads(dsmem("server", "ls", "--json").out)] == ["train", "big"]


def test_from_start_to_stop(dsmem: Dsmem, rows: Path, where: Places) -> None:
    """An empty server, a dataset more, a change, an error, a restart, and the end."""
    ran = dsmem("server", "start")
    assert ran.exit_code == 0 and "it serves nothing yet: dsmem server add" in ran.err
    pid = ran.out.splitlines()[0].split("\t")[1]
    assert ran.out.splitlines()[1:3] == [f"socket\t{where.socket}", f"log\t{where.log}"]

    ran = dsmem("server", "start", "--dataset", f"rows={rows}", terminal=True)
    assert ran.exit_code == 0 and f"pid     {pid}" in ran.out
    assert "the server runs already" in ran.out and "rows  ready  3 rows" in ran.out

    ran = dsmem("server", "refresh", "rows")
    assert (ran.exit_code, ran.err.splitlines()[-1]) == (0, "rows: unchanged (ready)")

    broken = rows.with_name("broken.jsonl")
    broken.write_text("{not json\n")
    ran = dsmem("server", "add", f"broken={broken}", "--json")
    assert ran.exit_code == 1
    assert [one["state"] for one in json.loads(ran.out)] == ["failed"]
    assert ran.err.startswith("error: broken could not be loaded: ")
    assert ran.err.endswith("hint: what it said meanwhile: dsmem server logs\n")
    assert dsmem("server", "status", "--json").exit_code == 0
    assert "broken could not be loaded" in dsmem("server", "logs", "-n", "200").out
    ran = dsmem("server", "remove", "broken")
    assert (ran.exit_code, ran.err) == (0, "broken is served no longer\n")

    ran = dsmem("server", "restart", "--json")
    assert ran.exit_code == 0
    again = json.loads(ran.out)
    assert (again["already"], [one["name"] for one in again["datasets"]]) == (False, ["rows"])
    assert again["pid"] != int(pid)

    ran = dsmem("server", "stop")
    assert ran.exit_code == 0
    assert ran.err.splitlines()[0] == f"stopped the server, pid {again['pid']}"
    assert f"of data stay in {where.root}" in ran.err and "dsmem server stop --release" in ran.err
    ran = dsmem("server", "status", "--json")
    stopped = json.loads(ran.out)
    assert (ran.exit_code, stopped["running"], stopped["pid"], stopped["status"]) == (3, False, None, "stopped")
    assert [(one["name"], one["state"], one["rows"]) for one in stopped["datasets"]] == [("rows", "published", 3)]
    ran = dsmem("server", "stop", "--release", "--json")
    released = json.loads(ran.out)
    assert (released["stopped"], released["left_bytes"], len(released["released"]["freed"])) == (False, 0, 1)
    assert dsmem("shm", "ls").out.splitlines()[1:] == []


def test_a_configuration(dsmem: Dsmem, rows: Path, tmp_path: Path, where: Places) -> None:
    config = tmp_path / "dsmem.yaml"
    config.write_text(
        "dataset:\n"
        f"  shared_memory: {{sample_limit: 2, pid_file: {tmp_path}/my.pid}}\n"
        f"  datasets: [{{name: {rows}, dataset_name: sample, split: train}}]\n"
    )
    ran = dsmem("server", "start", "--config", str(config), "--log-file", str(tmp_path / "my.log"), "--json")
    assert ran.exit_code == 0
    (one,) = json.loads(ran.out)["datasets"]
    assert (one["name"], one["rows"], one["spec"]["sample_limit"], one["spec"]["split"]) == ("sample", 2, 2, "train")
    assert (tmp_path / "my.pid").exists() and (tmp_path / "my.log").exists()
    shown = dsmem("server", "status", "--verbose").out
    assert f"sample_limit\t2\t{config}:2\n" in shown and "log_file\t" in shown
    assert f"{tmp_path}/my.log\t--log-file\n" in shown
    assert dsmem("server", "stop").exit_code == 0
    assert not (tmp_path / "my.pid").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("start", "--dataset", "a=/gone/file.jsonl"), "no such file"),
        (("start", "--config", "/gone.yaml"), "is not there"),
        (("start", "--timeout", "soon"), "--timeout='soon' is not a time"),
        (("start", "--data-dir", __file__), "is a file; the data is a directory"),
        (("start", "--sample-limit", "0"), "x>=1"),
        (("run", "--pid-file", "a\0b"), "null"),
        (("unit", "--config", "/gone.yaml"), "is not there"),
    ],
)
def test_what_can_not_be_meant_starts_nothing(
    arguments: tuple[str, ...], message: str, dsmem: Dsmem, where: Places
) -> None:
    ran = dsmem("server", *arguments)
    assert ran.exit_code in (2, 3)
    assert message in ran.err
    assert places.holder(where) is None


@pytest.mark.parametrize("arguments", [("refresh",), ("add", "a=x"), ("remove", "a")])
def test_without_a_server(arguments: tuple[str, ...], dsmem: Dsmem) -> None:
    ran = dsmem("server", *arguments)
    assert ran.exit_code == 1
    assert ran.err.startswith("error: no dataset server runs for ")
    assert ran.err.endswith("hint: start it: dsmem server start\n")
    assert dsmem("server", "stop").err == "no server runs\n"


def test_logs(dsmem: Dsmem, where: Places) -> None:
    assert dsmem("server", "logs").out == ""
    Path(where.log).parent.mkdir(parents=True)
    Path(where.log).write_text("one\ntwo \x1b[31m\nthree\n")
    assert dsmem("server", "logs", "-n", "2").out == "two \\x1b[31m\nthree\n"


def test_logs_that_grow(dsmem: Dsmem, where: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(where.log).parent.mkdir(parents=True)
    Path(where.log).write_text("old\n")
    pauses = iter(["new\n", ""])

    def pause(elapsed_s: float) -> None:
        text = next(pauses)
        if not text:
            raise KeyboardInterrupt
        with open(where.log, "a") as file:
            file.write(text)

    monkeypatch.setattr(logs.follow, "__kwdefaults__", {"pause": pause})
    ran = dsmem("server", "logs", "-f")
    assert (ran.exit_code, ran.out) == (130, "old\nnew\n")


def test_unit(dsmem: Dsmem, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rows.parent)
    out = dsmem("server", "unit", "--dataset", "a=rows.jsonl", "--sample-limit", "5").out
    assert f"-m dsmem server run --dataset=a={rows} --sample-limit 5\n" in out


def test_names_and_sources(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rows.parent)
    assert named("a=rows.jsonl", 3) == ("a", Spec.parse(str(rows), sample_limit=3))
    assert named("rows.jsonl", None)[0] == "rows"
    assert named("wiki=org/name:sub/train@v1", None) == ("wiki", Spec("org/name", "sub", split="train", revision="v1"))
    odd = rows.with_name("a=b.jsonl")
    odd.write_text('{"x": 1}\n')
    assert named(str(odd), None)[1] == Spec.parse(str(odd))
    assert absolute("a=rows.jsonl") == f"a={rows}" and absolute("a=org/name") == "a=org/name"
    with pytest.raises(UsageError):
        named("a=", None)
