"""Tables written: what load_from_disk reads, in batches of a good size, the same bytes for the same rows."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from arrowtables import rows
from datasets import Dataset, Features, Image, Value, load_from_disk

from dsmem.arrow import batches, opening, writing
from dsmem.arrow.opening import Split
from dsmem.arrow.writing import Table

pytestmark = pytest.mark.usefixtures("hf_cache")


def write(directory: Path, *parts: Dataset) -> Table:
    """A split of some shards."""
    directory.mkdir(exist_ok=True)
    shards = []
    for number, part in enumerate(parts):
        schema = writing.schema_of(part)
        path = str(directory / writing.shard_name(number))
        shards.append(writing.write_shard(path, batches.of_dataset(part, schema), schema, lambda done: None))
    return writing.finish_split(str(directory), writing.info_record(parts[0].info), "train", shards)


def batch_rows(path: Path) -> list[int]:
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        return [batch.num_rows for batch in reader]


DATASETS: dict[str, Callable[[], Dataset]] = {
    "nested": lambda: Dataset.from_list(rows(0, 50)),
    "empty": lambda: Dataset.from_dict(
        {"x": [], "y": []}, features=Features({"x": Value("int32"), "y": Value("string")})
    ),
    "nulls": lambda: Dataset.from_dict({"x": [None, 1, None], "y": [None, None, None]}),
    "selected": lambda: Dataset.from_list(rows(0, 50)).select([5, 3, 3, 49]),
    "sliced": lambda: Dataset.from_list(rows(0, 50)).select(range(10, 20)),
    "shuffled": lambda: Dataset.from_list(rows(0, 50)).shuffle(seed=1),
    "flat": lambda: Dataset.from_list(rows(0, 5)).flatten(),
    "array": lambda: Dataset.from_dict({"x": np.arange(24, dtype=np.float32).reshape(4, 6)}),
    "large text": lambda: Dataset.from_dict({"x": ["é" * 1000] * 20}, features=Features({"x": Value("large_string")})),
    "unicode column": lambda: Dataset.from_dict({"größe/1": [1, 2]}),
}


@pytest.mark.parametrize("name", DATASETS)
def test_load_from_disk_reads_it(name: str, tmp_path: Path) -> None:
    dataset = DATASETS[name]()
    table = write(tmp_path / "saved", dataset)
    plain = load_from_disk(str(tmp_path / "saved"))
    assert isinstance(plain, Dataset)
    assert plain.features == dataset.features and list(plain.features) == list(dataset.features)
    assert plain.to_list() == dataset.to_list()
    assert plain._indices is None and str(plain.split) == "train"
    assert table.rows == len(dataset)


@pytest.mark.parametrize("name", DATASETS)
def test_opened_with_a_lease(name: str, tmp_path: Path) -> None:
    dataset = DATASETS[name]()
    half = len(dataset) // 2
    parts = [dataset.select(range(half)), dataset.select(range(half, len(dataset)))] if half else [dataset]
    opened = reopen(tmp_path / "saved", write(tmp_path / "saved", *parts), object())
    assert opened.to_list() == dataset.to_list() and opened.features == dataset.features
    assert opened.with_format("arrow")[:].equals(dataset.with_format("arrow")[:])


def reopen(directory: Path, table: Table, lease: object) -> Dataset:
    names = [writing.shard_name(number) for number in range(len(table.shards))]
    files = opening.file_paths(str(directory), names)
    return opening.open_split(Split(files, files, table.fingerprint, table.info, table.split), lease)


class Lease:
    """Something whose end can be seen."""


def test_a_lease_lives_as_long_as_any_slice(tmp_path: Path) -> None:
    table = write(tmp_path / "saved", Dataset.from_list(rows(0, 50)))
    lease = Lease()
    seen = weakref.ref(lease)
    opened = reopen(tmp_path / "saved", table, lease)
    del lease
    column = opened.data.table.column("text").slice(40, 5)
    del opened
    gc.collect()
    assert seen() is not None and column.to_pylist() == [f"row {n}" for n in range(40, 45)]
    del column
    gc.collect()
    assert seen() is None


def test_an_array_of_a_slice_holds_it_too(tmp_path: Path) -> None:
    table = write(tmp_path / "saved", Dataset.from_dict({"x": np.arange(100)}))
    lease = Lease()
    seen = weakref.ref(lease)
    array = reopen(tmp_path / "saved", table, lease).with_format("numpy")
    view = array.data.table.column("x").chunk(0).to_numpy()
    del lease, array
    gc.collect()
    assert seen() is not None and view[7] == 7
    del view
    gc.collect()
    assert seen() is None


def test_small_batches_are_put_together(tmp_path: Path) -> None:
    pieces = [pa.table({"x": [f"{n} {'x' * 900}" for n in range(at, at + 100)]}) for at in range(0, 30_000, 100)]
    dataset = Dataset(pa.concat_tables(pieces), fingerprint="small")
    write(tmp_path / "saved", dataset)
    assert batch_rows(tmp_path / "saved" / "data-00000.arrow") == [10_000] * 3


def test_large_batches_are_cut(tmp_path: Path) -> None:
    dataset = Dataset(pa.table({"x": ["x" * 100_000] * 1000}), fingerprint="large")
    write(tmp_path / "saved", dataset)
    counts = batch_rows(tmp_path / "saved" / "data-00000.arrow")
    assert sum(counts) == 1000 and 200 < max(counts) <= 336


@pytest.mark.parametrize(
    ("rows", "size_bytes", "least", "most"),
    [
        (0, 0, 10_000, 10_000),
        (10, 10 << 30, 1, 1),
        (1_000_000, 8_000_000, 500_000, 530_000),
        (10_000, 10 << 20, 10_000, 10_000),
    ],
)
def test_rows_per_batch(rows: int, size_bytes: int, least: int, most: int) -> None:
    assert least <= batches.rows_per_batch(rows, size_bytes) <= most


def test_equal_rows_have_equal_fingerprints(tmp_path: Path) -> None:
    one = write(tmp_path / "one", Dataset.from_list(rows(0, 50)))
    two = write(tmp_path / "two", Dataset.from_list(rows(0, 50)).map(lambda row: row, keep_in_memory=True))
    other = write(tmp_path / "other", Dataset.from_list(rows(1, 50)))
    assert one.fingerprint == two.fingerprint != other.fingerprint
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert [(tmp_path / "one" / name).read_bytes() for name in names] == [
        (tmp_path / "two" / name).read_bytes() for name in names
    ]


def test_images_are_taken_in(tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image")
    path = tmp_path / "red.png"
    pil.new("RGB", (4, 4), "red").save(path)
    dataset = Dataset.from_dict({"image": [str(path)] * 3}).cast_column("image", Image())
    write(tmp_path / "saved", dataset)
    os.unlink(path)
    plain = load_from_disk(str(tmp_path / "saved"))
    assert plain[2]["image"].getpixel((1, 1)) == (255, 0, 0)


def test_truncated_files_are_told(tmp_path: Path) -> None:
    table = write(tmp_path / "saved", Dataset.from_list(rows(0, 50)))
    os.truncate(tmp_path / "saved" / "data-00000.arrow", 100)
    with pytest.raises(ValueError, match="data-00000"):
        reopen(tmp_path / "saved", table, object())
