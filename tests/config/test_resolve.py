"""Which setting holds, and who said so."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsmem import settings
from dsmem.config.resolve import Flags, resolve
from dsmem.errors import SourceMissing, UsageError

FILE = """\
dataset:
  use_shared_memory: true
  shared_memory: {server_timeout: 4, auto_start: true, sample_limit: 40, data_dir: /four, pid_file: /four.pid}
  datasets: [{name: a, dataset_name: b}]
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "dsmem.yaml"
    path.write_text(FILE)
    return str(path)


def test_defaults() -> None:
    found = resolve(environ={})
    assert [(name, value) for name, value, _ in found.rows()] == [
        ("config", None),
        ("data_dir", None),
        ("overflow_dir", None),
        ("pid_file", None),
        ("log_file", None),
        ("timeout_s", 30.0),
        ("sample_limit", None),
        ("auto_start", False),
        ("use_shared_memory", False),
        ("datasets", []),
    ]
    assert {origin for _, _, origin in found.rows()} == {"default"}


def test_each_source_outdoes_the_next(config: str) -> None:
    environ = {"DSMEM_CONFIG": config}
    assert (resolve(environ=environ).timeout_s.value, resolve(environ=environ).timeout_s.origin) == (4.0, f"{config}:3")
    environ["SHARED_DATASET_TIMEOUT"] = "3"
    assert (resolve(environ=environ).timeout_s.value, resolve(environ=environ).timeout_s.origin) == (
        3.0,
        "SHARED_DATASET_TIMEOUT",
    )
    environ["DSMEM_TIMEOUT"] = "2m"
    assert (resolve(environ=environ).timeout_s.value, resolve(environ=environ).timeout_s.origin) == (
        120.0,
        "DSMEM_TIMEOUT",
    )
    found = resolve(Flags(timeout_s=1.0), environ=environ).timeout_s
    assert (found.value, found.origin) == (1.0, "--timeout")


def test_the_older_names(config: str) -> None:
    old = {
        "SHARED_DATASET_MMAP_FILE": "/old/data",
        "SHARED_DATASET_PID_FILE": "/old/pid",
        "SHARED_DATASET_TIMEOUT": "5",
        "SHARED_DATASET_SAMPLE_LIMIT": "50",
    }
    found = resolve(environ={**old, "DSMEM_CONFIG": config})
    assert (found.data_dir.value, found.data_dir.origin) == ("/old/data", "SHARED_DATASET_MMAP_FILE")
    assert (found.pid_file.value, found.pid_file.origin) == ("/old/pid", "SHARED_DATASET_PID_FILE")
    assert (found.timeout_s.value, found.sample_limit.value) == (5.0, 50)
    new = resolve(environ={**old, "DSMEM_DATA_DIR": "/new", "DSMEM_PID_FILE": "/new.pid", "DSMEM_SAMPLE_LIMIT": "6"})
    assert (new.data_dir.value, new.pid_file.value, new.sample_limit.value) == ("/new", "/new.pid", 6)


def test_a_no_in_the_environment_outdoes_a_yes_in_the_file(config: str) -> None:
    assert resolve(Flags(config=config), environ={}).auto_start.value is True
    found = resolve(Flags(config=config), environ={"DSMEM_AUTO_START": "0"}).auto_start
    assert (found.value, found.origin) == (False, "DSMEM_AUTO_START")


def test_what_only_the_file_says(config: str) -> None:
    found = resolve(Flags(config=config), environ={})
    assert (found.config.value, found.config.origin) == (config, "--config")
    assert (found.use_shared_memory.value, found.use_shared_memory.origin) == (True, f"{config}:2")
    assert [one.name for one in found.datasets.value] == ["a"]
    assert ("datasets", ["b"], f"{config}:4") in found.rows()


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    found = resolve(Flags(data_dir="data", log_file="~/log"), environ={})
    assert (found.data_dir.value, found.log_file.value) == (str(tmp_path / "data"), "/home/me/log")
    with pytest.raises(UsageError, match=r"--data-dir.*null"):
        resolve(Flags(data_dir="a\0b"), environ={})


def test_a_file_that_only_lies_about_is_not_read(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(config).parent)
    assert resolve(environ={}).timeout_s.value == 30.0
    with pytest.raises(SourceMissing):
        resolve(Flags(config="/gone.yaml"), environ={})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DSMEM_TIMEOUT", "soon"),
        ("SHARED_DATASET_TIMEOUT", "-1"),
        ("DSMEM_TIMEOUT", "nan"),
        ("DSMEM_TIMEOUT", "inf"),
        ("DSMEM_SAMPLE_LIMIT", "0"),
        ("SHARED_DATASET_SAMPLE_LIMIT", "1.5"),
    ],
)
def test_errors_name_the_variable(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=name):
        resolve(environ={name: text})


def test_empty_variables_say_nothing() -> None:
    names = [name for variables in settings._SERVER_VARIABLES.values() for name in variables]
    assert resolve(environ=dict.fromkeys(names, "")) == resolve(environ={})


def test_runtime_and_state_directories(tmp_path: Path) -> None:
    assert settings.runtime_directory({"XDG_RUNTIME_DIR": str(tmp_path)}) == f"{tmp_path}/dsmem"
    assert settings.runtime_directory({"XDG_RUNTIME_DIR": f"{tmp_path}/gone"}) is None
    assert settings.runtime_directory({"XDG_RUNTIME_DIR": "relative"}) is None
    assert settings.runtime_directory({}) is None
    assert settings.state_directory({"XDG_STATE_HOME": str(tmp_path)}) == tmp_path / "dsmem"
    assert settings.state_directory({"XDG_STATE_HOME": "relative", "HOME": "/h"}).name == "dsmem"
