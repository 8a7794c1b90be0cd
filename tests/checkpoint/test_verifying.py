"""`checkpoint.verify`: whole checkpoints pass, every fault is named, and none hides another."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import signal
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import DTYPES, Evil, flip, noise, same, save, stock
from safetensors.torch import save_file
from torch.distributed.checkpoint._extension import ExtensionRegistry, StreamTransformExtension

from dsmem import checkpoint
from dsmem.checkpoint import Check, Verified
from dsmem.errors import Ambiguous, BadSource, SourceMissing, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf")
STATE: dict[str, Any] = {"w": noise((64, 32)), "v": noise((5, 3), torch.bfloat16), "step": 3}


def told(found: Verified) -> str:
    return "\n".join(f"{one.state} {one.name} {one.file} {one.tensor} {one.detail}" for one in found.checks)


def faults(path: Path) -> list[Check]:
    found = checkpoint.verify(path)
    assert found.ok == (not found.faults)
    return list(found.faults)


@pytest.fixture
def dcp(tmp_path: Path) -> Path:
    return save(dict(STATE), tmp_path / "dcp", files=2)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    path = tmp_path / "sharded"
    path.mkdir()
    weight_map: dict[str, str] = {}
    for number in range(2):
        some = {f"layer.{number}.{name}": noise((4, 8), seed=number) for name in "ab"}
        save_file(some, path / f"model-{number}.safetensors")
        weight_map |= dict.fromkeys(some, f"model-{number}.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


def change_map(path: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = path / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    change(whole["weight_map"])
    index.write_text(json.dumps(whole))


def change_metadata(path: Path, change: Callable[[Any], object]) -> None:
    metadata = pickle.loads((path / ".metadata").read_bytes())
    change(metadata)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


# whole ones ---------------------------------------------------------------------------------------------------------


def test_every_dtype_and_form_passes(tmp_path: Path) -> None:
    state: dict[str, Any] = {str(dtype): noise((3, 5), dtype) for dtype in DTYPES}
    state |= {"0d": torch.tensor(3.0), "empty": torch.empty(0, 4), "strided": noise((8, 8))[:, ::2], "none": None}
    state |= {"parameter": torch.nn.Parameter(noise((4,))), "conj": noise((4,), torch.complex64).conj()}
    state |= {f"many.{i}": noise((7,), seed=i) for i in range(50)} | {"large": noise((700, 1000))}
    found = checkpoint.verify(save(state, tmp_path / "dcp", files=3))
    assert found.ok and not found.unverifiable, told(found)
    assert (found.tensors, found.verified) == (len(state) - 1, len(state))
    del state["none"]
    torch.save(state, tmp_path / "w.pt")
    assert checkpoint.verify(tmp_path / "w.pt").ok


def test_progress_reaches_the_end(dcp: Path) -> None:
    seen: list[tuple[int, int]] = []
    checkpoint.verify(dcp, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert seen and all(0 <= done <= total for done, total in seen) and len({total for _, total in seen}) == 1


def test_an_interrupt_ends_it_within_a_record(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(16 << 20, dtype=torch.uint8)}, tmp_path / "w.pt")
    read: list[int] = []

    def interrupt(done_bytes: int, total_bytes: int) -> None:
        if done_bytes > 2 << 20 and not (read and read[-1] > 2 << 20):  # once, within the large record
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        read.append(done_bytes)
        time.sleep(0.02)

    with pytest.raises(KeyboardInterrupt):
        checkpoint.verify(tmp_path / "w.pt", workers=2, progress=interrupt)
    assert max(read) < 16 << 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dsmem-")]


class Inverted(StreamTransformExtension):
    """Bytes with every bit turned over."""

    @staticmethod
    def registry_name() -> str:
        return "inverted"

    @staticmethod
    def from_descriptor(version: str) -> Inverted:
        return Inverted()

    def get_descriptor(self) -> str:
        return "inverted/1"

    def transform_to(self, output: Any) -> Any:
        class Writer(io.RawIOBase):
            def writable(self) -> bool:
                return True

            def write(self, data: Any) -> int:
                output.write(bytes(255 - byte for byte in bytes(data)))
                return len(data)

        return Writer()

    def transform_from(self, input: Any) -> Any:
        return io.BytesIO(bytes(255 - byte for byte in input.read()))


def test_what_extensions_did_is_undone(tmp_path: Path) -> None:
    path = save(dict(STATE), tmp_path / "dcp", _extensions=[Inverted()])
    found = checkpoint.verify(path)
    assert found.ok and not found.verified and "how to undo inverted/1 is not known here" in told(found)
    registry = ExtensionRegistry()
    registry.extensions = {"inverted": Inverted}
    found = checkpoint.verify(path, _extension_registry=registry)
    assert found.ok and found.verified == 3
    file = next(path.glob("*.distcp"))
    flip(file, file.stat().st_size // 2)
    assert len(checkpoint.verify(path, _extension_registry=registry).faults) == 1


def test_no_checksums_are_said(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = save(dict(STATE), tmp_path / "dcp")
        torch.save(STATE, tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    for one in (path, tmp_path / "w.pt"):
        found = checkpoint.verify(one)
        assert found.ok and not found.verified and found.unverifiable >= 2
        assert "were saved without" in told(found)
    assert same(checkpoint.load(tmp_path / "w.pt", verify="crc")["w"], STATE["w"])


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(SourceMissing):
        checkpoint.verify(tmp_path / "none")
    with pytest.raises(BadSource):
        checkpoint.verify(tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.pt").write_bytes(b"")
    with pytest.raises(Ambiguous):
        checkpoint.verify(tmp_path)
    with pytest.raises(UsageError):
        checkpoint.verify(tmp_path / "a.pt", workers=0)
    assert [one.name for one in faults(tmp_path / "a.pt")] == ["structure"]


# damage -------------------------------------------------------------------------------------------------------------


def test_no_flipped_bit_goes_unseen_that_changes_what_is_read(tmp_path: Path) -> None:
    """Either a fault is named, or torch's own reader still reads the same."""
    path = save(dict(STATE), tmp_path / "dcp")
    file = next(path.glob("*.distcp"))
    size_bytes = file.stat().st_size
    seen = 0
    chance = random.Random(1)
    for at in chance.sample(range(size_bytes), 150):
        bit = 1 << chance.randrange(8)
        flip(file, at, bit)
        if not faults(path):
            again = stock({"w": torch.empty(64, 32), "v": torch.empty(5, 3, dtype=torch.bfloat16), "step": 0}, path)
            assert same(again["w"], STATE["w"]) and same(again["v"], STATE["v"]) and again["step"] == 3, at
        else:
            seen += 1
        flip(file, at, bit)
    assert seen > 100 and not faults(path)


def test_flipped_bits_of_torch_files(tmp_path: Path) -> None:
    torch.save({"w": STATE["w"], "v": STATE["v"]}, tmp_path / "w.pt")
    chance = random.Random(2)
    for at in chance.sample(range((tmp_path / "w.pt").stat().st_size), 100):
        flip(tmp_path / "w.pt", at)
        if not faults(tmp_path / "w.pt"):
            again = torch.load(tmp_path / "w.pt")
            assert same(again["w"], STATE["w"]) and same(again["v"], STATE["v"]), at
        flip(tmp_path / "w.pt", at)


def test_each_changed_tensor_is_named(tmp_path: Path) -> None:
    path = save({f"t{i}": noise((100,), seed=i) for i in range(9)}, tmp_path / "dcp")
    where = pickle.loads((path / ".metadata").read_bytes()).storage_data
    for index, info in where.items():
        if index.fqn in ("t2", "t5"):
            flip(path / info.relative_path, info.offset + info.length // 2 - 150)
    found = faults(path)
    assert [(one.name, one.tensor) for one in found] == [("checksums", "t2"), ("checksums", "t5")]
    torch.save({"a": noise((100,)), "b": (x := noise((100,), seed=1)), "c": x[5:]}, tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    flip(tmp_path / "w.pt", whole.index(x.numpy().tobytes()) + 7)
    assert [(one.name, one.tensor) for one in faults(tmp_path / "w.pt")] == [("checksums", "b, c")]


def test_missing_truncated_and_further_files_of_dcp(dcp: Path) -> None:
    (dcp / "__1_0.distcp").write_bytes(b"left")
    found = checkpoint.verify(dcp)
    assert found.ok and "note files None None the metadata does not name __1_0.distcp" in told(found)
    first, second = sorted(dcp.glob("__0_*.distcp"))
    os.truncate(first, first.stat().st_size - 1)
    second.unlink()
    assert [(one.file, one.detail.partition(":")[0].partition(",")[0]) for one in faults(dcp)] == [
        ("__0_0.distcp", "truncated"),
        ("__0_1.distcp", "missing"),
    ]
    first.unlink()
    first.mkdir()
    assert "is a directory" in faults(dcp)[0].detail


def test_bytes_between_items_are_no_fault(dcp: Path) -> None:
    with (dcp / "__0_0.distcp").open("ab") as file:
        file.write(b"more")
    found = checkpoint.verify(dcp)
    assert found.ok and "4 bytes belong to nothing" in told(found)


def test_metadata_that_lies(dcp: Path) -> None:
    def lie(metadata: Any) -> None:
        chunk = metadata.state_dict_metadata["w"].chunks[0]
        metadata.state_dict_metadata["w"].size = torch.Size((32, 64))
        metadata.state_dict_metadata["w"].chunks[0] = replace(chunk, sizes=torch.Size((32, 64)))
        metadata.state_dict_metadata["v"].properties.dtype = torch.float16

    change_metadata(dcp, lie)
    found = faults(dcp)
    assert [one.tensor for one in sorted(found, key=lambda one: one.tensor or "")] == ["v", "w"]
    assert all("the metadata says" in one.detail for one in found)


def test_items_that_are_told_to_be_short(tmp_path: Path) -> None:
    """Torch's zip reader looks for what the end of a file says even before its beginning."""
    path = save({"a": torch.zeros(4, 4)}, tmp_path / "c")
    whole = (path / ".metadata").read_bytes()
    length = next(iter(pickle.loads(whole).storage_data.values())).length
    for cut in (*range(0, length, 37), *range(length - 70, length)):

        def lie(metadata: Any, cut: int = cut) -> None:
            info = next(iter(metadata.storage_data.values()))
            info.offset, info.length = info.offset + cut, info.length - cut

        (path / ".metadata").write_bytes(whole)
        change_metadata(path, lie)
        assert (faults(path) == []) == (cut == 0)


def test_missing_extra_and_twice_told_tensors_of_dcp(dcp: Path) -> None:
    def change(metadata: Any) -> None:
        by_name = {index.fqn: index for index in metadata.storage_data}
        metadata.storage_data[replace(by_name["w"], fqn="stray")] = metadata.storage_data.pop(by_name["w"])
        metadata.state_dict_metadata["v"].chunks *= 2
        del metadata.storage_data[by_name["step"]]

    change_metadata(dcp, change)
    details = {one.tensor: one.detail for one in faults(dcp)}
    assert details["w"].startswith("nothing tells where its bytes lie") and details["stray"].startswith("extra")
    assert details["v"].startswith("told twice") and details["step"].startswith("nothing tells")


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([((0, 0), (32, 32))], "its parts have 1024 elements, it has 2048"),
        ([((0, 0), (64, 33))], "reaches out of"),
        ([((0, 0), (40, 32)), ((32, 0), (24, 32))], "lies over"),
        ([((0,), (64,))], "another number of dimensions"),
    ],
)
def test_parts_that_do_not_make_up_a_tensor(dcp: Path, boxes: list[Any], said: str) -> None:
    def change(metadata: Any) -> None:
        one = metadata.state_dict_metadata["w"]
        chunk = one.chunks[0]
        one.chunks[:] = [replace(chunk, offsets=torch.Size(at), sizes=torch.Size(size)) for at, size in boxes]

    change_metadata(dcp, change)
    assert any(said in one.detail and one.tensor == "w" for one in faults(dcp))


def test_paths_that_lead_out(dcp: Path) -> None:
    def change(metadata: Any) -> None:
        index = next(index for index in metadata.storage_data if index.fqn == "w")
        metadata.storage_data[index] = replace(metadata.storage_data[index], relative_path="../secret")

    change_metadata(dcp, change)
    assert any("leads out" in one.detail for one in faults(dcp))


def test_no_pickle_runs(tmp_path: Path) -> None:
    path = save({**STATE, "evil": Evil(tmp_path / "made")}, tmp_path / "dcp")
    found = checkpoint.verify(path)
    assert found.ok and "reading it needs trust" in told(found)
    (path / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "made")))
    assert [one.name for one in faults(path)] == ["structure"]
    (path / ".metadata").write_bytes(b"garbage")
    assert [one.file for one in faults(path)] == [".metadata"]
    (path / ".metadata").write_bytes(pickle.dumps({}))
    assert [one.file for one in faults(path)] == [".metadata"]
    torch.save({"x": Evil(tmp_path / "made")}, tmp_path / "new.pt")
    torch.save({"x": Evil(tmp_path / "made")}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert not faults(tmp_path / "new.pt") and not faults(tmp_path / "old.pt")
    assert not (tmp_path / "made").exists()


def test_the_older_format_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    found = checkpoint.verify(path)
    assert found.ok and found.tensors == 2 and "has none" in told(found)
    os.truncate(path, path.stat().st_size - 5)
    assert [one.name for one in faults(path)] == ["structure"]


# safetensors --------------------------------------------------------------------------------------------------------


def test_index_against_files(sharded: Path) -> None:
    assert not faults(sharded)
    save_file({"x": noise((2,))}, sharded / "other.safetensors")
    assert "does not name other.safetensors" in told(checkpoint.verify(sharded))

    def change(weight_map: dict[str, str]) -> None:
        del weight_map["layer.0.a"]
        weight_map["gone"] = "model-0.safetensors"
        weight_map["layer.1.a"] = "model-0.safetensors"
        weight_map["far"] = "model-9.safetensors"

    change_map(sharded, change)
    details = {one.tensor: one.detail for one in faults(sharded)}
    assert details["layer.0.a"].startswith("extra") and details["gone"].startswith("missing")
    assert details["layer.1.a"] == "the index says model-0.safetensors; it is in model-1.safetensors"
    assert details[None] == "missing"  # the file


def test_the_same_tensor_in_two_files(sharded: Path) -> None:
    save_file({f"layer.0.{name}": noise((4, 8)) for name in "ab"}, sharded / "model-1.safetensors")
    found = faults(sharded)
    assert {one.tensor for one in found if "in several files" in one.detail} == {"layer.0.a", "layer.0.b"}
    assert {one.tensor for one in found if one.detail.startswith("missing")} == {"layer.1.a", "layer.1.b"}


def test_names_that_are_there_twice(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"layer.0.a"', '"layer.0.b"'))
    assert any(one.detail == "the index names it twice" and one.tensor == "layer.0.b" for one in faults(sharded))


def write_safetensors(path: Path, entries: dict[str, tuple[list[int], list[int]]], data_bytes: int) -> None:
    header = {name: {"dtype": "U8", "shape": shape, "data_offsets": at} for name, (shape, at) in entries.items()}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data_bytes))


@pytest.mark.parametrize(
    ("entries", "data_bytes", "said"),
    [
        ({"a": ([4], [0, 4]), "b": ([4], [2, 6])}, 6, "lies over a"),
        ({"a": ([4], [0, 4]), "b": ([4], [8, 12])}, 12, "4 bytes after a belong to nothing"),
        ({"a": ([4], [0, 4])}, 9, "5 bytes after a belong to nothing"),
        ({"a": ([4], [0, 4]), "b": ([4], [4, 8])}, 7, "tensor 'b' does not fit the file"),
        ({"a": ([5], [0, 4])}, 4, "tensor 'a' does not fit the file"),
        ({"a": ([4], [0, 4]), "e": ([0], [4, 4]), "b": ([4], [4, 8])}, 8, None),
    ],
)
def test_safetensors_whose_tensors_do_not_fill_it(
    tmp_path: Path, entries: dict[str, tuple[list[int], list[int]]], data_bytes: int, said: str | None
) -> None:
    write_safetensors(tmp_path / "w.safetensors", entries, data_bytes)
    assert [one.detail for one in faults(tmp_path / "w.safetensors")] == ([] if said is None else [said])


def test_cut_off_safetensors(sharded: Path) -> None:
    one = sharded / "model-0.safetensors"
    for size_bytes in (one.stat().st_size - 1, 40, 8, 3, 0):
        os.truncate(one, size_bytes)
        assert faults(one)
