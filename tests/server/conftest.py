"""Daemons for tests: each ends with the test that started it, its sockets below tmp_path."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from daemons import Plans, end

from dsmem.config.resolve import resolve
from dsmem.server import lifecycle, places
from dsmem.server.places import Places
from dsmem.server.plan import Plan
from dsmem.server.spec import Spec


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_leftovers: set[str]) -> Path:
    """XDG directories of this test alone; the catalogue is left in the store on purpose."""
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in [name for name in os.environ if name.startswith("SHARED_DATASET_")]:
        monkeypatch.delenv(name)
    expected_leftovers.add("server/catalogue.json")
    return directory


@pytest.fixture
def where(runtime: Path) -> Places:
    """Where the daemon of this test's store is."""
    return places.find(resolve())


@pytest.fixture
def plan(where: Places) -> Iterator[Plans]:
    """`plan(a="ok:", b="fail:no")`: a plan whose children are `fakeloader`; its daemon is killed at the end."""

    def make(*, watch_s: float = 0.02, loader: str = "fakeloader", **datasets: str) -> Plan:
        named = tuple((name, Spec(source)) for name, source in datasets.items())
        return replace(lifecycle.plan_of(resolve()), datasets=named, loader=loader, watch_s=watch_s, log_level="debug")

    yield make
    end(where)
