"""`dsmem demo` and `dsmem bench` as they are typed: tables, TSV, JSON, errors, and what they say when they shrink."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import children
import psutil
import pytest

from dsmem.bench import sizes
from dsmem.bench.cases import CASES
from dsmem.bench.sizes import Room
from dsmem.cli import bench

from .conftest import Dsmem


@pytest.fixture(autouse=True)
def _nothing_stays(tmp_path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    files = tmp_path / "files"
    files.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(files))
    monkeypatch.setenv("TMPDIR", str(files))
    yield
    assert list(files.iterdir()) == []
    assert list(store_root.parent.iterdir()) == []


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "room", lambda place: Room(16 << 20, 1 << 40, 1 << 40))


def test_cases_are_those_of_the_library() -> None:
    assert (*(case.name for case in CASES), "all") == bench.CASES
    assert bench._complete("") == list(bench.CASES)
    assert bench._complete("ha") == ["hash"]


def test_demo_on_a_terminal(dsmem: Dsmem) -> None:
    ran = dsmem("demo", "--size", "4MiB", terminal=True)
    assert ran.exit_code == 0
    assert "h5py [...] in each" in ran.out and "dsmem.attach" in ran.out
    assert "memory saved: " in ran.out
    assert "$ dsmem shm ls" in ran.out and "held by" in ran.out and "train-" in ran.out
    assert ran.err.splitlines()[0] == "making an HDF5 file of 4.0 MiB"
    assert "dsmem pin train.h5" in ran.err.splitlines()[-1]


def test_demo_on_a_pipe(dsmem: Dsmem) -> None:
    ran = dsmem("demo", "--size", "4MiB")
    lines = ran.out.splitlines()
    assert lines[0].split("\t") == ["way", "ready_s", "read_s", "data_pss_bytes", "times_data"]
    assert float(lines[1].split("\t")[1]) > 0
    assert "making" not in ran.err
    assert "dsmem pin train.h5" in ran.err


def test_demo_json(dsmem: Dsmem) -> None:
    ran = dsmem("demo", "--size", "4MiB", "--json")
    read = json.loads(ran.out)
    assert set(read) == {
        "size_bytes", "asked_bytes", "why_smaller", "pinned", "plain", "attached", "listing", "elapsed_s",
    }  # fmt: skip
    assert set(read["plain"]) == {"way", "answers", "pss_bytes", "baseline_bytes"}


def test_demo_shrinks_and_says_so(little_memory: None, dsmem: Dsmem) -> None:
    ran = dsmem("demo")
    assert ran.exit_code == 0
    assert " instead of 256.0 MiB: 16.0 MiB of memory is free" in ran.err


def test_demo_without_room(monkeypatch: pytest.MonkeyPatch, dsmem: Dsmem) -> None:
    monkeypatch.setattr(sizes, "room", lambda place: Room(1 << 40, 1000, 1 << 40))
    assert dsmem("demo").exit_code == 4


def test_demo_with_a_size_that_is_none(dsmem: Dsmem) -> None:
    assert dsmem("demo", "--size", "much").exit_code == 2
    assert dsmem("demo", "--size", "10").exit_code == 2


def test_bench_on_a_terminal(dsmem: Dsmem) -> None:
    ran = dsmem("bench", "memory", "hash", "--size", "2MiB", "--runs", "1", terminal=True)
    assert ran.exit_code == 0
    blocks = ran.out.split("\n\n")
    assert [block.partition(":")[0] for block in blocks[:4]] == ["memory", "memory", "memory", "hash"]
    heads = [block.splitlines()[1].split() for block in blocks[:4]]
    assert heads[0] == ["memory", "×", "data", "×", "recipe", "of", "limit"]
    assert heads[3] == ["median", "min–max", "rate", "×", "recipe", "of", "limit"]
    assert "usual recipe" in blocks[3] and "machine's limit" in blocks[3]
    assert "making a file of 2.0 MiB" in ran.err


FIELDS = [
    "case", "comparison", "size_bytes", "runs", "name", "role", "samples", "median_s", "min_s", "max_s", "median_bytes",
    "min_bytes", "max_bytes", "bytes_per_s", "ratio_to_recipe", "percent_of_limit", "times_data", "peak_bytes", "p99_s",
]  # fmt: skip


def test_bench_on_a_pipe(dsmem: Dsmem) -> None:
    ran = dsmem("bench", "hash", "--size", "2MiB", "--runs", "2")
    head, *rows = [line.split("\t") for line in ran.out.splitlines()]
    assert head == FIELDS
    assert len(rows) == 7
    assert {len(row) for row in rows} == {len(FIELDS)}
    assert all(float(row[FIELDS.index("median_s")]) > 0 for row in rows)


def test_bench_json(dsmem: Dsmem) -> None:
    read = json.loads(dsmem("bench", "read", "--size", "2MiB", "--runs", "2", "--json").out)
    assert set(read) == {
        "schema", "machine", "size_bytes", "asked_bytes", "runs", "file", "notes", "cases", "elapsed_s",
    }  # fmt: skip
    assert read["schema"] == 1
    assert {"kernel", "cpus", "memory_bytes", "python", "h5py", "page_bytes", "shared_huge_pages"} <= set(
        read["machine"]
    )
    (case,) = read["cases"]
    assert set(case) == {"name", "claim", "compared"}
    assert set(case["compared"][0]) == {"title", "quantity", "size_bytes", "runs", "measured"}
    assert list(case["compared"][0]["measured"][0]) == FIELDS[4:]


def test_bench_shrinks_and_says_so(little_memory: None, dsmem: Dsmem) -> None:
    ran = dsmem("bench", "read", "--size", "64MiB", "--runs", "1", "--json")
    assert "4.0 MiB instead of 64.0 MiB: 16.0 MiB of memory is free" in ran.err
    assert len(json.loads(ran.out)["notes"]) == 1


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["speed"], 2),
        (["hash", "--runs", "0"], 2),
        (["hash", "--size", "1MiB", "--file", "x.h5"], 2),
        (["hash", "--file", "none.h5"], 3),
        (["tokenize", "--peer", "nanogpt=python"], 2),
    ],
)
def test_bench_misuse(arguments: list[str], exit_code: int, dsmem: Dsmem) -> None:
    ran = dsmem("bench", *arguments)
    assert (ran.exit_code, ran.out) == (exit_code, "")
    assert ran.err.startswith("error: ")


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
@pytest.mark.parametrize("command", [["demo", "--size", "64MiB"], ["bench", "memory", "--size", "64MiB"]], ids=" ".join)
def test_stopped(command: list[str], number: signal.Signals, exit_code: int, store_root: Path) -> None:
    """The fixture looks for leftovers, once every process has ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dsmem", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        me = psutil.Process(process.pid)
        while not any(store_root.parent.rglob("objects/*")):
            assert process.poll() is None
        descendants = me.children(recursive=True)
        os.kill(process.pid, number)
        assert process.wait(60) == exit_code
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    alive = children.alive(descendants, 60)
    assert alive == []
