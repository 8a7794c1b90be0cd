"""The child that reads attributes which may be very large (`python -m`): its memory is limited, not its parent's."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import h5py

from dsmem import helpers
from dsmem.arrays import attributes
from dsmem.arrays.header import MAX_HEADER_BYTES
from dsmem.hdf5.attrs import requested
from dsmem.hdf5.opening import reason

_NO_MEMORY = "memory allocation failed"
"""How HDF5 says it (H5E_CANTALLOC of H5Tvlen.c)."""


def main(arguments: Sequence[str]) -> None:
    """Serve one parent: its pid, the descriptor of the file, and how much more memory there is to take."""
    parent, fd, most_bytes = (int(argument) for argument in arguments)
    helpers.end_with_parent(parent)
    helpers.ignore_interrupts()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with h5py.File(f"/proc/self/fd/{fd}", "r") as file:
        _limit(most_bytes)
        for line in sys.stdin.buffer:
            path, name = requested(line)
            os.write(sys.stdout.fileno(), json.dumps(_read(file, path, name)).encode() + b"\n")


def _read(file: h5py.File, path: bytes, name: bytes) -> dict[str, object]:
    try:
        value = attributes.encode(file[path].attrs[name])
        return {"value": value.json()} if value.length <= MAX_HEADER_BYTES else {"too_much": True}
    except MemoryError:
        return {"too_much": True}
    except (TypeError, ValueError, OSError, KeyError, RuntimeError) as exc:
        return {"too_much": True} if _NO_MEMORY in str(exc) else {"error": reason(exc)}


def _limit(most_bytes: int) -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = taken + most_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    main(sys.argv[1:])
