"""What `datasets` makes of a request: its splits, each in parts that can be written one after the other.

Local files of several are loaded in groups, one shard each, so that a later generation links the shards whose files are
unchanged and loads the others alone. Where the groups would not have the same features, all is loaded at once: which
rows come out is for `datasets` to say, and what it infers from all files can differ from what it infers from one.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsmem.errors import BadSource, SourceMissing
from dsmem.server.spec import BUILDERS, Spec

if TYPE_CHECKING:
    from datasets import Dataset

MOST_GROUPS = 4
"""Of a first load: each is a shard, and 0.1 ms when it is opened."""
GROUP_BYTES = 128 << 20
"""Of source files: so much is loaded anew in a second, and opened thousands of times."""
MOST_SHARDS = 16
"""Of a generation that grew by and by; then all is grouped anew."""
_STATE, _SPLITS = "state.json", "dataset_dict.json"
_log = logging.getLogger(__name__)

Fact = tuple[str, int, int, int, int]
"""A source file: its path, device, inode, size and mtime in ns."""


@dataclass(frozen=True, slots=True)
class Group:
    """Files that are, or become, one shard."""

    files: tuple[Fact, ...]
    known: int | None = None
    """Number of the shard of the older generation that holds their rows."""


def whole(spec: Spec, cache_dir: str | None, **fetching: object) -> dict[str, Dataset]:
    """Every split that is asked for ('' = one that was asked for, or has no name), as plain `datasets` loads it.

    `fetching`: arguments of load_dataset that do not decide about rows (`token`, `num_proc` …).
    Raises SourceMissing, BadSource, and what `datasets` raises for a hub.
    """
    import datasets

    arguments = spec.arguments()
    if is_saved(spec.path):
        found = datasets.load_from_disk(spec.path)
        if spec.split is not None:
            found = _split_of_saved(found, spec)
    else:
        with _errors_translated(spec):
            found = datasets.load_dataset(**{**fetching, **arguments}, cache_dir=cache_dir)
    if isinstance(found, dict):
        return {str(name): _prepared(one, spec) for name, one in found.items()}
    return {"": _prepared(found, spec)}


def is_saved(path: str) -> bool:
    """Whether a directory was written by save_to_disk."""
    return any(os.path.isfile(f"{path}/{name}") for name in (_STATE, _SPLITS))


def files_of(spec: Spec) -> dict[str, list[Fact]] | None:
    """Split → its files in the order of their rows, where the request is for plain local files; else None."""
    if spec.path not in BUILDERS.values() or not spec.data_files or spec.data_dir is not None:
        return None
    if spec.sample_limit is not None or spec.shuffle_seed is not None or spec.split not in (None, *_names(spec)):
        return None
    if len(spec.local_paths()) != sum(len(paths) for paths in json.loads(spec.data_files).values()):
        return None  # some lie elsewhere
    import datasets

    with _errors_translated(spec):
        given = {key: value for key, value in spec.arguments().items() if key != "split"}
        builder = datasets.load_dataset_builder(**given)
    resolved = builder.config.data_files or {}
    found = {str(split): [_fact(str(path)) for path in paths] for split, paths in resolved.items()}
    return {split: facts for split, facts in found.items() if spec.split in (None, split)}


def grouped(facts: Sequence[Fact], known: Sequence[Sequence[Fact]]) -> list[Group]:
    """Runs of files: those of older shards where they are unchanged and still side by side, the others anew.

    `known`: the files of each shard of the older generation, in order.
    """
    starts = {files[0]: number for number, files in reversed(list(enumerate(known))) if files}
    runs: list[tuple[int | None, list[Fact]]] = []
    place = 0
    while place < len(facts):
        number = starts.get(facts[place])
        length = 0 if number is None else len(known[number])
        if number is not None and list(facts[place : place + length]) == list(known[number]):
            runs.append((number, list(facts[place : place + length])))
            place += length
            continue
        if not runs or runs[-1][0] is not None:
            runs.append((None, []))
        runs[-1][1].append(facts[place])
        place += 1
    old = sum(number is not None for number, _ in runs)
    if old == 0 or len(runs) > MOST_SHARDS - MOST_GROUPS:
        return [Group(tuple(some)) for some in _cut(list(facts), _parts(facts))]
    fresh = [fact for number, files in runs if number is None for fact in files]
    groups: list[Group] = []
    for number, files in runs:
        if number is not None:
            groups.append(Group(tuple(files), number))
        else:
            share = max(1, _parts(fresh) * len(files) // len(fresh))
            groups += [Group(tuple(some)) for some in _cut(files, share)]
    return groups


def load_group(spec: Spec, split: str, group: Group, cache_dir: str) -> Dataset:
    """The rows of some files of a split; what it takes on the disk lies in `cache_dir`."""
    import datasets

    arguments = {**spec.arguments(), "split": split, "data_files": {split: [fact[0] for fact in group.files]}}
    with _errors_translated(spec):
        found = datasets.load_dataset(**arguments, cache_dir=cache_dir)
    return _prepared(found, spec)


def hub_revision(spec: Spec) -> str:
    """The commit that a hub's data is at now; '' for local data, and where the hub can't be asked."""
    if spec.local_paths() or spec.path in BUILDERS.values():
        return ""
    import datasets
    from huggingface_hub import HfApi

    if datasets.config.HF_HUB_OFFLINE:
        return ""
    try:
        found = HfApi(endpoint=datasets.config.HF_ENDPOINT).dataset_info(spec.path, revision=spec.revision, timeout=10)
    except Exception as exc:  # noqa: BLE001 - those of the HTTP library that the client of the hub happens to use
        _log.info("%s: the hub can't be asked for its revision: %s", spec.label, exc)
        return ""
    return found.sha or ""


def _names(spec: Spec) -> list[str]:
    return list(json.loads(spec.data_files)) if spec.data_files else []


def _fact(path: str) -> Fact:
    status = os.stat(path)
    return (path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _parts(facts: Sequence[Fact]) -> int:
    """How many groups these files are worth."""
    return min(MOST_GROUPS, max(1, sum(size_bytes for _, _, _, size_bytes, _ in facts) // GROUP_BYTES))


def _cut(facts: list[Fact], parts: int) -> Iterator[list[Fact]]:
    """Not more than so many runs of about equal numbers."""
    parts = min(parts, len(facts))
    for part in range(parts):
        yield facts[part * len(facts) // parts : (part + 1) * len(facts) // parts]


def _split_of_saved(found: object, spec: Spec) -> Dataset:
    from datasets import Dataset

    if isinstance(found, Mapping):
        if spec.split not in found:
            raise BadSource(f"{spec.path} has no split {spec.split!r}; it has {', '.join(map(str, found))}")
        found = found[spec.split]
    elif str(getattr(found, "split", None)) != spec.split:
        raise BadSource(f"{spec.path} is not the split {spec.split!r}")
    assert isinstance(found, Dataset)
    return found


def _prepared(dataset: Dataset, spec: Spec) -> Dataset:
    """The rows as they are asked for: the first ones, in which order, nested columns or flat ones."""
    if spec.sample_limit is not None:
        dataset = dataset.select(range(min(spec.sample_limit, len(dataset))))
    if spec.shuffle_seed is not None:
        dataset = dataset.shuffle(seed=spec.shuffle_seed, keep_in_memory=True)
    return dataset.flatten() if spec.flatten else dataset


@contextmanager
def _errors_translated(spec: Spec) -> Iterator[None]:
    """What `datasets` says of local files that are not there, or not what their name says."""
    from datasets.exceptions import DatasetGenerationError

    local = bool(spec.local_paths())
    try:
        yield
    except FileNotFoundError as exc:
        if not local:
            raise
        raise SourceMissing(f"{spec.label}: {exc}") from exc
    except (DatasetGenerationError, ValueError) as exc:  # pyarrow's and pandas' are ValueErrors
        if not local:
            raise
        raise BadSource(f"{spec.label} can't be read: {exc.__cause__ or exc}") from exc
