"""`dsmem pin --explain` and `--allow`: what is shown of a file that is not pinned, and the flags that hints name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from dsmem.errors import Allow, Refusal, Unsupported
from dsmem.pinning.explaining import ExplainedDataset, Explanation

from .conftest import Dsmem, Fake

PLAIN = ExplainedDataset(
    path="images",
    shape=(1000, 64),
    dtype="uint8",
    layout="contiguous",
    chunks=None,
    filters=(),
    size_bytes=64_000,
    stored_bytes=64_000,
    ratio=1.0,
    tier="contiguous",
    why="contiguous",
    is_outside=False,
    note=None,
)
PACKED = ExplainedDataset(
    path="a/packed",
    shape=(1000,),
    dtype="float32",
    layout="chunked",
    chunks=(100,),
    filters=("shuffle", "blosc2 (hdf5plugin)"),
    size_bytes=4000,
    stored_bytes=1000,
    ratio=4.0,
    tier="h5py",
    why="only HDF5 decodes blosc2",
    is_outside=False,
    note="a 16-bit float",
)
SMALL = dataclasses.replace(
    PACKED, path="small", filters=("gzip",), tier="chunked", why="chunked, gzip", note=None, in_processes=True
)
REFUSED = (Refusal("/away\x1b", "leads to o.h5", "external"), Refusal("/@r", "a reference"))


def library(fake: Fake) -> list[dict[str, object]]:
    seen: list[dict[str, object]] = []

    def explain(path: str, **options: object) -> Explanation:
        seen.append(options)
        return Explanation(f"/data/{path}", 70_000, (PLAIN, PACKED), REFUSED)

    fake("dsmem.pinning.gather", gather=list)
    fake("dsmem.pinning.explaining", explain=explain)
    fake("dsmem.pinning.pin")  # without `pin`: nothing may be pinned
    return seen


def test_terminal(dsmem: Dsmem, fake: Fake) -> None:
    library(fake)
    ran = dsmem("pin", "--explain", "t.h5", terminal=True)
    assert (ran.exit_code, ran.err) == (0, "")
    head, titles, *lines, last = ran.out.splitlines()
    assert head == "source  /data/t.h5"
    assert titles.split() == ["dataset", "shape", "dtype", "size", "ratio", "stored", "how"]
    text = " ".join(" ".join(lines).split())
    assert "images (1000, 64) uint8 62.5 KiB 1.0 contiguous copied as it lies" in text
    assert "read by h5py: only" in text and "chunked (100,)" in text
    assert "away\\x1b" in text and "refused: leads to" in text
    assert last == "would hold 66.4 KiB of a file of 68.4 KiB, 2 refused"


def test_threads_or_processes(dsmem: Dsmem, fake: Fake) -> None:
    shown = (SMALL, dataclasses.replace(SMALL, path="larger", in_processes=False))
    fake("dsmem.pinning.gather", gather=list)
    fake("dsmem.pinning.explaining", explain=lambda path, **_: Explanation(path, 70_000, shown, ()))
    ran = dsmem("pin", "--explain", "t.h5", terminal=True)
    text = " ".join(ran.out.split())
    assert "gzip decoded in processes larger" in text and "gzip decoded in threads" in text


def test_pipe(dsmem: Dsmem, fake: Fake) -> None:
    library(fake)
    ran = dsmem("pin", "--explain", "t.h5", "u.h5")
    header, *rows = [line.split("\t") for line in ran.out.splitlines()]
    assert header == (
        ["source", "dataset", "shape", "dtype", "size_bytes", "layout", "chunks", "filters", "ratio", "tier", "why"]
    )
    assert len(rows) == 8
    assert rows[1] == [
        *("/data/t.h5", "a/packed", "(1000,)", "float32", "4000", "chunked", "(100,)"),
        *("shuffle + blosc2 (hdf5plugin)", "4.0", "h5py", "only HDF5 decodes blosc2; a 16-bit float"),
    ]
    assert rows[2] == [
        *("/data/t.h5", "away\\x1b", "", "", "", "", "", "", "", "refused", "leads to o.h5 (--allow external)")
    ]
    assert rows[7][-1] == "a reference"
    assert (ran.exit_code, ran.err) == (0, "")


def test_json(dsmem: Dsmem, fake: Fake) -> None:
    seen = library(fake)
    ran = dsmem("pin", "--explain", "t.h5", "--json", "--allow", "external", "--only", "a*", "--untrusted")
    read = json.loads(ran.out)
    assert set(read) == {"explained", "failed"}
    (one,) = read["explained"]
    assert set(one) == {"path", "size_bytes", "datasets", "refused"}
    assert one["datasets"][0] == {
        "path": "images",
        "shape": [1000, 64],
        "dtype": "uint8",
        "layout": "contiguous",
        "chunks": None,
        "filters": [],
        "size_bytes": 64_000,
        "stored_bytes": 64_000,
        "ratio": 1.0,
        "tier": "contiguous",
        "why": "contiguous",
        "is_outside": False,
        "note": None,
        "in_processes": False,
    }
    assert one["refused"][0] == {"path": "/away\x1b", "reason": "leads to o.h5", "allow": "external"}
    assert seen == [{"only": ["a*"], "allow": ["external"], "untrusted": True}]


@pytest.mark.parametrize(
    ("allows", "hint"),
    [
        ([None], "pin the rest (or choose with --only GLOB): dsmem pin t.h5 --skip-unsupported"),
        (["external"], "if you trust the file (--skip-unsupported leaves it out): dsmem pin t.h5 --allow external"),
        (
            ["oversized", "external", "external"],
            "if you trust the file (--skip-unsupported leaves them out): "
            "dsmem pin t.h5 --allow external --allow oversized",
        ),
        (
            [None, "external"],
            "pin the rest (or choose with --only GLOB; if you trust the file also --allow external): "
            "dsmem pin t.h5 --skip-unsupported",
        ),
    ],
)
def test_hints_name_the_flag(dsmem: Dsmem, fake: Fake, allows: list[Allow | None], hint: str) -> None:
    def pin(path: str, **options: object) -> None:
        raise Unsupported("no", refusals=[Refusal(f"/{i}", "is x", allow) for i, allow in enumerate(allows)])

    fake("dsmem.pinning.gather", gather=list)
    fake("dsmem.pinning.pin", pin=pin)
    assert f"hint: {hint}\n" in dsmem("pin", "t.h5").err


def test_end_to_end(tmp_path: Path, store_root: Path, dsmem: Dsmem) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["plain"] = np.arange(1000)
        file.create_dataset("packed", data=np.arange(1000), chunks=(100,), compression="gzip", shuffle=True)
        file["away"] = h5py.ExternalLink("y.h5", "/x")
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["x"] = np.arange(3)
    rows = [line.split("\t") for line in dsmem("pin", "--explain", str(path)).out.splitlines()[1:]]
    assert [(row[1], row[9]) for row in rows] == [("packed", "chunked"), ("plain", "contiguous"), ("away", "refused")]
    assert not store_root.exists(), "no store is made for it"
    assert dsmem("pin", str(path)).exit_code == 1
    allowed = dsmem("pin", str(path), "--allow", "external", "--json")
    assert {one["path"] for one in json.loads(allowed.out)["pinned"][0]["datasets"]} == {"plain", "packed", "away"}
    ran = dsmem("pin", "--explain", str(path), "--allow", "all")
    assert ran.exit_code == 2 and "external, oversized" in ran.err
    (tmp_path / "text.h5").write_text("text")
    for name, exit_code in (("text.h5", 1), ("missing.h5", 3)):
        assert dsmem("pin", "--explain", str(tmp_path / name)).exit_code == exit_code
    assert dsmem("pin", "--explain", str(path), "--only", "nothing").exit_code == 1
