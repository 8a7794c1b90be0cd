"""dsmem.yaml merged: what is not owned stays, comments too, and a file that can't be changed safely is left alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dsmem.config import nodes, schema
from dsmem.errors import SourceMissing, UsageError
from dsmem.tune import Settings, read_config, write_config
from dsmem.tune.configuring import check_target, merged

WANTED = Settings(use_shared_memory=False, cache_size=7, cache_bytes=1 << 30, num_workers=0)
SERVER = """\
# ours
dataset:
  use_shared_memory: true   # for load_hf_datasets
  datasets:
    - {name: wikitext, split: train}
"""
TEXTS = {
    "nothing": "",
    "only a comment": "# to be filled\n",
    "no line end": "dataset: {use_shared_memory: true}",
    "the server's": SERVER,
    "some keys": "dataloader:\n  num_workers: 8  # of each rank\n\n# the end\n",
    "all in one line": "{dataset: {use_shared_memory: true}, dataloader: {num_workers: 3, }}\n",
    "empty sections": "memory_mapping:\nshared_memory: ~\ndataloader: {}\n",
    "empty values": "dataloader:\n  num_workers: 3\nshared_memory:\n  memory_limit:\n",
    "sizes in words": "memory_mapping: {cache_bytes: 1GiB, cache_size: 7}\n",
    "Windows": "dataloader:\r\n  num_workers: 8\r\n\r\nshared_memory:\r\n  enabled: true\r\n",
    "deep indent": "shared_memory:\n      enabled: yes\n      memory_limit: 4GiB\ndataset:\n    datasets: []\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_merged(text: str) -> None:
    new = merged(text, WANTED.sections())
    said = schema.load(nodes.parse(new, "x"), "x")
    assert (said.shared_memory.enabled, said.memory_mapping.cache_size, said.dataloader.num_workers) == (False, 7, 0)
    assert (said.memory_mapping.cache_bytes, said.shared_memory.memory_limit) == (1 << 30, None)
    before, after = yaml.safe_load(text) or {}, yaml.safe_load(new)
    assert after.get("dataset") == before.get("dataset")
    assert [key for key in after if key in before] == list(before)
    assert merged(new, WANTED.sections()) == new
    for line in text.splitlines():
        if "#" in line:
            assert "#" + line.partition("#")[2] in new


def test_only_what_changes_is_touched() -> None:
    text = "dataloader:\n    pin_memory:   true # keep\n    num_workers: 9 # mine\n" + SERVER
    new = merged(text, WANTED.sections())
    assert "    pin_memory:   true # keep\n    num_workers: 0 # mine\n" in new and SERVER in new


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dataloader: {num_worker: 3}\n", "unknown key"),
        ("a: &x {num_workers: 3}\ndataloader: *x\n", "unknown key"),
        ("dataloader: &x {num_workers: 3}\n", "anchors"),
        ("dataset: {shared_memory: {sample_limit: &n 3}}\ndataloader: {num_workers: *n}\n", "anchors"),
        ("dataset: {use_shared_memory: true}\n...\n", "can't be changed safely|not YAML"),
        ("[1, 2]\n", "must be a mapping"),
        ("dataloader: {num_workers: 3\n", "not YAML"),
    ],
)
def test_what_is_left_alone(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "dsmem.yaml"
    path.write_text(text)
    for attempt in (lambda: write_config(path, WANTED), lambda: check_target(path)):
        with pytest.raises(UsageError, match=says):
            attempt()
    assert path.read_text() == text and os.listdir(tmp_path) == ["dsmem.yaml"]


_SCALARS = st.one_of(st.booleans(), st.integers(0, 99))
_LOADING = st.fixed_dictionaries(
    {}, optional={"num_workers": st.integers(0, 9), "prefetch_factor": st.integers(1, 9), "pin_memory": st.booleans()}
)
_MAPPING = st.fixed_dictionaries({}, optional={"enabled": st.booleans(), "cache_size": st.integers(0, 9)})


@given(
    st.fixed_dictionaries(
        {},
        optional={"dataloader": _LOADING, "memory_mapping": _MAPPING, "dataset": st.just({"use_shared_memory": True})},
    ),
    st.sampled_from([True, False, None]),
    st.integers(2, 6),
)
def test_any_style_of_writing(content: dict[str, Any], flow: bool | None, indent: int) -> None:
    text = yaml.safe_dump(content, default_flow_style=flow, indent=indent, sort_keys=False)
    after = yaml.safe_load(merged(text, WANTED.sections()))
    assert after.get("dataset") == content.get("dataset")
    for section, wanted in WANTED.sections().items():
        assert {key: after[section].get(key) for key in wanted} == wanted


def test_a_new_file_and_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "dsmem.yaml"
    assert write_config(path, WANTED)
    assert not write_config(path, WANTED)
    assert read_config(path) == WANTED.as_config()
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    path.chmod(0o640)
    (tmp_path / "link.yaml").symlink_to(path)
    assert write_config(tmp_path / "link.yaml", Settings())
    assert (tmp_path / "link.yaml").is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert read_config(path) == Settings().as_config()
    assert sorted(os.listdir(tmp_path)) == ["dsmem.yaml", "link.yaml"]


def test_no_directory_for_it(tmp_path: Path) -> None:
    with pytest.raises(SourceMissing, match="there is no directory"):
        check_target(tmp_path / "none" / "dsmem.yaml")


def test_what_is_no_regular_file_is_left_alone(tmp_path: Path) -> None:
    fifo = tmp_path / "dsmem.yaml"
    os.mkfifo(fifo)
    with pytest.raises(UsageError, match="not a regular file"):
        check_target(fifo)
    with pytest.raises(UsageError, match="not a regular file"):
        write_config(fifo, Settings())
    assert fifo.is_fifo()
