"""Checkpoints read by every core, exactly as the stock readers read them.

The public names are handed out lazily (PEP 562): torch is imported when one is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsmem.checkpoint.reader import ParallelFileReader, ParallelFileSystemReader, ParallelReadMixin
    from dsmem.checkpoint.report import FileReport, ReadReport

_HOMES = {
    "FileReport": "dsmem.checkpoint.report",
    "ParallelFileReader": "dsmem.checkpoint.reader",
    "ParallelFileSystemReader": "dsmem.checkpoint.reader",
    "ParallelReadMixin": "dsmem.checkpoint.reader",
    "ReadReport": "dsmem.checkpoint.report",
}

__all__ = ["FileReport", "ParallelFileReader", "ParallelFileSystemReader", "ParallelReadMixin", "ReadReport"]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'dsmem.checkpoint' has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value
