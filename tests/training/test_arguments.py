"""The flags for scripts, what they open, and what importing them costs."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
from episodes import write_aloha

import dsmem
from dsmem.errors import InUse, UsageError
from dsmem.training import MemoryMappedHDF5, SharedMemoryManager, add_arguments, open_from_args

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def h5(tmp_path: Path) -> str:
    return str(write_aloha(tmp_path / "e.h5"))


def parsed(*arguments: str) -> argparse.Namespace:
    return add_arguments(argparse.ArgumentParser()).parse_args(arguments)


def test_the_defaults() -> None:
    args = parsed("--h5", "f.h5")
    assert vars(args) == {
        "h5": "f.h5",
        "shared_memory": False,
        "preload": True,
        "cleanup_shm": False,
        "num_workers": 4,
    }
    assert add_arguments(argparse.ArgumentParser(), h5="mine.h5").parse_args([]).h5 == "mine.h5"


@pytest.mark.parametrize("mark", ["-", "_"])
def test_both_spellings(mark: str) -> None:
    args = parsed("--h5=f", f"--shared{mark}memory", "--no-preload", f"--cleanup{mark}shm", f"--num{mark}workers", "0")
    assert (args.shared_memory, args.preload, args.cleanup_shm, args.num_workers) == (True, False, True, 0)


def test_what_they_open(h5: str) -> None:
    with open_from_args(parsed("--h5", h5)) as file:
        assert file.source == "preloaded"
    with open_from_args(parsed("--h5", h5, "--no-preload")) as file:
        assert file.source == "mapped"
    assert SharedMemoryManager().list() == ()
    with open_from_args(parsed("--h5", h5, "--shared-memory")) as file:
        assert file.source == "pinned"
    with pytest.raises(UsageError, match="needs --preload"):
        open_from_args(parsed("--h5", h5, "--shared-memory", "--no-preload"))


def test_cleanup_removes_and_exits(h5: str) -> None:
    for _ in range(2):  # the second finds nothing, which is fine
        with pytest.raises(SystemExit) as ended:
            open_from_args(parsed("--h5", h5, "--cleanup-shm"))
        assert ended.value.code == 0
        dsmem.pin(h5)
    file = dsmem.attach(h5)
    with pytest.raises(InUse):
        open_from_args(parsed("--h5", h5, "--cleanup-shm"))
    file.close()
    with pytest.raises(SystemExit):
        open_from_args(parsed("--h5", h5, "--cleanup-shm"))
    assert SharedMemoryManager().list() == ()


def test_the_flags_import_nothing_heavy() -> None:
    code = (
        "import argparse, sys\nfrom dsmem.training import add_arguments\n"
        "add_arguments(argparse.ArgumentParser()).parse_args(['--h5', 'x', '--shared_memory'])\n"
        "print(*sorted({'torch', 'numpy', 'h5py', 'imagecodecs'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


def test_older_names(h5: str) -> None:
    manager = SharedMemoryManager()
    name = manager.pin(h5).name
    assert [one.name for one in manager.list()] == [name]
    with manager.open(h5) as file, MemoryMappedHDF5(h5) as other:
        assert file.source == other.source == "pinned"
    assert manager.cleanup(h5).removed == (name,)
    manager.pin(h5)
    assert manager.cleanup_all().removed == (name,) and manager.list() == ()
    assert MemoryMappedHDF5 is dsmem.File


def test_the_example_trains_twice_and_cleans(tmp_path: Path) -> None:
    import h5py
    import numpy as np

    path = tmp_path / "train.h5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=rng.integers(0, 255, (24, 6, 6, 3), np.uint8), compression="gzip")
        file["labels"] = rng.standard_normal((24, 2)).astype(np.float32)
    done = subprocess.run(
        ["bash", str(EXAMPLES / "train_with_shm.sh"), str(path), "--epochs", "1", "--num-workers", "0"],
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = sorted(line for line in done.stdout.splitlines() if line)
    assert [line.split()[0] for line in lines] == ["l1:", "mse:"]
    assert all("pinned" in line for line in lines)
    assert SharedMemoryManager().list() == ()
