"""What reading costs here, measured on a few samples of the files themselves: nothing is pinned, nothing stays.

The page cache is warm when it is measured: what a disk takes is not in these figures.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dsmem import proc
from dsmem.errors import BadSource
from dsmem.training import EpisodicDataset, batches, images
from dsmem.training.cache import ArrayCache
from dsmem.training.episodes import EpisodeFile, Stored
from dsmem.training.monitoring import Monitor
from dsmem.training.reading import FileReader, Readers, Ways
from dsmem.tune.facts import Speeds, Storage, Workload
from dsmem.tune.looking import GivenLayout, Looked
from dsmem.tune.settings import Settings
from dsmem.tune.trials import Trial, TrialFailed

_FILES = 8
"""Samples come from so many files, spread over the set."""
_READS = 12
"""Rows of each storage that are read to be timed."""
_ROUNDS = 5
_BATCHES = 16
"""Of a pass through a real loader."""
_WITHIN_S = 1.5
"""Each measurement ends after this, with at least one sample."""
_CACHE_BYTES = 8 << 30


@dataclass(frozen=True, slots=True)
class Measured:
    """Speeds of samples, and the storages with what was measured of each."""

    speeds: Speeds
    storages: tuple[Storage, ...]


def measure(
    looked: Looked, *, batch_size: int, chunk_size: int = 100, layout: GivenLayout = None, mask: str | None = None
) -> Measured:
    """Read samples at random and time them. Raises what reading raises."""
    chance = random.Random(0)
    chosen = sorted(chance.sample(range(len(looked.files)), min(_FILES, len(looked.files))))
    monitor = Monitor(enabled=False)
    readers = Readers(looked.files, Ways(False, True, _FILES * 2), ArrayCache(0), monitor, {})
    try:
        storages = tuple(_timed(one, looked, readers, chosen, chance) for one in looked.data.storages)
        frames_s = _frames_s(looked, readers, chosen)
    finally:
        readers.close()
    paths = [looked.files[number].path for number in chosen]
    options: dict[str, Any] = {
        "use_shared_memory": False, "chunk_size": chunk_size, "layout": layout, "mask": mask,
    }  # fmt: skip
    cold = EpisodicDataset(paths, looked.data.cameras, cache_bytes=0, **options)
    warm = EpisodicDataset(paths, looked.data.cameras, cache_bytes=_CACHE_BYTES, **options)
    count = min(batch_size, len(warm))
    wanted = chance.sample(range(len(warm)), count)
    for dataset in (cold, warm):
        dataset.__getitems__(wanted)  # opens the files, and fills the page cache
    cold_s = _median(lambda: batches.collate(cold.__getitems__(wanted))) / count
    copy_s = _median(lambda: batches.collate(warm.__getitems__(wanted))) / count
    consume_s = _consume_s(looked.data.step_bytes * count)
    unpacked_s = sum(_unpacked_s(one) for one in storages) / max(looked.data.steps, 1)
    speeds = Speeds(
        decode_s=max(cold_s - copy_s, 0.0),
        frames_s=min(frames_s, max(cold_s - copy_s, 0.0)),
        copy_s=copy_s,
        consume_s=consume_s / count,
        unpacked_s=unpacked_s,
        exchange_s=0.0,
        samples=count,
    )
    steps = [index % len(warm) for index in chance.choices(range(len(warm)), k=batch_size * _BATCHES)]
    files = [looked.files[number] for number in chosen]
    try:
        batch_s = handed_over_s(files, looked.data.cameras, steps, batch_size, layout=layout, mask=mask)
    except TrialFailed as exc:  # a /dev/shm too small for batches: what does not run here is not recommended
        return Measured(replace(speeds, untried=str(exc)), storages)
    side_by_side = max(copy_s, speeds.consume_s, (copy_s + speeds.consume_s) / proc.usable_cpus()) * batch_size
    return Measured(replace(speeds, exchange_s=max(batch_s - side_by_side, 0.0)), storages)


def handed_over_s(
    files: Sequence[EpisodeFile],
    cameras: Sequence[str],
    steps: Sequence[int],
    batch_size: int,
    *,
    layout: GivenLayout = None,
    mask: str | None = None,
) -> float:
    """Seconds for a batch that one worker has at hand, in a real loader: in a process of its own, about 3 s in all."""
    settings = Settings(use_shared_memory=False, num_workers=1, cache_bytes=_CACHE_BYTES)
    options: dict[str, Any] = {"layout": layout, "mask": mask, "steps": steps}
    with Trial(files, cameras, settings, Workload(batch_size), **options) as trial:
        trial.opened()
        taken: list[float] = []
        for _ in range(_ROUNDS + 1):
            trial.begin()
            taken.append(float(trial.end()["batch_s"]))
    return statistics.median(taken[1:])  # the first one decodes


def _timed(one: Storage, looked: Looked, readers: Readers, chosen: Sequence[int], chance: random.Random) -> Storage:
    """A storage with seconds for a step, and the bytes that have to be decoded for it."""
    places = [place for place in looked.places[one.name] if place[0] in chosen] or looked.places[one.name][:_FILES]
    reads = [
        (readers.file(number), looked.files[number].stored[path], step)
        for number, path in chance.choices(places, k=_READS)
        for step in [chance.randrange(looked.files[number].stored[path].shape[0])]
    ]
    for read in reads:
        _read(*read)  # opens the files, and fills the page cache
    began = time.perf_counter()
    taken: list[float] = []
    for read in reads:
        before = time.perf_counter()
        _read(*read)
        taken.append(time.perf_counter() - before)
        if time.perf_counter() - began > _WITHIN_S:
            break
    return replace(one, step_s=statistics.median(taken), decoded_bytes_per_step=_decoded_bytes(one))


def _read(reader: FileReader, stored: Stored, step: int) -> None:
    if stored.is_encoded:
        reader.frame(stored.path, step)
    else:
        np.add.reduce(reader.rows(stored.path, step, step + 1), axis=None)  # mapped bytes are read only then


def _decoded_bytes(one: Storage) -> int:
    """For a step: the chunks that it touches, whole."""
    item = int(np.prod(one.item_shape, dtype=np.int64)) * np.dtype(one.dtype).itemsize
    if one.chunks is None or one.is_encoded or len(one.chunks) != len(one.item_shape) + 1:
        return item
    per_row = 1
    for extent, chunk in zip(one.item_shape, one.chunks[1:], strict=True):
        per_row *= -(-extent // chunk)
    return per_row * int(np.prod(one.chunks, dtype=np.int64)) * np.dtype(one.dtype).itemsize


def _unpacked_s(one: Storage) -> float:
    """To decode all of it once; encoded frames, which pinning leaves as they are, count nothing."""
    speed = one.decode_bytes_per_s
    return 0.0 if one.is_encoded or one.is_mapped or not speed else one.size_bytes / speed


def _frames_s(looked: Looked, readers: Readers, chosen: Sequence[int]) -> float:
    """To decode the encoded frames of a sample."""
    total = 0.0
    number = chosen[0]
    file, reader = looked.files[number], readers.file(number)
    for _, path in file.episodes[0].images:
        if not file.stored[path].is_encoded:
            continue
        try:
            data = np.asarray(reader.rows(path, 0, 1)[0], np.uint8)
        except BadSource:
            continue  # reading it at random has said so
        total += _median(lambda data=data: images.decoded(data, file.path))  # type: ignore[misc]  # bound to this one
    return total


def _consume_s(size_bytes: int) -> float:
    """Seconds to read a batch once. numpy copies, in one thread as a copy to a GPU is: torch takes all CPUs."""
    source, target = np.ones(size_bytes, np.uint8), np.empty(size_bytes, np.uint8)
    return _median(lambda: np.copyto(target, source))


def _median(run: Callable[[], Any]) -> float:
    """Of several runs; the result of one is there while the next is made, as a batch is in a training loop."""
    taken: list[float] = []
    began = time.perf_counter()
    result = None
    while len(taken) < _ROUNDS and (not taken or time.perf_counter() - began < _WITHIN_S):
        before = time.perf_counter()
        result = run()
        taken.append(time.perf_counter() - before)
    del result
    return statistics.median(taken)
