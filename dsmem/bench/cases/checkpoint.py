"""Reading a warm checkpoint of torch.distributed.checkpoint: `read_data` alone, planned beforehand by torch's planner.

The stock reader stands twice, with torch's threads and without (OMP_NUM_THREADS=1). The limit reads the same files with
a thread for each CPU, straight into the memory of the tensors, and understands nothing of them.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsmem import units
from dsmem.bench import limits, recipes, sources
from dsmem.bench.harness import Comparison, Contender
from dsmem.bench.results import Role
from dsmem.bench.sizes import Need
from dsmem.bench.workbench import Case, Effort, Workbench

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

FILES = (1, 4, 8, 16)
SMALL_BYTES = 4096
_MOST_SMALL = 20_000
_PER_SMALL_BYTES = 1 << 16
"""A small tensor for so many bytes of the run: the stock reader takes 0.2 ms for each."""
_LARGE_BYTES = 16 << 20
_FEWEST = 16


@dataclass(frozen=True, slots=True)
class _Kind:
    title: str
    files: int
    tensors: int
    tensor_bytes: int


def compare(bench: Workbench) -> Generator[Comparison]:
    """A comparison for each number of files, and one of many small tensors."""
    size_bytes = bench.size_bytes // 2
    large = max(_FEWEST, size_bytes // _LARGE_BYTES)
    each = max(SMALL_BYTES, size_bytes // large // SMALL_BYTES * SMALL_BYTES)
    kinds = [_Kind(f"{files} file{'s' if files > 1 else ''}", files, large, each) for files in FILES]
    small = max(_FEWEST, min(_MOST_SMALL, size_bytes // _PER_SMALL_BYTES))
    kinds.append(_Kind(f"{small} tensors of {units.format_bytes(SMALL_BYTES)}", 1, small, SMALL_BYTES))
    for kind in kinds:
        path = bench.new_file(f"checkpoint-{kind.files}-{kind.tensors}")
        try:
            yield _comparison(path, kind)
        finally:
            shutil.rmtree(path, ignore_errors=True)


def _comparison(path: Path, kind: _Kind) -> Comparison:
    import torch
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    from dsmem.checkpoint import ParallelFileSystemReader

    state = _make(path, kind)
    size_bytes = kind.tensors * kind.tensor_bytes
    expected = {"": sources.content_digest({name: tensor.numpy() for name, tensor in state.items()})}

    def one_thread(read: Any) -> Tensors:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return _run(read)
        finally:
            torch.set_num_threads(before)

    def contender(name: str, role: Role, reader: Any, run: Callable[[Any], Tensors] = _run) -> Contender:
        @contextmanager
        def around() -> Iterator[Callable[[], Tensors]]:
            for tensor in state.values():
                tensor.zero_()  # what an earlier contender read is no result of this one
            yield recipes.planned_read(reader(path), state)

        return Contender(name, role, run, answer=_digest, around=around)

    return Comparison(
        f"{kind.title}, {units.format_bytes(size_bytes)}, warm",
        size_bytes,
        [
            contender("ParallelFileSystemReader", "dsmem", ParallelFileSystemReader),
            contender("FileSystemReader", "recipe", FileSystemReader),
            contender("the same, OMP_NUM_THREADS=1", "recipe", FileSystemReader, one_thread),
            Contender("pread into the tensors, threads", "limit", lambda _: limits.read_into(path, _addresses(state))),
        ],
        expected=expected,
    )


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
    need=Need(memory=2.0, shared=0.1, files=1.6),
    effort=Effort(md5=0, fill=1, copy=30, fixed_s=3.0),
    takes_file=False,
)
