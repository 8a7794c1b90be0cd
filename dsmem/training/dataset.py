"""`EpisodicDataset`: every time step of many HDF5 episodes, read by as many processes as there are, held once.

A sample is built from rows that `reading` finds: in shared memory, in the file's pages, in the cache, through h5py.
Nothing that fails there ends a run before `_fallback_load_onestep` has failed too.
"""

from __future__ import annotations

import dataclasses
import operator
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.util import Finalize
from typing import Any, Literal, get_args

import h5py
import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from dsmem import proc, units
from dsmem.errors import BadSource, DsmemError, UsageError
from dsmem.hdf5 import opening
from dsmem.training import episodes, images, layouts, monitoring, placing, sharedcache
from dsmem.training.batches import Row, Samples
from dsmem.training.cache import ArrayCache, Cache
from dsmem.training.episodes import Episode, EpisodeFile
from dsmem.training.layouts import Layout, Names
from dsmem.training.lending import Lender
from dsmem.training.monitoring import Monitor, Report
from dsmem.training.pool import Pool
from dsmem.training.reading import FileReader, Readers, Ways
from dsmem.training.sharedcache import SharedCache

Sample = dict[str, Any]
CacheScope = Literal["process", "shared"]
DEFAULT_CACHE_SIZE = 100
_BATCHES_KEPT = 4
"""Of memory for batches made in this process: those that a training loop holds at once."""
_CACHE_SHARE = 4
"""A quarter of the memory that is available when the dataset is made, unless cache_bytes says otherwise."""


class EpisodicDataset(Dataset[Sample]):
    """Map-style over all time steps of all episodes; a sample is a dict:

    `images`: camera → uint8 [height, width, channels], as stored; `state`: float32 [n]; `action`: float32
    [chunk_size, m], the actions from this step on, zeros after the end; `is_pad`: bool [chunk_size], True for those
    zeros; `language_instruction`: str; `episode`, `step`: int. The tensors are copies and yours.

    `use_shared_memory`: the files are pinned now, once a machine (`preload_critical_data`: where not all fits, actions
    and states of all first, then whole files, and the first frames of the rest into the cache). `cache_size`, also
    `memory_map_cache_size`: how many files that are not pinned are kept open, with what was decoded of them.
    `cache_bytes`: the ceiling of the cache of decoded chunks and frames, of all workers of this process together.
    `cache_scope`: "process", a cache in each; "shared", one in shared memory for all processes of this machine that
    read the same files with the same `cache_bytes`, workers and ranks: each frame is decoded and held once. Forked
    children that first read when all others have left it begin another one, together.
    `memory_limit`: of shared memory and cache together. Sizes: bytes, or '4GiB'. `cleanup_on_exit`: the objects are
    removed when the last process that holds them ends. `layout`: see `layouts.layout_of`; `mask`: robomimic's.

    Raises BrokenEpisodes, which names every file and episode that can't be read, and UsageError. Works with forked and
    spawned workers.
    """

    _readers: Readers | None
    """What this process reads with; None until it does."""
    lender: Lender | None = None
    """Memory for batches; set in the workers of a loader that gives it back."""

    def __init__(
        self,
        dataset_path_list: Sequence[str | os.PathLike[str]],
        camera_names: Sequence[str],
        use_shared_memory: bool = True,
        cache_size: int | None = None,
        enable_monitoring: bool = False,
        *,
        chunk_size: int = 100,
        preload_critical_data: bool = True,
        memory_mapping: bool = True,
        memory_map_cache_size: int | None = None,
        cache_bytes: int | str | None = None,
        cache_scope: CacheScope = "process",
        memory_limit: int | str | None = None,
        cleanup_on_exit: bool = False,
        layout: Layout | str | Mapping[str, Names] | None = None,
        mask: str | None = None,
        language_instruction: str | None = None,
        transform: Callable[[Sample], Any] | None = None,
        progress: placing.Progress | None = None,
    ) -> None:
        if isinstance(dataset_path_list, str | os.PathLike) or not dataset_path_list:
            raise UsageError("dataset_path_list is a list of at least one path")
        if isinstance(camera_names, str):
            raise UsageError("camera_names is a list of names")
        if cache_size is not None and memory_map_cache_size is not None and cache_size != memory_map_cache_size:
            raise UsageError(f"{cache_size=} and {memory_map_cache_size=} are the same thing: give one")
        items = next((one for one in (cache_size, memory_map_cache_size) if one is not None), DEFAULT_CACHE_SIZE)
        if items < 0 or chunk_size < 1:
            raise UsageError(f"cache_size={items}, {chunk_size=}: at least 0 and 1")
        if cache_scope not in get_args(CacheScope):
            raise UsageError(f"{cache_scope=} means nothing; it is one of {', '.join(get_args(CacheScope))}")
        limit_bytes, asked_bytes = _bytes(memory_limit), _bytes(cache_bytes)
        self.camera_names = tuple(camera_names)
        self.chunk_size = chunk_size
        self.transform = transform
        self._language = language_instruction
        self._files = episodes.survey(dataset_path_list, self.camera_names, layout=layouts.layout_of(layout), mask=mask)
        self._episodes = [(number, one) for number, file in enumerate(self._files) for one in file.episodes]
        self._ends = np.cumsum([one.steps for _, one in self._episodes])
        self._monitor = Monitor(enabled=enable_monitoring)
        self._ways = Ways(use_shared_memory, memory_mapping, items)
        placed = placing.Placed()
        if use_shared_memory:
            placed = placing.place(
                self._files, memory_limit=limit_bytes, critical=preload_critical_data, progress=progress
            )
        for _ in placed.failures:
            self._monitor.failed("pinned")
        self._placed = placed
        self._cache_bytes = _ceiling(asked_bytes, limit_bytes, placed) if items else 0
        self._cache_tag: bytes | None = None
        if cache_scope == "shared" and self._cache_bytes:
            self._cache_tag = sharedcache.tag_of([one.path for one in self._files], asked_bytes=asked_bytes)
        self._starting = threading.Lock()
        readers = self._start(None)
        if use_shared_memory and preload_critical_data:
            self._warm_first_frames(readers)
        if cleanup_on_exit:
            # After the workers: multiprocessing ends what is left of them before it comes to negative priorities.
            Finalize(self, _let_go, (readers, placed.objects), exitpriority=-10)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Any:
        return self._sample(*self._place(index))

    def __getitems__(self, indices: Sequence[int]) -> Samples:
        """The samples of a batch, in its order; they are read in the order in which they lie in the files."""
        places = [self._place(index) for index in indices]
        readers = self._here()
        samples = Samples([None] * len(places), self.lender, self._pool)
        order = sorted(range(len(places)), key=places.__getitem__)
        for turn, where in enumerate(order):
            if readers.decodes:  # the disk reads for the next sample while this one is decoded
                for after in order[turn and turn + 1 : turn + 2]:
                    self._ask(readers, *places[after])
            samples[where] = self._sample(*places[where], samples.row(where))
        return samples

    def get_language_instruction(self) -> str:
        """What the task of the episode being read (`self.episode`) is; override it, or give language_instruction=."""
        if self._language is not None:
            return self._language
        return self.episode.language

    @property
    def episode(self) -> Episode:
        """The episode that this thread makes a sample of; for the hooks."""
        return self._episodes[self._number()][1]

    def _number(self) -> int:
        number: int | None = getattr(self._local, "number", None)
        if number is None:
            raise UsageError("no sample is being made: `episode` is for the hooks")
        return number

    def _fallback_load_onestep(self, dataset_path: str, start_ts: int) -> Any:
        """The sample at a step of a file, counted over all its episodes, when all else has failed; override it.

        This one opens the file with h5py and reads that step alone.
        """
        file = next(one for one in self._files if one.path == dataset_path)
        episode, step = file.episode_at(start_ts)
        with opening.translated(dataset_path), h5py.File(dataset_path, "r") as opened:

            def rows(path: str, start: int, stop: int) -> Any:
                return opened[path][start:stop]

            def frame(path: str, at: int) -> Any:
                data = opened[path][at]
                return images.decoded(np.asarray(data), dataset_path) if file.stored[path].is_encoded else data

            return self._built(episode, step, rows, frame)

    def clear_cache(self) -> None:
        """Let go of the decoded chunks and frames, of a shared cache those of all; objects stay, files stay open."""
        self._here().cache.clear()
        self._pool.clear()

    def performance_report(self) -> Report:
        """What came from where, all workers together; see `monitoring.Report`. Latencies with enable_monitoring."""
        readers = self._here()
        self._note_cache(readers)
        failures = tuple(f"pinned: {path}: {reason}" for path, reason in self._placed.failures.items())
        shared = readers.cache.state if isinstance(readers.cache, SharedCache) else None
        return self._monitor.report(shared, failures + readers.reasons)

    def get_performance_report(self) -> dict[str, Any]:
        """The same as a dict of plain values, as `json.dumps` takes it."""
        return dataclasses.asdict(self.performance_report())

    def print_performance_report(self) -> None:
        """Print it on stdout: reads, bytes, p50 and p99 by source, the cache, and the memory (PSS) of each process."""
        print("\n".join(monitoring.lines(self.performance_report())))  # noqa: T201 - it is what its name says

    @property
    def files(self) -> tuple[EpisodeFile, ...]:
        """What the dataset is made of."""
        return self._files

    @property
    def pinned_objects(self) -> tuple[str, ...]:
        """Names of the objects in the store that it reads."""
        return self._placed.objects

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_readers", "_inherited", "_local", "_starting", "_pool"):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # It starts with the first sample: a spawned worker does not know its number before.
        self._pid = 0
        self._readers = None
        self._starting = threading.Lock()

    def _start(self, inherited: Readers | None) -> Readers:
        """Begin to read in this process. What a fork inherited is kept and left alone: its handles are the parent's."""
        info = get_worker_info()
        shares = 1 if info is None else max(info.num_workers, 1)
        self._monitor.enter(None if info is None else info.id)
        cache, without = self._cache(inherited, shares)
        self._local = threading.local()
        self._pool = Pool(_BATCHES_KEPT * len(self.camera_names))
        self._inherited: list[Readers] = [*getattr(self, "_inherited", ()), *([inherited] if inherited else [])]
        readers = Readers(self._files, self._ways, cache, self._monitor, self._placed.parts)
        if without is not None:
            readers.passed_over("cache", "shared memory", without)
        self._readers = readers
        self._reads = 0
        self._pid = os.getpid()
        return readers

    def _cache(self, inherited: Readers | None, shares: int) -> tuple[Cache, Exception | None]:
        """The cache of this process, and why it is not the shared one that was asked for."""
        try:
            if inherited is not None:
                try:
                    return inherited.cache.forked(shares), None
                except (OSError, ValueError):  # all others have left it: who comes now begins another, together
                    if self._cache_tag is None:
                        raise
            if self._cache_tag is not None:
                return SharedCache.obtain(self._cache_tag, self._cache_bytes), None
        except (DsmemError, OSError, ValueError) as exc:
            return ArrayCache(self._cache_bytes // shares), exc
        return ArrayCache(self._cache_bytes // shares), None

    def _here(self) -> Readers:
        readers = self._readers
        if readers is not None and self._pid == os.getpid():
            return readers
        with self._starting:  # forked from the main thread, which did not hold it
            if self._readers is not None and self._pid == os.getpid():
                return self._readers
            return self._start(self._readers)

    def _place(self, index: int) -> tuple[int, int]:
        """(number of the episode, step in it) of a step of the whole."""
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"step {place} of {len(self)}")
        place %= len(self)
        number = int(np.searchsorted(self._ends, place, side="right"))
        return number, place - (int(self._ends[number - 1]) if number else 0)

    def _sample(self, number: int, step: int, row: Row | None = None) -> Any:
        readers = self._here()
        file_number, episode = self._episodes[number]
        file = self._files[file_number]
        self._local.number = number
        try:
            reader: FileReader = readers.file(file_number)
            sample = self._built(episode, step, reader.rows, reader.frame, row)
        except (BadSource, OSError, MemoryError) as exc:
            readers.passed_over("fallback", file.path, exc)
            began = time.perf_counter()
            sample = self._fallback_load_onestep(file.path, episode.first_step + step)
            self._monitor.count("fallback", 0, time.perf_counter() - began)
        finally:
            self._local.number = None
        self._reads += 1
        if self._reads % 64 == 1:
            self._note_cache(readers)
        return sample if self.transform is None else self.transform(sample)

    def _ask(self, readers: Readers, number: int, step: int) -> None:
        file_number, episode = self._episodes[number]
        for _, path in episode.images:
            readers.file(file_number).ask(path, step)

    def _built(
        self,
        episode: Episode,
        step: int,
        rows: Callable[[str, int, int], Any],
        frame: Callable[[str, int], Any],
        row: Row | None = None,
    ) -> Sample:
        place = (row if self.transform is None else None) or Row({}, 0, 1)
        stop = min(step + self.chunk_size, episode.steps)
        taken = np.asarray(rows(episode.action, step, stop), np.float32).reshape(stop - step, -1)
        action = np.zeros((self.chunk_size, taken.shape[1]), np.float32)
        action[: len(taken)] = taken
        is_pad = np.arange(self.chunk_size) >= len(taken)
        state = [np.asarray(rows(path, step, step + 1), np.float32).reshape(-1) for path in episode.state]
        return {
            "images": {camera: place.filled(camera, frame(path, step)) for camera, path in episode.images},
            "state": torch.from_numpy(np.concatenate(state)),
            "action": torch.from_numpy(action),
            "is_pad": torch.from_numpy(is_pad),
            "language_instruction": self.get_language_instruction(),
            "episode": self._number(),
            "step": step,
        }

    def _note_cache(self, readers: Readers) -> None:
        state = readers.cache.state
        self._monitor.note_cache(state.size_bytes, state.limit_bytes)

    def _warm_first_frames(self, readers: Readers) -> None:
        """The first frames of files that are not pinned whole, as long as a quarter of the cache takes them."""
        cache = readers.cache
        for number, file in enumerate(self._files):
            for episode in file.episodes:
                if cache.state.size_bytes > cache.state.limit_bytes // 4:
                    return
                reader = readers.file(number)
                if reader.is_pinned and file.path not in self._placed.parts:
                    break
                for _, path in episode.images:
                    try:
                        reader.frame(path, 0)
                    except BadSource as exc:
                        readers.passed_over("decoded", file.path, exc)


def _bytes(given: int | str | None) -> int | None:
    size = units.parse_bytes(given) if isinstance(given, str) else given
    if size is not None and size < 0:
        raise UsageError(f"{size} bytes can't be meant")
    return size


def _ceiling(given: int | None, limit: int | None, placed: placing.Placed) -> int:
    """What the cache may hold: as told, else a share of what is available, never over the limit of all."""
    free = [proc.memory().available_bytes, *(group.free_bytes for group in proc.cgroup_memory())]
    ceiling = min(free) // _CACHE_SHARE if given is None else given
    return ceiling if limit is None else min(ceiling, max(limit - placed.size_bytes, 0))


def _let_go(readers: Readers, names: Sequence[str]) -> None:
    """Drop this process's leases and remove what nobody holds then. Finalize calls it in no forked child."""
    readers.close()
    placing.remove(names)


OptimizedEpisodicDataset = EpisodicDataset
OptimizedDataset = EpisodicDataset
