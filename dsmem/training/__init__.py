"""Episodes in HDF5 files for training: one copy a machine, whatever the number of processes.

Names are handed out lazily (PEP 562): the flags of `add_arguments` need neither torch nor h5py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsmem import lazy

if TYPE_CHECKING:
    from dsmem.training.arguments import add_arguments, open_from_args
    from dsmem.training.batches import collate
    from dsmem.training.dataset import EpisodicDataset, OptimizedDataset, OptimizedEpisodicDataset
    from dsmem.training.layouts import Layout
    from dsmem.training.loaders import EpisodicLoader, create_optimized_dataloader
    from dsmem.training.older import MemoryMappedHDF5, SharedMemoryManager

_HOMES = {
    "EpisodicDataset": "dsmem.training.dataset",
    "EpisodicLoader": "dsmem.training.loaders",
    "Layout": "dsmem.training.layouts",
    "MemoryMappedHDF5": "dsmem.training.older",
    "OptimizedDataset": "dsmem.training.dataset",
    "OptimizedEpisodicDataset": "dsmem.training.dataset",
    "SharedMemoryManager": "dsmem.training.older",
    "add_arguments": "dsmem.training.arguments",
    "collate": "dsmem.training.batches",
    "create_optimized_dataloader": "dsmem.training.loaders",
    "open_from_args": "dsmem.training.arguments",
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

__getattr__, __dir__ = lazy.names(__name__, _HOMES)
