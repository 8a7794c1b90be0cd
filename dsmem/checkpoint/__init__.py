"""Checkpoints read by every core, exactly as the stock readers read them.

The public names are handed out lazily (PEP 562): torch is imported when one is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsmem import lazy

if TYPE_CHECKING:
    from dsmem.checkpoint.attaching import attach
    from dsmem.checkpoint.converting import Converted, convert
    from dsmem.checkpoint.listing import Contents, contents
    from dsmem.checkpoint.loading import load
    from dsmem.checkpoint.parts import FileEntry, Part, TensorEntry
    from dsmem.checkpoint.pinning import Pinned, pin
    from dsmem.checkpoint.reader import ParallelFileReader, ParallelFileSystemReader, ParallelReadMixin
    from dsmem.checkpoint.report import FileReport, ReadReport
    from dsmem.checkpoint.verifying import Check, Verified, verify

_HOMES = {
    "Check": "dsmem.checkpoint.verifying",
    "Contents": "dsmem.checkpoint.listing",
    "FileEntry": "dsmem.checkpoint.parts",
    "FileReport": "dsmem.checkpoint.report",
    "ParallelFileReader": "dsmem.checkpoint.reader",
    "ParallelFileSystemReader": "dsmem.checkpoint.reader",
    "ParallelReadMixin": "dsmem.checkpoint.reader",
    "Part": "dsmem.checkpoint.parts",
    "ReadReport": "dsmem.checkpoint.report",
    "TensorEntry": "dsmem.checkpoint.parts",
    "Verified": "dsmem.checkpoint.verifying",
    "Pinned": "dsmem.checkpoint.pinning",
    "Converted": "dsmem.checkpoint.converting",
    "attach": "dsmem.checkpoint.attaching",
    "convert": "dsmem.checkpoint.converting",
    "contents": "dsmem.checkpoint.listing",
    "load": "dsmem.checkpoint.loading",
    "pin": "dsmem.checkpoint.pinning",
    "verify": "dsmem.checkpoint.verifying",
}

__all__ = [
    "Check",
    "Contents",
    "Converted",
    "FileEntry",
    "FileReport",
    "ParallelFileReader",
    "ParallelFileSystemReader",
    "ParallelReadMixin",
    "Part",
    "Pinned",
    "ReadReport",
    "TensorEntry",
    "Verified",
    "attach",
    "contents",
    "convert",
    "load",
    "pin",
    "verify",
]

__getattr__, __dir__ = lazy.names(__name__, _HOMES)
