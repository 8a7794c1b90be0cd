"""Every case, tiny: what it reports, that a wrong contender is found out, that nothing stays behind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import children
import h5py
import numpy as np
import pytest
import warm

import dsmem
from dsmem import proc
from dsmem.bench import crowd, episode_sets, from_hub, harness, limits, recipes, sizes, team
from dsmem.bench import run as runs
from dsmem.bench.cases import CASES, attach, checkpoint, dataset, pin, server, training, tune
from dsmem.bench.harness import Comparison, ResultsDiffer
from dsmem.bench.results import Compared, Measured, Report, Role
from dsmem.bench.sizes import Room
from dsmem.bench.workbench import Case
from dsmem.errors import BadSource, NoSpace, UsageError
from dsmem.store import hugepages
from dsmem.tune import Settings, sampling

SIZE = 2 << 20
ROLES = {
    "hash": ["dsmem"] * 5 + ["recipe", "limit"],
    "pin": ["dsmem"] + ["limit"] * 4,
    "decode": ["dsmem", "recipe", "recipe", "limit"],
    "attach": ["dsmem", "recipe", "recipe", "limit"],
    "memory": ["dsmem", "recipe", "limit"],
    "read": ["dsmem", "dsmem", "recipe", "limit", "limit"],
    "tokens": ["dsmem", "recipe", "limit"],
    "ckpt": ["dsmem"] * 5 + ["recipe"] * 3 + ["limit"],
    "tokenize": ["dsmem", "dsmem", "recipe", "limit", "limit"],
    "dataset": ["dsmem", "recipe", "recipe", "recipe", "limit"],
    "server": ["dsmem", "dsmem", "dsmem", "recipe", "limit"],
    "training": ["dsmem", "recipe", "limit"],
    "tune": ["dsmem", "recipe", "limit"],
}
PIN_ON_HUGE_PAGES = (1, 3) if hugepages.can_be_taken(None) else (2,)
"""Those of its comparisons in which memory comes in huge pages; the last is on a mount of its own."""
UNLIKE_THE_REST = {
    ("pin", 0): ["dsmem", "recipe"],
    **{("pin", number): ["dsmem", "limit", "limit"] for number in PIN_ON_HUGE_PAGES},
    ("ckpt", 2): ["dsmem", "recipe", "limit", "limit"],
    **{("ckpt", number): ["dsmem"] + ["recipe"] * 3 + ["limit"] for number in (6, 7)},
    **{("ckpt", number): ["dsmem", "recipe", "limit", "limit"] for number in (8, 9)},
    ("ckpt", 10): ["dsmem", "recipe", "recipe", "limit", "limit"],
    ("tokens", 0): ["dsmem"] * 3 + ["recipe", "limit"],
    **{("tokenize", number): ["dsmem", "limit"] for number in (1, 2)},
    ("dataset", 1): ["dsmem", "recipe", "recipe", "recipe", "limit"],
    ("dataset", 2): ["dsmem", "dsmem", "dsmem", "recipe", "limit"],
    ("server", 0): ["dsmem", "dsmem", "dsmem", "recipe", "recipe", "dsmem", "limit"],
    ("server", 1): ["dsmem", "recipe", "limit"],
    ("training", 0): ["dsmem"] * 4 + ["recipe", "limit"],
    ("training", 1): ["dsmem"] * 4 + ["recipe", "limit"],
    ("training", 2): ["dsmem", "dsmem", "recipe", "limit"],
}
COMPARISONS = {
    "ckpt": 11,
    "tokens": 3,
    "hash": 1,
    "pin": 2 + len(PIN_ON_HUGE_PAGES),
    "decode": 4,
    "attach": 4,
    "memory": 3,
    "read": 3,
    "tokenize": 3,
    "dataset": 3,
    "server": 3,
    "training": 4,
    "tune": 1,
}


@pytest.fixture(autouse=True)
def _few_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "MANY", 50)
    monkeypatch.setattr(dataset, "_REPEAT", 2)
    monkeypatch.setattr(from_hub, "_REPEAT", 2)
    monkeypatch.setattr(from_hub, "ANSWER_S", 0.001)
    monkeypatch.setattr(server, "PROCESSES", (1, 2, 4))
    monkeypatch.setattr(server, "_MANY", 4)
    monkeypatch.setattr(server, "_PRIVATE", 2)
    monkeypatch.setattr(episode_sets, "FRAME", (48, 64, 3))
    monkeypatch.setattr(training, "WORKERS", 0)
    monkeypatch.setattr(training, "PROCESSES", (2,))
    monkeypatch.setattr(tune, "_HURRIED", (("jpeg",), (0,)))
    monkeypatch.setattr(tune, "DEFAULT_WORKERS", 0)
    warm.use(monkeypatch)  # the case of tune
    monkeypatch.setattr(sampling, "handed_over_s", lambda *_, **__: 0.01)  # tests/tune/test_trials.py has it


def run(name: str, **options: Any) -> Report:
    return runs.run([name], **{"size_bytes": SIZE, "runs": 1, **options})


def ckpt_by_cpus() -> list[str]:
    """Measured on the CPUs that are there, predicted for more; from one alone nothing can be predicted."""
    there = sum(count <= proc.usable_cpus() for count in checkpoint.CPUS)
    return ["dsmem"] * there + ["recipe", "limit"] + ["predicted"] * (len(checkpoint.CPUS) - there if there > 1 else 0)


def test_predictions_are_those_of_amdahl() -> None:
    """10 s on one CPU, 6 s on two: 2 s are serial; 4 and 3 s on four and eight."""

    def row(role: Role, median_s: float) -> Measured:
        return Measured(
            "", role, 1, median_s, median_s, median_s, None, None, None, 100 / median_s, 1.0, 1.0, None, None
        )

    rows = (row("dsmem", 10.0), row("dsmem", 6.0), row("recipe", 20.0), row("limit", 5.0))
    compared = checkpoint.with_predictions(Compared("", "time", 100, 1, rows), (1, 2), (4, 8))
    found = compared.measured[4:]
    assert [(one.median_s, one.ratio_to_recipe, one.samples) for one in found] == [(4.0, 5.0, 0), (3.0, 20 / 3, 0)]
    assert found[0].name == "4 CPUs, if 20 % is serial"
    slower = (row("dsmem", 10.0), row("dsmem", 12.0), *rows[2:])
    found = checkpoint.with_predictions(Compared("", "time", 100, 1, slower), (1, 2), (4,)).measured[4:]
    assert found[0].median_s == 10.0  # more CPUs are never slower than one


def test_what_tune_says_is_measured_once() -> None:
    """Beside every other setting of the grid; what is kept may be what is recommended, of the grid, or neither."""
    one, two = Settings(True, num_workers=1), Settings(False, num_workers=2, cache_bytes=5)
    shared_cache = dataclasses.replace(two, cache_scope="shared")
    for kept, said, role in (
        (None, "", ""),
        (one, "recommended, and kept by", "dsmem"),
        (two, "kept by", "limit"),
        (shared_cache, "kept by", "dsmem"),
    ):
        entries = tune._entries(one, kept, (1, 2))
        assert entries[0][1:] == ("dsmem", one)
        places = [(of.use_shared_memory, of.num_workers, of.cache_scope) for _, _, of in entries]
        assert len(set(places)) == len(places) == (5 if kept == shared_cache else 4)
        assert [entry[1:] for entry in entries if said and entry[0].startswith(said)] == (
            [(role, kept)] if said else []
        )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_structure(case: Case) -> None:
    shown: list[tuple[str, Compared]] = []
    report = run(case.name, show=lambda case, compared: shown.append((case.name, compared)))
    (found,) = report.cases
    assert (found.name, found.claim) == (case.name, case.claim)
    assert [(case.name, compared) for compared in found.compared] == shown
    left_out = sum("not measured" in note for note in report.notes)  # where root may not mount
    assert len(found.compared) == COMPARISONS[case.name] - left_out
    for number, compared in enumerate(found.compared):
        roles = UNLIKE_THE_REST.get((case.name, number), ROLES[case.name])
        if (case.name, number) == ("ckpt", 5):
            roles = ckpt_by_cpus()
        if case.name == "tune" and len(compared.measured) == 4:
            roles = [*roles, "limit"]  # what is recommended is none of the two of the grid
        assert [one.role for one in compared.measured] == roles
        assert len({one.name for one in compared.measured}) == len(compared.measured)
        for one in compared.measured:
            sample = one.median_s if compared.quantity == "time" else one.median_bytes
            assert sample is not None and sample > 0
            assert bool(one.ratio_to_recipe) == ("recipe" in roles)
            assert bool(one.percent_of_limit) == ("limit" in roles) or one.role == "predicted"
        limits = [one.percent_of_limit or 0 for one in compared.measured if one.role == "limit"]
        assert max(limits, default=None) == (pytest.approx(100) if "limit" in roles else None)
    assert json.loads(json.dumps(dataclasses.asdict(report)))["cases"][0]["name"] == case.name
    assert children.still_running() == []


def test_the_machine_is_recorded() -> None:
    machine = run("hash").machine
    assert machine.h5py == h5py.__version__
    assert machine.shared_fstype == "tmpfs" and machine.shared_point == "/dev/shm"
    assert machine.shared_huge_pages in ("never", "always", "within_size", "advise")
    assert min(machine.cpus, machine.memory_bytes, machine.page_bytes) > 0
    assert min(machine.memcpy_bytes_per_s, machine.md5_bytes_per_s, machine.fill_bytes_per_s) > 0


def test_peak_memory_of_pinning_is_told() -> None:
    compared, *_ = run("pin", size_bytes=16 << 20).cases[0].compared
    ours, by_hand, *_ = compared.measured
    assert ours.peak_bytes is not None and by_hand.peak_bytes is not None


def test_memory_of_four_processes() -> None:
    compared = run("memory", size_bytes=24 << 20).cases[0].compared
    for processes, one in zip((1, 2, 4), compared, strict=True):
        ours, plain, data = one.measured
        assert ours.times_data is not None and plain.times_data is not None
        assert ours.times_data < 1.2
        assert plain.times_data > processes * 0.95
        assert data.times_data == 1


def _wrong_md5(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "md5_of_file", lambda path: "0" * 32)


def _wrong_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsmem.digest import hashing

    monkeypatch.setattr(hashing, "tree_digest", lambda slices: "0" * 32)


def _wrong_recipe_of_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    right = recipes.pin

    def wrong(path: str, names: Sequence[str]) -> Any:
        digest, shared = right(path, names)
        shared["images"][1].reshape(-1)[-1] ^= 1
        return digest, shared

    monkeypatch.setattr(recipes, "pin", wrong)


def _wrong_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    for ways in ("WRITTEN", "MAPPED", "TAKEN"):
        monkeypatch.setattr(limits, ways, (("nothing", lambda path, target: None, True),))


def _wrong_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(dict[str, Any]):
        def __enter__(self) -> Wrong:
            return self

        def __exit__(self, *error: object) -> None:
            return None

        def populated(self) -> bool:
            return True

    def attached(path: str, **options: Any) -> Wrong:
        with h5py.File(path) as file:
            return Wrong({name: dataset[()] + 1 for name, dataset in file.items()})

    monkeypatch.setattr(dsmem, "attach", attached)


def _wrong_element(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "attach_and_read_one_element", lambda path, name: np.int64(99))


def _wrong_process(monkeypatch: pytest.MonkeyPatch) -> None:
    right = team._hear
    heard = iter(range(10**6))

    def wrong(member: Any) -> Any:
        answer = right(member)
        assert isinstance(answer, team.Answer)
        return dataclasses.replace(answer, digest="0") if next(heard) == 16 else answer  # after warming up

    monkeypatch.setattr(team, "_hear", wrong)


def _wrong_recipe_of_tokenize(monkeypatch: pytest.MonkeyPatch) -> None:
    right = recipes.prepare

    def wrong(text: str, tokenizer: str, end: int, *more: Any) -> Any:
        return right(text, tokenizer, end + 1, *more)  # only what ends documents is another

    monkeypatch.setattr(recipes, "prepare", wrong)


def _wrong_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsmem.bench.token_recipes import PlainTokens

    right = PlainTokens.__getitem__
    monkeypatch.setattr(PlainTokens, "__getitem__", lambda self, index: right(self, index + 1))


def _wrong_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsmem.checkpoint.opened import Opened

    right = Opened.read

    def wrong(self: Opened, buffers: list[memoryview], offset: int) -> None:
        right(self, buffers, offset)
        if len(buffers[0]) > 2048:  # the middle of a tensor
            buffers[0][1500] ^= 1

    monkeypatch.setattr(Opened, "read", wrong)


def _wrong_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    right = recipes.load_rows

    def wrong(*args: Any, **options: Any) -> Any:
        found = right(*args, **options)
        return found.select(range(len(found) - 1))

    monkeypatch.setattr(recipes, "load_rows", wrong)


def _wrong_rows_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    right = crowd.Crowd.act

    def wrong(self: crowd.Crowd, work: str, processes: int, **arguments: object) -> crowd.Acted:
        acted = right(self, work, processes, **arguments)
        return dataclasses.replace(acted, results=([0, 0],)) if arguments.get("way") == "memory" else acted

    monkeypatch.setattr(crowd.Crowd, "act", wrong)


@pytest.mark.parametrize(
    ("name", "spoil", "before"),
    [
        ("hash", _wrong_md5, 0),
        ("hash", _wrong_tree, 0),
        ("pin", _wrong_recipe_of_pin, 0),
        ("pin", _wrong_fill, 1),
        ("pin", _wrong_pinned, 0),
        ("attach", _wrong_element, 0),
        ("memory", _wrong_process, 0),
        ("read", _wrong_pinned, 0),
        ("tokens", _wrong_windows, 0),
        ("ckpt", _wrong_checkpoint, 0),
        ("tokenize", _wrong_recipe_of_tokenize, 0),
        ("dataset", _wrong_rows, 0),
        ("server", _wrong_rows_of_a_process, 0),
    ],
)
def test_a_wrong_result_shows_no_speed(name: str, spoil: Any, before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`before`: comparisons that come first, and that what is wrong has no part in."""
    spoil(monkeypatch)
    shown: list[Compared] = []
    with pytest.raises(ResultsDiffer):
        run(name, show=lambda case, compared: shown.append(compared))
    assert len(shown) == before


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_error_in_the_middle_leaves_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leftovers are looked for by the fixtures; the error comes from the last contender of the last comparison.

    What comes before is set up, and not measured: `test_structure` does that.
    """
    said: list[str] = []

    def is_last() -> bool:
        return len(said) == COMPARISONS[case.name] + 1  # the first thing that is said is about the file

    def fail(*_: object) -> None:
        raise RuntimeError("the last contender")

    def measure(comparison: Comparison, **options: Any) -> Compared:
        if not is_last():
            return Compared(comparison.title, comparison.quantity, comparison.size_bytes, 1, ())
        failing = dataclasses.replace(comparison.contenders[-1], run=fail)
        return harness.measure(dataclasses.replace(comparison, contenders=[failing]), **options)

    def show(case: Case, compared: Compared) -> None:
        if is_last():  # one that measures by itself
            fail()

    monkeypatch.setattr(runs, "measure", measure)
    monkeypatch.setattr(training, "PROCESSES", (1,))  # each imports torch
    with pytest.raises(RuntimeError, match="the last contender"):
        run(case.name, say=said.append, show=show)
    assert len(said) == COMPARISONS[case.name] + 1
    assert children.still_running() == []


def test_a_recipe_that_fails_half_way_leaves_no_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(held: pin.Segments) -> str:
        raise RuntimeError(f"{len(held)} segments")

    monkeypatch.setattr(pin, "in_segments", fail)
    with pytest.raises(RuntimeError, match="3 segments"):
        run("pin")


def test_a_file_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "mine.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.arange(5000.0).reshape(50, 100), chunks=(10, 100), compression="gzip")
        file["texts"] = ["a", "b"]
        file["empty"] = h5py.Empty("f4")
        file["none"] = np.zeros((0, 3))
        file["scalar"] = 3
    report = runs.run(file=str(path), runs=1)
    assert [case.name for case in report.cases] == ["hash", "pin", "attach", "memory", "read"]
    assert (report.file, report.size_bytes) == (str(path), 40_008)


def test_a_file_that_cannot_be_measured(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        runs.run(file=str(tmp_path / "none.h5"))
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(BadSource, match=r"text\.h5"):
        runs.run(file=str(tmp_path / "text.h5"))
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(BadSource, match="no datasets"):
        runs.run(file=str(tmp_path / "empty.h5"))


def test_misuse() -> None:
    with pytest.raises(UsageError, match="the cases are hash, pin"):
        run("speed")
    with pytest.raises(UsageError, match="tokens makes what it measures"):
        runs.run(["tokens"], file="train.h5")
    with pytest.raises(UsageError, match="at least 1"):
        run("hash", runs=0)
    with pytest.raises(UsageError, match="not both"):
        run("hash", file="x.h5")
    with pytest.raises(UsageError, match="too little"):
        run("hash", size_bytes=5)


def test_it_shrinks_to_the_memory_that_is_there_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "room", lambda place: Room(16 << 20, 1 << 40, 1 << 40))
    warned: list[str] = []
    report = run("read", size_bytes=64 << 20, warn=warned.append)
    assert warned == list(report.notes)
    assert warned[0].startswith("4.0 MiB instead of 64.0 MiB: 16.0 MiB of memory is free")
    assert report.asked_bytes == 64 << 20
    assert report.size_bytes <= 4 << 20


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        file["x"] = np.zeros(1 << 20)
    monkeypatch.setattr(sizes, "room", lambda place: Room(16 << 20, 1 << 40, 1 << 40))
    with pytest.raises(NoSpace, match=r"8\.0 MiB of data"):
        runs.run(["pin"], file=str(tmp_path / "mine.h5"))


def test_without_a_size_it_minds_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "DEFAULT_BYTES", SIZE)
    monkeypatch.setattr(runs, "_DEADLINE_S", 0.0)
    warned: list[str] = []
    report = runs.run(["read"], runs=3, warn=warned.append)
    assert warned == ["read: 1 of 3 runs, to end within a minute"]
    assert {compared.runs for compared in report.cases[0].compared} == {1}


def test_a_bare_run_leaves_long_cases_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = (next(case for case in CASES if case.name == name) for name in ("hash", "training"))
    monkeypatch.setattr(runs, "CASES", (short, dataclasses.replace(short, name="long", effort=long.effort)))
    monkeypatch.setattr(runs, "DEFAULT_BYTES", SIZE)
    warned: list[str] = []
    report = runs.run(runs=1, warn=warned.append)
    assert [case.name for case in report.cases] == ["hash"]
    assert warned == ["left out, to end within a minute: long; dsmem bench all takes a minute each"]
    assert [case.name for case in runs.run(["all"], runs=1).cases] == ["hash", "long"]
    assert [case.name for case in runs.run(size_bytes=SIZE, runs=1).cases] == ["hash", "long"]
