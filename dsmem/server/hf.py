"""`load_hf_datasets`: several datasets sampled alike and put one after the other, shared or not, the same rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dsmem.errors import UsageError
from dsmem.server.client import load_dataset

if TYPE_CHECKING:
    from datasets import Dataset

DEFAULT_SPLIT = "train"
_KEYS = frozenset({"name", "dataset_name", "subset", "split"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One dataset of the list."""

    name: str
    """A hub id, or a path."""
    dataset_name: str | None = None
    """Its name in the catalogue."""
    subset: str | None = None
    split: str = DEFAULT_SPLIT


def load_hf_datasets(
    hf_config: Mapping[str, object] | Sequence[Mapping[str, object]],
    sample_percentage: float = 1.0,
    seed: int = 42,
    use_shared_memory: bool = False,
) -> Dataset:
    """The datasets of a list, one after the other; of each a reproducible sample in its own order.

    `hf_config`: `{"datasets": [{name, dataset_name, subset, split}]}`, the list alone, or what a YAML file with
    `dataset.datasets` holds; `use_shared_memory: true` in it counts as the argument does. `sample_percentage` is a
    fraction in (0, 1]: of n rows, ceil(n * fraction). Shared or loaded, the rows are the same.
    Raises UsageError for a fraction or a list that means nothing, and what `dsmem.load_dataset` raises.
    """
    if isinstance(sample_percentage, bool) or not isinstance(sample_percentage, int | float):
        raise UsageError(f"sample_percentage={sample_percentage!r} means nothing; it is a fraction in (0, 1]")
    if not 0 < sample_percentage <= 1:
        raise UsageError(f"sample_percentage={sample_percentage:g} is not in (0, 1]: 10 % is written 0.1")
    entries, shared = parse(hf_config)
    from datasets import concatenate_datasets

    shared = shared or use_shared_memory
    parts = [_sampled(_load(entry, shared), float(sample_percentage), seed) for entry in entries]
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def parse(hf_config: object) -> tuple[tuple[Entry, ...], bool]:
    """The datasets of a configuration, and whether it asks for sharing; raises UsageError."""
    shared = False
    if isinstance(hf_config, Mapping):
        inner = hf_config.get("dataset")
        found = inner if isinstance(inner, Mapping) else hf_config
        shared = found.get("use_shared_memory") is True
        hf_config = found.get("datasets")
    if not isinstance(hf_config, Sequence) or isinstance(hf_config, str | bytes) or not hf_config:
        raise UsageError("a list of datasets is wanted: [{name, dataset_name, subset, split}]")
    return tuple(_entry(one) for one in hf_config), shared


def _entry(record: object) -> Entry:
    if not isinstance(record, Mapping):
        raise UsageError(f"{record!r} is no dataset: {{name, dataset_name, subset, split}} is wanted")
    unknown = sorted(map(str, record.keys() - _KEYS))
    given = {key: value for key, value in record.items() if value is not None}
    wrong = sorted(str(key) for key, value in given.items() if not isinstance(value, str))
    if unknown or wrong:
        raise UsageError(
            f"{', '.join(unknown + wrong)} of a dataset means nothing; known are {', '.join(sorted(_KEYS))}"
        )
    name = given.get("name", given.get("dataset_name"))
    if not name:
        raise UsageError("a dataset without a name: name is a hub id or a path")
    return Entry(name, given.get("dataset_name"), given.get("subset"), given.get("split", DEFAULT_SPLIT))


def _load(entry: Entry, shared: bool) -> Any:
    """By its source: the catalogue is matched by what is asked for, so that it is the same rows in any case."""
    return load_dataset(entry.name, entry.subset, split=entry.split, shared=shared)


def _sampled(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """`ceil(n * fraction)` rows, drawn without replacement, in the order of the dataset."""
    import numpy as np

    rows = len(dataset)
    if fraction == 1.0 or rows == 0:
        return dataset
    chosen = np.random.default_rng(seed).permutation(rows)[: math.ceil(rows * fraction)]
    chosen.sort()
    return dataset.select(chosen, keep_in_memory=True)
