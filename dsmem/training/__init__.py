"""Episodes in HDF5 files for training: one copy a machine, whatever the number of processes.

Names are handed out lazily (PEP 562): the flags of `add_arguments` need neither torch nor h5py.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsmem.training.arguments import add_arguments, open_from_args
    from dsmem.training.batches import collate
    from dsmem.training.dataset import EpisodicDataset, OptimizedDataset, OptimizedEpisodicDataset
    from dsmem.training.layouts import Layout
    from dsmem.training.loaders import EpisodicLoader, create_optimized_dataloader
    from dsmem.training.older import MemoryMappedHDF5, SharedMemoryManager

_HOMES = {
    "EpisodicDataset": "dataset",
    "EpisodicLoader": "loaders",
    "Layout": "layouts",
    "MemoryMappedHDF5": "older",
    "OptimizedDataset": "dataset",
    "OptimizedEpisodicDataset": "dataset",
    "SharedMemoryManager": "older",
    "add_arguments": "arguments",
    "collate": "batches",
    "create_optimized_dataloader": "loaders",
    "open_from_args": "arguments",
}

__all__ = [
    "EpisodicDataset",
    "EpisodicLoader",
    "Layout",
    "MemoryMappedHDF5",
    "OptimizedDataset",
    "OptimizedEpisodicDataset",
    "SharedMemoryManager",
    "add_arguments",
    "collate",
    "create_optimized_dataloader",
    "open_from_args",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'dsmem.training' has no attribute {name!r}")
    value: object = getattr(import_module(f"dsmem.training.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
