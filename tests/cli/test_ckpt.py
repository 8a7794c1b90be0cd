"""`dsmem ckpt`: what each command shows to people, to a pipe and as JSON, and its exit codes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from checkpoints import Evil, noise, save

from dsmem.checkpoint import workers

from .conftest import Dsmem

STATE = {"b.weight": noise((64, 32), torch.bfloat16), "a.bias": noise((7,), torch.float64, seed=1), "step": 3}


@pytest.fixture
def dcp(tmp_path: Path) -> str:
    return str(save(STATE, tmp_path / "step-1", files=2))


@pytest.fixture
def pt(tmp_path: Path) -> str:
    torch.save({"model": STATE}, tmp_path / "weights.pt")
    return str(tmp_path / "weights.pt")


def test_ls_to_people(dcp: str, dsmem: Dsmem) -> None:
    ran = dsmem("ckpt", "ls", dcp, terminal=True)
    assert ran.exit_code == 0
    lines = [line.split() for line in ran.out.splitlines()]
    assert ["b.weight", "bfloat16", "(64,", "32)", "4.0", "KiB"] in [line[:6] for line in lines]
    assert "besides tensors: step" in ran.out.splitlines()
    assert ran.out.splitlines()[-1].startswith("dcp: 2 tensors, 4.1 KiB, in 2 files of ")


def test_ls_sorts(dcp: str, pt: str, dsmem: Dsmem) -> None:
    def names(*options: str) -> list[str]:
        return [line.split("\t")[0] for line in dsmem("ckpt", "ls", pt, *options).out.splitlines()[1:]]

    assert names() == ["model.b.weight", "model.a.bias"]  # as saved
    assert names("--sort", "name") == ["model.a.bias", "model.b.weight"]
    assert names("--sort", "size") == ["model.b.weight", "model.a.bias"]
    assert dsmem("ckpt", "ls", dcp, "--sort", "age").exit_code == 2


def test_ls_as_json(dcp: str, dsmem: Dsmem) -> None:
    found = json.loads(dsmem("ckpt", "ls", dcp, "--json").out)
    assert set(found) == {"path", "format", "directory", "size_bytes", "tensors", "others", "files", "note"}
    assert found["size_bytes"] == 64 * 32 * 2 + 7 * 8
    by_name = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert by_name["b.weight"]["shape"] == [64, 32] and by_name["b.weight"]["dtype"] == "bfloat16"
    assert by_name["b.weight"]["parts"][0]["starts"] == [0, 0]
    sizes = {file["name"]: file["size_bytes"] for file in found["files"]}
    assert sizes == {name: os.path.getsize(Path(dcp, name)) for name in ("__0_0.distcp", "__0_1.distcp")}


def test_ls_runs_no_pickle(tmp_path: Path, dsmem: Dsmem) -> None:
    torch.save({"w": noise((3,)), "x": Evil(tmp_path / "made")}, tmp_path / "evil.pt")
    ran = dsmem("ckpt", "ls", str(tmp_path / "evil.pt"))
    assert ran.exit_code == 0 and "can be told without loading" in ran.err
    torch.save(Evil(tmp_path / "made"), tmp_path / ".metadata", _use_new_zipfile_serialization=False)
    ran = dsmem("ckpt", "ls", str(tmp_path / ".metadata"))
    assert ran.exit_code == 1 and "--trusted" not in ran.err  # there is no such option
    assert not (tmp_path / "made").exists()


def test_ls_names_missing_files(dcp: str, dsmem: Dsmem) -> None:
    Path(dcp, "__0_1.distcp").unlink()
    ran = dsmem("ckpt", "ls", dcp)
    assert ran.exit_code == 0 and "warning: __0_1.distcp is missing" in ran.err


def test_ls_shows_names_that_steer_nothing(tmp_path: Path, dsmem: Dsmem) -> None:
    torch.save({"x\x1b[2J\n": noise((3,))}, tmp_path / "w.pt")
    for terminal in (True, False):
        ran = dsmem("ckpt", "ls", str(tmp_path / "w.pt"), terminal=terminal, colour=True)
        assert "\x1b[2J" not in ran.out and "\\x1b[2J" in ran.out


def test_read_to_people(dcp: str, dsmem: Dsmem) -> None:
    ran = dsmem("ckpt", "read", dcp, terminal=True)
    assert ran.exit_code == 0
    lines = ran.out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["__0_0.distcp", "1"], ["__0_1.distcp", "1"]]
    assert "workers  1 (less than 32.0 MiB)" in lines
    assert "ways     2 small, read together" in lines
    assert any(line.startswith("memory   4.1 KiB of the ") for line in lines)
    assert lines[-1].startswith("2 tensors, ") and lines[-1].endswith(("GB/s", "MB/s"))


def test_read_to_a_pipe(pt: str, dsmem: Dsmem) -> None:
    ran = dsmem("ckpt", "read", pt, "--workers", "2", "--io", "pread")
    assert ran.out.splitlines()[0].split("\t") == ["file", "items", "size_bytes", "busy_s"]
    assert ran.out.splitlines()[1].startswith("weights.pt\t2\t")
    assert "workers: 2 (as asked)" in ran.err and "io: pread" in ran.err
    assert "advice: --workers 1 is faster here: it is less than 32.0 MiB" in ran.err
    assert "advice" not in dsmem("ckpt", "read", pt, "--workers", "1").err


def test_read_a_part_as_json(dcp: str, dsmem: Dsmem) -> None:
    found = json.loads(dsmem("ckpt", "read", dcp, "--only", "*.bias", "--json").out)
    assert found["tensors"] == 1 and found["fit"]["need_bytes"] == 7 * 8
    assert found["report"]["size_bytes"] > 0 and found["bytes_per_s"] > 0
    ran = dsmem("ckpt", "read", dcp, "--only", "none.*")
    assert (ran.exit_code, ran.out) == (1, "") and "nothing matches none.*" in ran.err


def test_read_refuses_what_does_not_fit(dcp: str, dsmem: Dsmem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "available_bytes", lambda: 100)
    ran = dsmem("ckpt", "read", dcp)
    assert (ran.exit_code, ran.out) == (4, "")
    assert "takes 4.1 KiB of memory, and 100 B is what a read may take here" in ran.err
    assert f"dsmem ckpt read {dcp} --only GLOB" in ran.err
    assert dsmem("ckpt", "read", dcp, "--only", "*.bias").exit_code == 0


def test_read_tells_all_that_failed(dcp: str, dsmem: Dsmem) -> None:
    for file in Path(dcp).glob("*.distcp"):
        os.truncate(file, 100)
    ran = dsmem("ckpt", "read", dcp)
    assert (ran.exit_code, ran.out) == (1, "")
    assert all(f"{name} at byte " in ran.err for name in ("__0_0.distcp", "__0_1.distcp"))
    assert f"DSMEM_DEBUG=1 dsmem ckpt read {dcp}" in ran.err


def test_read_refuses_pickles_that_run(tmp_path: Path, dsmem: Dsmem) -> None:
    torch.save({"w": noise((3,)), "x": Evil(tmp_path / "made")}, tmp_path / "evil.pt")
    ran = dsmem("ckpt", "read", str(tmp_path / "evil.pt"))
    assert ran.exit_code == 1 and "ckpt read" in ran.err and "--trusted" in ran.err
    assert not (tmp_path / "made").exists()
    assert dsmem("ckpt", "read", str(tmp_path / "evil.pt"), "--trusted").exit_code == 0
    assert (tmp_path / "made").exists()


def test_several_in_one_directory(tmp_path: Path, dsmem: Dsmem) -> None:
    for name in ("a.pt", "b c.pt"):
        torch.save({"x": torch.ones(2)}, tmp_path / name)
    ran = dsmem("ckpt", "read", str(tmp_path))
    assert ran.exit_code == 2
    assert [line.strip() for line in ran.err.splitlines()] == [
        f"error: {tmp_path} holds several checkpoints; name one of them",
        f"{tmp_path}/a.pt",
        f"{tmp_path}/b c.pt",
        f"hint: see what one holds: dsmem ckpt ls {tmp_path}/a.pt",
    ]


@pytest.mark.parametrize("command", ["ls", "read", "verify"])
def test_nothing_there(command: str, tmp_path: Path, dsmem: Dsmem) -> None:
    assert dsmem("ckpt", command, str(tmp_path / "none")).exit_code == 3
    ran = dsmem("ckpt", command, str(tmp_path))
    assert ran.exit_code == 1 and "holds no checkpoint" in ran.err
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert dsmem("ckpt", command, str(tmp_path)).exit_code == 2
    assert dsmem("ckpt", command).exit_code == 2


def test_verify_to_people(dcp: str, dsmem: Dsmem) -> None:
    ran = dsmem("ckpt", "verify", dcp, terminal=True)
    assert ran.exit_code == 0
    assert [line.split()[:2] for line in ran.out.splitlines()[:-1]] == [
        ["✓", name] for name in ("structure", "files", "tensors", "checksums")
    ]
    assert ran.out.splitlines()[-1].endswith(": no faults")


def test_verify_names_every_fault(dcp: str, dsmem: Dsmem) -> None:
    os.truncate(Path(dcp, "__0_0.distcp"), 100)
    Path(dcp, "__0_1.distcp").unlink()
    ran = dsmem("ckpt", "verify", dcp, terminal=True)
    assert ran.exit_code == 1 and ran.out.splitlines()[-1].endswith(": 2 faults")
    assert "✗ files      __0_0.distcp: truncated: it has 100 bytes of " in ran.out
    assert "✗ files      __0_1.distcp: missing, with " in ran.out
    rows = [line.split("\t") for line in dsmem("ckpt", "verify", dcp).out.splitlines()]
    assert rows[0] == ["state", "name", "file", "tensor", "detail"]
    assert [row[2] for row in rows if row[0] == "bad"] == ["__0_0.distcp", "__0_1.distcp"]
    ran = dsmem("ckpt", "verify", dcp, "--json")
    found = json.loads(ran.out)
    assert ran.exit_code == 1 and found["ok"] is False and found["format"] == "dcp"
    assert {check["state"] for check in found["checks"]} == {"ok", "bad"}


def test_verify_of_torch_files(pt: str, dsmem: Dsmem) -> None:
    assert dsmem("ckpt", "verify", pt, "--workers", "1").exit_code == 0
    data = Path(pt).read_bytes()
    at = data.index(STATE["a.bias"].numpy().tobytes())  # type: ignore[attr-defined]  # a tensor
    Path(pt).write_bytes(data[:at] + b"changed" + data[at + 7 :])
    ran = dsmem("ckpt", "verify", pt)
    assert ran.exit_code == 1 and "bad\tchecksums\tweights.pt\tmodel.a.bias\tbytes changed" in ran.out
