"""What a user may point `dsmem pin` at by mistake: one line with what is wrong, the exit code, no trace."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import children
import h5py
import numpy as np
import pytest

import dsmem as library

from .conftest import Dsmem

NOBODY = 65534


def good(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(5000)


def truncated(path: Path) -> None:
    good(path)
    os.truncate(path, path.stat().st_size // 2)


def directory(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


BAD: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "not HDF5": (lambda path: path.write_text("name,age\n"), 1, "is not an HDF5 file"),
    "empty": (lambda path: path.write_bytes(b""), 1, "is empty"),
    "truncated": (truncated, 1, "can't be read as HDF5: truncated file"),
    "directory": (directory, 1, "is a directory without HDF5 files"),
    "pipe": (pipe, 1, "is not a regular file"),
    "missing": (lambda path: None, 3, "no such file"),
    "dangling link": (dangling, 3, "no such file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_line_the_right_code_and_no_trace(kind: str, tmp_path: Path, store_root: Path) -> None:
    make, code, words = BAD[kind]
    path = tmp_path / "data.h5"
    make(path)
    done = subprocess.run(
        [sys.executable, "-m", "dsmem", "pin", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    errors = [line for line in done.stderr.splitlines() if not line.startswith("hint: ")]
    assert (done.returncode, done.stdout, len(errors)) == (code, "", 1), done.stderr
    assert errors[0].startswith("error: ") and str(path) in errors[0] and words in errors[0]
    assert [found for found in store_root.rglob("*") if not found.is_dir()] == []


def test_a_bad_file_among_good_ones_is_told_and_the_good_ones_are_pinned(tmp_path: Path) -> None:
    good(tmp_path / "good.h5")
    (tmp_path / "bad.h5").write_text("no")
    done = subprocess.run(
        [sys.executable, "-m", "dsmem", "pin", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "bad.h5 is not an HDF5 file" in done.stderr
    assert library.attach(tmp_path / "good.h5")["x"][7] == 7


def test_a_file_that_may_not_be_read(tmp_path: Path, dsmem: Dsmem) -> None:
    """Tests may run as root, whom nothing is forbidden: another user tries."""
    if os.geteuid() != 0:
        pytest.skip("only root can try as another user")
    path = tmp_path / "data.h5"
    good(path)
    path.chmod(0)
    store = tmp_path / "store"
    store.mkdir(mode=0o700)
    os.chown(store, NOBODY, NOBODY)
    for above in (tmp_path, *tmp_path.parents):
        if not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o011)

    def run() -> tuple[int, str]:
        children.become(NOBODY)
        os.environ["DSMEM_ROOT"] = str(store)
        ran = dsmem("pin", str(path))
        return ran.exit_code, ran.err

    exit_code, err = children.call(run)
    assert exit_code == 1
    assert err.splitlines()[0] == f"error: {path}: Permission denied"
