"""Episodes to measure with, the Dataset that people write over them, and processes that hold them.

Importing this imports torch: only the case that measures training does.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from torch.utils.data import Dataset

from dsmem import proc
from dsmem.training import EpisodicDataset

CAMERAS = ("top", "left_wrist", "right_wrist")
FRAME = (480, 640, 3)
"""As ALOHA records them."""
CHUNK_SIZE = 100
"""Actions of a sample, as ACT takes them."""
_DIFFERENT = 6
"""So many frames are made and compressed, and repeat: making a set takes no time to compress it."""
_ACTIONS = 14
Way = Literal["dsmem", "preload"]
_PATIENCE_S = 120.0


def make(directory: Path, size_bytes: int, *, files: int) -> tuple[list[str], int]:
    """Gzip-4 episodes in the layout of ALOHA, three cameras, a frame a chunk; their paths and bytes of data."""
    step_bytes = len(CAMERAS) * int(np.prod(FRAME)) + 2 * 4 * _ACTIONS
    steps = max(size_bytes // step_bytes // files, 2)
    random = np.random.default_rng(0)
    across = np.linspace(0, 8 * np.pi, FRAME[1])
    smooth = (20 * np.sin(across)[: FRAME[0], None] * np.cos(across)[None] + 128)[..., None]
    frames = (smooth + random.normal(0, 1.5, (_DIFFERENT, *FRAME))).clip(0, 255).astype(np.uint8)
    compressed = _compressed(directory / "frames.h5", frames)
    paths = []
    for number in range(files):
        path = directory / f"episode_{number}.hdf5"
        paths.append(str(path))
        with h5py.File(path, "w") as file:
            file["action"] = random.standard_normal((steps, _ACTIONS)).astype(np.float32)
            file["observations/qpos"] = random.standard_normal((steps, _ACTIONS)).astype(np.float32)
            for camera, name in enumerate(CAMERAS):
                images = _dataset(file, f"observations/images/{name}", steps)
                for step in range(steps):
                    images.id.write_direct_chunk((step, 0, 0, 0), compressed[(number + camera + step) % _DIFFERENT])
    return paths, files * steps * step_bytes


def _dataset(file: Any, name: str, steps: int) -> Any:
    options = {"chunks": (1, *FRAME), "compression": "gzip", "compression_opts": 4}
    return file.create_dataset(name, (steps, *FRAME), np.uint8, **options)


def _compressed(path: Path, frames: np.ndarray[Any, Any]) -> list[bytes]:
    with h5py.File(path, "w") as file:
        images = _dataset(file, "x", len(frames))
        images[...] = frames
        found = [images.id.read_direct_chunk((step, 0, 0, 0))[1] for step in range(len(frames))]
    path.unlink()
    return found


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

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, step = self.places[index]
        with h5py.File(self.paths[number], "r") as file:
            state = file["observations/qpos"][step]
            images = {name: file[f"observations/images/{name}"][step] for name in CAMERAS}
            taken = file["action"][step : step + CHUNK_SIZE]
        action = np.zeros((CHUNK_SIZE, _ACTIONS), np.float32)
        action[: len(taken)] = taken
        return {
            "images": {name: torch.from_numpy(image) for name, image in images.items()},
            "state": torch.from_numpy(state),
            "action": torch.from_numpy(action),
            "is_pad": torch.from_numpy(np.arange(CHUNK_SIZE) >= len(taken)),
            "episode": number,
            "step": step,
        }


class InMemory(PlainEpisodes):
    """The same samples from arrays in this process's memory: as fast as it can be."""

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__(paths)
        self.arrays = [_preloaded(path) for path in self.paths]

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, step = self.places[index]
        arrays = self.arrays[number]
        taken = arrays["action"][step : step + CHUNK_SIZE]
        action = np.zeros((CHUNK_SIZE, _ACTIONS), np.float32)
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
