"""`dsmem shm`: what listing, cleaning and the doctor show on a terminal, on a pipe and as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from dsmem.arrays.summary import DatasetSummary
from dsmem.errors import NotPinned
from dsmem.proc import Holder
from dsmem.shm.cleaning import Cleaned, CleanPlan, Forgotten, Kept
from dsmem.shm.doctor import Check, Diagnosis
from dsmem.shm.listing import Entry, Leftover, Listing, SourceState
from dsmem.store.root import make_store

from .conftest import Dsmem, Fake

GIB = 1 << 30
TRAIN = Entry(
    name="train-0123456789abcdef",
    kind="arrays",
    size_bytes=3 * GIB,
    sources=(SourceState("/data/train.h5", "same", False), SourceState("/old/train.h5", "changed", True)),
    digest="xxh3-tree:abcd",
    age_s=7500.0,
    holders=(Holder(41, "python"), Holder(42, "python")),
    damaged=None,
    datasets=(),
)
VAL = Entry(
    name="val-0123456789abcdef",
    kind="arrays",
    size_bytes=1024,
    sources=(SourceState("/data/val\x1b.h5", "gone", False),),
    digest="md5:00ff",
    age_s=3.0,
    holders=(),
    damaged=None,
    datasets=(DatasetSummary("images", (2, 3), "uint8", 6), DatasetSummary("g/empty", None, "float32", 0)),
    kept=True,
)
BROKEN = Entry(
    name="broken-0123456789abcdef",
    kind="arrays",
    size_bytes=10,
    sources=(),
    digest="",
    age_s=1.0,
    holders=None,
    damaged="its header is cut short",
    datasets=(),
)


def listing(*entries: Entry, leftovers: tuple[Leftover, ...] = ()) -> Listing:
    return Listing(
        root="/dev/shm/dsmem-1000",
        entries=entries,
        total_bytes=sum(entry.size_bytes for entry in entries),
        shm_total_bytes=12 * GIB,
        shm_used_bytes=4 * GIB,
        leftovers=leftovers,
    )


def test_ls_terminal(dsmem: Dsmem, fake: Fake) -> None:
    fake("dsmem.shm.listing", list_objects=lambda **options: listing(TRAIN, VAL))
    ran = dsmem("shm", "ls", terminal=True)
    assert (ran.exit_code, ran.err) == (0, "")
    assert ran.out == (
        "name                    kind       size  source                                 age  held by    kept\n"
        "train-0123456789abcdef  arrays  3.0 GiB  /data/train.h5                  2 h 05 min  41 python\n"
        "                                         /old/train.h5 (partial,                     42 python\n"
        "                                         changed)\n"
        "val-0123456789abcdef    arrays  1.0 KiB  /data/val\\x1b.h5 (gone)              3.0 s             kept\n"
        "2 objects, 3.0 GiB; /dev/shm: 4.0 GiB of 12.0 GiB in use\n"
    )


def test_ls_pipe(dsmem: Dsmem, fake: Fake) -> None:
    fake("dsmem.shm.listing", list_objects=lambda **options: listing(TRAIN, VAL))
    ran = dsmem("shm", "ls")
    assert ran.out == (
        "name\tkind\tsize_bytes\tsource\tage_s\theld_by\tkept\n"
        "train-0123456789abcdef\tarrays\t3221225472\t/data/train.h5 | /old/train.h5 (partial, changed)\t"
        "7500.0\t41 python | 42 python\t\n"
        "val-0123456789abcdef\tarrays\t1024\t/data/val\\x1b.h5 (gone)\t3.0\t\tkept\n"
    )
    assert ran.err == "2 objects, 3.0 GiB; /dev/shm: 4.0 GiB of 12.0 GiB in use\n"


def test_ls_json(dsmem: Dsmem, fake: Fake) -> None:
    left = (Leftover("/dev/shm/glint_00ff_images", 7),)
    fake("dsmem.shm.listing", list_objects=lambda **options: listing(TRAIN, BROKEN, leftovers=left))
    ran = dsmem("shm", "ls", "--all", "--json", terminal=True)
    read = json.loads(ran.out)
    assert set(read) == {"root", "entries", "total_bytes", "shm_total_bytes", "shm_used_bytes", "leftovers"}
    first, second = read["entries"]
    keys = {"name", "kind", "size_bytes", "sources", "digest", "age_s", "holders", "damaged", "datasets", "kept"}
    assert set(first) == set(second) == keys
    assert first["size_bytes"] == 3 * GIB
    assert first["sources"][1] == {"path": "/old/train.h5", "state": "changed", "partial": True}
    assert first["holders"][0] == {"pid": 41, "command": "python"}
    assert second["holders"] is None
    assert read["leftovers"] == [{"path": "/dev/shm/glint_00ff_images", "size_bytes": 7}]


def test_ls_of_nothing(dsmem: Dsmem, fake: Fake) -> None:
    fake("dsmem.shm.listing", list_objects=lambda **options: listing())
    assert dsmem("shm", "ls", terminal=True).out == "0 objects, 0 B; /dev/shm: 4.0 GiB of 12.0 GiB in use\n"
    assert dsmem("shm", "ls").out == "name\tkind\tsize_bytes\tsource\tage_s\theld_by\tkept\n"


def test_ls_tells_what_is_damaged_unknown_or_left_over(dsmem: Dsmem, fake: Fake) -> None:
    left = (Leftover("/dev/shm/glint_00ff_images", 7),)
    fake("dsmem.shm.listing", list_objects=lambda **options: listing(BROKEN, leftovers=left))
    ran = dsmem("shm", "ls", "--all")
    assert ran.out.splitlines()[1:] == [
        "broken-0123456789abcdef\tdamaged\t10\t\t1.0\tunknown\t",
        "/dev/shm/glint_00ff_images\tleftover\t7\t\t\t\t",
    ]
    assert "warning: broken-0123456789abcdef is damaged: its header is cut short\n" in ran.err


def test_ls_options_reach_the_library(dsmem: Dsmem, fake: Fake) -> None:
    seen: list[dict[str, object]] = []

    def list_objects(**options: object) -> Listing:
        seen.append(options)
        return listing(VAL)

    fake("dsmem.shm.listing", list_objects=list_objects)
    dsmem("shm", "ls")
    dsmem("shm", "ls", "--h5", "v.h5", "--sort", "age", "--all")
    assert seen == [
        {"sort": "name", "h5": None, "everything": False},
        {"sort": "age", "h5": "v.h5", "everything": True},
    ]


def test_ls_of_one_file(dsmem: Dsmem, fake: Fake) -> None:
    fake("dsmem.shm.listing", list_objects=lambda **options: listing(VAL))
    assert dsmem("shm", "ls", "--h5", "val.h5", terminal=True).out == (
        "name     val-0123456789abcdef\n"
        "digest   md5:00ff\n"
        "source   /data/val\\x1b.h5 (gone)\n"
        "size     1.0 KiB\n"
        "age      3.0 s\n"
        "held by  nobody\n"
        "kept     until it is named, or pinned with --no-keep\n"
        "dataset  shape   dtype    size\n"
        "images   (2, 3)  uint8     6 B\n"
        "g/empty  empty   float32   0 B\n"
    )
    rows = dsmem("shm", "ls", "--h5", "val.h5").out.splitlines()
    assert rows[0] == "name\tdigest\tsource\tdataset\tshape\tdtype\tsize_bytes"
    assert rows[1].split("\t") == [
        "val-0123456789abcdef",
        "md5:00ff",
        "/data/val\\x1b.h5 (gone)",
        "images",
        "(2, 3)",
        "uint8",
        "6",
    ]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_ls_of_a_file_that_is_not_pinned(options: list[str], dsmem: Dsmem, fake: Fake, tmp_path: Path) -> None:
    path = tmp_path / "v.h5"
    path.touch()
    fake("dsmem.shm.listing", list_objects=lambda **given: listing())
    ran = dsmem("shm", "ls", "--h5", str(path), *options)
    assert ran.exit_code == 3
    assert ran.err == f"error: {path} is not pinned\nhint: pin it first: dsmem pin {path}\n"


class Cleaner:
    """Stands for dsmem.shm.cleaning and remembers what it was asked."""

    def __init__(self, fake: Fake, plan: CleanPlan, cleaned: Cleaned | None = None) -> None:
        self.planned: list[dict[str, object]] = []
        self.cleaned: list[bool] = []
        self._plan = plan
        self._cleaned = cleaned
        fake("dsmem.shm.cleaning", plan=self.plan, clean=self.clean)

    def plan(self, targets: Sequence[str], **options: object) -> CleanPlan:
        self.planned.append({"targets": targets, **options})
        return self._plan

    def clean(self, plan: CleanPlan, *, force: bool) -> Cleaned:
        assert plan is self._plan
        self.cleaned.append(force)
        names = tuple(entry.name for entry in plan.remove)
        return self._cleaned or Cleaned(names, sum(e.size_bytes for e in plan.remove), 0, plan.kept)


NOTHING = {"h5": (), "everything": False, "unused": False, "stale": False, "older_than_s": None, "force": False}


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], {"targets": (), "unused": True}),
        (["--unused"], {"targets": (), "unused": True}),
        (["--force"], {"targets": (), "unused": True, "force": True}),
        (["a", "b.h5"], {"targets": ("a", "b.h5")}),
        (["--h5", "a", "--h5", "b"], {"targets": (), "h5": ("a", "b")}),
        (["--all", "--older-than", "2d"], {"targets": (), "everything": True, "older_than_s": 172_800.0}),
        (["--stale"], {"targets": (), "stale": True}),
    ],
)
def test_clean_asks_the_library_for_what_was_chosen(
    arguments: list[str], wanted: dict[str, object], dsmem: Dsmem, fake: Fake
) -> None:
    cleaner = Cleaner(fake, CleanPlan((), (), 0))
    ran = dsmem("shm", "clean", *arguments, terminal=True)
    assert (ran.exit_code, ran.out) == (0, "nothing to remove\n")
    assert cleaner.planned == [{**NOTHING, **wanted}]
    assert cleaner.cleaned == []


def test_clean_shows_asks_and_removes(dsmem: Dsmem, fake: Fake) -> None:
    cleaner = Cleaner(fake, CleanPlan((VAL,), (), 2048))
    ran = dsmem("shm", "clean", terminal=True, answer="y\n")
    assert ran.exit_code == 0
    assert ran.err == "Remove 1 object (1.0 KiB) and sweep up 2.0 KiB left by interrupted commands? [y/N] "
    assert "val-0123456789abcdef" in ran.out
    assert ran.out.endswith("removed 1 object, freed 1.0 KiB\n")
    assert cleaner.cleaned == [False]


@pytest.mark.parametrize("answer", ["n\n", "\n", "", "what\n"])
def test_clean_takes_no_for_an_answer(answer: str, dsmem: Dsmem, fake: Fake) -> None:
    cleaner = Cleaner(fake, CleanPlan((VAL,), (), 0))
    ran = dsmem("shm", "clean", terminal=True, answer=answer)
    assert ran.exit_code == 1
    assert ran.err.endswith("nothing done\n")
    assert cleaner.cleaned == []


def test_clean_without_a_terminal_needs_yes(dsmem: Dsmem, fake: Fake) -> None:
    cleaner = Cleaner(fake, CleanPlan((VAL,), (), 0))
    ran = dsmem("shm", "clean", "--all", "my file.h5")
    assert ran.exit_code == 2
    assert ran.err == (
        "error: Remove 1 object (1.0 KiB)? There is no terminal to answer on\n"
        "hint: say yes in advance: dsmem shm clean --all 'my file.h5' -y\n"
    )
    assert cleaner.cleaned == []
    ran = dsmem("shm", "clean", "--all", "-y")
    assert (ran.exit_code, cleaner.cleaned) == (0, [False])
    assert ran.out.splitlines()[1].startswith("val-0123456789abcdef\tarrays\t1024\t")
    assert ran.err == "removed 1 object, freed 1.0 KiB\n"


@pytest.mark.parametrize("option", ["-n", "--dry-run"])
def test_clean_dry_run(option: str, dsmem: Dsmem, fake: Fake) -> None:
    cleaner = Cleaner(fake, CleanPlan((VAL,), (Kept(TRAIN, "in use by 41, 42", in_use=True),), 0))
    ran = dsmem("shm", "clean", option)
    assert ran.exit_code == 0
    assert cleaner.cleaned == []
    assert ran.err == ("warning: train-0123456789abcdef stays: in use by 41, 42\nwould remove 1 object (1.0 KiB)\n")


def test_clean_all_passes_over_what_is_in_use(dsmem: Dsmem, fake: Fake) -> None:
    Cleaner(fake, CleanPlan((VAL,), (Kept(TRAIN, "in use by 41, 42", in_use=True),), 0))
    ran = dsmem("shm", "clean", "--all", "-y")
    assert ran.exit_code == 0
    assert "warning: train-0123456789abcdef stays: in use by 41, 42\n" in ran.err


@pytest.mark.parametrize("asked", [["train-0123456789abcdef"], ["--h5", "/data/train.h5"]])
def test_clean_of_something_named_that_is_in_use(asked: list[str], dsmem: Dsmem, fake: Fake) -> None:
    Cleaner(fake, CleanPlan((), (Kept(TRAIN, "in use by 41, 42", in_use=True),), 0))
    ran = dsmem("shm", "clean", *asked, "-y")
    assert ran.exit_code == 5
    assert ran.err.splitlines()[-2:] == [
        "error: train-0123456789abcdef is in use by 41, 42",
        "hint: remove all the same; memory comes back when the holders end: "
        "dsmem shm clean --force train-0123456789abcdef",
    ]


def test_clean_forgets_a_file_whose_object_another_shares(dsmem: Dsmem, fake: Fake) -> None:
    kept = Kept(TRAIN, "also pinned from /b.h5; only /a.h5 is forgotten", in_use=False)
    cleaner = Cleaner(fake, CleanPlan((), (kept,), 4096, (Forgotten("/a.h5", TRAIN.name),)))
    ran = dsmem("shm", "clean", "/a.h5", answer="y\n", terminal=True)
    assert (ran.exit_code, cleaner.cleaned) == (0, [False])
    assert "Forget /a.h5? [y/N] " in ran.err
    assert "stays: also pinned from /b.h5; only /a.h5 is forgotten\n" in ran.err


def test_clean_of_what_was_taken_meanwhile(dsmem: Dsmem, fake: Fake) -> None:
    kept = Kept(TRAIN, "in use by 41, 42", in_use=True)
    Cleaner(fake, CleanPlan((TRAIN,), (), 0), Cleaned((), 0, 0, (kept,)))
    ran = dsmem("shm", "clean", TRAIN.name, "-y")
    assert ran.exit_code == 5
    assert "warning: train-0123456789abcdef stays: in use by 41, 42\n" in ran.err


def test_clean_force_says_when_memory_comes_back(dsmem: Dsmem, fake: Fake) -> None:
    plan = CleanPlan((TRAIN,), (), 0)
    cleaner = Cleaner(fake, plan, Cleaned((TRAIN.name,), 0, TRAIN.size_bytes, ()))
    ran = dsmem("shm", "clean", "train.h5", "--force", "-y", terminal=True)
    assert (ran.exit_code, cleaner.cleaned) == (0, [True])
    assert "train-0123456789abcdef is in use; its memory comes back when these end: 41 python, 42 python" in ran.err
    assert ran.out.endswith("removed 1 object, freed 0 B\n3.0 GiB come back when the processes that hold them end\n")


def test_clean_says_what_is_kept_and_goes_on(dsmem: Dsmem, fake: Fake) -> None:
    kept = Kept(VAL, "kept: name it to remove it", in_use=False)
    Cleaner(fake, CleanPlan((TRAIN,), (kept,), 0))
    ran = dsmem("shm", "clean", "-y")
    assert ran.exit_code == 0
    assert "warning: val-0123456789abcdef stays: kept: name it to remove it\n" in ran.err


def test_clean_of_what_is_not_there(dsmem: Dsmem, fake: Fake) -> None:
    def plan(*targets: object, **options: object) -> CleanPlan:
        raise NotPinned("nothing called 'x' is pinned", target="x")

    fake("dsmem.shm.cleaning", plan=plan, clean=None)
    ran = dsmem("shm", "clean", "x", "-y")
    assert (ran.exit_code, ran.err) == (
        3,
        "error: nothing called 'x' is pinned\nhint: see what is pinned: dsmem shm ls\n",
    )


CHECKS = (
    Check("shared memory", "ok", "/dev/shm: 1.0 GiB of 12.0 GiB used"),
    Check("huge pages", "warn", "never", "sudo mount -o remount,huge=within_size /dev/shm"),
    Check("store", "bad", "/x\x1b is a symlink", "rm /x"),
)


def diagnose(fake: Fake, *checks: Check) -> None:
    from dsmem.shm.doctor import examine

    limits = examine().limits
    fake("dsmem.shm.doctor", examine=lambda: Diagnosis(checks, limits))


def test_doctor_terminal(dsmem: Dsmem, fake: Fake) -> None:
    diagnose(fake, *CHECKS)
    ran = dsmem("shm", "doctor", terminal=True)
    assert ran.exit_code == 1
    assert ran.out == (
        "✓ shared memory  /dev/shm: 1.0 GiB of 12.0 GiB used\n"
        "! huge pages     never; mend: sudo mount -o remount,huge=within_size /dev/shm\n"
        "✗ store          /x\\x1b is a symlink; mend: rm /x\n"
    )


def test_doctor_pipe(dsmem: Dsmem, fake: Fake) -> None:
    diagnose(fake, *CHECKS[:2])
    ran = dsmem("shm", "doctor")
    assert (ran.exit_code, ran.err) == (0, "")
    assert ran.out == (
        "state\tname\tdetail\tmend\n"
        "ok\tshared memory\t/dev/shm: 1.0 GiB of 12.0 GiB used\t\n"
        "warn\thuge pages\tnever\tsudo mount -o remount,huge=within_size /dev/shm\n"
    )


def test_doctor_json_on_this_machine(dsmem: Dsmem) -> None:
    ran = dsmem("shm", "doctor", "--json")
    read = json.loads(ran.out)
    assert set(read) == {"checks", "limits"}
    assert all(set(check) == {"name", "state", "detail", "mend"} for check in read["checks"])
    assert ran.exit_code == int(any(check["state"] == "bad" for check in read["checks"]))


def test_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dsmem: Dsmem) -> None:
    monkeypatch.setenv("DSMEM_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "train.h5"
    with h5py.File(path, "w") as file:
        file["images"] = np.arange(3000, dtype=np.uint8).reshape(10, 300)
    time.sleep(0.06)
    assert json.loads(dsmem("shm", "ls", "--json").out)["entries"] == []
    assert dsmem("shm", "ls", "--h5", str(path)).exit_code == 3
    name = json.loads(dsmem("pin", str(path), "--json").out)["pinned"][0]["name"]
    (entry,) = json.loads(dsmem("shm", "ls", "--json").out)["entries"]
    assert entry["name"] == name and entry["holders"] == [] and entry["sources"][0]["state"] == "same"
    (entry,) = json.loads(dsmem("shm", "ls", "--h5", str(path), "--json").out)["entries"]
    assert entry["datasets"] == [{"path": "images", "shape": [10, 300], "dtype": "uint8", "size_bytes": 3000}]
    holding = (
        "import dsmem, sys; held = dsmem.attach(sys.argv[1])['images']; print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        (entry,) = json.loads(dsmem("shm", "ls", "--json").out)["entries"]
        assert [one["pid"] for one in entry["holders"]] == [holder.pid]
        ran = dsmem("shm", "clean", "-y")
        assert ran.exit_code == 0 and (tmp_path / "store" / "objects" / name).exists()
        ran = dsmem("shm", "clean", str(path), "-y")
        assert ran.exit_code == 5 and str(holder.pid) in ran.err
    assert dsmem("shm", "clean", name, "--dry-run").exit_code == 0
    assert os.listdir(tmp_path / "store" / "objects") == [name]
    ran = dsmem("shm", "clean", str(path), "-y")
    assert ran.exit_code == 0 and ran.out.splitlines()[1].startswith(name)
    assert os.listdir(tmp_path / "store" / "objects") == []
    assert dsmem("shm", "clean", name, "-y").exit_code == 3


def test_clean_all_takes_an_empty_store_away(dsmem: Dsmem, store_root: Path) -> None:
    make_store()
    assert store_root.is_dir()
    ran = dsmem("shm", "clean", "--all", "-n")
    assert (ran.exit_code, ran.err, store_root.is_dir()) == (0, "nothing to remove\n", True)
    ran = dsmem("shm", "clean", "--all", "-y")
    assert (ran.exit_code, ran.err, store_root.exists()) == (0, "nothing to remove\n", False)
