"""Checkpoints in the store: the same tensors for every process, one copy of them, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import children
import pytest
import safetensors.torch
import torch
from checkpoints import DTYPES, Evil, noise, same, save
from stores import InTmpfs

import dsmem
from dsmem import checkpoint
from dsmem.checkpoint import into
from dsmem.errors import (
    BadSource,
    CheckpointReadError,
    NoSpace,
    NotPinned,
    SourceChanged,
    Unsupported,
    UntrustedPickle,
    UsageError,
)
from dsmem.shm import cleaning
from dsmem.shm.listing import list_objects

State = dict[str, torch.Tensor]
KNOWN = [dtype for dtype in DTYPES if dtype not in (torch.complex128, torch.complex32)]


def weights() -> State:
    """Every dtype of safetensors, and shapes of every kind."""
    state = {f"layer.{str(dtype).removeprefix('torch.')}": noise((3, 5), dtype) for dtype in KNOWN}
    return {**state, "scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), "large": noise((1 << 20,), seed=1)}


def as_dcp(state: State, tmp_path: Path) -> Path:
    return save(state, tmp_path / "step-10", files=3)


def as_safetensors(state: State, tmp_path: Path) -> Path:
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def as_shards(state: State, tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    names = sorted(state)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, some in halves.items():
        safetensors.torch.save_file({name: state[name] for name in some}, directory / file)
    weight_map = {name: file for file, some in halves.items() for name in some}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def as_torch(state: State, tmp_path: Path) -> Path:
    torch.save(state, tmp_path / "model.pt")
    return tmp_path / "model.pt"


FORMS = [as_dcp, as_safetensors, as_shards, as_torch]
Form = Callable[[State, Path], Path]


@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_the_tensors_that_were_saved(form: Form, tmp_path: Path) -> None:
    state = weights()
    path = form(state, tmp_path)
    pinned = checkpoint.pin(path, name="weights")
    assert not pinned.already
    assert pinned.tensors == len(state)
    for target in (path, "weights", pinned.name):
        for writable in (True, False):
            found = checkpoint.attach(target, writable=writable)
            assert found.keys() == state.keys()
            assert all(same(found[name], state[name]) for name in state)
    again = checkpoint.pin(path, name="weights")
    assert again.already
    assert again.name == pinned.name


def test_files_that_only_torch_can_load(tmp_path: Path) -> None:
    weight = noise((8, 4))
    state = {"w": weight, "tied": weight, "b": noise((4,), torch.bfloat16)}
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    checkpoint.pin(tmp_path / "old.bin")
    found = checkpoint.attach(tmp_path / "old.bin")
    assert all(same(found[name], state[name]) for name in state)
    assert found["w"].data_ptr() == found["tied"].data_ptr()


def test_the_object_is_a_safetensors_file(tmp_path: Path, store_root: Path) -> None:
    state = weights()
    pinned = checkpoint.pin(as_dcp(state, tmp_path))
    (found,) = store_root.rglob(pinned.name)
    loaded = safetensors.torch.load_file(found)
    assert all(same(loaded[name], state[name]) for name in state)


def test_copies_of_one_checkpoint_are_one_object(tmp_path: Path) -> None:
    state = weights()
    one = checkpoint.pin(as_safetensors(state, tmp_path))
    (tmp_path / "b").mkdir()
    other = checkpoint.pin(as_safetensors(state, tmp_path / "b"))
    assert other.name == one.name


def test_only_some_tensors(tmp_path: Path) -> None:
    state = weights()
    path = as_dcp(state, tmp_path)
    pinned = checkpoint.pin(path, only="layer.*")
    assert checkpoint.attach(pinned.name).keys() == {name for name in state if name.startswith("layer.")}
    with pytest.raises(NotPinned, match="only in part"):
        checkpoint.attach(path)
    with pytest.raises(BadSource, match="nothing\\*"):
        checkpoint.pin(path, only="nothing*")


def test_tied_weights_stay_one_tensor_and_strides_become_order(tmp_path: Path) -> None:
    weight = noise((256, 64))
    state = {"embed": weight, "head": weight, "turned": weight.t(), "part": weight[3:7], "step": 3}
    path = tmp_path / "model.pt"
    torch.save(state, path)
    pinned = checkpoint.pin(path)
    assert pinned.left_out == ("step",)
    assert pinned.size_bytes < 3 * weight.nbytes
    found = checkpoint.attach(path)
    assert found["embed"].data_ptr() == found["head"].data_ptr()
    assert same(found["turned"], weight.t())
    assert same(found["part"], weight[3:7])


def test_writes_stay_in_the_process_and_saving_one_tensor_saves_no_others(tmp_path: Path) -> None:
    state = weights()
    path = as_torch(state, tmp_path)
    checkpoint.pin(path)
    mine, other = checkpoint.attach(path), checkpoint.attach(path)
    mine["large"].fill_(1)
    assert same(other["large"], state["large"])
    assert mine["scalar"].untyped_storage().nbytes() == 4


def test_what_safetensors_lacks_is_refused_by_name(tmp_path: Path) -> None:
    path = save({"wave": noise((2,), torch.complex128), "plain": noise((2,))}, tmp_path / "c")
    with pytest.raises(Unsupported) as refused:
        checkpoint.pin(path)
    assert [one.path for one in refused.value.refusals] == ["wave"]
    assert checkpoint.pin(path, only="plain").tensors == 1
    skipped = checkpoint.pin(path, skip_unsupported=True)
    assert (skipped.tensors, skipped.left_out) == (1, ("wave",))
    assert checkpoint.pin(path, skip_unsupported=True).already
    with pytest.raises(Unsupported):
        checkpoint.pin(path)
    torch.save({"sparse": torch.eye(3).to_sparse()}, tmp_path / "s.pt")
    with pytest.raises(Unsupported) as refused:
        checkpoint.pin(tmp_path / "s.pt")
    assert "sparse" in refused.value.refusals[0].reason


@pytest.mark.parametrize("form", [as_dcp, as_shards, as_safetensors])
def test_lists_say_what_became_of_the_files(form: Form, tmp_path: Path) -> None:
    path = form(weights(), tmp_path)
    pinned = checkpoint.pin(path)
    file = path if path.is_file() else next(one for one in sorted(path.iterdir()) if one.suffix != ".json")

    def state() -> tuple[str, str]:
        (entry,) = list_objects().entries
        (source,) = entry.sources
        assert entry.name == pinned.name
        assert source.path.startswith(str(path))
        return entry.kind, source.state

    assert state() == ("checkpoint", "same")
    os.utime(file, ns=(1, 1))
    assert state() == ("checkpoint", "changed")
    with pytest.raises(NotPinned, match="has changed since"):
        checkpoint.attach(path)
    if path.is_dir():
        for one in path.iterdir():
            one.unlink()
        path.rmdir()
    else:
        path.unlink()
    assert state() == ("checkpoint", "gone")


def test_leases_live_as_long_as_any_tensor(tmp_path: Path) -> None:
    path = as_dcp(weights(), tmp_path)
    pinned = checkpoint.pin(path)
    last = checkpoint.attach(path)["scalar"]
    assert cleaning.clean(cleaning.plan([pinned.name])).removed == ()
    assert last == 3.5
    del last
    assert cleaning.clean(cleaning.plan([pinned.name])).removed == (pinned.name,)


def test_other_kinds_are_told_apart(tmp_path: Path) -> None:
    checkpoint.pin(as_safetensors(weights(), tmp_path), name="weights")
    with pytest.raises(UsageError, match=r"dsmem\.checkpoint\.attach"):
        dsmem.attach("weights")


def test_processes_hold_one_copy(tmp_path: Path) -> None:
    size_bytes = 24 << 20
    path = as_safetensors({"w": noise((size_bytes // 4,))}, tmp_path)
    pinned = checkpoint.pin(path)
    ready = [tmp_path / f"ready-{number}" for number in range(3)]

    def hold(mine: Path) -> float:
        tensor = checkpoint.attach(path)["w"]
        # Every page is mapped. Not by torch: its OpenMP threads are not in a fork.
        total = int(tensor.view(torch.int32).numpy()[::512].sum())
        mine.touch()
        deadline = time.monotonic() + 20
        while not all(one.exists() for one in ready) and time.monotonic() < deadline:
            time.sleep(0.01)
        share_kb = _pss_kb(pinned.name)
        (tmp_path / f"{mine.name}-read").touch()
        while len(list(tmp_path.glob("*-read"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert isinstance(total, int)
        return share_kb * 1024 / size_bytes

    with children.all_started([partial(hold, mine) for mine in ready]) as running:
        shares = [child.result() for child in running]
    assert 0.95 < sum(shares) < 1.1


def _pss_kb(name: str) -> int:
    inside, found = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = name in line
        elif inside and line.startswith("Pss:"):
            found += int(line.split()[1])
    return found


def test_a_file_that_is_damaged_names_the_tensors_and_leaves_nothing(tmp_path: Path, store_root: Path) -> None:
    path = as_dcp(weights(), tmp_path)
    largest = max(path.glob("*.distcp"), key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    with pytest.raises(CheckpointReadError, match="large"):
        checkpoint.pin(path)
    assert list_objects().entries == ()


def test_a_source_that_changes_meanwhile_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_shards(weights(), tmp_path)
    read = into.read

    def read_and_touch(*args: object, **kwargs: object) -> None:
        read(*args, **kwargs)  # type: ignore[arg-type]
        os.utime(path / "a.safetensors", ns=(5, 5))

    monkeypatch.setattr(into, "read", read_and_touch)
    with pytest.raises(SourceChanged):
        checkpoint.pin(path)
    assert list_objects().entries == ()


def test_one_process_loads_and_others_wait(tmp_path: Path) -> None:
    path = as_dcp(weights(), tmp_path)
    with children.all_started([partial(checkpoint.pin, path) for _ in range(3)]) as running:
        pinned = [child.result() for child in running]
    assert len({one.name for one in pinned}) == 1
    assert sum(not one.already and not one.waited for one in pinned) == 1


def test_killed_in_the_middle_leaves_nothing(tmp_path: Path, store_root: Path) -> None:
    path = as_safetensors(weights(), tmp_path)

    def die(done_bytes: int, total_bytes: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(children.ChildDied):
        children.call(lambda: checkpoint.pin(path, progress=die))
    assert list_objects().entries == ()
    assert not checkpoint.pin(path).already


def test_without_room_nothing_is_left(tmp_path: Path, tiny_tmpfs: InTmpfs) -> None:
    path = as_safetensors({"w": noise((2 << 20,))}, tmp_path)

    def body(root: Path) -> int:
        os.environ["DSMEM_ROOT"] = str(root / "store")
        with pytest.raises(NoSpace):
            checkpoint.pin(path)
        return len(list_objects().entries)

    assert tiny_tmpfs(body) == 0


def test_pickles_of_more_than_weights_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"w": noise((3,)), "evil": Evil(marker)}, tmp_path / "evil.pt")
    for act in (checkpoint.pin, partial(checkpoint.convert, destination=tmp_path / "out.pt")):
        with pytest.raises(UntrustedPickle):
            act(tmp_path / "evil.pt")
    assert not marker.exists()
    assert checkpoint.pin(tmp_path / "evil.pt", trusted=True).tensors == 1


@pytest.mark.parametrize("form", [as_dcp, as_safetensors, as_torch])
def test_tensors_are_read_to_their_places_without_a_second_copy(form: Form, tmp_path: Path) -> None:
    size_bytes = 48 << 20
    path = form({"w": torch.zeros(size_bytes // 8), "v": torch.zeros(size_bytes // 8)}, tmp_path)
    checkpoint.pin(path, only="v")  # all that is imported once

    def grown() -> int:
        before = peak = _anonymous_kb()

        def look(done_bytes: int, total_bytes: int) -> None:
            nonlocal peak
            peak = max(peak, _anonymous_kb())

        checkpoint.pin(path, progress=look)
        return (peak - before) * 1024

    assert children.call(grown) < size_bytes // 3


def _anonymous_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
