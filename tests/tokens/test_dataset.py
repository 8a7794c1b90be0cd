"""`TokenDataset` beside the plain Dataset over np.memmap, alone and in a DataLoader."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, default_collate

import dsmem
from dsmem.errors import BadSource, UsageError
from dsmem.tokens.boundaries import WithinDocuments
from dsmem.tokens.opening import open_tokens
from dsmem.tokens.windows import Windows

T = 16


class Plain(Dataset[Any]):
    """What people write."""

    def __init__(self, path: Path, dtype: Any = np.uint16) -> None:
        self.data = np.memmap(path, dtype=dtype, mode="r")

    def __len__(self) -> int:
        return len(self.data) - T

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            torch.from_numpy(self.data[i : i + T].astype(np.int64)),
            torch.from_numpy(self.data[i + 1 : i + 1 + T].astype(np.int64)),
        )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "train.bin"
    np.random.default_rng(0).integers(0, 1 << 16, 1000).astype(np.uint16).tofile(path)
    return path


def same(found: Any, expected: Any) -> bool:
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected, strict=True))


def test_windows_are_those_of_the_plain_dataset(path: Path) -> None:
    dataset, plain = dsmem.TokenDataset(path, T), Plain(path)
    assert len(dataset) == len(plain) == 984
    assert all(same(dataset[i], plain[i]) for i in range(len(plain)))
    assert same(dataset[-1], plain[983])
    assert same(dataset[np.int64(5)], plain[5])  # type: ignore[index]
    for wrong in (984, -985):
        with pytest.raises(IndexError):
            dataset[wrong]
        with pytest.raises(IndexError):
            dataset.__getitems__([0, wrong])


def test_a_batch_is_one_gather_and_x_and_y_are_one_read(path: Path) -> None:
    dataset, plain = dsmem.TokenDataset(path, T), Plain(path)
    indices = [983, 0, 7, 7, -1]
    rows = dataset.__getitems__(indices)
    assert len(rows) == 5 and all(same(row, plain[i % 984]) for row, i in zip(rows, indices, strict=True))
    assert same(rows[1], plain[0])
    x, y = dataset.collate(rows)
    assert same((x, y), default_collate([plain[i % 984] for i in indices]))
    assert x.data_ptr() == rows.block.data_ptr() and y.data_ptr() == x.data_ptr() + 8
    x, y = dataset[3]
    assert y.data_ptr() == x.data_ptr() + 8
    x[:] = 0  # the caller's own
    assert same(dataset[3], plain[3])


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize(("rows", "seq_len"), [(400, 600), (260, 513), (64, 2048), (7, 513), (501, 99)])
def test_windows_gathered_in_pieces(rows: int, seq_len: int, dtype: Any, tmp_path: Path) -> None:
    """Large batches, with windows that end with the file and such that end just before, in one gather or several."""
    path = tmp_path / "tokens.bin"
    tokens = np.random.default_rng(1).integers(0, 1 << 16, 4000).astype(dtype)
    tokens.tofile(path)
    windows = Windows([open_tokens(path, token_dtype=dtype)], seq_len, 1, in_threads=True)
    for last in (windows.count - 1, windows.count - 30, 5):
        places = np.append(np.random.default_rng(2).integers(0, last + 1, rows - 1), last)
        block = np.zeros((rows, seq_len + 1), np.int64)
        windows.read(places, block)
        assert (block == tokens[places[:, None] + np.arange(seq_len + 1)]).all()


def test_stride_without_overlap(path: Path) -> None:
    dataset = dsmem.TokenDataset(path, T, stride=T)
    assert len(dataset) == (1000 - 1) // T
    seen = torch.cat([dataset[i][0] for i in range(len(dataset))])
    assert torch.equal(seen, torch.from_numpy(np.fromfile(path, np.uint16)[: 62 * T].astype(np.int64)))


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int32, torch.int64])
def test_dtypes(path: Path, dtype: torch.dtype) -> None:
    dataset = dsmem.TokenDataset(path, T, dtype=dtype)
    assert same(dataset[9], [one.to(dtype) for one in Plain(path)[9]])
    (batch,) = DataLoader(dataset, batch_size=984)
    assert same([one.to(torch.int64) for one in batch], default_collate([Plain(path)[i] for i in range(984)]))


def test_several_files_of_several_dtypes(path: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide.bin"
    np.arange(1 << 20, (1 << 20) + 50, dtype=np.uint32).tofile(wide)
    (tmp_path / "wide.idx").write_bytes(_index_of(50))
    short = tmp_path / "short.bin"
    short.write_bytes(b"12" * T)  # one token too few for a window
    dataset = dsmem.TokenDataset([path, short, wide], T)
    assert len(dataset) == 984 + 34
    expected = [*map(Plain(path).__getitem__, range(984)), *map(Plain(wide, np.uint32).__getitem__, range(34))]
    assert all(same(dataset[i], one) for i, one in enumerate(expected))
    order = torch.randperm(len(dataset)).tolist()
    assert same(dataset.collate(dataset.__getitems__(order)), default_collate([expected[i] for i in order]))
    with pytest.raises(UsageError, match="uint32"):
        dsmem.TokenDataset([path, wide], T, dtype=torch.uint16)


def _index_of(tokens: int) -> bytes:
    import struct

    return b"MMIDIDX\0\0" + struct.pack("<QBQQiqqq", 1, 4, 1, 2, tokens, 0, 0, 1)


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])
def test_dataloader_with_workers(path: Path, context: str, workers: int) -> None:
    """As scripts have it: batch_size, num_workers, shuffle=True; every window once, each as the plain one has it."""
    dataset, plain = dsmem.TokenDataset(path, T), Plain(path)
    dataset[0]  # mapped before the workers begin
    loader: Any = DataLoader(
        dataset, batch_size=100, num_workers=workers, shuffle=True, multiprocessing_context=context
    )
    got = torch.cat([torch.cat([x, y[:, -1:]], 1) for x, y in loader])
    everything = torch.stack([torch.cat([plain[i][0], plain[i][1][-1:]]) for i in range(984)])
    assert not torch.equal(got, everything)
    assert sorted(got.tolist()) == sorted(everything.tolist())


def test_dataloader_with_collate(path: Path) -> None:
    dataset = dsmem.TokenDataset(path, T)
    ours = DataLoader(dataset, batch_size=10, num_workers=1, collate_fn=dataset.collate)
    assert all(same(a, b) for a, b in zip(ours, DataLoader(Plain(path), batch_size=10), strict=True))
    assert same(dataset.collate([dataset[3], dataset[4]]), dataset.collate(dataset.__getitems__([3, 4])))


def test_pickles_as_a_path(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    np.arange(1 << 16).astype(np.uint16).tofile(path)
    dataset = dsmem.TokenDataset(path, T)
    dataset.__getitems__([0])
    data = pickle.dumps(dataset)
    assert len(data) < 2000
    assert same(pickle.loads(data)[77], dataset[77])
    path.write_bytes(b"12")
    with pytest.raises(BadSource, match="changed"):
        pickle.loads(data)[77]


def test_the_older_name(path: Path) -> None:
    dataset = dsmem.LargeTokenDataset(data_path=path, sequence_length=T)
    assert isinstance(dataset, dsmem.TokenDataset)
    assert len(pickle.loads(pickle.dumps(dataset))) == 984


@settings(deadline=None)
@given(n=st.integers(1, 3000), world_size=st.integers(1, 7), consumed=st.integers(0, 3000), seed=st.integers())
def test_sampler_deals_every_window_once(n: int, world_size: int, consumed: int, seed: int) -> None:
    dataset = dsmem.TokenDataset.__new__(dsmem.TokenDataset)
    dataset.windows = Windows.__new__(Windows)
    dataset.windows.count = n
    consumed = min(consumed, n)
    whole = list(dataset.sampler(seed, 1))
    assert sorted(whole) == list(range(n))
    ranks = [dataset.sampler(seed, 1, rank, world_size, consumed=consumed) for rank in range(world_size)]
    dealt = [list(rank) for rank in ranks]
    assert {len(one) for one in dealt} == {len(rank) for rank in ranks} == {(n - consumed) // world_size}
    in_turn = [index for step in zip(*dealt, strict=True) for index in step]
    assert in_turn == whole[consumed : consumed + len(in_turn)]


def test_sampler_in_a_dataloader(path: Path) -> None:
    dataset = dsmem.TokenDataset(path, T)
    sampler = dataset.sampler(seed=3)
    first = [x.tolist() for x, _ in DataLoader(dataset, batch_size=50, sampler=sampler)]
    assert [x.tolist() for x, _ in DataLoader(dataset, batch_size=50, sampler=sampler)] == first
    sampler.set_epoch(1)
    assert [x.tolist() for x, _ in DataLoader(dataset, batch_size=50, sampler=sampler)] != first
    for wrong in ({"rank": 1}, {"rank": -1, "world_size": 2}, {"consumed": 985}):
        with pytest.raises(UsageError):
            dataset.sampler(**wrong)


def test_a_sampler_of_a_trillion_windows(tmp_path: Path) -> None:
    path = tmp_path / "huge.bin"
    with path.open("wb") as file:
        file.truncate(2 << 40)
    dataset = dsmem.TokenDataset(path, 1024)
    assert len(dataset) == (1 << 40) - 1024
    loader = DataLoader(dataset, batch_size=4, sampler=dataset.sampler(consumed=1 << 39))
    assert next(iter(loader))[0].shape == (4, 1024)


@settings(deadline=None, max_examples=200)
@given(
    lengths=st.lists(st.integers(0, 40) | st.just(0), min_size=1, max_size=300),
    seq_len=st.integers(1, 20),
    stride=st.integers(1, 20),
)
def test_windows_within_documents(lengths: list[int], seq_len: int, stride: int) -> None:
    ends = np.cumsum(lengths).astype(np.uint64)
    expected = [
        start
        for end, length in zip(ends.tolist(), lengths, strict=True)
        for start in range(end - length, end - seq_len, stride)
    ]
    windows = WithinDocuments(ends, seq_len, stride)
    assert windows.count == len(expected)
    if expected:
        assert windows.starts(np.arange(len(expected))).tolist() == expected


def test_dataset_within_documents(path: Path) -> None:
    with pytest.raises(BadSource, match="nothing tells where its documents end"):
        dsmem.TokenDataset(path, T, within_documents=True)
    np.save(path.with_name("train.docs.npy"), np.array([T, 500, 1000], np.uint64))
    dataset = dsmem.TokenDataset(path, T, within_documents=True)
    assert len(dataset) == 484 - T + 500 - T
    assert same(dataset[0], Plain(path)[T])
    assert same(dataset[484 - T], Plain(path)[500])


def test_documents_travel_as_a_path(tmp_path: Path) -> None:
    """However many they are; those who get it look whether they are the same."""
    path = tmp_path / "many.bin"
    np.zeros(800_000, np.uint16).tofile(path)
    ends = np.arange(8, 800_001, 8, dtype=np.uint64)
    np.save(tmp_path / "many.docs.npy", ends)
    dataset = dsmem.TokenDataset(path, 5, within_documents=True)
    data = pickle.dumps(dataset)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert len(again) == len(dataset) == 300_000
    indices = np.arange(0, 300_000, 997)
    found, wanted = (next(one.windows.locate(indices))[2].tolist() for one in (again, dataset))
    assert found == wanted
    loader = DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context="spawn", sampler=range(8))
    assert sum(len(x) for x, _ in loader) == 8
    np.save(tmp_path / "many.docs.npy", np.append(ends[:5] - np.uint64(1), ends[5:]))
    with pytest.raises(BadSource, match=r"the document ends of .*many\.bin have changed"):
        pickle.loads(data)


def test_misuse(path: Path) -> None:
    with pytest.raises(UsageError, match="1000 tokens"):
        dsmem.TokenDataset(path, 1000)
    for options in ({"seq_len": 0}, {"seq_len": T, "stride": 0}, {"seq_len": T, "dtype": torch.float32}):
        with pytest.raises(UsageError):
            dsmem.TokenDataset(path, **options)
