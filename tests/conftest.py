"""Fixtures for all tests: a store of its own for each, and tmpfs mounts that nobody else sees."""

from __future__ import annotations

import fnmatch
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import children
import hypothesis
import orphans
import pytest
from stores import SHARED_MEMORY, InTmpfs, refuse

T = TypeVar("T")
_WATCHED = pytest.StashKey[int]()

hypothesis.settings.register_profile("dsmem", deadline=None)  # how long an example takes is the machine's, not ours
hypothesis.settings.load_profile("dsmem")


def pytest_configure(config: pytest.Config) -> None:
    """Ctrl-C reaches what tests start, also where the tests run in the background of a shell, which ignores SIGINT.

    And none of it outlives a run that is killed.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[_WATCHED] = orphans.watch()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Nobody has killed this run."""
    orphans.leave(config.stash[_WATCHED])


_ALONE = ("tests/bench/", "tests/test_demo.py", "tests/cli/test_demo_bench.py")
"""Tests that look for what benches leave on the whole machine: one after the other, in one process of pytest-xdist."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tell pytest-xdist (`--dist loadgroup`) which tests must not run beside each other."""
    for item in items:
        if item.nodeid.startswith(_ALONE):
            item.add_marker(pytest.mark.xdist_group("bench"))


def pytest_collection_finish() -> None:
    """What all test modules import is never garbage: no collection looks at it again, here or in a fork."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def expected_leftovers() -> set[str]:
    """Globs of paths below the root that a test leaves on purpose, beside objects and refs: add to it."""
    return set()


@pytest.fixture(autouse=True)
def store_root(tmp_path: Path, expected_leftovers: set[str]) -> Iterator[Path]:
    """DSMEM_ROOT: a directory in shared memory for this test alone, not made yet, checked for refuse at the end."""
    above = Path(tempfile.mkdtemp(prefix="dsmem-test-", dir=SHARED_MEMORY))
    root = above / "store"
    try:
        # A MonkeyPatch of its own: the test's is undone before what follows the yield.
        with pytest.MonkeyPatch.context() as environment:
            for name in [name for name in os.environ if name.startswith("DSMEM_")]:
                environment.delenv(name)
            environment.delenv("HDF5_PLUGIN_PATH", raising=False)  # netCDF4 sets it when it is imported
            environment.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
            environment.setenv("DSMEM_ROOT", str(root))
            yield root
        found = refuse(root)
        assert not [one for one in found if not any(fnmatch.fnmatch(one, glob) for glob in expected_leftovers)]
    finally:
        for directory, _, _ in os.walk(above):
            os.chmod(directory, 0o700)  # objects that are directories are read-only
        shutil.rmtree(above)


@pytest.fixture
def hf_cache(tmp_path: Path) -> Iterator[Path]:
    """The cache of `datasets`, in the test's own directory; no hub, no bars."""
    from arrowtables import own_hugging_face

    with own_hugging_face(tmp_path) as cache:
        yield cache


@pytest.fixture
def tiny_tmpfs(tmp_path: Path) -> InTmpfs:
    """A private tmpfs (4 MiB unless told), for what fills it up or counts its bytes; gone with the child."""
    point = tmp_path / "tiny"
    point.mkdir()

    def run(body: Callable[[Path], T], *, size: str = "4m", huge: str = "never") -> T:
        def inside() -> T:
            children.enter_mount_namespace()
            children.mount_tmpfs(str(point), f"size={size},mode=0700,huge={huge}")
            os.environ["DSMEM_ROOT"] = str(point / "store")
            return body(point)

        try:
            return children.call(inside, timeout_s=240)
        except children.NamespacesRefused as exc:
            pytest.skip(f"no mounts of one's own here: {exc}")

    return run
