"""Damaged `.metadata`: one clear error that names the file, never a planner's own in the midst of its code."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import load, noise, save
from torch.distributed._shard.sharded_tensor import metadata as sharded
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from dsmem import checkpoint
from dsmem.checkpoint import ParallelFileSystemReader
from dsmem.checkpoint.metadata import check
from dsmem.errors import BadSource, CheckpointReadError, DsmemError, NoSpace, OutputFull, UntrustedPickle

MUTANTS = 150
SHAPES = {"a": (4, 4), "m.w": (10, 9), "l.0": (3,)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A checkpoint, whose metadata tests replace, and what that was."""
    state = {
        "a": noise(SHAPES["a"], seed=1),
        "m": {"w": noise(SHAPES["m.w"], seed=2), "s": torch.tensor(3.5)},
        "e": torch.empty(0, 4),
        "step": 7,
        "l": [noise(SHAPES["l.0"], seed=4), "x"],
    }
    path = save(state, tmp_path_factory.mktemp("damaged") / "c")
    return path, (path / ".metadata").read_bytes()


def zeros() -> dict[str, Any]:
    made = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    return {
        "a": made["a"],
        "m": {"w": made["m.w"], "s": torch.zeros(())},
        "e": torch.empty(0, 4),
        "step": 0,
        "l": [made["l.0"], ""],
    }


def test_properties_of_tensors_as_older_torch_wrote_them(saved: tuple[Path, bytes]) -> None:
    path, good = saved
    metadata = pickle.loads(good)
    for one in metadata.state_dict_metadata.values():
        if type(one) is TensorStorageMetadata:
            one.properties = sharded.TensorProperties(dtype=one.properties.dtype)  # type: ignore[assignment]
    (path / ".metadata").write_bytes(good)
    expected = checkpoint.load(path)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    found = checkpoint.load(path)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    state, stock = zeros(), zeros()
    load(state, ParallelFileSystemReader(path, workers=1))
    load(stock, FileSystemReader(path))
    assert state["step"] == 7 and torch.equal(state["m"]["w"], expected["m.w"])
    assert torch.equal(stock["m"]["w"], expected["m.w"])


def by_planner(path: Path) -> None:
    """Raises what is behind torch's CheckpointException."""
    try:
        load(zeros(), ParallelFileSystemReader(path, workers=1))
    except CheckpointException as exc:
        raise exc.failures[0][0] from None


def test_a_planner_is_told_which_file_is_damaged(saved: tuple[Path, bytes]) -> None:
    path, good = saved
    (path / ".metadata").write_bytes(good[:200])
    with pytest.raises(BadSource, match=r"c/\.metadata is damaged"):
        ParallelFileSystemReader(path).read_metadata()
    with pytest.raises(AssertionError, match=r"c/\.metadata is damaged"):  # torch's, around our message
        by_planner(path)


def _tensor(metadata: Any) -> Any:
    return metadata.state_dict_metadata["m.w"]


def _place(metadata: Any) -> Any:
    return next(info for index, info in metadata.storage_data.items() if index.fqn == "m.w")


def _other_index(metadata: Any) -> None:
    metadata.storage_data["m.w"] = _place(metadata)


def _bad_offset(metadata: Any) -> None:
    index = next(index for index in metadata.storage_data if index.fqn == "m.w")
    object.__setattr__(index, "offset", (-1, 0))
    metadata.storage_data = {index: _place(metadata)}


LIES: list[tuple[Callable[[Any], object], str]] = [
    (lambda m: setattr(m, "state_dict_metadata", None), "no table of what was saved"),
    (lambda m: delattr(m, "state_dict_metadata"), "has no attribute 'state_dict_metadata'"),
    (lambda m: m.state_dict_metadata.update({7: None}), "a int is no name"),
    (lambda m: m.state_dict_metadata.update(a=7), "'a' is neither a tensor nor bytes"),
    (lambda m: delattr(_tensor(m), "properties"), "has no attribute 'properties'"),
    (lambda m: setattr(_tensor(m), "properties", {}), "'m.w' has no dtype"),
    (lambda m: setattr(_tensor(m).properties, "dtype", torch.strided), "'m.w' has no dtype"),
    (lambda m: setattr(_tensor(m), "size", 5), "'m.w' has a shape that is none"),
    (lambda m: setattr(_tensor(m), "size", torch.Size([-1, 9])), "'m.w' has a shape that is none"),
    (lambda m: setattr(_tensor(m), "size", (1 << 70, 9)), "'m.w' has a shape that is none"),
    (lambda m: setattr(_tensor(m), "chunks", None), "'m.w' has no parts"),
    (lambda m: setattr(_tensor(m), "chunks", ["x"]), "'m.w' has a part that is none"),
    (lambda m: setattr(_tensor(m).chunks[0], "sizes", "xy"), "'m.w' has a part that is none"),
    (lambda m: delattr(_tensor(m).chunks[0], "offsets"), "has no attribute 'offsets'"),
    (lambda m: setattr(m, "storage_data", [1]), "no table of places"),
    (_other_index, "'m.w' is no place of a tensor"),
    (_bad_offset, "'m.w' has an offset that is none"),
    (lambda m: setattr(_place(m), "relative_path", 3), "'m.w' has a place in a file that is none"),
    (lambda m: setattr(_place(m), "offset", None), "has no attribute 'offset'"),
    (lambda m: setattr(_place(m), "offset", 1.0), "'m.w' has a place in a file that is none"),
    (lambda m: setattr(_place(m), "length", 1 << 70), "'m.w' has a place in a file that is none"),
    (lambda m: setattr(_place(m), "transform_descriptors", "zstd"), "'m.w' has a place in a file that is none"),
    (lambda m: setattr(m, "storage_meta", "x"), "its storage_meta is something else"),
]


@pytest.mark.parametrize(("lie", "told"), LIES, ids=range(len(LIES)))
def test_each_field(lie: Callable[[Any], object], told: str, saved: tuple[Path, bytes]) -> None:
    path, good = saved
    metadata = pickle.loads(good)
    check(metadata, where="here")
    lie(metadata)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(BadSource) as refused:
        ParallelFileSystemReader(path).read_metadata()
    assert str(refused.value).startswith(f"{path}/.metadata holds no metadata of a checkpoint: ")
    assert told in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("field", ["offsets", "sizes"])
def test_dimensions(field: str, saved: tuple[Path, bytes]) -> None:
    path, good = saved
    metadata = pickle.loads(good)
    setattr(_tensor(metadata).chunks[0], field, torch.Size([0]))
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(BadSource, match=r"c/\.metadata is damaged: a part of m\.w has another number of dimensions"):
        by_planner(path)


def test_names_that_no_file_has(saved: tuple[Path, bytes]) -> None:
    path, good = saved
    for name in ("a\0b", "a\ud800b"):
        metadata = pickle.loads(good)
        for info in metadata.storage_data.values():
            info.relative_path = name
        (path / ".metadata").write_bytes(pickle.dumps(metadata))
        with pytest.raises(BadSource, match="can't be the name"):
            checkpoint.contents(path)
        with pytest.raises(CheckpointReadError, match="can't be the name"):
            checkpoint.load(path)
        assert not checkpoint.verify(path).ok


@pytest.mark.parametrize("large", [1 << 41, 1 << 62])
def test_tensors_larger_than_anything(large: int, saved: tuple[Path, bytes], tmp_path: Path) -> None:
    path, good = saved
    metadata = pickle.loads(good)
    _tensor(metadata).size = _tensor(metadata).chunks[0].sizes = torch.Size([large, 9])
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(NoSpace, match=r"\.metadata tells of m\.w"):
        checkpoint.load(path)
    with pytest.raises(NoSpace, match=r"m\.w"):
        checkpoint.convert(path, tmp_path / "out", to="safetensors", skip_unsupported=True)
    with pytest.raises(OutputFull):
        checkpoint.convert(path, tmp_path / "out.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("nesting", [5, (), ("a",), ("a", 1), ("l", 1 << 60), ("l", 0.5)])
def test_nesting_that_is_none(nesting: object, saved: tuple[Path, bytes], tmp_path: Path) -> None:
    path, good = saved
    metadata = pickle.loads(good)
    metadata.planner_data["m.s"] = nesting
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(BadSource, match=r"\.metadata is damaged"):
        checkpoint.convert(path, tmp_path / "out.pt")


VALUES: list[Any] = [
    None, -1, 0, 1 << 40, 1 << 70, 2.5, "x", "", b"y", (), [], {}, set(), (1, 2), [1], torch.Size([4, 4]), (-1, 4),
    ("a", 4), torch.float16, torch.strided, True,
]  # fmt: skip


def _places_in(found: Any, seen: set[int]) -> Iterator[tuple[str, Any, Any]]:
    """Where a record, a dict or a list holds something: how, in what, and by which key."""
    if id(found) in seen:
        return
    seen.add(id(found))
    if isinstance(found, dict):
        for key in list(found):
            yield from (("item", found, key), ("key", found, key), ("pop", found, key))
            yield from _places_in(key, seen)
            yield from _places_in(found[key], seen)
    elif isinstance(found, list):
        for number, one in enumerate(found):
            yield from (("item", found, number), ("pop", found, number))
            yield from _places_in(one, seen)
    elif type(found).__module__.startswith("torch.distributed") and hasattr(found, "__dict__"):
        for name, one in list(vars(found).items()):
            yield from (("set", found, name), ("delete", found, name))
            yield from _places_in(one, seen)


def _lie(good: bytes, chance: random.Random) -> bytes:
    """One or two fields hold something else, or are not there."""
    metadata = pickle.loads(good)
    for _ in range(chance.choice((1, 1, 2))):
        how, found, key = chance.choice(list(_places_in(metadata, set())))
        value = copy.deepcopy(chance.choice(VALUES))
        if how == "item":
            found[key] = value
        elif how == "pop":
            found.pop(key)
        elif how == "key" and value.__hash__ is not None:
            found[value] = found.pop(key)
        elif how == "set":
            object.__setattr__(found, key, value)
        elif how == "delete":
            object.__delattr__(found, key)
    return pickle.dumps(metadata)


def mutant(good: bytes, seed: int) -> bytes:
    """The metadata, damaged in its records or in its bytes."""
    chance = random.Random(seed)
    if chance.random() < 0.6:
        try:
            return _lie(good, chance)
        except (AttributeError, LookupError, RuntimeError, TypeError, pickle.PicklingError):
            pass  # records that can't be written: their bytes are damaged
    data = bytearray(good)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(data))
        if chance.random() < 0.7:
            data[at] ^= 1 << chance.randrange(8)
        else:
            data[at : at + 8] = chance.choice((bytes(8), b"\xff" * 8, chance.randbytes(8)))
    return bytes(data if chance.random() < 0.9 else data[: chance.randrange(len(data))])


def _told_by_torch(error: BaseException) -> bool:
    """What torch says in so many words: of metadata that can't be read, and of what was asked for but is not there."""
    told = str(error)
    if isinstance(error, AssertionError):
        return told.startswith("metadata is None; global metadata read failed: ") and "/.metadata " in told
    return told.startswith(("Missing key in checkpoint", "Size mismatch between", "Invalid checkpoint metadata for"))


@pytest.mark.parametrize("portion", range(3))
def test_mutants(portion: int, saved: tuple[Path, bytes], tmp_path: Path) -> None:
    path, good = saved
    work: dict[str, Callable[[], object]] = {
        "ls": lambda: checkpoint.contents(path),
        "load": lambda: checkpoint.load(path, workers=1),
        "verify": lambda: checkpoint.verify(path),
        "convert": lambda: checkpoint.convert(path, tmp_path / "out.pt", force=True),
        "by a planner": lambda: by_planner(path),
    }
    refused = dict.fromkeys(work, 0)
    for seed in range(portion * MUTANTS // 3, (portion + 1) * MUTANTS // 3):
        (path / ".metadata").write_bytes(mutant(good, seed))
        for what, do in work.items():
            try:
                do()
            except DsmemError as exc:
                refused[what] += 1
                assert str(path) in str(exc) or isinstance(exc, CheckpointReadError | UntrustedPickle | OutputFull), (
                    seed
                )
            except Exception as exc:  # noqa: BLE001 - of any kind: that is what is looked at
                assert what == "by a planner" and _told_by_torch(exc), (seed, what)
    assert refused["verify"] == 0 and all(refused[what] for what in work if what != "verify")
