"""dsmem.yaml: what it may say, and that everything else is an error with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dsmem.config import nodes, schema
from dsmem.config.schema import Access, Config, Dataloader, DatasetEntry, Datasets, MemoryMapping, SharedMemory
from dsmem.errors import SourceMissing, UsageError

FULL = """\
dataset:
  use_shared_memory: true
  shared_memory:
    server_timeout: 12.5
    auto_start: yes
    sample_limit: 1000
  datasets:
    - name: wikitext
      dataset_name: wiki
      subset: wikitext-2-raw-v1
      split: train
    - {name: /data/rows.jsonl}
memory_mapping: {enabled: false, cache_size: 7}
shared_memory: {enabled: true, preload_critical_data: false}
dataloader:
  num_workers: 2
  pin_memory: false
  persistent_workers: false
  prefetch_factor: 3
"""


def load(text: str) -> Config:
    return schema.load(nodes.parse(text, "dsmem.yaml"), "dsmem.yaml")


def test_everything_that_it_may_say() -> None:
    found = load(FULL)
    entries = (DatasetEntry("wikitext", "wiki", "wikitext-2-raw-v1", "train"), DatasetEntry("/data/rows.jsonl"))
    assert found == Config(
        dataset=Datasets(True, Access(12.5, True, 1000), entries),
        memory_mapping=MemoryMapping(False, 7),
        shared_memory=SharedMemory(True, False),
        dataloader=Dataloader(2, False, False, 3),
    )
    assert found.lines["dataset.shared_memory.auto_start"] == 5
    assert found.lines["dataset.datasets.1.name"] == 12


@pytest.mark.parametrize("text", ["", "# nothing\n", "dataset:\n", "dataset: {datasets: }\n", "{}"])
def test_defaults(text: str) -> None:
    found = load(text)
    assert found == Config()
    assert (found.dataset.use_shared_memory, found.dataset.shared_memory) == (False, Access(30.0, False))
    assert found.dataloader == Dataloader(4, True, True, 2)
    assert found.memory_mapping == MemoryMapping(True, 100)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("dataset:\n  use_sharedmemory: true\n", "dsmem.yaml:2: unknown key 'dataset.use_sharedmemory'; did you mean"),
        ("datasets: []\n", "dsmem.yaml:1: unknown key 'datasets'; did you mean dataset?"),
        ("dataset:\n  shared_memory:\n    server_timeout: soon\n", "dsmem.yaml:3: .*number of seconds"),
        ("dataset: {shared_memory: {server_timeout: -1}}", "dsmem.yaml:1: .*number of seconds"),
        ("dataset: {shared_memory: {server_timeout: .nan}}", "dsmem.yaml:1: .*number of seconds"),
        ("dataset: {shared_memory: {auto_start: 1}}", "true or false"),
        ("dataset: {shared_memory: {sample_limit: 0}}", "whole number from 1"),
        ("memory_mapping: {cache_scope: all}", "process or shared"),
        ("memory_mapping: {cache_bytes: many}", "is not a size"),
        ("shared_memory: {memory_limit: -1}", "is a size, such as 40GiB"),
        ("dataset:\n  datasets:\n    - subset: x\n", "dsmem.yaml:3: dataset.datasets.0 needs name"),
        ("dataset: {datasets: {name: x}}", "list of mappings"),
        ("dataset: {datasets: [x]}", "must be a mapping"),
        ("dataset: {datasets: [{name: 7}]}", "is a text, not 7"),
        ("dataset: {datasets: [{name: 2024-01-01}]}", "quote it"),
        ("dataset: [1]", "must be a mapping"),
        ("- dataset", "the file must be a mapping"),
        ("a: 1\na: 2\n", "dsmem.yaml:2: 'a' is there twice"),
        ("? [1]\n: 2\n", "a key must be text"),
        ("dataset: !!python/object/apply:os.system [true]\n", "dsmem.yaml:1"),
        ("dataset: !!python/name:os.system\n", "dsmem.yaml:1"),
        ("dataset: {use_shared_memory: !!python/name:os.system x}\n", "quote it"),
        ("dataset: {\n\n", "dsmem.yaml:3: not YAML"),
        ("dataset: &a [*a]\n", "more than a configuration may hold"),
        ("dataset:\n  datasets: " + "[" * 5000, "nested too deeply|not YAML"),
        ("a: \x00", "not YAML"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
    ],
)
def test_errors_say_where(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        load(text)


def test_aliases_can_not_explode() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(UsageError, match="more than a configuration may hold"):
        load("\n".join(lines))


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "dsmem.yaml"
    with pytest.raises(SourceMissing, match="is not there"):
        schema.read(str(path))
    path.write_bytes(b"#" * (nodes.LIMIT_BYTES + 1))
    with pytest.raises(UsageError, match="larger than 1 MiB"):
        schema.read(str(path))
    path.write_text(FULL)
    assert schema.read(str(path)) == load(FULL)
    with pytest.raises(UsageError, match="can't be read"):
        schema.read(str(tmp_path))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["dataset", "datasets", "name", "shared_memory", "auto_start", "server_timeout", "x"]), inner
    )
), max_leaves=12))  # fmt: skip
def test_whatever_it_holds_is_read_or_refused(tree: object) -> None:
    try:
        load(yaml.safe_dump(tree))
    except UsageError as exc:
        assert str(exc).startswith("dsmem.yaml")
