"""Small sets of episodes as robots record them, and what a dataset must give for them, read by plain h5py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import imagecodecs
import numpy as np

CAMERAS = ("top", "left_wrist")
SHAPE = (12, 16, 3)


def write_aloha(path: Path, *, steps: int = 9, seed: int = 0, **options: Any) -> Path:
    """One episode in the layout of ALOHA/ACT; the options are those of its image datasets."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file.attrs["language_instruction"] = f"task {seed}"
        file["action"] = rng.standard_normal((steps, 4)).astype(np.float32)
        file["observations/qpos"] = rng.standard_normal((steps, 3))
        for camera in CAMERAS:
            frames = rng.integers(0, 255, (steps, *SHAPE), np.uint8)
            file.create_dataset(f"observations/images/{camera}", data=frames, **options)
    return path


GZIP = {"compression": "gzip", "chunks": (1, *SHAPE)}


def write_robomimic(path: Path, *, demos: int = 3, seed: int = 0) -> Path:
    """Several episodes in one file, in the layout of robomimic, demo_10 after demo_2, with masks."""
    rng = np.random.default_rng(seed)
    names = [f"demo_{number}" for number in (1, 2, 10)[:demos]]
    with h5py.File(path, "w") as file:
        for count, name in enumerate(names):
            demo, steps = file.create_group(f"data/{name}"), 4 + count
            demo["actions"] = rng.standard_normal((steps, 7))
            demo["obs/robot0_eef_pos"] = rng.standard_normal((steps, 3))
            demo["obs/robot0_eef_quat"] = rng.standard_normal((steps, 4))
            demo["obs/robot0_gripper_qpos"] = rng.standard_normal((steps, 2))
            demo["obs/agentview_image"] = rng.integers(0, 255, (steps, *SHAPE), np.uint8)
        file["data"].attrs["problem_info"] = '{"language_instruction": ["open", "the drawer"]}'
        file["mask/train"] = np.array([name.encode() for name in names[1:]])
    return path


def write_encoded(path: Path, *, steps: int = 5, padded: bool = False, codec: str = "png") -> np.ndarray[Any, Any]:
    """An ALOHA episode with one camera of encoded frames, in one length or several; returns the frames."""
    rng = np.random.default_rng(7)
    frames = rng.integers(0, 255, (steps, *SHAPE), np.uint8)
    pictures = [np.frombuffer(getattr(imagecodecs, f"{codec}_encode")(frame), np.uint8) for frame in frames]
    with h5py.File(path, "w") as file:
        file["action"] = rng.standard_normal((steps, 2)).astype(np.float32)
        file["observations/qpos"] = rng.standard_normal((steps, 2)).astype(np.float32)
        if padded:
            rows = np.zeros((steps, max(map(len, pictures)) + 3), np.uint8)
            for row, picture in zip(rows, pictures, strict=True):
                row[: len(picture)] = picture
            file["observations/images/top"] = rows
        else:
            rows = file.create_dataset("observations/images/top", (steps,), h5py.vlen_dtype(np.uint8))
            for step, picture in enumerate(pictures):
                rows[step] = picture
    decode = getattr(imagecodecs, f"{codec}_decode")
    return np.stack([decode(picture.tobytes()) for picture in pictures])


def check_aloha(dataset: Any, paths: list[Path]) -> None:
    """Every sample of a dataset over ALOHA episodes is what the files hold."""
    number = 0
    for episode, path in enumerate(paths):
        with h5py.File(path) as file:
            steps = len(file["action"])
            for step in range(steps):
                sample = dataset[number]
                number += 1
                assert (sample["episode"], sample["step"]) == (episode, step)
                for camera in dataset.camera_names:
                    np.testing.assert_array_equal(sample["images"][camera], file[f"observations/images/{camera}"][step])
                np.testing.assert_array_equal(sample["state"], file["observations/qpos"][step].astype(np.float32))
                taken = file["action"][step : step + dataset.chunk_size].astype(np.float32)
                np.testing.assert_array_equal(sample["action"][: len(taken)], taken)
                assert not sample["action"][len(taken) :].any()
                assert sample["is_pad"].tolist() == [at >= len(taken) for at in range(dataset.chunk_size)]
    assert number == len(dataset)
