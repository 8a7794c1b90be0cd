"""Standard streams that are closed: no file takes their place, in this process or in one that helps it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from samples import MIB, assert_reads_as_h5py, settle

import dsmem

CLOSED = ("0", "1", "2", "01", "02", "12", "012")
LIBRARY = """
import os, sys
for fd in sys.argv[3]:
    os.close(int(fd))
import dsmem
from dsmem import proc
from dsmem.hdf5 import attrs
from dsmem.pinning import decoding, processes
attrs.MOST_BYTES = processes.WORTH_BYTES = decoding.WORTH_CHUNKS = decoding.LEAST_CHUNKS = 1
proc.usable_cpus = lambda: 3
assert dsmem.pin(sys.argv[1], untrusted=sys.argv[2] == "untrusted").datasets
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """What is decoded by processes of both kinds, read by this one, and an attribute that a child reads."""
    path = tmp_path / "data.h5"
    data = np.arange(300 * 70, dtype="<i4").reshape(300, 70)
    with h5py.File(path, "w") as file:
        file.create_dataset("small chunks", data=data, chunks=(4, 70), compression="gzip")
        file.create_dataset("offset", data=np.resize(data, (MIB, 2)), chunks=(4096, 2), scaleoffset=0)
        file["plain"] = data
        file.attrs["texts"] = ["a", "bb", "ccc"]
    return settle(path)


def done(command: list[str], closed: str) -> int:
    """Its exit code, with those streams closed."""
    redirections = " ".join(f"{fd}>&-" for fd in closed)
    return subprocess.run(["/bin/sh", "-c", f'exec "$@" {redirections}', "sh", *command], check=False).returncode


def assert_whole(path: Path) -> None:
    with dsmem.attach(path) as ours:
        assert_reads_as_h5py(ours, path)


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("trust", ["trusted", "untrusted"])
def test_a_process_that_has_closed_them_pins(trust: str, closed: str, path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", LIBRARY, str(path), trust, closed], check=False).returncode == 0
    assert_whole(path)


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("options", [[], ["--untrusted"]])
def test_a_command_that_was_started_without_them_pins(options: list[str], closed: str, path: Path) -> None:
    code = done([sys.executable, "-m", "dsmem", "pin", *options, str(path)], closed)
    assert code == (1 if "1" in closed else 0)  # what it has to say can't be written
    assert_whole(path)


@pytest.mark.parametrize("closed", ["0", "2", "02"])
@pytest.mark.parametrize("options", [[], ["--untrusted"]])
def test_it_is_explained_without_them(options: list[str], closed: str, path: Path) -> None:
    assert done([sys.executable, "-m", "dsmem", "pin", "--explain", *options, str(path)], closed) == 0
    assert not os.path.exists(os.environ["DSMEM_ROOT"])
