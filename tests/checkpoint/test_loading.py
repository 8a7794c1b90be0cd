"""`load` and `contents` over every format: what torch and safetensors themselves give, and damage told."""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoints import DTYPES, Evil, Tensors, flip, noise, same, save

from dsmem import checkpoint, proc
from dsmem.arrays import memory
from dsmem.checkpoint import ReadReport
from dsmem.errors import Ambiguous, BadSource, CheckpointReadError, SourceMissing, UntrustedPickle

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf")
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (?:.*\n)+?VmFlags: (.*)$", re.MULTILINE)
SAFE = [dtype for dtype in DTYPES if dtype not in (torch.complex32, torch.complex128)]


def tensors() -> Tensors:
    some = {f"{dtype}.{len(shape)}": noise(shape, dtype) for dtype in SAFE for shape in [(), (3, 5)]}
    return {**some, "empty": torch.zeros(0, 3), "large": noise((3000, 1001))}


def sharded(directory: Path, state: Tensors, ending: str = "safetensors") -> Path:
    directory.mkdir()
    names = sorted(state)
    weight_map: dict[str, str] = {}
    for number in range(3):
        part = {name: state[name] for name in names[number::3]}
        file = f"model-{number + 1:05}-of-00003.{ending}"
        safetensors.torch.save_file(part, directory / file) if ending == "safetensors" else torch.save(
            part, directory / file
        )
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    stem = "model.safetensors" if ending == "safetensors" else "pytorch_model.bin"
    (directory / f"{stem}.index.json").write_text(json.dumps(index))
    return directory


def made(kind: str, tmp_path: Path, state: Tensors) -> Path:
    match kind:
        case "dcp":
            return save(state, tmp_path / "c", files=2)
        case "safetensors":
            safetensors.torch.save_file(state, tmp_path / "m.safetensors")
            return tmp_path / "m.safetensors"
        case "sharded":
            return sharded(tmp_path / "s", state)
        case "sharded bin":
            return sharded(tmp_path / "b", state, "bin")
        case _:
            legacy = {"_use_new_zipfile_serialization": False} if kind == "legacy" else {}
            torch.save(state, tmp_path / "m.pt", **legacy)
            return tmp_path / "m.pt"


KINDS = ["dcp", "safetensors", "sharded", "sharded bin", "pt", "legacy"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verify", ["none", "crc"])
def test_every_format(tmp_path: Path, kind: str, verify: Any) -> None:
    state = tensors()
    if kind == "legacy":  # which does not know the newer dtypes
        state = {name: tensor for name, tensor in state.items() if "float8" not in name and "uint" not in name}
    path = made(kind, tmp_path, state)
    seen: list[tuple[int, int]] = []
    reports: list[ReadReport] = []
    loaded = checkpoint.load(
        path, workers=2, verify=verify, progress=lambda *at: seen.append(at), report=reports.append
    )
    assert loaded.keys() == state.keys()
    assert all(same(loaded[name], tensor) for name, tensor in state.items())
    assert seen[-1][0] == seen[-1][1] > 0
    (report,) = reports
    assert report.direct + report.grouped + report.bounced + report.fallback == len(state)
    assert report.size_bytes >= sum(tensor.nbytes for tensor in state.values())
    some = checkpoint.load(str(path), only=["large", "*bool*"])
    assert set(some) == {"large", "torch.bool.0", "torch.bool.2"} and same(some["large"], state["large"])


@pytest.mark.parametrize("kind", KINDS)
def test_progress_moves(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """File by file, and within a large one by bytes."""
    monkeypatch.setattr("dsmem.checkpoint.extents.PIECE_BYTES", 1 << 20)
    state = {f"x{number}": noise((700, 500), seed=number) for number in range(9)}
    path = made(kind, tmp_path, state)
    files: list[tuple[int, int]] = []
    sizes: list[tuple[int, int]] = []
    checkpoint.load(path, workers=1, progress=lambda *at: files.append(at), bytes_progress=lambda *at: sizes.append(at))
    count = {"dcp": 2, "sharded": 3, "sharded bin": 3}.get(kind, 1)
    assert files == [(done, count) for done in range(count + 1)]
    if kind != "legacy":  # which torch loads in one piece
        total = sum(tensor.nbytes for tensor in state.values())
        assert {one[1] for one in sizes} == {total} and sizes[-1][0] == total
        assert [one[0] for one in sizes] == sorted({one[0] for one in sizes}) and len(sizes) >= 9


def test_bytes_put_between_tensors_are_damage(tmp_path: Path) -> None:
    """safetensors refuses them, too: they would move the tensors behind them."""
    path = made("safetensors", tmp_path, {"a": noise((50,)), "b": noise((50,), seed=1)})
    data = path.read_bytes()
    path.write_bytes(data[:-100] + b"12345678" + data[-100:])
    with pytest.raises(Exception, match="not fully covered"):
        safetensors.torch.load_file(path)
    with pytest.raises(BadSource, match="do not cover"):
        checkpoint.load(path)


@pytest.mark.parametrize("kind", ["dcp", "safetensors", "pt"])
@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_new_memory_comes_in_huge_pages(tmp_path: Path, kind: str, io: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole ones of the tensors' own memory: what lies beside it may be anybody's."""
    if proc.huge_page_bytes() != 2 << 20:
        pytest.skip("a kernel without huge pages of 2 MiB")
    monkeypatch.setattr(memory, "_WORTH_S", 10.0)  # this machine may have none that are cheap
    asked: list[tuple[int, int]] = []
    advise = memory.advise

    def noted(address: int, size_bytes: int, advice: int) -> int:
        if advice == mmap.MADV_HUGEPAGE:
            asked.append((address, size_bytes))
        return advise(address, size_bytes, advice)

    monkeypatch.setattr(memory, "advise", noted)
    state = {f"x{number}": noise((9 << 18,), seed=number) for number in range(2)} | {"small": noise((7,))}
    loaded = checkpoint.load(made(kind, tmp_path, state), io=io)
    assert loaded.keys() == state.keys() and all(same(loaded[name], state[name]) for name in state)
    for name in ("x0", "x1"):
        begin, end = loaded[name].data_ptr(), loaded[name].data_ptr() + loaded[name].nbytes
        whole = list(range(-(-begin >> 21) << 21, end - (2 << 20) + 1, 2 << 20))
        assert len(whole) >= 3 and set(whole) <= {at for at, size_bytes in asked if size_bytes == 2 << 20}
        assert any(low <= whole[0] and whole[-1] + (2 << 20) <= high for low, high in _advised())
    places = [(one.data_ptr(), one.data_ptr() + one.nbytes) for one in loaded.values()]
    assert all(any(low <= at and at + size <= high for low, high in places) for at, size in asked)


def test_huge_pages_that_lose_are_asked_for_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "huge_page_bytes", lambda: 2 << 20)
    asked: list[int] = []
    monkeypatch.setattr(memory, "advise", _answers(0, asked))

    def run(*took_ms: float) -> int:
        """How many of as many extents were asked for, when they take so long."""
        times = iter([second for took in took_ms for second in (0.0, took / 1000)])
        asked.clear()
        memory.Pages(clock=lambda: next(times)).prepare(4096, (len(took_ms) + 1) * (2 << 20))
        return len(set(asked))

    assert run(*[0.1] * 50) == 50
    assert run(*[4.0] * 50) == 2  # 3.2 ms lost by each
    assert run(*[0.1, 4.0, 0.1, 4.0] * 10) < 12  # what one in two gains is less than what the others lose
    assert run(*[0.1] * 30, *[4.0] * 20) == 32  # nothing is saved up
    assert run(*[0.1] * 20, 5.0, *[0.1] * 20) == 41  # one that waited is no rule


def test_no_huge_pages_where_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "huge_page_bytes", lambda: 2 << 20)
    asked: list[int] = []
    monkeypatch.setattr(memory, "advise", _answers(errno.EINVAL, asked))
    pages = memory.Pages()
    pages.prepare(0, 8 << 20)
    pages.prepare(0, 8 << 20)
    assert asked == [0]
    monkeypatch.setattr(proc, "huge_page_bytes", lambda: 512 << 20)
    memory.Pages().prepare(0, 8 << 20)
    assert asked == [0]


def _answers(code: int, asked: list[int]) -> Callable[[int, int, int], int]:
    def advise(address: int, size_bytes: int, advice: int) -> int:
        asked.append(address)
        return code

    return advise


def _advised() -> list[tuple[int, int]]:
    """Where huge pages were asked for in this process."""
    found = _MAPPING.findall(Path("/proc/self/smaps").read_text())
    return [(int(low, 16), int(high, 16)) for low, high, flags in found if "hg" in flags.split()]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "legacy"])
def test_contents(tmp_path: Path, kind: str) -> None:
    state = tensors()
    found = checkpoint.contents(made(kind, tmp_path, state))
    assert found.format == ("torch" if kind in ("pt", "sharded bin") else kind if kind == "dcp" else "safetensors")
    assert {one.name: (one.dtype, one.shape) for one in found.tensors} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()
    }
    assert found.size_bytes == sum(tensor.nbytes for tensor in state.values())
    assert {part.file for one in found.tensors for part in one.parts} == {file.name for file in found.files}
    for entry in found.tensors:
        (part,) = entry.parts
        data = (Path(found.directory) / part.file).read_bytes()[part.offset : part.offset + part.size_bytes]
        raw = state[entry.name].reshape(-1).view(torch.uint8).numpy().tobytes()
        assert raw in data if kind == "dcp" else raw == data
    assert found.note is None and found.others == ()


def test_torch_files_as_torch_loads_them(tmp_path: Path) -> None:
    """Nested dicts, strides, parameters, storages that are shared."""
    weight = noise((40, 30))
    state = {
        "model": {"w": weight, "tied": weight, "turned": weight.t(), "part": weight[3:5]},
        "p": torch.nn.Parameter(torch.ones(3)),
        "list": [torch.zeros(2), 5],
        "step": 7,
    }
    torch.save(state, tmp_path / "m.pt")
    loaded = checkpoint.load(tmp_path / "m.pt")
    theirs = torch.load(tmp_path / "m.pt")
    assert set(loaded) == {"model.w", "model.tied", "model.turned", "model.part", "p", "list.0"}
    for name in ("w", "tied", "turned", "part"):
        assert same(loaded[f"model.{name}"], theirs["model"][name])
        assert loaded[f"model.{name}"].stride() == theirs["model"][name].stride()
    loaded["model.w"][3, 0] = 42
    assert loaded["model.tied"][3, 0] == loaded["model.part"][0, 0] == loaded["model.turned"][0, 3] == 42
    assert isinstance(loaded["p"], torch.nn.Parameter) and loaded["p"].requires_grad
    assert checkpoint.contents(tmp_path / "m.pt").others == ("list.1", "step")


def test_more_than_plain_tensors_is_torchs(tmp_path: Path) -> None:
    state = {"sparse": torch.eye(3).to_sparse(), "w": torch.ones(2)}
    torch.save(state, tmp_path / "m.pt")
    reports: list[ReadReport] = []
    loaded = checkpoint.load(tmp_path / "m.pt", report=reports.append)
    assert torch.equal(loaded["sparse"].to_dense(), torch.eye(3))
    assert reports[0].fallback == 2 and "_rebuild_sparse_tensor" in next(iter(reports[0].why))
    assert "more than plain tensors" in (checkpoint.contents(tmp_path / "m.pt").note or "")


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_that_run_code(tmp_path: Path, legacy: bool) -> None:
    torch.save({"x": Evil(tmp_path / "made")}, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    checkpoint.contents(tmp_path / "m.pt")
    with pytest.raises(UntrustedPickle):
        checkpoint.load(tmp_path / "m.pt")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("kind", ["dcp", "pt", "sharded bin"])
def test_changed_bytes_are_found(tmp_path: Path, kind: str) -> None:
    state = tensors()
    path = made(kind, tmp_path, state)
    found = checkpoint.contents(path)
    (part,) = next(one for one in found.tensors if one.name == "large").parts
    flip(Path(found.directory) / part.file, part.offset + part.size_bytes // 2)
    assert not same(checkpoint.load(path)["large"], state["large"])
    with pytest.raises(CheckpointReadError, match="the bytes of large changed") as caught:
        checkpoint.load(path, verify="crc")
    assert len(caught.value.complete) == len(state) - 1 and "large" not in caught.value.complete


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_truncated(tmp_path: Path, kind: str, keep: float) -> None:
    path = made(kind, tmp_path, tensors())
    file = max((one for one in (path.rglob("*") if path.is_dir() else [path])), key=os.path.getsize)
    os.truncate(file, int(os.path.getsize(file) * keep))
    with pytest.raises((BadSource, CheckpointReadError)):
        checkpoint.load(path)


def test_bytes_are_missing_in_the_middle(tmp_path: Path) -> None:
    """What says where a torch file's directory lies leads to before its beginning then."""
    path = tmp_path / "m.pt"
    torch.save({"a": torch.arange(1000.0)}, path)
    data = bytearray(path.read_bytes())
    del data[300:303]
    path.write_bytes(data)
    for use in (checkpoint.load, checkpoint.contents):
        with pytest.raises(BadSource, match="is damaged"):
            use(path)
    assert not checkpoint.verify(path).ok


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """Of a record in a torch file."""
    path = tmp_path / "m.pt"
    torch.save({"a": torch.ones(3)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 46] = 0xDB
    path.write_bytes(data)
    for use in (
        checkpoint.load,
        checkpoint.contents,
        lambda path: checkpoint.convert(path, tmp_path / "x.safetensors"),
    ):
        with pytest.raises(BadSource, match="is damaged"):
            use(path)
    assert not checkpoint.verify(path).ok


@pytest.mark.parametrize("kind", ["dcp", "sharded", "sharded bin"])
def test_a_missing_file(tmp_path: Path, kind: str) -> None:
    path = made(kind, tmp_path, tensors())
    max(path.iterdir(), key=os.path.getsize).unlink()
    with pytest.raises((SourceMissing, CheckpointReadError), match="no such file"):
        checkpoint.load(path)


def test_an_index_that_lies(tmp_path: Path) -> None:
    path = sharded(tmp_path / "s", tensors())
    index = path / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["nowhere"] = table["weight_map"]["large"]
    index.write_text(json.dumps(table))
    with pytest.raises(BadSource, match="nowhere"):
        checkpoint.load(path)
    table["weight_map"]["large"] = "../other.safetensors"
    index.write_text(json.dumps(table))
    with pytest.raises(UntrustedPickle, match="leads out"):
        checkpoint.load(path)
    for text in ("", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        index.write_text(text)
        with pytest.raises(BadSource, match="no index"):
            checkpoint.contents(path)


def test_headers_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for table in (
        {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}},
        {"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}},
        {"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]}},
        {"x": 3},
    ):
        text = json.dumps(table).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
        with pytest.raises(BadSource, match="'x'"):
            checkpoint.load(path)


def test_metadata_whose_parts_leave_holes(tmp_path: Path) -> None:
    """Memory is not zeroed: a tensor that is not covered would hold anything."""
    import pickle

    path = save({"x": torch.ones(4, 4)}, tmp_path / "c")
    metadata = pickle.loads((path / ".metadata").read_bytes())
    metadata.state_dict_metadata["x"].size = torch.Size([8, 4])
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(BadSource, match="do not make up"):
        checkpoint.load(path)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(SourceMissing):
        checkpoint.load(tmp_path / "none")
    with pytest.raises(BadSource, match="holds no checkpoint"):
        checkpoint.load(tmp_path)
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(BadSource, match="is no checkpoint"):
        checkpoint.load(tmp_path / "text.txt")
    with zipfile.ZipFile(tmp_path / "z.pt", "w") as archive:
        archive.writestr("a/b", "c")
    with pytest.raises(BadSource, match=r"no data\.pkl"):
        checkpoint.load(tmp_path / "z.pt")
    for name in ("a.safetensors", "b.safetensors"):
        safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / name)
    with pytest.raises(Ambiguous):
        checkpoint.load(tmp_path)
