"""Machine-learning data in shared memory, once per machine: every process maps the same copy.

The public names are handed out lazily (PEP 562): `import dsmem` imports none of numpy, h5py, torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsmem import lazy

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dsmem.errors import (
        Ambiguous,
        BadDocument,
        BadSource,
        BrokenEpisodes,
        CheckpointReadError,
        DamagedObject,
        DsmemError,
        EngineDiffers,
        InUse,
        LoadFailed,
        NoDocuments,
        NoEndToken,
        NoProc,
        NoServer,
        NoSpace,
        NotPinned,
        OtherPlan,
        OutputBusy,
        OutputExists,
        OutputFull,
        OutputGone,
        ServerTimeout,
        SourceBusy,
        SourceChanged,
        SourceMissing,
        TableTooLarge,
        UnsafeRoot,
        Unsupported,
        UntrustedPickle,
        UsageError,
        WorkerLost,
    )
    from dsmem.pinning.arrayfile import ArrayFile
    from dsmem.pinning.explaining import ExplainedDataset, Explanation, explain
    from dsmem.pinning.opening import File, attach
    from dsmem.pinning.pin import Pinned, pin
    from dsmem.server.client import load_dataset
    from dsmem.server.hf import load_hf_datasets
    from dsmem.tokens.dataset import LargeTokenDataset, TokenDataset
    from dsmem.tokens.loader import TokenLoader
    from dsmem.tokens.options import Tokenized
    from dsmem.tokens.tokenize import tokenize

_HOMES = {
    "ArrayFile": "dsmem.pinning.arrayfile",
    "ExplainedDataset": "dsmem.pinning.explaining",
    "Explanation": "dsmem.pinning.explaining",
    "File": "dsmem.pinning.opening",
    "LargeTokenDataset": "dsmem.tokens.dataset",
    "Pinned": "dsmem.pinning.pin",
    "TokenDataset": "dsmem.tokens.dataset",
    "TokenLoader": "dsmem.tokens.loader",
    "attach": "dsmem.pinning.opening",
    "explain": "dsmem.pinning.explaining",
    "load_dataset": "dsmem.server.client",
    "load_hf_datasets": "dsmem.server.hf",
    "pin": "dsmem.pinning.pin",
    "tokenize": "dsmem.tokens.tokenize",
    "Tokenized": "dsmem.tokens.options",
    "Ambiguous": "dsmem.errors",
    "BadDocument": "dsmem.errors",
    "BadSource": "dsmem.errors",
    "BrokenEpisodes": "dsmem.errors",
    "CheckpointReadError": "dsmem.errors",
    "DamagedObject": "dsmem.errors",
    "DsmemError": "dsmem.errors",
    "InUse": "dsmem.errors",
    "LoadFailed": "dsmem.errors",
    "NoDocuments": "dsmem.errors",
    "NoProc": "dsmem.errors",
    "NoServer": "dsmem.errors",
    "NoSpace": "dsmem.errors",
    "NotPinned": "dsmem.errors",
    "ServerTimeout": "dsmem.errors",
    "SourceBusy": "dsmem.errors",
    "SourceChanged": "dsmem.errors",
    "SourceMissing": "dsmem.errors",
    "TableTooLarge": "dsmem.errors",
    "UnsafeRoot": "dsmem.errors",
    "Unsupported": "dsmem.errors",
    "UntrustedPickle": "dsmem.errors",
    "EngineDiffers": "dsmem.errors",
    "NoEndToken": "dsmem.errors",
    "OtherPlan": "dsmem.errors",
    "OutputBusy": "dsmem.errors",
    "OutputExists": "dsmem.errors",
    "OutputFull": "dsmem.errors",
    "OutputGone": "dsmem.errors",
    "WorkerLost": "dsmem.errors",
    "UsageError": "dsmem.errors",
}

__all__ = [
    "Ambiguous",
    "ArrayFile",
    "BadDocument",
    "BadSource",
    "BrokenEpisodes",
    "CheckpointReadError",
    "DamagedObject",
    "DsmemError",
    "EngineDiffers",
    "ExplainedDataset",
    "Explanation",
    "File",
    "InUse",
    "LargeTokenDataset",
    "LoadFailed",
    "NoDocuments",
    "NoEndToken",
    "NoProc",
    "NoServer",
    "NoSpace",
    "NotPinned",
    "OtherPlan",
    "OutputBusy",
    "OutputExists",
    "OutputFull",
    "OutputGone",
    "Pinned",
    "ServerTimeout",
    "SourceBusy",
    "SourceChanged",
    "SourceMissing",
    "TableTooLarge",
    "TokenDataset",
    "TokenLoader",
    "Tokenized",
    "UnsafeRoot",
    "Unsupported",
    "UntrustedPickle",
    "UsageError",
    "WorkerLost",
    "__version__",
    "attach",
    "explain",
    "load_dataset",
    "load_hf_datasets",
    "pin",
    "tokenize",
]

__getattr__, __dir__ = lazy.names(__name__, _HOMES, ("checkpoint", "training", "tune"))
