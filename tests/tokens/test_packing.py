"""Packed documents: each once an epoch and whole, targets within documents only, segments, exact resume."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dsmem
from dsmem.errors import UsageError
from dsmem.tokens import packing
from dsmem.tokens.packing import best_fit

T = 16


def make(path: Path, lengths: Any, first: int = 0) -> Path:
    """Token i is first + i."""
    ends = np.cumsum(lengths).astype(np.uint64)
    np.arange(first, first + int(ends[-1]), dtype=np.uint16).tofile(path)
    np.save(path.with_name(path.stem + ".docs.npy"), ends)
    return path


@pytest.fixture(scope="module")
def lengths() -> list[int]:
    rng = np.random.default_rng(0)
    return [*rng.integers(0, 2 * T, 600).tolist(), T, 2 * T, 1, 0, 40 * T + 3]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]) -> Path:
    return make(tmp_path_factory.mktemp("packing") / "train.bin", lengths)


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "GROUP_DOCUMENTS", 100)
    monkeypatch.setattr(packing, "GROUP_TOKENS", 60 * T)


def segments(batch: Any) -> list[tuple[list[int], list[int]]]:
    """Inputs and targets of every segment that is not padding, which was checked."""
    x, y = batch
    assert batch.cu_seqlens[0] == 0 and batch.cu_seqlens[-1] == x.numel()
    assert batch.max_seqlen == batch.cu_seqlens.diff().max()
    assert set(range(0, x.numel(), x.shape[1])) <= set(batch.cu_seqlens.tolist())
    found = []
    for low, high in zip(batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True):
        assert batch.position_ids.view(-1)[low:high].tolist() == list(range(high - low))
        inputs, targets = x.reshape(-1)[low:high].tolist(), y.reshape(-1)[low:high].tolist()
        if set(inputs) == {9999}:
            assert set(targets) == {-100}
        else:
            found.append((inputs, targets))
    return found


def load(paths: Any, batch_size: int = 4, **options: Any) -> dsmem.TokenLoader:
    return dsmem.TokenLoader(paths, batch_size, T, documents="pack", pad_id=9999, **{"drop_last": False, **options})


def test_every_document_is_there_once_and_whole(path: Path, lengths: list[int]) -> None:
    ends = np.cumsum(lengths)
    starts = {end - length: end for end, length in zip(ends.tolist(), lengths, strict=True) if length}
    loader = load(path)
    batches = list(loader)
    pieces = [one for batch in batches for one in segments(batch)]
    assert sorted(token for inputs, _ in pieces for token in inputs) == list(range(ends[-1]))
    for inputs, targets in pieces:
        document = max(start for start in starts if start <= inputs[0])
        end = starts[document]
        assert (inputs[0] - document) % T == 0, "cut elsewhere than at full sequences"
        assert inputs == list(range(inputs[0], min(inputs[0] + T, end)))
        expected = [token + 1 if token + 1 < end else -100 for token in inputs]
        assert targets == expected
    rows = sum(len(batch[0]) for batch in batches)
    assert rows < 1.1 * ends[-1] / T, "it packs badly"
    assert [one for batch in loader for one in segments(batch)] != pieces, "the next epoch has the same order"


def test_several_files_in_int32(path: Path, tmp_path: Path, lengths: list[int]) -> None:
    other = make(tmp_path / "other.bin", [5, 30], first=20_000)
    batches = list(load([path, other], dtype=torch.int32))
    assert {one.dtype for batch in batches for one in batch} == {torch.int32}
    tokens = sorted(token for batch in batches for inputs, _ in segments(batch) for token in inputs)
    assert tokens == [*range(sum(lengths)), *range(20_000, 20_035)]


@settings(deadline=None, max_examples=15)
@given(
    parts=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(0, 9)), min_size=1, max_size=4),
    prefetch=st.sampled_from([0, 2]),
)
def test_resume_is_exact_under_any_other_split(path: Path, parts: list[tuple[int, int, int]], prefetch: int) -> None:
    order = [row for batch in load(path, 50, seed=4) for row in batch[0].tolist()]
    state: Any = None
    seen: list[list[int]] = []
    for world_size, batch_size, steps in parts:
        dealt, states = [], []
        for rank in range(world_size):
            mine = load(path, batch_size, seed=4, rank=rank, world_size=world_size, prefetch=prefetch, drop_last=True)
            if state is not None:
                mine.load_state_dict(json.loads(json.dumps(state)))
            dealt.append([row for batch in islice(iter(mine), steps) for row in batch[0].tolist()])
            states.append(mine.state_dict())
        assert all(one == states[0] for one in states)
        state = states[0]
        if state["position"]["epoch"]:
            break
        seen += [row for turn in zip(*dealt, strict=True) for row in turn]
    assert seen == order[: len(seen)]


def test_buffers_are_reused(path: Path) -> None:
    expected = [[one.clone() for one in batch] for batch in load(path)]
    places = set()
    for batch, right in zip(load(path, buffers=2, prefetch=1), expected, strict=True):
        places.add(batch[0].data_ptr())
        assert all(torch.equal(mine, known) for mine, known in zip(batch, right, strict=True))
    assert len(places) == 3


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 50), max_size=60))
def test_best_fit_against_a_plain_search(lengths: list[int]) -> None:
    lengths = sorted(lengths, reverse=True)
    rooms: list[int] = []
    for length in lengths:
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms[rooms.index(min(fitting))] -= length
        else:
            rooms.append(50 - length)
    bins = best_fit(lengths, 50)
    assert sorted(index for held in bins for index in held) == list(range(len(lengths)))
    assert sorted(50 - sum(lengths[index] for index in held) for held in bins) == sorted(rooms)


def test_misuse(path: Path) -> None:
    for options in ({"weights": [1]}, {"stride": 4}, {"dtype": torch.uint16}, {"pad_id": -1}):
        with pytest.raises(UsageError):
            dsmem.TokenLoader(path, 4, T, documents="pack", **options)
    with pytest.raises(UsageError):
        dsmem.TokenLoader(path, 4, 0, documents="pack")
    loader = load(path)
    with pytest.raises(TypeError, match="not known"):
        len(loader)
    state = loader.state_dict()
    for position in ({"epoch": 0, "group": 10**6, "consumed": 0}, {"epoch": 0, "group": 0}):
        with pytest.raises(UsageError):
            loader.load_state_dict({**state, "position": position})
    with pytest.raises(UsageError, match="the state is of"):
        load(path, seed=2).load_state_dict(state)
