"""The reader's own features: hooks, aliases, progress, mixin, choices, other processes, ranks."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import children
import pytest
import torch
from checkpoints import Tensors, load, noise, same, save
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader
from torch.distributed.checkpoint.storage import StorageReader

from dsmem.checkpoint import ParallelFileReader, ParallelFileSystemReader, ParallelReadMixin, workers
from dsmem.errors import CheckpointReadError, UsageError


def state() -> Tensors:
    return {f"x{number}": noise((9, number + 1), seed=number) for number in range(6)}


def zeros() -> Tensors:
    return {name: torch.zeros_like(tensor) for name, tensor in state().items()}


def check(loaded: dict[str, Any]) -> None:
    assert all(same(loaded[name], tensor) for name, tensor in state().items())


class Sliced(ParallelFileSystemReader):
    """Counts its slices, and so does without the direct path."""

    count = 0

    def slice_file(self, stream: Any, item_metadata: Any) -> Any:
        self.count += 1
        return super().slice_file(stream, item_metadata)


class Narrowed(ParallelFileSystemReader):
    def narrow_tensor(self, tensor: torch.Tensor, offsets: Any, lengths: Any) -> torch.Tensor:
        return super().narrow_tensor(tensor, offsets, lengths) + 1


class Transformed(ParallelFileSystemReader):
    def transform(self, read_item: Any, descriptors: Any, stream: Any) -> Any:
        assert list(descriptors) == []
        return super().transform(read_item, descriptors, stream)


class OlderHook(ParallelFileSystemReader):
    """Replaces the step by torch's own name for it."""

    count = 0

    def _slice_file(self, file: Any, sinfo: Any) -> Any:
        self.count += 1
        return super()._slice_file(file, sinfo)


def test_hooks_are_used_and_told(tmp_path: Path) -> None:
    path = save(state(), tmp_path / "c", files=2)
    sliced = Sliced(path, workers=2)
    check(load(zeros(), sliced))
    older = OlderHook(path, workers=2)
    check(load(zeros(), older))
    assert sliced.count == older.count == 6
    assert sliced.last_report is not None and sliced.last_report.why == {"slice_file overridden": 6}
    check(load(zeros(), Transformed(path)))
    ones = load({"x0": torch.zeros(9, 1)}, Narrowed(path))
    assert same(ones["x0"], state()["x0"] + 1)


def test_in_other_processes(tmp_path: Path) -> None:
    path = save(state(), tmp_path / "c")
    reader = Narrowed(path, executor="process", workers=1)
    assert all(same(tensor, state()[name] + 1) for name, tensor in load(zeros(), reader).items())
    assert reader.last_report is not None and reader.last_report.fallback == 6


def test_what_other_processes_cannot_be_given_is_named(tmp_path: Path) -> None:
    path = save(state(), tmp_path / "c")
    into = zeros()
    progress = ParallelFileSystemReader(path, executor="process", progress=lambda current, total: None)
    hook = ParallelFileSystemReader(path, executor="process")
    hook.slice_file = lambda stream, item_metadata: stream  # type: ignore[method-assign]
    for reader, name in ((progress, "progress_callback"), (hook, "slice_file")):
        with pytest.raises(BaseException, match=f"{name} can't be sent to another process"):
            load(into, reader)
    assert not any(tensor.any() for tensor in into.values())


def test_progress_in_files(tmp_path: Path) -> None:
    path = save(state(), tmp_path / "c", files=3)
    seen: list[tuple[int, int]] = []
    check(load(zeros(), ParallelFileSystemReader(path, workers=2, progress=lambda *at: seen.append(at))))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    reader = ParallelFileSystemReader(path)
    given: list[tuple[int, int]] = []

    class WithCallback(ParallelFileSystemReader):
        def read_data(self, plan: Any, planner: Any) -> Any:
            return self.read_data_with_progress(plan, planner, lambda *at: given.append(at))

    check(load(zeros(), WithCallback(path)))
    assert given[-1] == (3, 3) and reader.last_report is None


def test_stands_wherever_the_stock_reader_stands(tmp_path: Path) -> None:
    """torch's loader looks at the names in the signatures."""
    path = save(state(), tmp_path / "c")
    assert "kwargs" in inspect.signature(ParallelFileSystemReader.read_metadata).parameters
    assert "kwargs" in inspect.signature(ParallelFileSystemReader.set_up_storage_reader).parameters
    reader = ParallelFileSystemReader(tmp_path / "elsewhere")
    assert isinstance(reader, FileSystemReader) and isinstance(reader, StorageReader)
    check(load(zeros(), reader, checkpoint_id=path))
    assert reader.checkpoint_id == path
    check(load(zeros(), ParallelFileSystemReader(str(path))))


def test_older_names(tmp_path: Path) -> None:
    path = save(state(), tmp_path / "c")
    reader = ParallelFileReader(path, enable_parallel=True, max_workers=2)
    check(load(zeros(), reader))
    assert reader.last_report is not None and reader.last_report.workers == 2
    off = ParallelFileReader(path, enable_parallel=False, max_workers=8)
    check(load(zeros(), off))
    assert off.last_report is not None and off.last_report.workers == 1


class Mixed(ParallelReadMixin, FsspecReader):
    """A reader of a file system that is not torch's."""


class Noting(FileSystem):
    """A file system of another kind: only its streams may be used."""


def test_mixin(tmp_path: Path) -> None:
    path = save(state(), tmp_path / "c", files=2)
    mixed = Mixed(str(path))
    check(load(zeros(), mixed))
    assert mixed.last_report is not None and mixed.last_report.why == {"a file system of FileSystem": 6}
    other = ParallelFileSystemReader(path)
    other.fs = Noting()
    check(load(zeros(), other))
    assert other.last_report is not None and other.last_report.why == {"a file system of Noting": 6}


def test_memory_budget_makes_waves(tmp_path: Path) -> None:
    path = save(state(), tmp_path / "c")
    check(load(zeros(), ParallelFileSystemReader(path, memory_budget=4000)))


@pytest.mark.parametrize("io_way", ["pread", "mmap"])
def test_little_memory_beside_the_tensors(tmp_path: Path, io_way: Any) -> None:
    """The kernel's own mark of the highest use, pages of maps too: less than 64 MiB for 192 MiB of tensors."""
    wide = {f"w{number}": torch.zeros(48 << 18) for number in range(3)}
    state = {**wide, **{f"s{number}": torch.zeros(1 << 14) for number in range(768)}}
    path = save(state, tmp_path / "c", files=4)

    def extra_bytes() -> int:
        torch.set_num_threads(1)  # threads of OpenMP do not outlive a fork
        for tensor in state.values():
            tensor.fill_(1)
        reader = ParallelFileSystemReader(path, workers=2, io=io_way)
        load({"w0": state["w0"]}, reader)  # what is imported and made once
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_bytes("VmRSS")
        load(state, reader)
        assert not any(bool(tensor.any()) for tensor in state.values())
        return _status_bytes("VmHWM") - before

    assert children.call(extra_bytes) < 64 << 20


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def test_choices() -> None:
    def choose(asked: Any, size_bytes: int, **more: Any) -> int:
        options = {"largest_copy_bytes": 0, "budget_bytes": 1 << 40, "sequential_below": 32 << 20, "network": False}
        return workers.choose(asked, size_bytes, **{**options, **more}).workers

    assert choose("auto", 1 << 20) == 1
    assert choose("auto", 100 << 30, parallel=False) == 1
    assert choose(5, 1) == 5
    assert choose("auto", 100 << 30, budget_bytes=1) == 1
    assert choose("auto", 100 << 30, network=True) > choose("auto", 100 << 30) >= 1


@pytest.mark.parametrize(
    "options",
    [{"workers": 0}, {"workers": "many"}, {"io": "dma"}, {"executor": "ray"}, {"verify": 1}, {"memory_budget": 0}],
)
def test_options_that_mean_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ParallelFileSystemReader(tmp_path, **options)


def _rank(number: int, count: int, path: str, saves: bool) -> None:
    """One of so many: they save by rows, or load by columns, and lack a file then."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    full = torch.arange(24 * 40, dtype=torch.float32).reshape(24, 40)
    dist.init_process_group("gloo", init_method=f"file://{path}.{count}.{saves}", rank=number, world_size=count)
    mesh = init_device_mesh("cpu", (count,))
    if saves:
        state_dict_saver.save({"x": distribute_tensor(full, mesh, [Shard(0)])}, checkpoint_id=path)
    else:
        into: dict[str, Any] = {"x": distribute_tensor(torch.zeros_like(full), mesh, [Shard(1)])}
        reader = ParallelFileSystemReader(path)
        state_dict_loader.load(into, storage_reader=reader)
        assert torch.equal(into["x"].full_tensor(), full)
        assert reader.last_report is not None and reader.last_report.fallback == 0
        if number == 3:
            os.unlink(os.path.join(path, "__1_0.distcp"))
        dist.barrier()
        with pytest.raises(CheckpointException) as caught:
            state_dict_loader.load(into, storage_reader=ParallelFileSystemReader(path))
        failures = caught.value.failures
        assert set(failures) == set(range(count))
        for error, _ in failures.values():
            assert isinstance(error, CheckpointReadError) and error.failures[0].file == "__1_0.distcp"
    dist.destroy_process_group()


@pytest.mark.slow
def test_four_ranks_to_eight(tmp_path: Path) -> None:
    """Shard(0) on 4 ranks, Shard(1) on 8; an error on every rank reaches every rank."""

    def run() -> None:
        import torch.distributed.tensor  # noqa: F401 - once, for all ranks

        for count, saves in ((4, True), (8, False)):
            ranks: list[Callable[[], None]] = [
                partial(_rank, number, count, str(tmp_path / "c"), saves) for number in range(count)
            ]
            with children.all_started(ranks, own_groups=False) as running:
                for one in running:
                    one.result()

    children.call(run, timeout_s=200)
