"""A directory as `Dataset.save_to_disk` writes it: Arrow stream files, dataset_info.json, and state.json last.

`datasets.load_from_disk` opens it without dsmem. The fingerprint comes from the bytes that were written: equal contents
have equal fingerprints, so that what `.map` has cached is found again whenever, and from whatever, they were made.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dsmem import digest

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, DatasetInfo

INFO, STATE, SPLITS = "dataset_info.json", "state.json", "dataset_dict.json"
_BUFFER_BYTES = 4 << 20
_NOT_OF_THE_ROWS = (
    "config_name", "dataset_size", "download_checksums", "download_size", "post_processing_size", "size_in_bytes",
    "splits",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shard:
    """One Arrow file that was written."""

    rows: int
    size_bytes: int
    digest: str
    """xxh3-128 of the file, in hex."""


@dataclass(frozen=True, slots=True)
class Table:
    """One split that was written."""

    rows: int
    split: str | None
    fingerprint: str
    """Of its contents, 32 hex digits."""
    shards: tuple[Shard, ...]
    info: Mapping[str, object]
    """The record of dataset_info.json."""


class _Sink(io.RawIOBase):
    """A file that is hashed as it is written."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._file = Path(path).open("xb", buffering=0)  # noqa: SIM115 - closed by close
        self._hasher = digest.stream("xxh3-128")
        self.size_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]  # any buffer
        done = 0
        while done < len(view):
            done += self._file.write(view[done:]) or 0
        self._hasher.update(view)
        self.size_bytes += done
        return done

    def hexdigest(self) -> str:
        return self._hasher.hexdigest()

    def close(self) -> None:
        self._file.close()
        super().close()


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"data-{number:05d}.arrow"


def schema_of(dataset: Dataset) -> pa.Schema:
    """The Arrow schema that its files have, with the features in its metadata."""
    return dataset.features.arrow_schema


def write_shard(
    path: str, batches: Iterable[pa.RecordBatch], schema: pa.Schema, progress: Callable[[int], None]
) -> Shard:
    """Write one Arrow stream file; `progress` gets the bytes so far. Raises OSError as write(2) does."""
    import pyarrow as pa

    rows = 0
    raw = _Sink(path)
    try:
        with io.BufferedWriter(raw, _BUFFER_BYTES) as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
                rows += batch.num_rows
                progress(raw.size_bytes)
        progress(raw.size_bytes)
        return Shard(rows, raw.size_bytes, raw.hexdigest())
    finally:
        raw.close()


def info_record(info: DatasetInfo) -> dict[str, object]:
    """What dataset_info.json will hold: what is true of the rows, wherever they came from.

    Sizes and checksums of downloads, and names that hold a hash of the files' times, are not.
    """
    record = {**asdict(info), "features": info.features.to_dict(), **dict.fromkeys(_NOT_OF_THE_ROWS)}
    found: dict[str, object] = json.loads(json.dumps(record, default=str))
    return found


def finish_split(directory: str, info: Mapping[str, object], split: str | None, shards: Sequence[Shard]) -> Table:
    """Write what load_from_disk reads beside the shards `data-00000.arrow` …; `info` is an `info_record`."""
    content = json.dumps([info["features"], [shard.digest for shard in shards]])
    fingerprint = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
    state: dict[str, object] = {
        "_data_files": [{"filename": shard_name(number)} for number in range(len(shards))],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    _write_json(f"{directory}/{INFO}", info)
    _write_json(f"{directory}/{STATE}", state)
    return Table(sum(shard.rows for shard in shards), split, fingerprint, tuple(shards), info)


def finish_splits(directory: str, splits: Sequence[str]) -> None:
    """Write what makes a directory of splits a DatasetDict."""
    _write_json(f"{directory}/{SPLITS}", {"splits": list(splits)})


def _write_json(path: str, record: object) -> None:
    Path(path).write_text(json.dumps(record, indent=2), encoding="utf-8")


def link_shard(source: str, path: str) -> None:
    """One more name for a shard that another generation has already."""
    os.link(source, path, follow_symlinks=False)
