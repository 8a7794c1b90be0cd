"""`TokenLoader`: what an epoch holds, exact resume under any other split, who owns a batch, the prefetch thread."""

from __future__ import annotations

import gc
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenfiles import make_tokens

import dsmem
from dsmem.errors import BadSource, UsageError
from dsmem.tokens import batches
from dsmem.tokens.batches import Batch
from dsmem.tokens.boundaries import cuts_in

T = 8
TOKENS = 2001
WINDOWS = (TOKENS - 1) // T


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token i is i: a window is known by its first token."""
    path = tmp_path_factory.mktemp("tokens") / "train.bin"
    np.arange(TOKENS, dtype=np.uint16).tofile(path)
    return path


def firsts(loader: Any) -> list[int]:
    """The first token of every window, in order; each checked to be a window."""
    found: list[int] = []
    for x, y in loader:
        inputs, targets = x.numpy(), y.numpy()
        assert (inputs == inputs[:, :1] + np.arange(x.shape[1])).all() and (targets == inputs + 1).all()
        found += inputs[:, 0].tolist()
    return found


def test_an_epoch_is_every_window_once(path: Path) -> None:
    loader = dsmem.TokenLoader(path, 10, T, seed=1)
    assert len(loader) == WINDOWS // 10 == 25
    first = firsts(loader)
    assert sorted(first) == list(range(0, WINDOWS * T, T)) != first
    second = firsts(loader)
    assert sorted(second) == sorted(first) and second != first
    loader.set_epoch(0)
    assert firsts(loader) == first
    assert firsts(dsmem.TokenLoader(path, 10, T, seed=2)) != first
    assert firsts(dsmem.TokenLoader(path, 10, T, shuffle=False)) == sorted(first)
    assert len(firsts(dsmem.TokenLoader(path, 10, T, stride=1))) == (TOKENS - T) // 10 * 10


def test_batches(path: Path) -> None:
    batch = next(iter(dsmem.TokenLoader(path, 4, T)))
    x, y = batch
    assert x.shape == y.shape == (4, T) and x.dtype == torch.int64
    assert batch.tokens is not None and batch.tokens.is_contiguous()
    assert x.data_ptr() == batch.tokens.data_ptr() and y.data_ptr() == x.data_ptr() + 8
    assert (batch.cu_seqlens, batch.position_ids, batch.max_seqlen) == (None, None, None)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int32, torch.int64])
def test_dtypes_and_widening_elsewhere(path: Path, dtype: torch.dtype) -> None:
    batch = next(iter(dsmem.TokenLoader(path, 4, T, dtype=dtype, documents="ignore")))
    assert batch[0].dtype == batch[1].dtype == dtype
    wide = batch.to("cpu", torch.int64)
    assert wide.tokens is not None and wide[1].data_ptr() == wide.tokens.data_ptr() + 8
    assert firsts([wide]) == firsts(islice(dsmem.TokenLoader(path, 4, T), 1))
    again = pickle.loads(pickle.dumps(wide))
    assert torch.equal(again[0], wide[0]) and torch.equal(again.tokens, wide.tokens)


@settings(deadline=None, max_examples=25)
@given(data=st.data(), drop_last=st.booleans(), prefetch=st.sampled_from([0, 0, 2]), shuffle=st.booleans())
def test_resume_is_exact_under_any_other_split(
    path: Path, data: st.DataObject, drop_last: bool, prefetch: int, shuffle: bool
) -> None:
    """However a run is cut up, and by how many ranks and in what batches: the same samples, the same order."""
    order = firsts(dsmem.TokenLoader(path, WINDOWS, T, seed=5, shuffle=shuffle))
    state: dict[str, Any] | None = None
    seen: list[int] = []
    for part in range(3):
        world_size, batch_size = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 30))
        steps = data.draw(st.integers(0, 6)) if part < 2 else None
        ranks = [
            dsmem.TokenLoader(
                path,
                batch_size,
                T,
                seed=5,
                rank=rank,
                world_size=world_size,
                drop_last=drop_last,
                prefetch=prefetch,
                shuffle=shuffle,
            )
            for rank in range(world_size)
        ]
        dealt, states = [], []
        for loader in ranks:
            if state is not None:
                loader.load_state_dict(json.loads(json.dumps(state)))
            dealt.append([firsts([batch]) for batch in islice(iter(loader), steps)])
            states.append(loader.state_dict())
        assert all(one == states[0] for one in states)
        assert len({tuple(map(len, one)) for one in dealt}) == 1
        state = states[0]
        for step in zip(*dealt, strict=True):
            seen += [sample for turn in zip(*step, strict=True) for sample in turn]
        if state["position"]["epoch"] or state["position"]["consumed"] == WINDOWS:
            assert WINDOWS - len(seen) < (world_size * batch_size if drop_last else world_size)
            break
        assert state["position"] == {"epoch": 0, "consumed": len(seen)}
    assert seen == order[: len(seen)]


def test_a_state_after_a_break(path: Path) -> None:
    """What was made ahead and not handed out is not counted, and `for` goes on."""
    whole = firsts(dsmem.TokenLoader(path, 10, T, prefetch=3))
    loader = dsmem.TokenLoader(path, 10, T, prefetch=3)
    seen: list[int] = []
    for batch in loader:
        seen += firsts([batch])
        assert loader.state_dict()["position"]["consumed"] == len(seen)
        if len(seen) == 70:
            break
    other = dsmem.TokenLoader(path, 10, T)
    other.load_state_dict(loader.state_dict())
    assert seen + firsts(other) == whole == seen + firsts(loader)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_iterator_ends_where_another_place_is_told(path: Path, prefetch: int) -> None:
    loader = dsmem.TokenLoader(path, 4, 8, prefetch=prefetch)
    start = loader.state_dict()

    def begun() -> Iterator[Batch]:
        iterator = iter(loader)
        next(iterator)
        return iterator

    for told in (lambda: loader.load_state_dict(start), lambda: loader.set_epoch(0), begun):
        iterator = begun()
        told()
        place = loader.state_dict()
        with pytest.raises(UsageError, match="iterate anew"):
            next(iterator)
        assert loader.state_dict() == place
    loader.load_state_dict(start)
    iterator = iter(loader)
    loader.load_state_dict(start)  # it has not begun yet
    assert torch.equal(next(iterator)[0], next(iter(dsmem.TokenLoader(path, 4, 8)))[0])


FORKED = """
import os, signal, sys, dsmem
loader = dsmem.TokenLoader(sys.argv[1], 4, 8, prefetch=2)
iterator = iter(loader)
next(iterator)
if not os.fork():
    signal.alarm(20)
    try:
        next(iterator)
    except dsmem.UsageError:
        next(iter(loader))
        os._exit(7)
    os._exit(8)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_an_iterator_does_not_go_on_in_a_fork(path: Path) -> None:
    """Its threads stay behind: it would wait for them for ever."""
    assert subprocess.run([sys.executable, "-c", FORKED, str(path)], timeout=60).returncode == 7


def test_numbers_of_numpy_are_fit_for_a_state(path: Path) -> None:
    loader = dsmem.TokenLoader(path, np.int64(4), np.int32(8), seed=np.int64(3), stride=np.int64(8))  # type: ignore[arg-type]
    loader.set_epoch(np.int64(2))  # type: ignore[arg-type]
    other = dsmem.TokenLoader(path, 4, 8, seed=3)
    other.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert torch.equal(next(iter(other))[0], next(iter(loader))[0])
    other.state_dict()["about"]["seed"] = 4
    assert other.state_dict()["about"]["seed"] == 3


def test_a_relative_path_is_meant_from_where_it_was_given(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    loader, data = dsmem.TokenLoader(path.name, 4, 8), dsmem.TokenDataset(path.name, 8)
    monkeypatch.chdir("/")
    assert len(next(iter(loader))[0]) == 4 and len(data[0][0]) == 8


def test_states_of_another_loader_are_refused(path: Path, tmp_path: Path) -> None:
    state = dsmem.TokenLoader(path, 10, T).state_dict()
    for options in ({"seed": 1}, {"shuffle": False}, {"stride": 1}, {"weights": [1]}):
        with pytest.raises(UsageError, match="the state is of"):
            dsmem.TokenLoader(path, 10, T, **options).load_state_dict(state)
    with pytest.raises(UsageError, match="seq_len=8, this loader has 9"):
        dsmem.TokenLoader(path, 10, 9).load_state_dict(state)
    loader = dsmem.TokenLoader(path, 10, T)
    for position in ({"epoch": 0}, {"epoch": 0, "consumed": -1}, {"epoch": 0, "consumed": WINDOWS + 1}):
        with pytest.raises(UsageError):
            loader.load_state_dict({**state, "position": position})
    with pytest.raises(UsageError, match="not the state"):
        loader.load_state_dict({})
    with pytest.raises(UsageError, match="not the state"):
        loader.load_state_dict(None)  # type: ignore[arg-type]
    for broken in ({"about": None}, {"position": None}, {"position": [1]}, {"about": "x"}):
        with pytest.raises(UsageError, match="no position: "):
            loader.load_state_dict({**state, **broken})
    mixed = dsmem.TokenLoader(path, 10, T, weights=[1])
    state = mixed.state_dict()
    for files in (None, ["x"], {path.name: 5}, {path.name: None}):
        with pytest.raises(UsageError, match="no position: "):
            mixed.load_state_dict({**state, "position": {"consumed": 0, "files": files}})


@pytest.mark.parametrize("documents", ["within", "pack", "mark"])
def test_ends_that_fall_are_refused(documents: str, tmp_path: Path) -> None:
    make_tokens(tmp_path / "a.bin", [[number] * 20 for number in range(40)])
    ends = np.load(tmp_path / "a.docs.npy")
    ends[7:20] = 100_000
    np.save(tmp_path / "a.docs.npy", ends)
    with pytest.raises(BadSource, match=r"document \d+ ends before the one in front of it"):
        list(dsmem.TokenLoader(tmp_path / "a.bin", 1, 700, documents=documents))  # type: ignore[arg-type]
    if documents == "within":
        with pytest.raises(BadSource):
            dsmem.TokenDataset(tmp_path / "a.bin", 4, within_documents=True)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    "ends", [[10, 30, 20, 40], [10, 35, 5, 40], [39, 1, 2, 40], [10, 2**63, 20, 40], [10, 20, 2**64 - 1, 40]]
)
def test_marks_are_not_taken_from_ends_that_fall(ends: list[int], shuffle: bool, tmp_path: Path) -> None:
    make_tokens(tmp_path / "a.bin", [[1] * 10] * 4)
    np.save(tmp_path / "a.docs.npy", np.array(ends, np.uint64))
    with pytest.raises(BadSource, match=r"a\.bin: document [123] ends before the one in front of it"):
        list(dsmem.TokenLoader(tmp_path / "a.bin", 2, 4, documents="mark", shuffle=shuffle))


@pytest.mark.parametrize("wrong", [0, 1, 1200, 2**62, 2**63])
@pytest.mark.parametrize("at_once", [1, 99])
def test_one_end_that_falls_is_met_wherever_it_lies(wrong: int, at_once: int) -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        ends = np.sort(random.integers(0, 400, 20)).astype(np.uint64)
        ends[-1] = 400
        starts = np.arange(0, 396, 4)
        rows = np.arange(at_once)
        cuts = [cuts_in(ends, some, rows, 4, "a.bin").tolist() for some in starts.reshape(-1, at_once)]
        places = [place + at_once * 4 * batch for batch, some in enumerate(cuts) for place in some]
        assert places == [end for end in ends.tolist() if end % 4 and end < 396]
        ends[random.integers(0, 19)] = wrong
        if (ends[1:] < ends[:-1]).any():
            with pytest.raises(BadSource, match=r"a\.bin: document \d+ ends before"):
                for some in starts.reshape(-1, at_once):
                    cuts_in(ends, some, rows, 4, "a.bin")


def test_numbers_are_whole(path: Path) -> None:
    for seq_len, stride in ((2.5, 1), ("8", 1), (8, 1.0)):
        with pytest.raises(UsageError, match="it is a whole number"):
            dsmem.TokenDataset(path, seq_len, stride=stride)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="it is a whole number"):
            dsmem.TokenLoader(path, 2, seq_len, stride=stride)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"batch_size=2\.0"):
        dsmem.TokenLoader(path, 2.0, 8)  # type: ignore[arg-type]
    assert len(dsmem.TokenDataset(path, np.int64(8), stride=np.int32(8)))  # type: ignore[arg-type]


@pytest.mark.parametrize("at_once", [1, 2, 5])
@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("buffers", [1, 2, 4])
def test_the_last_batches_are_whole_and_the_memory_is_made_once(
    path: Path, buffers: int, prefetch: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BLOCK_BYTES", at_once * 7 * (T + 1) * 8)
    expected = [batch[0].clone() for batch in dsmem.TokenLoader(path, 7, T)]
    held: list[tuple[torch.Tensor, torch.Tensor]] = []
    places = set()
    for (x, _), right in zip(dsmem.TokenLoader(path, 7, T, buffers=buffers, prefetch=prefetch), expected, strict=True):
        held.append((x, right))
        places.add(x.untyped_storage().data_ptr())
        assert all(torch.equal(mine, known) for mine, known in held[-buffers:])
    assert len(places) <= buffers + prefetch
    if at_once == 1:
        assert len(places) == buffers + prefetch


def test_without_buffers_every_batch_is_the_callers(path: Path) -> None:
    kept = list(dsmem.TokenLoader(path, 7, T, prefetch=2))
    assert len({x.data_ptr() for x, _ in kept}) == len(kept)
    assert len(set(firsts(kept))) == len(kept) * 7


@pytest.fixture
def threads_end() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    gc.collect()
    assert set(threading.enumerate()) <= before


@pytest.mark.usefixtures("threads_end")
def test_the_thread_ends_with_the_loop(path: Path) -> None:
    assert len(firsts(dsmem.TokenLoader(path, 10, T, prefetch=2))) == WINDOWS
    for _ in dsmem.TokenLoader(path, 10, T, prefetch=2):
        break
    iter(dsmem.TokenLoader(path, 10, T, prefetch=2))


@pytest.mark.usefixtures("threads_end")
@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_reaches_the_caller(tmp_path: Path, prefetch: int) -> None:
    path = tmp_path / "train.bin"
    np.arange(TOKENS, dtype=np.uint16).tofile(path)
    loader = dsmem.TokenLoader(path, 10, T, prefetch=prefetch)
    path.write_bytes(b"12")
    with pytest.raises(BadSource, match="changed"):
        next(iter(loader))


def test_several_files(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.bin"
    np.arange(30_000, 30_501, dtype=np.uint16).tofile(other)
    seen = firsts(dsmem.TokenLoader([path, other], 6, T, drop_last=False))
    assert sorted(seen) == [*range(0, WINDOWS * T, T), *range(30_000, 30_500 - T + 1, T)]


def test_marked_documents(path: Path, tmp_path: Path) -> None:
    """Against what a loop over the ids says, with empty documents, two files, and shuffled windows."""
    lengths = np.random.default_rng(0).integers(0, 12, 400)
    lengths = lengths[np.cumsum(lengths) < TOKENS]
    ends = np.append(np.cumsum(lengths), [TOKENS, TOKENS]).astype(np.uint64)
    paths = [tmp_path / "a.bin", tmp_path / "b.bin"]
    for one in paths:
        np.arange(TOKENS, dtype=np.uint16).tofile(one)
        np.save(one.with_name(one.stem + ".docs.npy"), ends if one is paths[0] else np.array([3, TOKENS], np.uint64))
    starts_of_documents = [set(ends.tolist()), {3, TOKENS}]
    loader = dsmem.TokenLoader(paths, 9, T, documents="mark")
    plain = dsmem.TokenLoader(paths, 9, T)
    which = 0
    for batch, (x, _) in zip(loader, plain, strict=True):
        assert torch.equal(batch[0], x)
        assert batch.position_ids is not None and batch.cu_seqlens is not None and batch.max_seqlen is not None
        assert batch.cu_seqlens.dtype == torch.int32
        assert batch.cu_seqlens[0] == 0 and batch.cu_seqlens[-1] == x.numel()
        assert batch.max_seqlen == batch.cu_seqlens.diff().max() and batch.cu_seqlens.diff().min() > 0
        assert batch.position_ids.view(-1)[batch.cu_seqlens[:-1].long()].eq(0).all()
        assert int(batch.position_ids.eq(0).sum()) == len(batch.cu_seqlens) - 1
        for row, places in zip(x.tolist(), batch.position_ids.tolist(), strict=True):
            expected = []
            for known in starts_of_documents:
                at, out = -1, []
                for token in row:
                    at = 0 if token in known else at + 1
                    out.append(at)
                expected.append(out)
            assert places in expected
            which |= 1 << expected.index(places)
    assert which == 3


def test_windows_within_documents(path: Path, tmp_path: Path) -> None:
    one = tmp_path / "a.bin"
    np.arange(TOKENS, dtype=np.uint16).tofile(one)
    np.save(tmp_path / "a.docs.npy", np.array([T, 500, TOKENS], np.uint64))
    expected = [*range(T, 500 - T, T), *range(500, TOKENS - T, T)]
    assert sorted(firsts(dsmem.TokenLoader(one, 1, T, documents="within"))) == expected


def test_a_file_of_two_terabytes(tmp_path: Path) -> None:
    path = tmp_path / "huge.bin"
    with path.open("wb") as file:
        file.truncate(2 << 40)
    loader = dsmem.TokenLoader(path, 8, 1024, seed=1)
    state = loader.state_dict()
    state["position"] = {"epoch": 3, "consumed": 1 << 29}
    loader.load_state_dict(state)
    next(iter(loader))
    assert loader.state_dict()["position"] == {"epoch": 3, "consumed": (1 << 29) + 8}


def test_ranks_of_torch_distributed(path: Path, tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert firsts(dsmem.TokenLoader(path, 10, T)) == firsts(dsmem.TokenLoader(path, 10, T, rank=0, world_size=1))
    finally:
        torch.distributed.destroy_process_group()


def test_misuse(path: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"batch_size": 0},
        {"seq_len": 0},
        {"seq_len": TOKENS},
        {"buffers": 0},
        {"prefetch": -1},
        {"rank": 0},
        {"rank": 2, "world_size": 2},
        {"dtype": torch.float32},
        {"documents": "all"},
        {"stride": -1},
        {"stride": 0},
        {"batch_size": WINDOWS + 1},
        {"batch_size": WINDOWS // 2 + 1, "rank": 0, "world_size": 2},
    ]
    for options in wrong:
        with pytest.raises(UsageError):
            dsmem.TokenLoader(path, **{"batch_size": 2, "seq_len": T, **options})
    for documents in ("within", "mark", "pack"):
        with pytest.raises(BadSource, match="documents end"):
            dsmem.TokenLoader(path, 2, T, documents=documents)


def test_pinning_without_an_accelerator_is_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is one")
    batch = next(iter(dsmem.TokenLoader(path, 2, T, pin_memory=True, buffers=2)))
    assert isinstance(batch, Batch) and not batch[0].is_pinned()
    assert "no accelerator" in caplog.text


def test_fewer_windows_than_a_step(path: Path) -> None:
    with pytest.raises(UsageError, match=r"250 windows are not one step of 251 for each of 1 ranks; drop_last=False"):
        dsmem.TokenLoader(path, WINDOWS + 1, T)
    with pytest.raises(UsageError, match=r"250 windows are not one step of 1 for each of 251 ranks$"):
        dsmem.TokenLoader(path, 1, T, world_size=WINDOWS + 1, rank=0, drop_last=False)
