"""`dsmem ckpt pin` and `dsmem ckpt convert`."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from checkpoints import noise, same, save

from dsmem import checkpoint

from .conftest import Dsmem


def weights(tmp_path: Path) -> Path:
    return save({"a": noise((300, 4)), "b": noise((7,), torch.bfloat16)}, tmp_path / "step-10")


def test_pin_then_list_then_clean(dsmem: Dsmem, tmp_path: Path) -> None:
    path = weights(tmp_path)
    ran = dsmem("ckpt", "pin", str(path), "--name", "weights")
    assert ran.exit_code == 0
    header, row = ran.out.splitlines()
    assert header.split("\t") == ["name", "source", "tensors", "size_bytes"]
    assert row.split("\t")[1:3] == [str(path), "2"]
    assert ran.err.startswith("pinned weights-")
    again = dsmem("ckpt", "pin", str(path), "--json")
    assert json.loads(again.out)["already"] is True
    assert "is already pinned" in dsmem("ckpt", "pin", str(path)).err
    listed = json.loads(dsmem("shm", "ls", "--json").out)["entries"]
    assert [(one["kind"], one["sources"][0]["state"]) for one in listed] == [("checkpoint", "same")]
    assert "checkpoint" in dsmem("shm", "ls", terminal=True).out
    rows = [row.split("\t") for row in dsmem("shm", "ls", "--h5", str(path)).out.splitlines()[1:]]
    assert [row[3:6] for row in rows] == [["a", "(300, 4)", "F32"], ["b", "(7,)", "BF16"]]
    assert dsmem("shm", "clean", "weights", "--yes").exit_code == 0
    assert json.loads(dsmem("shm", "ls", "--json").out)["entries"] == []


def test_pin_some(dsmem: Dsmem, tmp_path: Path) -> None:
    path = weights(tmp_path)
    assert json.loads(dsmem("ckpt", "pin", str(path), "--only", "b", "--json").out)["tensors"] == 1
    ran = dsmem("ckpt", "pin", str(path), "--only", "c")
    assert ran.exit_code != 0
    assert "no tensor that is called c" in ran.err


def test_what_safetensors_lacks_is_listed_and_can_be_skipped(dsmem: Dsmem, tmp_path: Path) -> None:
    path = save({"wave": noise((2,), torch.complex128), "a": noise((2,))}, tmp_path / "c")
    ran = dsmem("ckpt", "pin", str(path))
    assert ran.exit_code != 0
    assert "wave" in ran.err
    assert "--skip-unsupported" in ran.err
    skipped = dsmem("ckpt", "pin", str(path), "--skip-unsupported")
    assert skipped.exit_code == 0
    assert "left out: wave" in skipped.err
    ran = dsmem("ckpt", "convert", str(path), str(tmp_path / "x.safetensors"))
    assert "write the rest: dsmem ckpt convert" in ran.err


def test_convert(dsmem: Dsmem, tmp_path: Path) -> None:
    path, out = weights(tmp_path), tmp_path / "model"
    ran = dsmem("ckpt", "convert", str(path), str(out), "--to", "safetensors", "--max-shard", "4KiB")
    assert ran.exit_code == 0
    assert [row.split("\t")[0] for row in ran.out.splitlines()[1:]] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert "2 tensors" in ran.err
    assert same(checkpoint.load(out)["a"], checkpoint.load(path)["a"])
    refused = dsmem("ckpt", "convert", str(path), str(out), "--to", "safetensors")
    assert refused.exit_code != 0
    assert "--force" in refused.err
    found = json.loads(dsmem("ckpt", "convert", str(path), str(out), "--to", "safetensors", "--force", "--json").out)
    assert found["tensors"] == 2
    assert found["files"] == ["model-00001-of-00001.safetensors", "model.safetensors.index.json"]
    assert "does not tell the format" in dsmem("ckpt", "convert", str(path), str(tmp_path / "x")).err
