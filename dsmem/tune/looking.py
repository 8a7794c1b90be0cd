"""A set of episodes as it lies on its disk: what is stored how, and whether it keeps changing. No data is decoded,
but one frame of each kind of encoded ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import h5py
import numpy as np

from dsmem import digest, proc
from dsmem.arrays.dtypes import UnsupportedType
from dsmem.errors import DsmemError, UsageError
from dsmem.files import FileIdentity
from dsmem.hdf5 import opening
from dsmem.hdf5.chunkindex import stored_bytes
from dsmem.hdf5.datasets import Item, inspect
from dsmem.shm import listing
from dsmem.training import episodes, images, layouts
from dsmem.training.episodes import Episode, EpisodeFile, Stored
from dsmem.training.layouts import Layout, Names
from dsmem.tune.facts import Data, Role, Storage

GivenLayout = Layout | str | Mapping[str, Names] | None


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found."""

    data: Data
    files: tuple[EpisodeFile, ...]
    places: Mapping[str, tuple[tuple[int, str], ...]]
    """Storage name → (number of the file, path in it) of its datasets."""


def cameras_of(path: str, *, layout: GivenLayout = None) -> tuple[str, ...]:
    """The cameras that the first episode of a file has, sorted; raises UsageError where none is found."""
    chosen = layouts.layout_of(layout)
    fd = digest.open_source(path)
    try:
        opening.check_signature(fd, path)
        opening.lock_source(fd, path)
        with opening.opened(fd, path) as file, opening.translated(path):
            known = (chosen,) if chosen is not None else layouts.KNOWN
            found = next((names for one in known if (names := tuple(_cameras(file, one)))), ())
    finally:
        os.close(fd)
    if not found:
        raise UsageError(f"{path}: no camera found where ALOHA and robomimic have them; name them")
    return found


def _cameras(file: Any, layout: Layout) -> Iterator[str]:
    """Names for which the first candidate with pictures has a dataset."""
    root = file
    if layout.episodes:
        above = file.get(layout.episodes)
        groups = [name for name in above if isinstance(above.get(name), h5py.Group)] if above is not None else []
        if not groups:
            return
        root = above[groups[0]]
    for candidate in layout.images:
        above_path, _, last = candidate.rpartition("/")
        before, _, after = last.partition("{camera}")
        group = root.get(above_path) if above_path else root
        if not isinstance(group, h5py.Group):
            continue
        names = [
            name[len(before) : len(name) - len(after) or None]
            for name in map(str, group)
            if name.startswith(before) and name.endswith(after) and _is_picture(group.get(name))
        ]
        if names:
            yield from sorted(names)
            return


def _is_picture(node: Any) -> bool:
    """A dataset [steps, height, width(, channels)], or of encoded frames."""
    if not isinstance(node, h5py.Dataset) or not node.shape:
        return False
    if h5py.check_vlen_dtype(node.dtype) == np.uint8:
        return True
    return node.dtype == np.uint8 and len(node.shape) in (2, 3, 4)


def look(
    paths: Sequence[str], cameras: Sequence[str], *, layout: GivenLayout = None, mask: str | None = None
) -> Looked:
    """Look at all files. Raises BrokenEpisodes, which names every one that can't be trained on, and UsageError."""
    before = {path: _identity(path) for path in paths}
    files = episodes.survey(paths, cameras, layout=layouts.layout_of(layout), mask=mask)
    groups: dict[tuple[Any, ...], _Group] = {}
    for number, file in enumerate(files):
        for item, about in _stored(file):
            key = (
                about.name,
                about.role,
                about.item_shape,
                about.stored.dtype,
                item.layout,
                item.info.chunks,
                item.filters,
            )
            groups.setdefault(key, _Group(about, item)).add(number, about, item)
    local = all(
        not proc.is_network_fs(proc.mount_of(path).fstype) for path in {os.path.dirname(p) or "." for p in paths}
    )
    storages: list[Storage] = []
    places: dict[str, tuple[tuple[int, str], ...]] = {}
    for group in groups.values():
        one = group.summed(files, local, {storage.name for storage in storages})
        storages.append(one)
        places[one.name] = tuple(group.places)
    changing = [path for path, identity in before.items() if _identity(path) != identity]
    data = _summed(files, cameras, storages, local, tuple(dict.fromkeys([*changing, *_changed_since_pinned(paths)])))
    return Looked(data, files, places)


def _identity(path: str) -> FileIdentity | None:
    try:
        return FileIdentity.of(os.stat(path))
    except OSError:
        return None  # the survey says what is wrong with it


def _changed_since_pinned(paths: Sequence[str]) -> list[str]:
    """Files of which the store has an object that is of an older state."""
    wanted = {os.path.realpath(path): path for path in paths}
    try:
        entries = listing.list_objects().entries
    except (DsmemError, OSError):
        return []  # a store that can't be read says nothing of the files
    states: dict[str, set[str]] = {}
    for entry in entries:
        for source in entry.sources:
            if source.path in wanted:
                states.setdefault(source.path, set()).add(source.state)
    return [wanted[path] for path, found in states.items() if "changed" in found]


@dataclass(frozen=True, slots=True)
class _About:
    """One dataset of one episode."""

    name: str
    role: Role
    stored: Stored

    @property
    def item_shape(self) -> tuple[int, ...]:
        return () if self.stored.is_encoded else self.stored.shape[1:]


@dataclass(slots=True)
class _Group:
    """Datasets that are stored alike."""

    about: _About
    item: Item
    places: list[tuple[int, str]] = field(default_factory=list)
    rows: int = 0
    stored_bytes: int = 0
    size_bytes: int = 0

    def add(self, number: int, about: _About, item: Item) -> None:
        self.places.append((number, about.stored.path))
        self.rows += about.stored.shape[0]
        self.stored_bytes += item.storage_bytes or 0
        self.size_bytes += about.stored.size_bytes

    def summed(self, files: Sequence[EpisodeFile], local: bool, taken: set[str]) -> Storage:
        """As a Storage, with a name of its own where others have the name and are stored in another way."""
        about, item = self.about, self.item
        shape, dtype, size_bytes = about.item_shape, about.stored.dtype, self.size_bytes
        if about.stored.is_encoded:
            number, path = self.places[0]
            shape, dtype = _first_frame(files[number].path, path), "|u1"
            size_bytes = self.rows * int(np.prod(shape, dtype=np.int64))
        name = about.name
        while name in taken:
            name += "'"
        return Storage(
            name=name,
            role=about.role,
            count=len(self.places),
            rows=self.rows,
            item_shape=shape,
            dtype=str(np.dtype(dtype)),
            layout=item.layout,
            chunks=item.info.chunks,
            filters=tuple(one.name for one in item.filters),
            is_encoded=about.stored.is_encoded,
            is_mapped=local and item.tier == "contiguous" and not about.stored.is_encoded,
            size_bytes=size_bytes,
            stored_bytes=self.stored_bytes,
        )


def _first_frame(path: str, dataset: str) -> tuple[int, ...]:
    """The shape of an encoded frame, from the first one; raises BadSource."""
    with opening.translated(path, dataset), h5py.File(path, "r") as file:
        data = np.asarray(file[dataset][0], np.uint8)
    return tuple(images.decoded(data, f"{path}: /{dataset}, step 0").shape)


def _stored(file: EpisodeFile) -> Iterator[tuple[Item, _About]]:
    """All that is trained on of a file."""
    fd = digest.open_source(file.path)
    try:
        opening.lock_source(fd, file.path)
        size_bytes = os.fstat(fd).st_size
        with opening.opened(fd, file.path) as opened, opening.translated(file.path):
            for about in _listed(file):
                dataset = opened[about.stored.path]
                try:
                    item = inspect(dataset.id, about.stored.path, size_bytes)
                except UnsupportedType as exc:
                    raise UsageError(f"{file.path}: /{about.stored.path}: {exc}") from exc
                if item.storage_bytes is None:
                    item = replace(item, storage_bytes=stored_bytes(dataset.id))
                yield item, about
    finally:
        os.close(fd)


def datasets_of(file: EpisodeFile) -> Iterator[tuple[str, Role]]:
    """Path and role of each dataset of a file that is trained on."""
    for about in _listed(file):
        yield about.stored.path, about.role


def _listed(file: EpisodeFile) -> Iterator[_About]:
    seen: set[str] = set()
    for episode in file.episodes:
        for path, role in _of_episode(episode):
            if path not in seen:
                seen.add(path)
                name = path.removeprefix(f"{episode.group}/") if episode.group else path
                yield _About(name, role, file.stored[path])


def _of_episode(episode: Episode) -> Iterator[tuple[str, Role]]:
    yield episode.action, "action"
    for path in episode.state:
        yield path, "state"
    for _, path in episode.images:
        yield path, "image"


def _summed(
    files: Sequence[EpisodeFile],
    cameras: Sequence[str],
    storages: Sequence[Storage],
    local: bool,
    changing: tuple[str, ...],
) -> Data:
    steps = sum(one.steps for one in files)
    data_bytes = sum(one.size_bytes for one in storages)
    encoded_bytes = sum(one.size_bytes for one in storages if one.is_encoded)
    encoded_stored = sum(one.stored_bytes for one in storages if one.is_encoded)
    # Of variable length: HDF5 counts references of 16 bytes; the frames themselves are what the files hold besides.
    varying = sum(one.size_bytes for one in files) if encoded_stored < encoded_bytes // 1000 else encoded_stored
    return Data(
        files=len(files),
        episodes=sum(len(one.episodes) for one in files),
        steps=steps,
        layouts=tuple(sorted({one.layout for one in files})),
        cameras=tuple(cameras),
        file_bytes=sum(one.size_bytes for one in files),
        data_bytes=data_bytes,
        pinned_bytes=data_bytes - encoded_bytes + (varying if encoded_bytes else 0),
        mapped_bytes=sum(one.size_bytes for one in storages if one.is_mapped),
        critical_bytes=sum(one.size_bytes for one in storages if one.role != "image"),
        step_bytes=max(data_bytes // max(steps, 1), 1),
        is_encoded=encoded_bytes > 0,
        is_local=local,
        changing=changing,
        storages=tuple(storages),
    )
