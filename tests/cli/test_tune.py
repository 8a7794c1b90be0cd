"""`dsmem tune`: what it shows to people, to a pipe and as JSON, what it writes, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import warm
from episodes import CAMERAS, GZIP, check_aloha, write_aloha

from .conftest import Dsmem


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the process that a real loader is measured in: `tests/tune/test_trials.py` has it."""
    from dsmem.tune import sampling

    monkeypatch.setattr(sampling, "handed_over_s", lambda *_, **__: 0.01)


@pytest.fixture
def robots(tmp_path: Path) -> Path:
    directory = tmp_path / "episodes"
    directory.mkdir()
    for number in range(3):
        write_aloha(directory / f"episode_{number}.hdf5", steps=6 + number, seed=number, **GZIP)
    return directory


def test_to_people(robots: Path, dsmem: Dsmem) -> None:
    ran = dsmem("tune", str(robots), "--batch-size", "4", terminal=True)
    assert ran.exit_code == 0 and not ran.err
    lines = [line.split() for line in ran.out.splitlines()]
    assert ["files", "3", "(aloha),", "3", "episodes,", "21", "steps"] in lines
    assert any(line[:4] == ["action", "3", "4", "float32"] and "contiguous" in line for line in lines)
    assert any(line[:1] == ["recommended"] for line in lines)
    assert any(line[:1] == ["dataloader.num_workers"] for line in lines)
    assert sum(line.startswith("– ") for line in ran.out.splitlines()) >= 2
    assert ran.out.splitlines()[-2:] == [
        "data of this size: preset small; 4 samples measured",
        "the files are in the page cache then: what a disk takes on the first pass is not in these times",
    ]


def test_measured(robots: Path, dsmem: Dsmem, monkeypatch: pytest.MonkeyPatch) -> None:
    forked = warm.use(monkeypatch)
    ran = dsmem("tune", str(robots), "--batch-size", "4", "--measure")
    rows = [line.split("\t") for line in ran.out.splitlines()]
    kept = [row[1] for row in rows if row[0] == "tried" and row[2:] == ["kept", "True"]]
    assert ran.exit_code == 0 and len(kept) == 1 and len(forked) >= 2
    assert dsmem("shm", "ls").out.splitlines()[1:] == []


def test_stopped_while_it_measures(robots: Path, dsmem: Dsmem, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tests/tune/test_trials.py` sees that nothing is left."""
    from dsmem.tune import trials

    ended: list[str] = []

    def compare(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            ended.append("cleaned up")

    monkeypatch.setattr(trials, "compare", compare)
    before = signal.getsignal(signal.SIGTERM)
    ran = dsmem("tune", str(robots), "--measure")
    assert (ran.exit_code, ran.out, ended) == (143, "", ["cleaned up"])
    assert signal.getsignal(signal.SIGTERM) == before


def test_to_a_pipe(robots: Path, dsmem: Dsmem) -> None:
    ran = dsmem("tune", str(robots), "--gpus", "4", "--camera", "top")
    rows = [line.split("\t") for line in ran.out.splitlines()]
    assert rows[0] == ["section", "item", "field", "value"] and {len(row) for row in rows} == {4}
    facts = {tuple(row[:3]): row[3] for row in rows}
    assert facts["system", "", "gpus"] == "4" and facts["data", "", "cameras"] == "top"
    assert facts["storage", "observations/images/top", "stored"] == "chunked 1×12×16×3 gzip"
    assert float(facts["storage", "observations/images/top", "decode_bytes_per_s"]) > 0
    assert facts["setting", "", "shared_memory.enabled"] in ("true", "false")
    assert {"recommended", "alternative", "reason"} <= {row[0] for row in rows}


def test_as_json(robots: Path, dsmem: Dsmem, tmp_path: Path) -> None:
    output = tmp_path / "dsmem.yaml"
    found = json.loads(dsmem("tune", str(robots), "--json", "-o", str(output), "--preset", "medium").out)
    assert set(found) == {
        "schema", "system", "data", "speeds", "workload", "recommendation", "preset", "measured", "config", "written",
        "rechunked",
    }  # fmt: skip
    assert found["schema"] == 1 and found["written"] == str(output)
    assert set(found["recommendation"]) == {
        "chosen", "reasons", "not_shared", "size_class", "alternatives", "changes",
    }  # fmt: skip
    assert set(found["recommendation"]["chosen"]) == {
        "settings", "batch_s", "first_pass_s", "pin_s", "memory_bytes", "shared_bytes", "at_hand",
    }  # fmt: skip
    assert found["data"]["storages"][0]["step_s"] > 0
    assert found["config"]["dataloader"]["num_workers"] == 4  # the preset's
    assert found["preset"]["settings"]["num_workers"] == 4


def test_into_a_file_that_is_there(robots: Path, dsmem: Dsmem, tmp_path: Path) -> None:
    output = tmp_path / "dsmem.yaml"
    output.write_text("# ours\ndataset:\n  use_shared_memory: true  # yes\n")
    ran = dsmem("tune", str(robots), "-o", str(output))
    assert ran.exit_code == 0 and f"written to {output}" in ran.err
    text = output.read_text()
    assert text.startswith("# ours\ndataset:\n  use_shared_memory: true  # yes\n") and "dataloader:\n" in text
    assert sorted(os.listdir(tmp_path / "episodes")) == [f"episode_{number}.hdf5" for number in range(3)]


def test_a_file_that_is_no_configuration_is_found_before_any_work(robots: Path, dsmem: Dsmem, tmp_path: Path) -> None:
    output = tmp_path / "dsmem.yaml"
    output.write_text("dataloader: {num_worker: 3}\n")
    ran = dsmem("tune", str(robots), "-o", str(output))
    assert (ran.exit_code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {output}:1: unknown key") and output.read_text().endswith("3}\n")
    ran = dsmem("tune", str(robots), "-o", str(tmp_path / "none" / "dsmem.yaml"))
    assert (ran.exit_code, ran.out) == (3, "") and "there is no directory" in ran.err


def test_a_preset_needs_no_files(dsmem: Dsmem, tmp_path: Path) -> None:
    ran = dsmem("tune", "--preset", "large", "-o", str(tmp_path / "dsmem.yaml"))
    assert ran.exit_code == 0 and "dataloader.num_workers\t8" in ran.out.splitlines()
    found = json.loads(dsmem("tune", "--preset", "small", "--json").out)
    assert found == {"preset": "small", "config": found["config"], "written": None}
    assert found["config"]["dataloader"]["num_workers"] == 2
    assert dsmem("tune", "--preset", "huge").exit_code == 2


@pytest.mark.parametrize(
    "more", [["--measure"], ["--rechunk", "out.h5"], ["--rechunk", "out.h5", "--force"], ["--camera", "top"],
             ["--mask", "train"], ["--gpus", "0"], ["--step", "0"], ["--changing"]],
)  # fmt: skip
def test_what_needs_files_is_not_passed_over_in_silence(dsmem: Dsmem, tmp_path: Path, more: list[str]) -> None:
    output = tmp_path / "dsmem.yaml"
    ran = dsmem("tune", "--preset", "large", "-o", str(output), *more)
    assert (ran.exit_code, ran.out) == (2, "") and ran.err.startswith("error: --") and more[0] in ran.err
    assert "hint: dsmem tune --help" in ran.err and not output.exists()


def test_a_preset_is_not_measured(robots: Path, dsmem: Dsmem) -> None:
    ran = dsmem("tune", str(robots), "--preset", "large", "--measure")
    assert (ran.exit_code, ran.out) == (2, "") and "give one of them" in ran.err


def test_a_preset_is_light(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom dsmem.cli.app import main\n"
        "try:\n    main(['tune', '--preset', 'small'])\nexcept SystemExit:\n    pass\n"
        "print(*sorted({'torch', 'h5py', 'numpy', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == ""


def test_nothing_to_look_at(dsmem: Dsmem) -> None:
    ran = dsmem("tune")
    assert (ran.exit_code, ran.out) == (2, "") and "hint: dsmem tune --help" in ran.err


def test_broken_files_are_told_line_by_line(robots: Path, dsmem: Dsmem) -> None:
    (robots / "a.h5").write_text("no")
    (robots / "b.h5").write_bytes(b"")
    ran = dsmem("tune", str(robots), "--camera", "top")
    assert (ran.exit_code, ran.out) == (1, "")
    assert ran.err.splitlines() == [
        "error: 2 episodes can't be trained on:",
        f"  {robots}/a.h5: {robots}/a.h5 is not an HDF5 file",
        f"  {robots}/b.h5: {robots}/b.h5 is empty",
        f"hint: see what a file holds: dsmem pin --explain {robots}/a.h5",
    ]
    assert dsmem("tune", str(robots / "none.h5")).exit_code == 3


def test_what_to_change_in_the_files(tmp_path: Path, dsmem: Dsmem) -> None:
    path = write_aloha(tmp_path / "e.hdf5", steps=40, compression="gzip", chunks=(1, 2, 2, 1))
    ran = dsmem("tune", str(path), terminal=True)
    assert "warning: observations/images/top: a read of chunks 1×2×2×1 costs" in ran.err
    facts = [line.split("\t") for line in dsmem("tune", str(path)).out.splitlines()]
    assert ["change", "observations/images/top", "better", "40×12×16×3"] in facts


def test_rechunk(tmp_path: Path, dsmem: Dsmem) -> None:
    from dsmem.training import EpisodicDataset

    ragged: dict[str, Any] = {"compression": "gzip", "chunks": (1, 2, 2, 1)}
    paths = [write_aloha(tmp_path / f"{name}.hdf5", steps=20, **ragged) for name in "ab"]
    paths.append(write_aloha(tmp_path / "good.hdf5"))
    ran = dsmem("tune", str(paths[0]), "--rechunk", str(tmp_path / "out.h5"), terminal=True)
    assert ran.exit_code == 0 and "out.h5: 2 datasets rechunked" in ran.out.splitlines()[-1]
    check_aloha(EpisodicDataset([tmp_path / "out.h5"], CAMERAS), [paths[0]])
    again = dsmem("tune", str(paths[0]), "--rechunk", str(tmp_path / "out.h5"))
    assert (again.exit_code, again.out) == (1, "") and "--force" in again.err
    assert dsmem("tune", *map(str, paths), "--rechunk", str(tmp_path / "other.h5")).exit_code == 2
    found = json.loads(dsmem("tune", *map(str, paths), "--rechunk", f"{tmp_path}/all/", "--json").out)["rechunked"]
    assert [one["destination"] and Path(one["destination"]).name for one in found] == ["a.hdf5", "b.hdf5", None]
    assert set(found[0]) == {
        "source", "destination", "datasets", "left", "before_bytes", "after_bytes", "elapsed_s",
    }  # fmt: skip
    assert sorted(os.listdir(tmp_path / "all")) == ["a.hdf5", "b.hdf5"]


def test_rechunk_refuses_by_name(tmp_path: Path, dsmem: Dsmem) -> None:
    import h5py

    path = write_aloha(tmp_path / "e.hdf5", steps=20, compression="gzip", chunks=(1, 2, 2, 1))
    with h5py.File(path, "a") as file:
        file["elsewhere"] = h5py.ExternalLink("other.h5", "/x")
    ran = dsmem("tune", str(path), "--rechunk", str(tmp_path / "out.h5"))
    assert ran.exit_code == 1 and "  /elsewhere: an external link" in ran.err and not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("name", ["\x1b[2J"])
def test_names_steer_nothing(tmp_path: Path, dsmem: Dsmem, name: str) -> None:
    import h5py

    path = write_aloha(tmp_path / "e.hdf5")
    with h5py.File(path, "a") as file:
        file.move("observations/images/top", f"observations/images/{name}")
    for terminal in (True, False):
        ran = dsmem("tune", str(path), terminal=terminal, colour=True)
        assert ran.exit_code == 0 and name not in ran.out and "\\x1b[2J" in ran.out
