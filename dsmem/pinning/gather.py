"""Paths as a user types them, as a list of HDF5 files: files, directories, globs."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence

from dsmem.errors import BadSource, SourceMissing

SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5", ".h5py", ".nc", ".mat")


def gather(paths: Sequence[str]) -> list[str]:
    """Every file once, in order: directories are searched for HDF5 suffixes, patterns are expanded.

    Raises SourceMissing for a path or pattern that leads to nothing, BadSource for a directory without HDF5 files.
    """
    found: dict[str, None] = {}
    for path in paths:
        for name in _expand(path):
            found.setdefault(name)
    return list(found)


def _expand(path: str) -> list[str]:
    if os.path.isdir(path):
        inside = [
            os.path.join(directory, name)
            for directory, _, names in sorted(os.walk(path))
            for name in sorted(names)
            if name.lower().endswith(SUFFIXES)
        ]
        if not inside:
            raise BadSource(f"{path} is a directory without HDF5 files ({', '.join(SUFFIXES)})")
        return inside
    if os.path.lexists(path):
        return [path]
    matches = sorted(glob.glob(path, recursive=True))
    if not matches:
        raise SourceMissing(f"{path}: no such file")
    return [name for match in matches for name in (_expand(match) if os.path.isdir(match) else [match])]
