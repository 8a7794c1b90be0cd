"""How to read a set of episodes on this machine: `dsmem tune`. Looks at machine and files, recommends, tries.

Names are handed out lazily (PEP 562): presets and dsmem.yaml need neither torch nor h5py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsmem import lazy

if TYPE_CHECKING:
    from dsmem.tune.configuring import read_config, write_config
    from dsmem.tune.optimizer import Analysis, DatasetOptimizer, auto_optimize_dataset
    from dsmem.tune.rechunking import Rechunked, rechunk
    from dsmem.tune.settings import PRESETS, Settings

_HOMES = {
    "Analysis": "dsmem.tune.optimizer",
    "DatasetOptimizer": "dsmem.tune.optimizer",
    "PRESETS": "dsmem.tune.settings",
    "Rechunked": "dsmem.tune.rechunking",
    "Settings": "dsmem.tune.settings",
    "auto_optimize_dataset": "dsmem.tune.optimizer",
    "read_config": "dsmem.tune.configuring",
    "rechunk": "dsmem.tune.rechunking",
    "write_config": "dsmem.tune.configuring",
}

__all__ = [
    "PRESETS",
    "Analysis",
    "DatasetOptimizer",
    "Rechunked",
    "Settings",
    "auto_optimize_dataset",
    "read_config",
    "rechunk",
    "write_config",
]

__getattr__, __dir__ = lazy.names(__name__, _HOMES)
