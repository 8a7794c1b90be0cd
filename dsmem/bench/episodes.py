"""The Dataset that people write over episodes, and processes that hold them.

Importing this imports torch: only the case that measures training does.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Literal

import h5py
import numpy as np
import torch
from torch.utils.data import Dataset

import dsmem
from dsmem import proc
from dsmem.bench.episode_sets import ACTIONS, CAMERAS, make
from dsmem.training import EpisodicDataset

CHUNK_SIZE = 100
"""Actions of a sample, as ACT takes them."""
__all__ = ["CAMERAS", "CHUNK_SIZE", "FileEpisodes", "Holders", "InMemory", "PlainEpisodes", "holders", "make"]
Array = np.ndarray[Any, np.dtype[Any]]
Way = Literal["dsmem", "preload"]
_PATIENCE_S = 120.0


class PlainEpisodes(Dataset[dict[str, Any]]):
    """As training scripts have it (github.com/tonyzhaozh/act, utils.py): every sample opens its file with h5py."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = list(paths)
        lengths = []
        for path in self.paths:
            with h5py.File(path, "r") as file:
                lengths.append(len(file["action"]))
        self.places = [(number, step) for number, length in enumerate(lengths) for step in range(length)]

    def __len__(self) -> int:
        return len(self.places)

    def opened(self, path: str) -> Any:
        """A file, for one sample."""
        return h5py.File(path, "r")

    def owned(self, array: Array) -> Array:
        """Memory that a tensor may write to; h5py gives no other."""
        return array

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, step = self.places[index]
        with self.opened(self.paths[number]) as file:
            state = self.owned(file["observations/qpos"][step])
            images = {name: self.owned(file[f"observations/images/{name}"][step]) for name in CAMERAS}
            taken = file["action"][step : step + CHUNK_SIZE]
        action = np.zeros((CHUNK_SIZE, ACTIONS), np.float32)
        action[: len(taken)] = taken
        return {
            "images": {name: torch.from_numpy(image) for name, image in images.items()},
            "state": torch.from_numpy(state),
            "action": torch.from_numpy(action),
            "is_pad": torch.from_numpy(np.arange(CHUNK_SIZE) >= len(taken)),
            "episode": number,
            "step": step,
        }


class FileEpisodes(PlainEpisodes):
    """The same with one line changed."""

    def opened(self, path: str) -> Any:
        """A file from shared memory."""
        return dsmem.File(path, pin="auto")

    def owned(self, array: Array) -> Array:
        """A copy: what the file gives is shared, and read-only."""
        return array.copy()


class InMemory(PlainEpisodes):
    """The same samples from arrays in this process's memory: as fast as it can be."""

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__(paths)
        self.arrays = [_preloaded(path) for path in self.paths]

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, step = self.places[index]
        arrays = self.arrays[number]
        taken = arrays["action"][step : step + CHUNK_SIZE]
        action = np.zeros((CHUNK_SIZE, ACTIONS), np.float32)
        action[: len(taken)] = taken
        return {
            "images": {name: torch.from_numpy(arrays[f"observations/images/{name}"][step]) for name in CAMERAS},
            "state": torch.from_numpy(arrays["observations/qpos"][step]),
            "action": torch.from_numpy(action),
            "is_pad": torch.from_numpy(np.arange(CHUNK_SIZE) >= len(taken)),
            "episode": number,
            "step": step,
        }


def _preloaded(path: str) -> dict[str, np.ndarray[Any, Any]]:
    names = ["action", "observations/qpos", *(f"observations/images/{name}" for name in CAMERAS)]
    with h5py.File(path, "r") as file:
        return {name: file[name][...] for name in names}


class Holders:
    """Processes that hold a set of episodes when they are told to."""

    def __init__(self, members: Sequence[tuple[Any, Connection]]) -> None:
        self._members = members

    @contextmanager
    def holding(self, way: Way, paths: Sequence[str], *, processes: int) -> Iterator[int]:
        """What the first `processes` take for the data, all together: PSS beyond what they had before, in bytes."""
        members = self._members[:processes]
        before = self._pss_bytes(members)
        try:
            for _, pipe in members:
                pipe.send((way, list(paths), os.environ.get("DSMEM_ROOT")))
            for _, pipe in members:
                _heard(pipe)
            yield self._pss_bytes(members) - before
        finally:
            for _, pipe in members:
                pipe.send(None)
                _heard(pipe)

    @staticmethod
    def _pss_bytes(members: Sequence[tuple[Any, Connection]]) -> int:
        return sum(proc.memory_of(process.pid).pss_bytes for process, _ in members)


def _heard(pipe: Connection) -> None:
    if not pipe.poll(_PATIENCE_S):
        raise TimeoutError(f"a process that holds episodes said nothing for {_PATIENCE_S:.0f} s")
    pipe.recv()


@contextmanager
def holders(processes: int) -> Iterator[Holders]:
    """Start that many; they end with the block, or with this process."""
    context = multiprocessing.get_context("spawn")  # a fork would have memory of ours to fill before it takes its own
    members: list[tuple[Any, Connection]] = []
    try:
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_hold, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            members.append((process, ours))
        for _, pipe in members:
            _heard(pipe)
        yield Holders(members)
    finally:
        for process, pipe in members:
            pipe.close()
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()


def _hold(pipe: Connection) -> None:
    pipe.send("ready")
    held: list[Any] = []
    while True:
        try:
            told = pipe.recv()
        except (EOFError, ConnectionError):  # the end of the parent, or of its block
            return
        held.clear()
        gc.collect()
        if told is not None:
            way, paths, root = told
            if root is not None:
                os.environ["DSMEM_ROOT"] = root
            held += [_preloaded(path) for path in paths] if way == "preload" else [_read(paths)]
        pipe.send("done")


def _read(paths: Sequence[str]) -> EpisodicDataset:
    """A dataset of which every sample was read, so that all pages are mapped."""
    dataset = EpisodicDataset(paths, CAMERAS)
    for index in range(len(dataset)):
        dataset[index]
    return dataset
