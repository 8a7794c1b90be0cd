"""The ways in which dsmem reads a file, each forced: what they hand out must be the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dsmem
from dsmem import proc
from dsmem.hdf5.scan import NotMappable
from dsmem.pinning import unpinned

Way = Callable[[Path], dsmem.ArrayFile]


def pinned(path: Path) -> dsmem.ArrayFile:
    dsmem.pin(path, verify=True)
    file = dsmem.attach(path)
    assert file.source == "pinned"
    return file


def named(path: Path) -> dsmem.ArrayFile:
    file = dsmem.attach(dsmem.pin(path, name="by-name").name)
    assert file.source == "pinned"
    return file


def as_it_lies(path: Path) -> dsmem.ArrayFile:
    """Mapped when all of the file is contiguous, else h5py."""
    file = dsmem.File(path)
    assert file.source in ("mapped", "h5py")
    return file


def through_h5py(path: Path) -> dsmem.ArrayFile:
    """The h5py source, which maps what is contiguous."""

    def refuse(*_: Any, **__: Any) -> None:
        raise NotMappable("as the test wants it")

    with patch.object(unpinned, "scan", refuse):
        file = dsmem.File(path)
    assert file.source == "h5py"
    return file


def through_h5py_alone(path: Path) -> dsmem.ArrayFile:
    """The h5py source on a network file system, where nothing is mapped."""
    with patch.object(proc, "is_network_fs", lambda _: True):
        file = dsmem.File(path)
    assert file.source == "h5py"
    return file


def preloaded(path: Path) -> dsmem.ArrayFile:
    file = dsmem.File(path, preload=True)
    assert file.source == "preloaded"
    return file


WAYS: dict[str, Way] = {
    way.__name__: way for way in (preloaded, through_h5py_alone, through_h5py, as_it_lies, pinned, named)
}
"""In this order one file can be read in all of them: those that put it into the store come last."""
