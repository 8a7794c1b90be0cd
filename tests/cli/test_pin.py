"""`dsmem pin`: what it shows of one file and of several, and what it hands to the library."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from samples import settle, write_sample

from dsmem import proc
from dsmem.errors import BadSource, NoSpace, Refusal, SourceMissing, Unsupported
from dsmem.pinning.pin import Pinned, PinnedDataset
from dsmem.progress import Progress

from .conftest import Dsmem, Fake

DATASETS = (
    PinnedDataset("images", (1000, 64, 64, 3), "uint8", 12_288_000),
    PinnedDataset("labels", (), "int64", 8),
    PinnedDataset("nothing", None, "float32", 0),
)


def pinned(stem: str, *, already: bool = False, waited: bool = False, refused: tuple[Refusal, ...] = ()) -> Pinned:
    return Pinned(
        name=f"{stem}-0123456789abcdef",
        source=f"/data/{stem}.h5",
        algo="xxh3-tree",
        digest="ab" * 16,
        datasets=DATASETS,
        refused=refused,
        size_bytes=12_288_008,
        elapsed_s=0.00021 if already else 0.005,
        already=already,
        waited=waited,
    )


Pin = Callable[..., Pinned]


def library(fake: Fake, pin: Pin) -> None:
    def gather(paths: list[str]) -> list[str]:
        if "missing" in paths[0]:
            raise SourceMissing(f"{paths[0]}: no such file")
        return [f"{paths[0]}a.h5", f"{paths[0]}b.h5"] if paths[0].endswith("/") else list(paths)

    fake("dsmem.pinning.gather", gather=gather)
    fake("dsmem.pinning.pin", pin=pin)


def test_terminal(dsmem: Dsmem, fake: Fake) -> None:
    library(fake, lambda path, **options: pinned("train"))
    ran = dsmem("pin", "train.h5", terminal=True)
    assert (ran.exit_code, ran.err) == (0, "")
    assert ran.out == (
        "name    train-0123456789abcdef\n"
        "source  /data/train.h5\n"
        "digest  xxh3-tree:abababababababababababababababab\n"
        "dataset  shape              dtype        size\n"
        "images   (1000, 64, 64, 3)  uint8    11.7 MiB\n"
        "labels   ()                 int64         8 B\n"
        "nothing  empty              float32       0 B\n"
        "pinned train-0123456789abcdef: 11.7 MiB in 5 ms, 2.46 GB/s\n"
    )


def test_a_terminal_shows_the_first_of_very_many(dsmem: Dsmem, fake: Fake) -> None:
    many = tuple(PinnedDataset(f"x{number}", (1,), "uint8", 1) for number in range(1234))
    library(fake, lambda path, **options: replace(pinned("train"), datasets=many, source="/data/a b.h5"))
    lines = dsmem("pin", "train.h5", terminal=True).out.splitlines()
    assert [line.split()[0] for line in lines[4:-2]] == [f"x{number}" for number in range(100)]
    assert lines[-2] == "… and 1,134 more: dsmem shm ls --h5 '/data/a b.h5'"
    assert len(dsmem("pin", "train.h5").out.splitlines()) == 1 + 1234, "a pipe gets all"


def test_pipe(dsmem: Dsmem, fake: Fake) -> None:
    library(fake, lambda path, **options: pinned(path.removesuffix(".h5")))
    ran = dsmem("pin", "train.h5", "val.h5")
    header, *rows = [line.split("\t") for line in ran.out.splitlines()]
    assert header == ["name", "source", "digest", "dataset", "shape", "dtype", "size_bytes"]
    assert len(rows) == 6
    assert rows[0] == [
        "train-0123456789abcdef",
        "/data/train.h5",
        "xxh3-tree:" + "ab" * 16,
        "images",
        "(1000, 64, 64, 3)",
        "uint8",
        "12288000",
    ]
    assert rows[5][3:] == ["nothing", "empty", "float32", "0"]
    assert ran.err.splitlines() == [
        "pinned train-0123456789abcdef: 11.7 MiB in 5 ms, 2.46 GB/s",
        "pinned val-0123456789abcdef: 11.7 MiB in 5 ms, 2.46 GB/s",
    ]


def test_json(dsmem: Dsmem, fake: Fake) -> None:
    refused = (Refusal("/ref", "is a reference"),)
    library(fake, lambda path, **options: pinned("train", refused=refused))
    ran = dsmem("pin", "train.h5", "missing.h5", "--json", terminal=True)
    read = json.loads(ran.out)
    assert set(read) == {"pinned", "failed"}
    (one,) = read["pinned"]
    assert set(one) == {
        "name",
        "source",
        "algo",
        "digest",
        "datasets",
        "refused",
        "size_bytes",
        "elapsed_s",
        "already",
        "waited",
        "evicted",
        "evicted_bytes",
        "kept",
    }
    assert one["size_bytes"] == 12_288_008
    assert one["datasets"][0] == {
        "path": "images",
        "shape": [1000, 64, 64, 3],
        "dtype": "uint8",
        "size_bytes": 12_288_000,
    }
    assert one["datasets"][2]["shape"] is None
    assert one["refused"] == [{"path": "/ref", "reason": "is a reference", "allow": None}]
    assert read["failed"] == [
        {"path": "missing.h5", "error": "missing.h5: no such file", "exit_code": 3},
    ]
    assert ran.exit_code == 3


def test_second_pin_says_so(dsmem: Dsmem, fake: Fake) -> None:
    library(fake, lambda path, **options: pinned("train", already=True))
    out = dsmem("pin", "train.h5", terminal=True).out
    assert out.endswith("train-0123456789abcdef is already pinned: 11.7 MiB, found in 210 µs\n")
    library(fake, lambda path, **options: pinned("train", waited=True))
    assert "was pinned by another process meanwhile" in dsmem("pin", "train.h5", terminal=True).out


def test_what_was_left_out_is_told(dsmem: Dsmem, fake: Fake) -> None:
    refused = (Refusal("/ref\x1b", "is a reference"),)
    library(fake, lambda path, **options: pinned("train", refused=refused))
    assert "warning: left out: /ref\\x1b: is a reference\n" in dsmem("pin", "train.h5", terminal=True).err


def test_options_reach_the_library(dsmem: Dsmem, fake: Fake) -> None:
    seen: list[dict[str, object]] = []

    def pin(path: str, **options: object) -> Pinned:
        seen.append({"path": path, **options})
        return pinned("train")

    library(fake, pin)
    dsmem("pin", "t.h5")
    dsmem(
        *("pin", "t.h5", "--only", "a*", "--only", "b", "--name", "n", "--algo", "md5"),
        *("--verify", "--no-hash-cache", "--skip-unsupported", "--budget", "40GiB", "--keep"),
        *("--allow", "external", "--allow", "oversized", "--untrusted"),
    )
    for one in seen:
        assert callable(one.pop("progress"))
    defaults, given = seen
    assert defaults == {
        "path": "t.h5",
        "only": None,
        "name": None,
        "algo": "xxh3-tree",
        "verify": False,
        "skip_unsupported": False,
        "allow": [],
        "hash_cache": True,
        "budget": None,
        "keep": None,
        "untrusted": False,
    }
    assert given == {
        "path": "t.h5",
        "only": ["a*", "b"],
        "name": "n",
        "algo": "md5",
        "verify": True,
        "skip_unsupported": True,
        "allow": ["external", "oversized"],
        "hash_cache": False,
        "budget": 40 << 30,
        "keep": True,
        "untrusted": True,
    }


def test_what_was_evicted_is_told_on_stderr(dsmem: Dsmem, fake: Fake) -> None:
    one = replace(pinned("train"), evicted=("a-0123456789abcdef", "b-0123456789abcdef"), evicted_bytes=3 << 20)
    library(fake, lambda path, **options: one)
    for more in ({}, {"terminal": True}):
        ran = dsmem("pin", "train.h5", **more)
        assert "evicted 2 objects, 3.0 MiB\n" in ran.err
        assert "evicted" not in ran.out
    ran = dsmem("pin", "train.h5", "--json")
    assert ran.err == "evicted 2 objects, 3.0 MiB\n"
    (read,) = json.loads(ran.out)["pinned"]
    assert (read["evicted"], read["evicted_bytes"]) == (list(one.evicted), 3 << 20)


@pytest.mark.parametrize("size", ["lots", "-1GiB", "40 GiBs", ""])
def test_a_budget_that_is_no_size(size: str, dsmem: Dsmem, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = dsmem("pin", "train.h5", "--budget", size)
    assert (ran.exit_code, ran.out) == (2, "")
    assert f"error: {size!r} is not a size" in ran.err
    if size:
        monkeypatch.setenv("DSMEM_BUDGET", size)
        ran = dsmem("pin", "train.h5")
        assert (ran.exit_code, ran.out) == (2, "")
        assert f"error: DSMEM_BUDGET: {size!r} is not a size" in ran.err


def test_no_room_under_a_budget(dsmem: Dsmem, tmp_path: Path) -> None:
    path = settle(write_sample(tmp_path / "train.h5"))
    for budget in (["--budget", "10k"], ["--budget=10k"]):
        ran = dsmem("pin", *budget, str(path))
        assert (ran.exit_code, ran.out) == (4, "")
        assert "needed, which is more than the whole budget of 9.8 KiB; nothing was evicted\n" in ran.err
        assert ran.err.endswith(f"hint: give it as much: dsmem pin {path} --budget 1MiB\n")


def test_verbose_names_who_is_charged(dsmem: Dsmem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "cgroup_charged", lambda: "/sys/fs/cgroup/job")
    path = settle(write_sample(tmp_path / "train.h5"))
    assert "needed in the store, charged to cgroup /sys/fs/cgroup/job\n" in dsmem("-v", "pin", str(path)).err
    assert "charged" not in dsmem("pin", str(settle(write_sample(tmp_path / "other.h5", seed=1)))).err


def test_evict_and_keep_end_to_end(dsmem: Dsmem, tmp_path: Path) -> None:
    paths = [str(settle(write_sample(tmp_path / f"{i}.h5", seed=i))) for i in range(3)]
    names = [json.loads(dsmem("pin", path, "--json").out)["pinned"][0]["name"] for path in paths[:2]]
    assert dsmem("pin", paths[0], "--keep").exit_code == 0
    entries = {one["name"]: one for one in json.loads(dsmem("shm", "ls", "--json").out)["entries"]}
    assert [entries[name]["kept"] for name in names] == [True, False]
    budget = str(int(2.5 * entries[names[0]]["size_bytes"]))
    ran = dsmem("pin", paths[2], "--budget", budget)
    assert ran.exit_code == 0 and ran.err.startswith("evicted 1 object, ")
    assert names[0] in dsmem("shm", "ls").out and names[1] not in dsmem("shm", "ls").out
    dsmem("pin", paths[2], "--keep")
    ran = dsmem("pin", paths[1], "--budget", budget)
    assert ran.exit_code == 4 and f"{names[0]} (" in ran.err and "kept)" in ran.err
    assert dsmem("pin", paths[0], "--no-keep").exit_code == 0
    assert dsmem("pin", paths[1], "--budget", budget).exit_code == 0
    assert names[0] not in dsmem("shm", "ls").out


def test_one_bar_over_all_and_results_beside_it(dsmem: Dsmem, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSMEM_NO_PROGRESS", raising=False)

    def pin(path: str, *, progress: Progress, **options: object) -> Pinned:
        progress(1, 2)
        progress(2, 2)
        return pinned(path.rpartition("/")[2].removesuffix(".h5"))

    library(fake, pin)
    ran = dsmem("pin", "dir/", terminal=True)
    assert "pinning" in ran.err
    assert "pinning" not in ran.out
    assert ran.out.count("pinned ") == 2
    assert dsmem("pin", "dir/").err.count("pinning") == 0


def test_every_failure_at_the_end_and_the_worst_code(dsmem: Dsmem, fake: Fake) -> None:
    def pin(path: str, **options: object) -> Pinned:
        if path == "full.h5":
            raise NoSpace("need 2 GiB", need_bytes=2 << 30)
        if path == "bad.h5":
            raise BadSource("bad.h5 is not an HDF5 file")
        if path == "odd.h5":
            raise KeyError("odd")
        return pinned("good")

    library(fake, pin)
    ran = dsmem("pin", "bad.h5", "full.h5", "missing.h5", "odd.h5", "good.h5", "good.h5")
    assert ran.out.count("good-0123456789abcdef\t/data/good.h5") == 3  # three datasets, the file once
    assert ran.exit_code == 4
    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: missing.h5: no such file",
        "error: bad.h5 is not an HDF5 file",
        "error: full.h5: need 2 GiB",
        "error: odd.h5: unexpected KeyError: 'odd'",
    ]
    assert ran.err.index("pinned good") < ran.err.index("error: ")


def test_unsupported_lists_each_and_says_how_to_go_on(dsmem: Dsmem, fake: Fake) -> None:
    def pin(path: str, **options: object) -> Pinned:
        raise Unsupported("t.h5 holds 2 things", refusals=[Refusal("/a", "is x"), Refusal("/b", "is y")])

    library(fake, pin)
    ran = dsmem("pin", "my t.h5")
    assert (ran.exit_code, ran.out) == (1, "")
    assert ran.err == (
        "error: my t.h5: t.h5 holds 2 things\n"
        "  /a: is x\n"
        "  /b: is y\n"
        "hint: pin the rest (or choose with --only GLOB): dsmem pin 'my t.h5' --skip-unsupported\n"
    )


def test_an_empty_glob_is_a_mistake(dsmem: Dsmem, tmp_path: Path) -> None:
    path = settle(write_sample(tmp_path / "train.h5"))
    ran = dsmem("pin", str(path), "--only", "")
    assert (ran.exit_code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {path}: only takes globs of dataset paths, and one of these is empty\n")


def test_a_name_is_for_one_file(dsmem: Dsmem, fake: Fake) -> None:
    library(fake, lambda path, **options: pinned("train"))
    ran = dsmem("pin", "dir/", "--name", "n")
    assert (ran.exit_code, ran.out) == (2, "")
    assert ran.err.startswith("error: --name names one file; these are 2\nhint: dsmem pin --help")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "store"
    monkeypatch.setenv("DSMEM_ROOT", str(root))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return root


def test_end_to_end(tmp_path: Path, store: Path, dsmem: Dsmem) -> None:
    path = tmp_path / "train.h5"
    with h5py.File(path, "w") as file:
        file["images"] = np.arange(3000, dtype=np.uint8).reshape(10, 300)
        file["group/heat\tmaps"] = np.ones(7, np.float32)
    time.sleep(0.06)
    first = json.loads(dsmem("pin", str(path), "--json").out)["pinned"][0]
    second = json.loads(dsmem("pin", str(path), "--json").out)["pinned"][0]
    assert not first["already"] and second["already"]
    assert first["name"] == second["name"] and (store / "objects" / first["name"]).exists()
    assert {one["path"]: one["shape"] for one in first["datasets"]} == {
        "images": [10, 300],
        "group/heat\tmaps": [7],
    }
    assert dsmem("hash", str(path)).out == f"{first['digest']}  {path}\n"
    assert "group/heat\\x09maps\t(7,)\tfloat32\t28\n" in dsmem("pin", str(path)).out
    with_md5 = json.loads(dsmem("pin", str(path), "--algo", "md5", "--json").out)["pinned"][0]
    assert dsmem("hash", "--algo", "md5", str(path)).out.startswith(with_md5["digest"])


def test_untrusted_end_to_end(tmp_path: Path, store: Path, dsmem: Dsmem) -> None:
    path = tmp_path / "train.h5"
    with h5py.File(path, "w") as file:
        file["images"] = np.arange(3000, dtype=np.uint8).reshape(10, 300)
    (pinned,) = json.loads(dsmem("pin", "--untrusted", str(path), "--json").out)["pinned"]
    assert (store / "objects" / pinned["name"]).exists()
    ran, trusting = (dsmem("pin", *options, "--explain", str(path)) for options in (["--untrusted"], []))
    assert ran.exit_code == 0 and ran.out == trusting.out


def test_end_to_end_failures(tmp_path: Path, store: Path, dsmem: Dsmem) -> None:
    (tmp_path / "text.h5").write_text("not HDF5 at all")
    (tmp_path / "empty.h5").touch()
    for name, exit_code in [("text.h5", 1), ("empty.h5", 1), ("missing.h5", 3), ("missing/*.h5", 3)]:
        ran = dsmem("pin", str(tmp_path / name))
        assert (ran.exit_code, ran.out) == (exit_code, "")
        assert ran.err.startswith("error: ") and str(tmp_path / name) in ran.err and ran.err.count("\n") == 1
    ran = dsmem("pin", str(tmp_path))
    assert ran.exit_code == 1 and ran.err.count("error: ") == 2
