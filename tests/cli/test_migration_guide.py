"""docs/migration.md, run as it is written: each step gives the samples of the one before."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from episodes import CAMERAS, GZIP, write_aloha

from .conftest import Dsmem

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create:UserWarning"
)  # more than there are CPUs here
GUIDE = (Path(__file__).parents[2] / "docs/migration.md").read_text()
STEPS = 6


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


PLAIN, MINE, RANKS, TUNED = blocks("python")
FILE, DATASET, LOADER = blocks("diff")


def changed(source: str, *diffs: str) -> str:
    """What is taken out must be there; what is put in comes in its place, or at the top."""
    lines = source.splitlines()
    for diff in diffs:
        at = 0
        for line in diff.splitlines():
            if line.startswith("-"):
                at = lines.index(line[1:])
                del lines[at]
            else:
                assert line.startswith("+")
                lines.insert(at, line[1:])
                at += 1
    return "\n".join(lines)


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of episodes in a directory below the current one."""
    monkeypatch.chdir(tmp_path)
    Path("episodes").mkdir()
    return [str(write_aloha(Path(f"episodes/{number}.hdf5"), steps=STEPS, seed=number, **GZIP)) for number in range(2)]


def ran(source: str, paths: Sequence[str], **names: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"paths": list(paths), **names}
    exec(compile(source, "migration.md", "exec"), found)  # it is this project's own
    return found


def batches(loader: Any) -> list[Any]:
    found = list(loader)
    loader._iterator = None  # its workers end here
    return found


@pytest.fixture
def plain(recorded: list[str]) -> list[Any]:
    """The samples before the first step."""
    dataset = ran(PLAIN, recorded)["dataset"]
    found = [dataset[number] for number in range(len(dataset))]
    assert len(found) == 2 * STEPS and found[0][2].shape == (100, 4) and set(found[0][0]) == set(CAMERAS)
    return found


def test_a_file_in_its_place(recorded: list[str], plain: list[Any], dsmem: Dsmem) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch, once a process: these views are not to be written to
        found = ran(changed(PLAIN, FILE), recorded)
        samples = [found["dataset"][number] for number in range(len(plain))]
        assert sum(len(state) for _, state, _ in batches(found["loader"])) == len(plain)
    for (images, state, action), (same_images, same_state, same_action) in zip(samples, plain, strict=True):
        assert all(torch.equal(images[camera], same_images[camera]) for camera in CAMERAS)
        assert torch.equal(state, same_state) and torch.equal(action, same_action)
    assert len(dsmem("shm", "ls").out.splitlines()) == 1 + len(recorded)  # they are pinned


def test_the_class(recorded: list[str], plain: list[Any]) -> None:
    dataset = ran(changed(PLAIN, FILE, DATASET), recorded)["dataset"]
    for sample, (images, state, action) in zip((dataset[n] for n in range(len(dataset))), plain, strict=True):
        assert all(torch.equal(sample["images"][camera], images[camera]) for camera in CAMERAS)
        assert torch.equal(sample["state"], state.float()) and torch.equal(sample["action"], action)


def test_the_loader(recorded: list[str], plain: list[Any]) -> None:
    mine = ran(MINE, recorded)["Mine"]
    found = batches(ran(changed(PLAIN, FILE, DATASET, LOADER), recorded, Mine=mine)["loader"])
    places = {
        (int(one), int(step)) for batch in found for one, step in zip(batch["episode"], batch["step"], strict=True)
    }
    assert places == {(number, step) for number in range(2) for step in range(STEPS)}
    assert {text for batch in found for text in batch["language_instruction"]} == {"fold the towel"}


def test_under_torchrun(recorded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = ran(RANKS, recorded, cameras=CAMERAS, epochs=2)
    assert len(found["loader"].sampler) == STEPS and found["epoch"] == 1 and len(found["batch"]["step"]) == STEPS
    found["loader"]._iterator = None


def test_the_settings(recorded: list[str], dsmem: Dsmem, monkeypatch: pytest.MonkeyPatch) -> None:
    from dsmem.tune import sampling

    monkeypatch.setattr(sampling, "handed_over_s", lambda *_, **__: 0.01)  # `tests/tune/test_trials.py` has it
    (command,) = re.findall(r"`(dsmem tune [^`]+)`", GUIDE)[:1]
    assert dsmem(*command.split()[1:]).exit_code == 0
    found = ran(TUNED, recorded, cameras=CAMERAS)
    assert sum(len(batch["step"]) for batch in batches(found["loader"])) == 2 * STEPS
