"""Mixtures: proportions, cursors of their own, and resume with other weights, files, ranks and batch sizes."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dsmem
from dsmem.errors import UsageError

T = 4
SIZES = {"a.bin": 400, "b.bin": 90, "c.bin": 10}
"""Windows of each."""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Window k of file number f begins with token 10,000 * f + T * k."""
    directory = tmp_path_factory.mktemp("mixture")
    for number, (name, windows) in enumerate(SIZES.items()):
        (10_000 * number + np.arange(windows * T + 1)).astype(np.uint16).tofile(directory / name)
    return [directory / name for name in SIZES]


def firsts(batches: Any) -> list[int]:
    return [first for x, _ in batches for first in x[:, 0].tolist()]


def loader(paths: Any, weights: Any, batch_size: int = 8, **options: Any) -> dsmem.TokenLoader:
    return dsmem.TokenLoader(paths, batch_size, T, weights=weights, **options)


def test_proportions_and_epochs_of_each_file(paths: list[Path]) -> None:
    seen = firsts(islice(iter(loader(paths, [5, 3, 2])), 1000))
    files = Counter(first // 10_000 for first in seen)
    for number, share in enumerate((0.5, 0.3, 0.2)):
        assert abs(files[number] / 8000 - share) < 0.03
    for number, windows in enumerate(SIZES.values()):
        own = [first for first in seen if first // 10_000 == number]
        epochs = [own[start : start + windows] for start in range(0, len(own) - windows + 1, windows)]
        for epoch in epochs:
            assert sorted(epoch) == [10_000 * number + T * k for k in range(windows)]
        assert epochs[0] != epochs[1]


def test_without_shuffle_each_file_is_in_order(paths: list[Path]) -> None:
    seen = firsts(islice(iter(loader(paths, [1, 1, 1], shuffle=False)), 30))
    for number, windows in enumerate(SIZES.values()):
        own = [first - 10_000 * number for first in seen if first // 10_000 == number]
        assert own == [T * (k % windows) for k in range(len(own))]


@settings(deadline=None, max_examples=20)
@given(
    parts=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(0, 9)), min_size=1, max_size=4),
    prefetch=st.sampled_from([0, 2]),
)
def test_resume_is_exact_under_any_other_split(
    paths: list[Path], parts: list[tuple[int, int, int]], prefetch: int
) -> None:
    weights = [0.6, 0.3, 0.1]
    order = firsts(islice(iter(loader(paths, weights, 100, seed=9)), 15))
    state: Any = None
    seen: list[int] = []
    for world_size, batch_size, steps in parts:
        dealt, states = [], []
        for rank in range(world_size):
            mine = loader(paths, weights, batch_size, seed=9, rank=rank, world_size=world_size, prefetch=prefetch)
            if state is not None:
                mine.load_state_dict(json.loads(json.dumps(state)))
            dealt.append(firsts(islice(iter(mine), steps)))
            states.append(mine.state_dict())
        assert all(one == states[0] for one in states)
        state = states[0]
        seen += [first for turn in zip(*dealt, strict=True) for first in turn]
    assert seen == order[: len(seen)]


def test_weights_change_at_a_resume_and_cursors_stay(paths: list[Path]) -> None:
    first = loader(paths, [1, 1, 0])
    seen = firsts(islice(iter(first), 10))
    state = first.state_dict()
    cursors = {name: one["consumed"] for name, one in state["position"]["files"].items()}
    assert cursors == {"a.bin": sum(f < 10_000 for f in seen), "b.bin": sum(f >= 10_000 for f in seen), "c.bin": 0}
    second = loader(paths, [0, 1, 1])
    second.load_state_dict(state)
    more = firsts(islice(iter(second), 4))
    assert not any(f < 10_000 for f in more)
    both = [f for f in seen + more if 10_000 <= f < 20_000]
    assert len(set(both)) == len(both), "what was read is read again before the file is through"
    assert second.state_dict()["position"]["files"]["a.bin"]["consumed"] == cursors["a.bin"]


def test_files_come_and_go_and_move(paths: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = loader(paths[:2], [1, 1])
    list(islice(iter(first), 5))
    files = first.state_dict()["position"]["files"]
    moved = tmp_path / "b.bin"
    moved.write_bytes(paths[1].read_bytes())
    second = loader([moved, paths[2]], [1, 1])
    second.load_state_dict(first.state_dict())
    assert "c.bin: it begins at its start" in caplog.text
    files["b.bin"] |= {"path": str(moved)}
    files["c.bin"] = {"consumed": 0, "samples": 10, "path": str(paths[2])}
    assert second.state_dict()["position"]["files"] == files
    third = loader(paths, [1, 1, 1])
    third.load_state_dict(second.state_dict())
    assert third.state_dict()["position"]["files"]["a.bin"] == files["a.bin"]


def test_a_file_that_is_another_one_is_refused(paths: list[Path], tmp_path: Path) -> None:
    state = loader(paths, [1, 1, 1]).state_dict()
    other = tmp_path / "a.bin"
    other.write_bytes(paths[0].read_bytes() + b"12345678")
    with pytest.raises(UsageError, match=r"a\.bin has 401 samples, and had 400"):
        loader([other, *paths[1:]], [1, 1, 1]).load_state_dict(state)


def test_files_of_the_same_name(paths: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "a.bin"
    other.write_bytes(paths[0].read_bytes())
    files = loader([paths[0], other], [1, 1]).state_dict()["position"]["files"]
    assert list(files) == [f"{paths[0].parent.name}/a.bin", f"{tmp_path.name}/a.bin"]
    with pytest.raises(UsageError, match="twice"):
        loader([other, other], [1, 1])


def taken(mixture: dsmem.TokenLoader, steps: int) -> set[int]:
    """Windows of the first file that so many steps read."""
    return {first for first in firsts(islice(iter(mixture), steps)) if first < 10_000}


def test_no_window_is_read_twice_whatever_joins_or_how_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of one name in directories: one alone, then two, then one again, by relative and by absolute paths."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("wiki", "code")):
        (tmp_path / name).mkdir()
        (10_000 * number + np.arange(400 * T + 1)).astype(np.uint16).tofile(tmp_path / name / "train.bin")
    wiki, code = "wiki/train.bin", "code/train.bin"
    seen: set[int] = set()
    state: Any = None
    for files in ([wiki], [wiki, code], [code, wiki], [wiki], [tmp_path / wiki, tmp_path / code], [tmp_path / wiki]):
        mixture = loader(files, [1] * len(files))
        if state:
            mixture.load_state_dict(state)
        here = taken(mixture, 5)
        assert here and not here & seen
        seen |= here
        state = json.loads(json.dumps(mixture.state_dict()))
    (tmp_path / "elsewhere").mkdir()
    for name in ("wiki", "code"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    mixture = loader([tmp_path / "elsewhere" / code, tmp_path / "elsewhere" / wiki], [1, 1])
    mixture.load_state_dict(state)
    assert not taken(mixture, 10) & seen


def test_a_state_of_other_files_is_refused(paths: list[Path]) -> None:
    state = loader(paths[:1], [1]).state_dict()
    with pytest.raises(UsageError, match=r"the state is of other files: .*a\.bin"):
        loader(paths[1:], [1, 1]).load_state_dict(state)


def test_it_has_no_length_and_no_epoch(paths: list[Path]) -> None:
    mixture = loader(paths, [1, 1, 1])
    with pytest.raises(TypeError, match="never ends"):
        len(mixture)
    with pytest.raises(UsageError, match="no epochs"):
        mixture.set_epoch(1)


@pytest.mark.parametrize("weights", [[1], [0, 0, 0], [1, -1, 1], [1, float("nan"), 1], [1, float("inf"), 1]])
def test_bad_weights(paths: list[Path], weights: list[float]) -> None:
    with pytest.raises(UsageError, match="weights"):
        loader(paths, weights)


def test_a_file_without_a_window(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "short.bin").write_bytes(b"12")
    with pytest.raises(UsageError, match=r"short\.bin has a weight of 1 and not one window"):
        loader([paths[0], tmp_path / "short.bin"], [1, 1])
    assert len(firsts(islice(iter(loader([paths[0], tmp_path / "short.bin"], [1, 0])), 3))) == 24
