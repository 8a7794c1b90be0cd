"""Sets of episodes that are stored in different ways: what suits one does not suit the others.

Importing this imports neither torch nor dsmem.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import h5py
import imagecodecs
import numpy as np

CAMERAS = ("top", "left_wrist", "right_wrist")
FRAME = (480, 640, 3)
"""As ALOHA records them."""
ACTIONS = 14
_DIFFERENT = 6
"""So many frames are made and compressed, and repeat: making a set takes no time to compress it."""
Kind = Literal["gzip", "contiguous", "jpeg"]
Array = np.ndarray[Any, Any]


def make(directory: Path, size_bytes: int, *, files: int, kind: Kind = "gzip") -> tuple[list[str], int]:
    """Episodes in the layout of ALOHA, three cameras; their paths and the bytes of their data, decoded.

    "gzip": level 4, a frame a chunk; "contiguous": as they are; "jpeg": encoded frames of varying length.
    """
    step_bytes = len(CAMERAS) * int(np.prod(FRAME)) + 2 * 4 * ACTIONS
    steps = max(size_bytes // step_bytes // files, 2)
    random = np.random.default_rng(0)
    frames = _frames(random)
    write = _WRITERS[kind](directory, frames)
    paths = []
    for number in range(files):
        path = directory / f"episode_{number}.hdf5"
        paths.append(str(path))
        with h5py.File(path, "w") as file:
            file["action"] = random.standard_normal((steps, ACTIONS)).astype(np.float32)
            file["observations/qpos"] = random.standard_normal((steps, ACTIONS)).astype(np.float32)
            for camera, name in enumerate(CAMERAS):
                order = [(number + camera + step) % _DIFFERENT for step in range(steps)]
                write(file, f"observations/images/{name}", order)
    return paths, files * steps * step_bytes


def _frames(random: np.random.Generator) -> Array:
    across = np.linspace(0, 8 * np.pi, FRAME[1])
    smooth = (20 * np.sin(across)[: FRAME[0], None] * np.cos(across)[None] + 128)[..., None]
    return (smooth + random.normal(0, 1.5, (_DIFFERENT, *FRAME))).clip(0, 255).astype(np.uint8)


_Write = Callable[[Any, str, list[int]], None]


def _gzip(directory: Path, frames: Array) -> _Write:
    def dataset(file: Any, name: str, steps: int) -> Any:
        options = {"chunks": (1, *FRAME), "compression": "gzip", "compression_opts": 4}
        return file.create_dataset(name, (steps, *FRAME), np.uint8, **options)

    path = directory / "frames.h5"
    with h5py.File(path, "w") as file:
        images = dataset(file, "x", len(frames))
        images[...] = frames
        compressed = [images.id.read_direct_chunk((step, 0, 0, 0))[1] for step in range(len(frames))]
    path.unlink()

    def write(file: Any, name: str, order: list[int]) -> None:
        images = dataset(file, name, len(order))
        for step, which in enumerate(order):
            images.id.write_direct_chunk((step, 0, 0, 0), compressed[which])

    return write


def _contiguous(directory: Path, frames: Array) -> _Write:
    def write(file: Any, name: str, order: list[int]) -> None:
        images = file.create_dataset(name, (len(order), *FRAME), np.uint8)
        for step, which in enumerate(order):
            images[step] = frames[which]

    return write


def _jpeg(directory: Path, frames: Array) -> _Write:
    pictures = [np.frombuffer(imagecodecs.jpeg8_encode(frame, level=90), np.uint8) for frame in frames]

    def write(file: Any, name: str, order: list[int]) -> None:
        images = file.create_dataset(name, (len(order),), h5py.vlen_dtype(np.uint8))
        for step, which in enumerate(order):
            images[step] = pictures[which]

    return write


_WRITERS: Mapping[Kind, Callable[[Path, Array], _Write]] = {"gzip": _gzip, "contiguous": _contiguous, "jpeg": _jpeg}
