"""What a set of files holds to train on, listed once, before training: every episode, its length and its datasets.

Whatever is wrong with any of them is told in one error. No handle of h5py is left open.
"""

from __future__ import annotations

import bisect
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import h5py
import numpy as np

from dsmem import digest
from dsmem.errors import BrokenEpisodes, DsmemError, EpisodeFailure
from dsmem.hdf5 import opening
from dsmem.training.layouts import KNOWN, Layout

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Stored:
    """One dataset that is trained on."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    """'object' where items vary in length."""
    is_encoded: bool
    """Items are pictures in a format such as JPEG: variable-length uint8, or rows of uint8 padded to one length."""

    @property
    def size_bytes(self) -> int:
        """Bytes in memory; 0 where items vary in length."""
        return 0 if self.dtype == "object" else int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode: where its datasets are."""

    group: str
    """Its group in the file; '' = all of the file."""
    steps: int
    first_step: int
    """Where it begins among all steps of its file."""
    action: str
    state: tuple[str, ...]
    images: tuple[tuple[str, str], ...]
    """(camera, path) in the order in which the cameras were asked for."""
    language: str
    """What the file says the task is; '' where it does not."""


@dataclass(frozen=True, slots=True)
class EpisodeFile:
    """One file and the episodes in it."""

    path: str
    layout: str
    size_bytes: int
    """Of the file."""
    episodes: tuple[Episode, ...]
    stored: dict[str, Stored]

    @property
    def steps(self) -> int:
        """Of all its episodes."""
        return sum(one.steps for one in self.episodes)

    def critical(self) -> tuple[str, ...]:
        """Paths of actions and states: small, and needed for each sample."""
        return tuple(dict.fromkeys(path for one in self.episodes for path in (one.action, *one.state)))

    def episode_at(self, step: int) -> tuple[Episode, int]:
        """The episode of a step of the file, and the step within it; raises IndexError."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.path}, which has {self.steps}")
        one = self.episodes[bisect.bisect(self.episodes, step, key=lambda one: one.first_step) - 1]
        return one, step - one.first_step


class _Broken(Exception):
    """Why an episode can't be used."""


def survey(
    paths: Sequence[str | os.PathLike[str]], cameras: Sequence[str], *, layout: Layout | None, mask: str | None
) -> tuple[EpisodeFile, ...]:
    """Look through all files; `mask` is the name of a list of episodes in robomimic's `mask/`.

    Raises BrokenEpisodes, which names every file and every episode that can't be used, each with its reason.
    """
    found: list[EpisodeFile] = []
    failures: list[EpisodeFailure] = []
    for path in [os.fspath(one) for one in paths]:
        try:
            one, broken = _look(path, cameras, layout, mask)
        except (DsmemError, _Broken, OSError) as exc:
            failures.append(EpisodeFailure(path, "", str(exc)))
        else:
            found.append(one)
            failures += broken
    if failures:
        raise _error(failures)
    return tuple(found)


def _error(failures: Sequence[EpisodeFailure]) -> BrokenEpisodes:
    lines = [f"{one.path}{':/' + one.episode if one.episode else ''}: {one.reason}" for one in failures]
    what = f"{len(lines)} episodes" if len(lines) > 1 else "one episode"
    message = f"{what} can't be trained on:\n  " + "\n  ".join(lines)
    return BrokenEpisodes(message, failures=failures)


def _look(
    path: str, cameras: Sequence[str], layout: Layout | None, mask: str | None
) -> tuple[EpisodeFile, list[EpisodeFailure]]:
    fd = digest.open_source(path)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _Broken("not a regular file")
        opening.check_signature(fd, path)
        opening.lock_source(fd, path)
        with opening.opened(fd, path) as file, opening.translated(path):
            return _listed(file, path, status.st_size, cameras, layout, mask)
    finally:
        os.close(fd)


def _listed(
    file: Any, path: str, size_bytes: int, cameras: Sequence[str], layout: Layout | None, mask: str | None
) -> tuple[EpisodeFile, list[EpisodeFailure]]:
    chosen = layout or _recognised(file)
    stored: dict[str, Stored] = {}
    episodes: list[Episode] = []
    failures: list[EpisodeFailure] = []
    first_step = 0
    for group in _groups(file, chosen, mask):
        try:
            one = _episode(file, group, chosen, cameras, stored)
        except _Broken as exc:
            failures.append(EpisodeFailure(path, group, str(exc)))
            continue
        episodes.append(replace(one, first_step=first_step))
        first_step += one.steps
    if not episodes and not failures:
        raise _Broken("it holds no episode" if mask is None else f"mask/{mask} names no episode of it")
    return EpisodeFile(path, chosen.name, size_bytes, tuple(episodes), stored), failures


def _recognised(file: Any) -> Layout:
    for layout in KNOWN:
        if layout.episodes:
            above = file.get(layout.episodes)
            if isinstance(above, h5py.Group) and any(isinstance(above.get(name), h5py.Group) for name in above):
                return layout
        elif any(isinstance(file.get(name), h5py.Dataset) for name in layout.action):
            return layout
    held = ", ".join(sorted(map(str, file))[:8]) or "nothing"
    raise _Broken(f"neither the layout of ALOHA nor that of robomimic (it holds {held}); give a layout=")


def _groups(file: Any, layout: Layout, mask: str | None) -> Iterator[str]:
    """The group of each episode, in the order of their numbers: demo_2 before demo_10."""
    if not layout.episodes:
        if mask is not None:
            raise _Broken(f"mask={mask!r}, and the file is one episode")
        yield ""
        return
    above = file.get(layout.episodes)
    if not isinstance(above, h5py.Group):
        raise _Broken(f"no group /{layout.episodes}")
    names = [str(name) for name in above if isinstance(above.get(name), h5py.Group)]
    if mask is not None:
        listed = file.get(f"mask/{mask}")
        if not isinstance(listed, h5py.Dataset):
            known = ", ".join(map(str, file.get("mask", ()))) or "none"
            raise _Broken(f"no mask/{mask}; there is {known}")
        wanted = [one.decode() if isinstance(one, bytes) else str(one) for one in listed[()]]
        lost = sorted(set(wanted) - set(names))
        if lost:
            raise _Broken(f"mask/{mask} names {', '.join(lost[:_SHOWN])}, which are not there")
        names = wanted
    for name in sorted(names, key=_numbered):
        yield f"{layout.episodes}/{name}"


def _numbered(name: str) -> tuple[str, int, str]:
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or -1), name


def _episode(file: Any, group: str, layout: Layout, cameras: Sequence[str], stored: dict[str, Stored]) -> Episode:
    here = file[group] if group else file
    prefix = f"{group}/" if group else ""
    action = _first(here, [(one,) for one in layout.action], "actions")[0]
    state = _first(here, layout.state, "a state")
    images = {
        camera: _first(here, [(one.format(camera=camera),) for one in layout.images], f"camera {camera!r}")[0]
        for camera in cameras
    }
    steps = {path: _store(here[path], prefix + path, stored, is_image=False) for path in (action, *state)}
    steps.update({path: _store(here[path], prefix + path, stored, is_image=True) for path in images.values()})
    if len(set(steps.values())) > 1:
        raise _Broken("lengths differ: " + ", ".join(f"{path} {count}" for path, count in steps.items()))
    if steps[action] == 0:
        raise _Broken("no steps")
    return Episode(
        group=group,
        steps=steps[action],
        first_step=0,
        action=prefix + action,
        state=tuple(prefix + path for path in state),
        images=tuple((camera, prefix + path) for camera, path in images.items()),
        language=_language(here, file, layout),
    )


def _first(here: Any, candidates: Sequence[Sequence[str]], what: str) -> tuple[str, ...]:
    for paths in candidates:
        if all(isinstance(here.get(path), h5py.Dataset) for path in paths):
            return tuple(path.strip("/") for path in paths)
    looked = ", ".join(" + ".join(paths) for paths in candidates)
    raise _Broken(f"no {what}: looked for {looked}")


def _store(dataset: Any, path: str, stored: dict[str, Stored], *, is_image: bool) -> int:
    """Record a dataset; returns its number of steps."""
    items, shape = h5py.check_vlen_dtype(dataset.dtype), dataset.shape
    if not shape:
        raise _Broken(f"{path} has no steps: it is one value")
    if items is not None and not (is_image and items == np.uint8 and len(shape) == 1):
        raise _Broken(f"{path} varies in length, and holds no encoded frames")
    if items is None and dataset.dtype.kind not in "biuf":
        raise _Broken(f"{path} is of type {dataset.dtype}, which is no number")
    is_encoded = is_image and (items is not None or (len(shape) == 2 and dataset.dtype == np.uint8))
    if is_image and not is_encoded and len(shape) not in (3, 4):
        raise _Broken(f"{path} of shape {shape} is no [steps, height, width, channels]")
    dtype = "object" if items is not None else dataset.dtype.str
    stored[path] = Stored(path, tuple(map(int, shape)), dtype, is_encoded)
    return int(shape[0])


def _language(here: Any, file: Any, layout: Layout) -> str:
    """The first text that says what the task is, of the episode, then of the file; LIBERO has it in problem_info."""
    for node in (here, file):
        for name in layout.language:
            text = _text(node.attrs.get(name)) or _text(_scalar(node.get(name)))
            if text:
                return text
    data = file.get(layout.episodes) if layout.episodes else None
    problem = _text(data.attrs.get("problem_info")) if isinstance(data, h5py.Group) else ""
    try:
        said = json.loads(problem).get("language_instruction", "") if problem else ""
    except (ValueError, AttributeError):
        return ""
    return " ".join(said) if isinstance(said, list) else str(said)


def _scalar(node: Any) -> object:
    if not isinstance(node, h5py.Dataset) or node.shape is None or node.size != 1:
        return None
    return np.asarray(node[()], dtype=object).reshape(-1)[0]


def _text(value: object) -> str:
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[0] if value.size == 1 else None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""
