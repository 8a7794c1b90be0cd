"""Reading checkpoints. Of torch.distributed.checkpoint: `read_data` alone, planned beforehand by torch's planner.

The stock reader makes a tensor of each item before it copies it. Whether malloc has memory for it that is there already
depends on what the process did before, and doubles its speed or not: it stands there both ways, and ratios refer to the
faster one; also without torch's threads (OMP_NUM_THREADS=1). The limit reads the same files with a thread for each CPU,
straight into the memory of the tensors, and understands nothing of them.
"""

from __future__ import annotations

import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsmem import proc, residency, units
from dsmem.bench import heap, limits, recipes, sources
from dsmem.bench.cases import weights
from dsmem.bench.harness import Comparison, Contender, measure
from dsmem.bench.results import Compared, Measured
from dsmem.bench.sizes import Need
from dsmem.bench.workbench import Case, Effort, Workbench

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

FILES = (1, 4, 8, 16)
WORKERS = (1, 2, 4, 8)
CPUS = (1, 2, 4, 8)
"""Measured as far as the machine has them, else predicted."""
SMALL_BYTES = 4096
_MOST_SMALL = 20_000
_PER_SMALL_BYTES = 1 << 16
"""A small tensor for so many bytes of the run: the stock reader takes 0.2 ms for each."""
_LARGE_BYTES = 16 << 20
_FEWEST = 16
_EVICTIONS, _BETWEEN_S = 20, 0.01


@dataclass(frozen=True, slots=True)
class _Kind:
    title: str
    files: int
    tensors: int
    tensor_bytes: int

    @property
    def size_bytes(self) -> int:
        return self.tensors * self.tensor_bytes


def compare(bench: Workbench) -> Generator[Comparison | Compared]:
    """By number of files and workers; small tensors; a small file; CPUs; a cold disk; other formats."""
    size_bytes = bench.size_bytes // 2
    large = max(_FEWEST, size_bytes // _LARGE_BYTES)
    each = max(SMALL_BYTES, size_bytes // large // SMALL_BYTES * SMALL_BYTES)
    for files in FILES:
        kind = _Kind(f"{files} file{'s' if files > 1 else ''}", files, large, each)
        with _made(bench, kind) as subject:
            yield subject.comparison("warm", workers=WORKERS)
            if files == 4:
                cold = subject.cold(bench)
                if cold is not None:
                    yield cold
            if files == FILES[-1]:
                yield subject.cpus(bench)
    small = max(_FEWEST, min(_MOST_SMALL, size_bytes // _PER_SMALL_BYTES))
    for kind in (
        _Kind(f"{small} tensors of {units.format_bytes(SMALL_BYTES)}", 1, small, SMALL_BYTES),
        _Kind("1 file", 1, 16, 1 << 16),
    ):
        with _made(bench, kind) as subject:
            yield subject.comparison("warm")
    yield from weights.compare(bench, size_bytes, bench.peers_of("ckpt"))


@contextmanager
def _made(bench: Workbench, kind: _Kind) -> Iterator[_Subject]:
    path = bench.new_file(f"checkpoint-{kind.files}-{kind.tensors}")
    try:
        yield _Subject(path, kind)
    finally:
        shutil.rmtree(path, ignore_errors=True)


class _Subject:
    """A checkpoint that was made, and ways to read it into the memory of the tensors that it was made of."""

    def __init__(self, path: Path, kind: _Kind) -> None:
        self.path = path
        self.kind = kind
        self.state = _make(path, kind)
        self.expected = {"": _digest(self.state)}

    def comparison(self, how: str, *, workers: Sequence[int] = ()) -> Comparison:
        """By default, and by so many workers."""
        contenders = [self.ours("ParallelFileSystemReader")]
        contenders += [self.ours(f"workers={number}", workers=number) for number in workers]
        contenders += [
            self.stock("FileSystemReader"),
            self.stock("the same, OMP_NUM_THREADS=1", threads=1),
            self.stock("the same, new memory for each tensor", memory=heap.given_back),
        ]
        contenders.append(self.limit("pread into the tensors, threads"))
        return self._comparison(how, contenders)

    def cpus(self, bench: Workbench) -> Compared:
        """By the number of CPUs: what this machine has not, as Amdahl's law has it from what was measured."""
        there = sorted(os.sched_getaffinity(0))[: proc.usable_cpus()]
        counts = [count for count in CPUS if count <= len(there)]
        contenders = [self.ours(_cpus(count), on=there[:count], workers=count if count > 1 else 1) for count in counts]
        contenders += [
            self.stock("FileSystemReader, OMP_NUM_THREADS=1", threads=1),
            self.limit("pread into the tensors, threads"),
        ]
        compared = measure(self._comparison("warm, by CPUs", contenders), runs=bench.runs)
        return with_predictions(compared, counts, [count for count in CPUS if count > len(there)])

    def cold(self, bench: Workbench) -> Comparison | None:
        """From the disk, where the page cache can be emptied."""
        if not self._evicted():
            bench.note("ckpt: cold reads are left out, the files lie in memory")
            return None
        contenders = [
            self.ours("ParallelFileSystemReader", cold=True),
            self.stock("FileSystemReader", cold=True),
            self.limit("pread into the tensors, threads", cold=True),
            Contender(
                "read 1 MiB at a time, one thread", "limit", self._read_all, around=self._around(None, cold=True)
            ),
        ]
        return self._comparison("cold (posix_fadvise DONTNEED)", contenders)

    def _comparison(self, how: str, contenders: Sequence[Contender]) -> Comparison:
        title = f"{self.kind.title}, {units.format_bytes(self.kind.size_bytes)}, {how}"
        return Comparison(title, self.kind.size_bytes, contenders, expected=self.expected)

    def ours(self, name: str, *, on: Sequence[int] | None = None, cold: bool = False, **options: Any) -> Contender:
        from dsmem.checkpoint import ParallelFileSystemReader

        around = self._around(lambda path: ParallelFileSystemReader(path, **options), on=on, cold=cold)
        return Contender(name, "dsmem", _run, answer=_digest, around=around)

    def stock(
        self,
        name: str,
        *,
        threads: int | None = None,
        cold: bool = False,
        memory: Callable[[], AbstractContextManager[None]] = heap.kept,
    ) -> Contender:
        from torch.distributed.checkpoint.filesystem import FileSystemReader

        around = self._around(FileSystemReader, threads=threads, cold=cold, memory=memory)
        return Contender(name, "recipe", _run, answer=_digest, around=around)

    def limit(self, name: str, *, cold: bool = False) -> Contender:
        return Contender(
            name,
            "limit",
            lambda _: limits.read_into(self.path, _addresses(self.state)),
            around=self._around(None, cold=cold),
        )

    def _around(
        self,
        reader: Callable[[Path], Any] | None,
        *,
        on: Sequence[int] | None = None,
        threads: int | None = None,
        cold: bool = False,
        memory: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Callable[[], AbstractContextManager[Any]]:
        @contextmanager
        def around() -> Iterator[Any]:
            import torch

            for tensor in self.state.values():
                tensor.zero_()  # what an earlier contender read is no result of this one
            planned = None if reader is None else recipes.planned_read(reader(self.path), self.state)
            cpus, threads_before = os.sched_getaffinity(0), torch.get_num_threads()
            if cold:
                self._evicted()
            try:
                os.sched_setaffinity(0, on or cpus)  # of this thread and of those that it starts
                torch.set_num_threads(threads or threads_before)
                with memory():
                    yield planned
            finally:
                torch.set_num_threads(threads_before)
                os.sched_setaffinity(0, cpus)

        return around

    def _evicted(self) -> bool:
        """Whether the files are out of the page cache now."""
        evicted = [_is_evicted(file) for file in self.path.iterdir()]  # all of them, also after one that stays
        return all(evicted)

    def _read_all(self, _: None) -> None:
        for file in sorted(self.path.iterdir()):
            limits.read_once(file)


def _is_evicted(path: Path) -> bool:
    """Take a file out of the page cache; whether that can be done."""
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        os.fsync(file.fileno())
        for _ in range(_EVICTIONS):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if residency.is_cached(file.fileno(), 0, size_bytes) is False:
                return True
            time.sleep(_BETWEEN_S)  # what is being read, or was just now, can't be dropped
    return False


def _cpus(count: int) -> str:
    return f"{count} CPU{'s' if count > 1 else ''}"


def with_predictions(compared: Compared, measured: Sequence[int], predicted: Sequence[int]) -> Compared:
    """A comparison whose first contenders ran on so many CPUs, with what Amdahl's law makes of more of them.

    The serial part is what the read on the most CPUs took beyond its share of the read on one; memory that two CPUs
    keep busy counts as serial, too.
    """
    if len(measured) < 2:
        return compared
    one_s, most = compared.measured[0].median_s, measured[-1]
    most_s = compared.measured[len(measured) - 1].median_s
    recipe_s = next(one.median_s for one in compared.measured if one.role == "recipe")
    assert one_s is not None and most_s is not None and recipe_s is not None
    serial_s = min(max((most_s - one_s / most) / (1 - 1 / most), 0.0), one_s)
    rows = []
    for count in predicted:
        taken_s = serial_s + (one_s - serial_s) / count
        rows.append(
            Measured(
                name=f"{_cpus(count)}, if {math.ceil(100 * serial_s / one_s)} % is serial",
                role="predicted",
                samples=0,
                median_s=taken_s,
                min_s=None,
                max_s=None,
                median_bytes=None,
                min_bytes=None,
                max_bytes=None,
                bytes_per_s=compared.size_bytes / taken_s,
                ratio_to_recipe=recipe_s / taken_s,
                percent_of_limit=None,
                times_data=None,
                peak_bytes=None,
            )
        )
    return replace(compared, measured=(*compared.measured, *rows))


def _run(read: Callable[[], Tensors]) -> Tensors:
    return read()


def _digest(state: Tensors) -> str:
    return sources.content_digest({name: tensor.numpy() for name, tensor in state.items()})


def _addresses(state: Tensors) -> list[tuple[int, int]]:
    return [(tensor.data_ptr(), tensor.nbytes) for tensor in state.values()]


def _make(path: Path, kind: _Kind) -> Tensors:
    import torch
    from torch.distributed.checkpoint import state_dict_saver
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    generator = torch.Generator().manual_seed(0)
    count = kind.tensor_bytes // 4
    state = {f"layers.{n}.weight": torch.rand(count, generator=generator) for n in range(kind.tensors)}
    writer = FileSystemWriter(path, thread_count=kind.files, sync_files=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is one process, and it is meant
        state_dict_saver.save(state, storage_writer=writer, no_dist=True)
    return state


CASE = Case(
    "ckpt",
    "a checkpoint loads at the speed of the page cache",
    compare,
    need=Need(memory=2.0, shared=0.1, files=1.8),
    effort=Effort(md5=0, fill=3, copy=90, fixed_s=8.0),
    takes_file=False,
    takes_peers=True,
)
