"""Checkpoints in another format: the same tensors, and all of them or nothing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any, Literal

import children
import pytest
import safetensors.torch
import torch
from checkpoints import DTYPES, load, noise, same, save
from torch.distributed.checkpoint.filesystem import FileSystemReader

from dsmem import checkpoint, files
from dsmem.checkpoint import staging
from dsmem.errors import OutputExists, Unsupported, UsageError

State = dict[str, Any]
To = Literal["dcp", "safetensors", "pt"]
KNOWN = [dtype for dtype in DTYPES if dtype not in (torch.complex128, torch.complex32)]


def weights() -> State:
    state = {f"layer.{str(dtype).removeprefix('torch.')}": noise((3, 5), dtype) for dtype in KNOWN}
    return {**state, "scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), "large": noise((100_000,), seed=1)}


def written(state: State, tmp_path: Path, form: To) -> Path:
    if form == "dcp":
        return save(state, tmp_path / "source", files=2)
    path = tmp_path / ("source.pt" if form == "pt" else "source.safetensors")
    if form == "pt":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    return path


def read_by_stock(path: Path, form: To, state: State) -> State:
    """What the format's own library makes of it."""
    if form == "dcp":
        return load({name: torch.zeros_like(one) for name, one in state.items()}, FileSystemReader(path))
    if form == "pt":
        found: State = torch.load(path, weights_only=True)
        return found
    index = json.loads((path / "model.safetensors.index.json").read_text())
    found = {}
    for file in set(index["weight_map"].values()):
        some = safetensors.torch.load_file(path / file)
        assert all(index["weight_map"][name] == file for name in some)
        found.update(some)
    return found


@pytest.mark.parametrize("to", ["dcp", "safetensors", "pt"])
@pytest.mark.parametrize("form", ["dcp", "safetensors", "pt"])
def test_every_format_becomes_every_other(form: To, to: To, tmp_path: Path) -> None:
    state = weights()
    out = tmp_path / ("out.pt" if to == "pt" else "out")
    converted = checkpoint.convert(written(state, tmp_path, form), out, to=to, max_shard=200_000)
    assert converted.tensors == len(state)
    assert converted.size_bytes == sum(one.nbytes for one in state.values())
    for found in (read_by_stock(out, to, state), checkpoint.load(out)):
        assert found.keys() == state.keys()
        assert all(same(found[name], state[name]) for name in state)
    assert sorted(one.name for one in tmp_path.iterdir() if one.name.startswith(".")) == []
    if to == "safetensors":
        assert len(converted.files) > 2  # the large tensor has a shard of its own, and there is an index


def test_one_safetensors_file(tmp_path: Path) -> None:
    state = weights()
    converted = checkpoint.convert(written(state, tmp_path, "dcp"), tmp_path / "out.safetensors")
    assert converted.files == ("out.safetensors",)
    found = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert all(same(found[name], state[name]) for name in state)


def test_tensors_of_many_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsmem.checkpoint.converting._AT_ONCE_BYTES", 3000)
    state = {f"w{number}": noise((number * 7 % 50, 11), seed=number) for number in range(60)}
    source = written(state, tmp_path, "dcp")
    told: list[tuple[int, int]] = []
    for to, out in (("safetensors", "shards"), ("pt", "out.pt")):
        checkpoint.convert(source, tmp_path / out, to=to, progress=lambda *both: told.append(both))  # type: ignore[arg-type]
        assert all(same(one, state[name]) for name, one in checkpoint.load(tmp_path / out).items())
        assert told[-1][0] == told[-1][1] == sum(one.nbytes for one in state.values())


def test_nesting_and_what_is_no_tensor_stay_in_dcp_and_torch_files(tmp_path: Path) -> None:
    state = {"model": {"w": noise((4, 4))}, "step": 7, "groups": [{"lr": 0.5, "m": noise((2,))}]}
    torch.save(state, tmp_path / "a.pt")
    checkpoint.convert(tmp_path / "a.pt", tmp_path / "b", to="dcp")
    checkpoint.convert(tmp_path / "b", tmp_path / "c.pt")
    found = torch.load(tmp_path / "c.pt", weights_only=True)
    assert found["step"] == 7
    assert found["groups"][0]["lr"] == 0.5
    assert same(found["model"]["w"], state["model"]["w"])  # type: ignore[index]
    with pytest.raises(Unsupported) as refused:
        checkpoint.convert(tmp_path / "b", tmp_path / "d.safetensors")
    assert {one.path for one in refused.value.refusals} >= {"step"}
    converted = checkpoint.convert(tmp_path / "b", tmp_path / "d.safetensors", skip_unsupported=True)
    assert "step" in converted.left_out
    assert safetensors.torch.load_file(tmp_path / "d.safetensors").keys() >= {"model.w"}


def test_tied_weights(tmp_path: Path) -> None:
    weight = noise((64, 8))
    torch.save({"embed": weight, "head": weight, "turned": weight.t()}, tmp_path / "a.pt")
    converted = checkpoint.convert(tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert converted.copied == ("head",)
    found = safetensors.torch.load_file(tmp_path / "b.safetensors")
    assert same(found["head"], weight)
    assert same(found["turned"], weight.t())
    checkpoint.convert(tmp_path / "a.pt", tmp_path / "c.pt")
    kept = torch.load(tmp_path / "c.pt")
    assert kept["embed"].data_ptr() == kept["head"].data_ptr()


def test_what_safetensors_lacks(tmp_path: Path) -> None:
    source = written({"wave": noise((2,), torch.complex128), "plain": noise((2,))}, tmp_path, "dcp")
    with pytest.raises(Unsupported) as refused:
        checkpoint.convert(source, tmp_path / "out", to="safetensors")
    assert [one.path for one in refused.value.refusals] == ["wave"]
    assert not (tmp_path / "out").exists()
    assert checkpoint.convert(source, tmp_path / "out.pt").tensors == 2


OUTS: list[tuple[To, str]] = [
    ("dcp", "out"),
    ("pt", "out.pt"),
    ("safetensors", "out.safetensors"),
    ("safetensors", "s"),
]


def hidden(directory: Path) -> list[str]:
    return [one.name for one in directory.iterdir() if one.name.startswith(".")]


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize(("to", "out"), OUTS)
def test_what_is_there_is_replaced_only_when_asked(
    to: To, out: str, exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:  # a file system where two names can't change places
        monkeypatch.setattr(staging, "_rename2", lambda path, to, how: False)
    source = written(weights(), tmp_path, "safetensors")
    path = tmp_path / out
    checkpoint.convert(written({"old": noise((3,))}, tmp_path, "dcp"), path, to=to)
    with pytest.raises(OutputExists):
        checkpoint.convert(source, path, to=to)
    assert checkpoint.load(path).keys() == {"old"}
    checkpoint.convert(source, path, to=to, force=True)
    assert checkpoint.load(path).keys() == weights().keys()
    assert hidden(tmp_path) == []


@pytest.mark.parametrize(("to", "out"), OUTS)
def test_what_a_killed_process_left_goes_with_the_next(
    to: To, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(weights(), tmp_path, "dcp")
    path = tmp_path / out
    checkpoint.convert(written({"old": noise((3,))}, tmp_path, "pt"), path, to=to)

    def die(path: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(files, "sync", die)  # what comes last before the new one takes its place
        with pytest.raises(children.ChildDied):
            children.call(lambda: checkpoint.convert(source, path, to=to, force=True))
    assert len(hidden(tmp_path)) == 1
    assert checkpoint.load(path).keys() == {"old"}
    checkpoint.convert(source, tmp_path / f"other{path.suffix}", to=to)
    assert hidden(tmp_path) == []
    assert checkpoint.load(path).keys() == {"old"}


@pytest.mark.parametrize(("to", "out"), OUTS)
def test_what_is_being_written_is_no_leftover(
    to: To, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = []

    def sweep(path: str) -> None:
        swept.append(path)
        staging.sweep(str(tmp_path))

    monkeypatch.setattr(files, "sync", sweep)
    checkpoint.convert(written(weights(), tmp_path, "dcp"), tmp_path / out, to=to)
    assert swept and checkpoint.load(tmp_path / out).keys() == weights().keys()


def test_what_is_no_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    source = written(weights(), tmp_path, "safetensors")
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("dear")
    for to in ("dcp", "pt"):
        with pytest.raises(UsageError):
            checkpoint.convert(source, home, to=to, force=True)
    with pytest.raises(UsageError, match="overlap"):
        checkpoint.convert(source, source, to="safetensors", force=True)
    with pytest.raises(UsageError, match="does not tell the format"):
        checkpoint.convert(source, tmp_path / "out")
    assert (home / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("to", ["dcp", "pt"])
def test_what_is_no_checkpoint_and_comes_meanwhile_is_not_replaced(
    to: To, exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(staging, "_rename2", lambda path, to, how: False)
    source = written(weights(), tmp_path, "safetensors")
    home = tmp_path / "home"

    sync = files.sync

    def write_a_letter(path: str) -> None:
        home.mkdir(exist_ok=True)
        (home / "letter.txt").write_text("dear")
        sync(path)

    monkeypatch.setattr(files, "sync", write_a_letter)
    with pytest.raises(OutputExists, match="meanwhile"):
        checkpoint.convert(source, home, to=to, force=True)
    assert os.listdir(home) == ["letter.txt"] and hidden(tmp_path) == []


@pytest.mark.parametrize(("to", "out"), [("dcp", "out"), ("pt", "out.pt"), ("safetensors", "shards")])
def test_a_failure_leaves_what_was_there(to: To, out: str, tmp_path: Path) -> None:
    source = written(weights(), tmp_path, "dcp")
    largest = max(source.glob("*.distcp"), key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(Exception, match="large"):
        checkpoint.convert(source, tmp_path / out, to=to)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("to", ["safetensors", "pt", "dcp"])
def test_memory_is_bounded(to: To, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size_bytes = 4 << 20
    monkeypatch.setattr("dsmem.checkpoint.converting._AT_ONCE_BYTES", 2 * size_bytes)
    source = written({f"w{number}": torch.zeros(size_bytes // 4) for number in range(16)}, tmp_path, "dcp")
    checkpoint.convert(source, tmp_path / ("a.pt" if to == "pt" else "a"), to=to)  # all that is imported once

    def grown() -> int:
        before = _anonymous_kb("RssAnon")
        peak = before

        def look(done_bytes: int, total_bytes: int) -> None:
            nonlocal peak
            peak = max(peak, _anonymous_kb("RssAnon"))

        checkpoint.convert(source, tmp_path / f"out-{to}", to=to, progress=look)
        return (peak - before) * 1024

    assert children.call(grown) < 7 * size_bytes


def _anonymous_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
