"""Whatever torch saves is read bit for bit as torch's own reader reads it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import DTYPES, Tensors, flip, load, noise, same, save, stock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint._extension import ExtensionRegistry, StreamTransformExtension, ZStandard
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from dsmem.checkpoint import ParallelFileSystemReader, ReadReport, regions, unpickling
from dsmem.checkpoint.opened import Opened
from dsmem.errors import CheckpointReadError

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf")
BIG = (300, 301)


def report_of(reader: ParallelFileSystemReader) -> ReadReport:
    assert reader.last_report is not None
    return reader.last_report


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("workers", [1, 3])
def test_every_dtype(tmp_path: Path, files: int, workers: int) -> None:
    """Small ones are grouped, those of more than 256 KiB go straight; 0-d ones, too."""
    state = {f"{dtype}.{shape}": noise(shape, dtype) for dtype in DTYPES for shape in [(), (3, 5), BIG]}
    path = save(state, tmp_path / "c", files=files)
    reader = ParallelFileSystemReader(path, workers=workers)
    loaded = load({name: torch.zeros_like(tensor) for name, tensor in state.items()}, reader)
    assert all(same(loaded[name], tensor) for name, tensor in state.items())
    report = report_of(reader)
    assert (report.fallback, report.bounced, report.failed, report.why) == (0, 0, 0, {})
    assert report.grouped + report.direct == len(state) and report.direct > 5
    assert report.workers == workers
    assert sum(file.items for file in report.files) == len(state) and len(report.files) == files


def odd_tensors() -> dict[str, Any]:
    big = noise(BIG)
    return {
        "empty": torch.zeros(0, 4),
        "turned": big.t(),
        "every other": big[::2],
        "wide": torch.zeros(1).expand(7, 5),
        "channels last": noise((2, 3, 8, 8)).contiguous(memory_format=torch.channels_last),
        "part of a storage": big[10:20],
        "conjugate": noise((9,), torch.complex64).conj(),
        "parameter": torch.nn.Parameter(noise((4, 4))),
        "number": 3,
        "text": "x" * 1000,
        "nested": {"list": [1, {"lr": 0.1}, noise((3,))]},
    }


@pytest.mark.parametrize("trusted", [False, True])
def test_odd_tensors_and_bytes(tmp_path: Path, trusted: bool) -> None:
    state = odd_tensors()
    path = save(state, tmp_path / "c", files=2)

    def empty() -> dict[str, Any]:
        found: dict[str, Any] = {k: torch.zeros_like(v) for k, v in state.items() if isinstance(v, torch.Tensor)}
        return {**found, "number": 0, "text": "", "nested": {"list": [0, {"lr": 0.0}, torch.zeros(3)]}}

    ours, theirs = load(empty(), ParallelFileSystemReader(path, trusted=trusted, workers=2)), stock(empty(), path)
    for name, value in theirs.items():
        assert same(ours[name], value) if isinstance(value, torch.Tensor) else name == "nested" or ours[name] == value
    assert ours["nested"]["list"][:2] == theirs["nested"]["list"][:2]
    assert same(ours["nested"]["list"][2], theirs["nested"]["list"][2])


@pytest.mark.parametrize("shape", [(5, 7), BIG, (3, 70_000), (2, 3, 100_000)])
def test_destinations_with_strides_and_casts(tmp_path: Path, shape: tuple[int, ...]) -> None:
    state = {name: torch.randn(shape) for name in ("half", "double", "int", "strided", "turned", "bfloat")}
    path = save(state, tmp_path / "c")

    def empty() -> Tensors:
        wider = torch.zeros((*shape[:-1], shape[-1] * 2))
        return {
            "half": torch.zeros(shape, dtype=torch.float16),
            "double": torch.zeros(shape, dtype=torch.float64),
            "int": torch.zeros(shape, dtype=torch.int32),
            "strided": wider[..., ::2],
            "turned": torch.zeros(tuple(reversed(shape))).permute(*reversed(range(len(shape)))),
            "bfloat": torch.zeros(shape, dtype=torch.bfloat16),
        }

    reader = ParallelFileSystemReader(path, workers=2)
    ours, theirs = load(empty(), reader), stock(empty(), path)
    assert all(same(ours[name], value) for name, value in theirs.items())
    assert report_of(reader).bounced == len(state)


class Columns(DefaultLoadPlanner):
    """Asks for boxes of one stored tensor, each with a destination of its own."""

    def __init__(self, boxes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], targets: list[torch.Tensor]) -> None:
        super().__init__()
        self.boxes, self.targets = boxes, targets

    def create_local_plan(self) -> LoadPlan:
        items = []
        for number, (starts, lengths) in enumerate(self.boxes):
            index = MetadataIndex("x", torch.Size([0] * len(starts)), 0)
            dest = MetadataIndex(str(number))
            zeros = torch.Size([0] * len(starts))
            kind = LoadItemType.TENSOR
            items.append(ReadItem(kind, dest, zeros, index, torch.Size(starts), torch.Size(lengths)))
        return LoadPlan(items)

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        return self.targets[int(read_item.dest_index.fqn)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_box_of_any_tensor(tmp_path: Path, data: st.DataObject) -> None:
    """Resharding in one process: boxes across any dimension, as Shard(0) → Shard(1) asks for them."""
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 2, 5, 64, 300, 1000]), min_size=1, max_size=3)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.int8, torch.complex128]))
    number = data.draw(st.integers(0, 10**9))
    boxes = []
    for _ in range(data.draw(st.integers(1, 4))):
        starts = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
        boxes.append(
            (starts, tuple(data.draw(st.integers(1, size - at)) for size, at in zip(shape, starts, strict=True)))
        )
    if torch.Size(shape).numel() > 10_000_000:
        return
    tensor = noise(shape, dtype)
    path = save({"x": tensor}, tmp_path / str(number))
    targets = [torch.zeros(lengths, dtype=dtype) for _, lengths in boxes]
    load({"x": torch.zeros(1)}, ParallelFileSystemReader(path, workers=2), planner=Columns(boxes, targets))
    for (starts, lengths), target in zip(boxes, targets, strict=True):
        assert same(target, regions.narrowed(tensor, starts, lengths))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=4), st.integers(1, 40))
def test_boxes_cover_a_box_once(lengths: list[int], reach: int) -> None:
    grid = torch.zeros(tuple(lengths), dtype=torch.int64)
    stride = tuple(grid.stride())
    for starts, sizes in regions.boxes(tuple(lengths), stride, reach):
        assert 1 + sum((size - 1) * step for size, step in zip(sizes, stride, strict=True)) <= max(reach, 1)
        regions.narrowed(grid, starts, sizes).add_(1)
    assert bool((grid == 1).all())


@pytest.mark.parametrize("io_way", ["auto", "pread", "mmap"])
@pytest.mark.parametrize("verify", ["none", "crc"])
def test_one_large_tensor_is_cut(tmp_path: Path, io_way: Any, verify: Any) -> None:
    state = {"x": noise((70 << 20,), torch.uint8)}
    path = save(state, tmp_path / "c")
    reader = ParallelFileSystemReader(path, workers=3, io=io_way, verify=verify)
    loaded = load({"x": torch.zeros_like(state["x"])}, reader)
    assert same(loaded["x"], state["x"])
    report = report_of(reader)
    assert (report.direct, report.fallback) == (1, 0)
    assert report.size_bytes == 70 << 20
    assert report.verified == (verify == "crc")
    assert io_way == "auto" or report.io == io_way


def test_an_item_of_a_known_kind_takes_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of its dtype and shape is looked at; the others come with what stands around them, which is checked."""
    state = {name: noise((300, 300), seed=seed) for seed, name in enumerate("abcd")}
    path = save(state, tmp_path / "c")
    read = Opened.read
    calls: list[int] = []

    def counted(self: Opened, buffers: list[memoryview], offset: int) -> None:
        calls.append(len(buffers))
        read(self, buffers, offset)

    monkeypatch.setattr(Opened, "read", counted)
    for harmed in (False, True):
        if harmed:  # in what stands before the bytes of c: the name of its first record
            info = {at.fqn: one for at, one in FileSystemReader(path).read_metadata().storage_data.items()}["c"]
            flip(path / info.relative_path, info.offset + 30, 4)
        calls.clear()
        reader = ParallelFileSystemReader(path, workers=1, io="pread")
        zeros = {name: torch.zeros_like(one) for name, one in state.items()}
        try:
            theirs = stock({name: torch.zeros_like(one) for name, one in state.items()}, path)
        except CheckpointException:
            with pytest.raises(CheckpointException):
                load(zeros, reader)
        else:
            loaded = load(zeros, reader)
            assert all(same(loaded[name], one) for name, one in theirs.items())
        report = report_of(reader)
        assert report.direct == (3 if harmed else 4)
        assert calls == [1, 1, 1, 3, 3, 3] if not harmed else calls[:6] == [1, 1, 1, 3, 3, 1]


class Scrambled(StreamTransformExtension):
    """An extension as zstd is one: the stream cannot seek."""

    @staticmethod
    def registry_name() -> str:
        return "scrambled"

    @staticmethod
    def from_descriptor(version: str) -> Scrambled:
        return Scrambled()

    def get_descriptor(self) -> str:
        return "scrambled/1"

    def transform_to(self, output: Any) -> Any:
        class Writer(io.RawIOBase):
            def writable(self) -> bool:
                return True

            def write(self, data: Any) -> int:
                output.write(bytes(byte ^ 0x5A for byte in bytes(data)))
                return len(data)

            def close(self) -> None:
                output.close()

        return Writer()

    def transform_from(self, input: Any) -> Any:
        class Reader(io.RawIOBase):
            def readable(self) -> bool:
                return True

            def seekable(self) -> bool:
                return False

            def read(self, size: int = -1) -> bytes:
                return bytes(byte ^ 0x5A for byte in input.read(size))

        return Reader()


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_extensions(tmp_path: Path, executor: Any) -> None:
    state: dict[str, Any] = {"x": noise((40, 5)), "n": 7, "z": torch.zeros(0)}
    path = save(state, tmp_path / "c", _extensions=[Scrambled()])
    registry = ExtensionRegistry()
    registry.extensions = {"scrambled": Scrambled}
    reader = ParallelFileSystemReader(path, executor=executor, workers=2, _extension_registry=registry)
    loaded: dict[str, Any] = load({"x": torch.zeros(40, 5), "n": 0, "z": torch.zeros(0)}, reader)
    assert same(loaded["x"], state["x"]) and loaded["n"] == 7
    assert report_of(reader).why == {"byte items": 1, "transformed by scrambled/1": 1}


@pytest.mark.parametrize("executor", ["thread", "process"])
@pytest.mark.parametrize("verify", ["none", "crc"])
def test_compressed_by_torchs_own_extension(tmp_path: Path, executor: Any, verify: Any) -> None:
    """The registry that torch makes knows it; a tensor of one value makes what is stored shorter than the tensors."""
    state: dict[str, Any] = {
        "x": noise(BIG),
        "even": torch.full(BIG, 3.5),
        "small": noise((3, 5), torch.bfloat16),
        "n": 7,
    }
    path = save(state, tmp_path / "c", files=2, _extensions=[ZStandard()])
    stored_bytes = sum(file.stat().st_size for file in path.glob("*.distcp"))
    assert stored_bytes < 1.5 * state["x"].nbytes

    def empty() -> dict[str, Any]:
        return {name: torch.zeros_like(one) if isinstance(one, torch.Tensor) else 0 for name, one in state.items()}

    # A process more is seconds more: `test_extensions` has two.
    workers = 1 if executor == "process" else 2
    reader = ParallelFileSystemReader(path, executor=executor, workers=workers, verify=verify)
    ours, theirs = load(empty(), reader), stock(empty(), path)
    assert ours["n"] == theirs["n"] == 7
    assert all(same(ours[name], theirs[name]) and same(ours[name], state[name]) for name in ("x", "even", "small"))
    assert report_of(reader).why == {"byte items": 1, "transformed by stream.zstd/1": 3}


def test_compressed_bytes_that_changed(tmp_path: Path) -> None:
    """A bit of the compressed stream: an error, or by luck the same bytes; never others when checksums are compared."""
    state = {"x": noise((50, 50))}
    path = save(state, tmp_path / "c", _extensions=[ZStandard()])
    (file,) = path.glob("*.distcp")
    whole = file.read_bytes()
    refused = 0
    for at in range(0, len(whole), 211):
        flip(file, at, 1 << at % 8)
        try:
            loaded = load({"x": torch.zeros(50, 50)}, ParallelFileSystemReader(path, verify="crc", workers=1))
        except CheckpointException as exc:
            assert isinstance(exc.failures[0][0], CheckpointReadError)
            refused += 1
        else:
            assert same(loaded["x"], state["x"]), at
        file.write_bytes(whole)
    assert refused > 20


def test_contiguity_is_told_as_torch_tells_it() -> None:
    for tensor in (torch.zeros(3, 4), torch.zeros(3, 4).t(), torch.zeros(3, 1, 4)[:, :, ::2], torch.zeros(2, 0, 3)):
        stored = unpickling.Stored("0", 4, torch.float32, tuple(tensor.shape), tensor.stride(), 0)
        assert stored.contiguous == tensor.is_contiguous()
