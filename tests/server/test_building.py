"""Tables published: the rows of plain `datasets`, one object, and nothing lost when loading fails."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from arrowtables import rows, write_jsonl
from children import all_started

import dsmem
from dsmem.server import building, gathering, scratch
from dsmem.server.gathering import Fact, Group
from dsmem.server.spec import Spec
from dsmem.store import directories, objects, refs
from dsmem.store.root import Store, make_store
from dsmem.store.sweep import sweep

pytestmark = pytest.mark.usefixtures("hf_cache")


def publish(spec: Spec) -> str:
    return building.publish(make_store(), spec)


def load(name: str) -> Any:
    """What plain `datasets` reads from an object."""
    return datasets.load_from_disk(make_store().object_path(name))


def shards(store: Store, name: str) -> dict[str, int]:
    """Path below the object → inode."""
    root = Path(store.object_path(name))
    return {str(path.relative_to(root)): path.stat().st_ino for path in root.rglob("*.arrow")}


FILES: dict[str, Callable[[Path], object]] = {
    "rows.jsonl": lambda path: write_jsonl(path, rows(0, 30)),
    "rows.csv": lambda path: path.write_text("a,b\n1,x\n2,y\n"),
    "rows.txt": lambda path: path.write_text("one\ntwo\nthree\n"),
    "rows.parquet": lambda path: datasets.Dataset.from_list(rows(0, 30)).to_parquet(path),
}


@pytest.mark.parametrize("name", FILES)
def test_the_rows_of_plain_datasets(name: str, tmp_path: Path) -> None:
    FILES[name](tmp_path / name)
    spec = Spec.parse(str(tmp_path / name))
    plain = datasets.load_dataset(**spec.arguments())
    found = load(publish(spec))
    assert list(found) == list(plain) == ["train"]
    assert found["train"].features == plain["train"].features
    assert found["train"].to_list() == plain["train"].to_list()


def test_published_once(tmp_path: Path) -> None:
    spec = Spec.parse(str(write_jsonl(tmp_path / "a.jsonl", rows(0, 30))))
    first = building.published(make_store(), spec)
    assert first.rows == 30 and first.identity == spec.identity()
    assert building.published(make_store(), spec) == first
    assert len(list(objects.scan(make_store()))) == 1


def test_what_is_done_with_the_rows(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", rows(0, 30)))
    plain = datasets.load_dataset("json", data_files=path, split="train")
    limited = load(publish(Spec.parse(f"{path}", sample_limit=7)))["train"]
    assert limited.to_list() == plain.to_list()[:7]
    shuffled = load(publish(Spec.parse(path, shuffle_seed=3)))["train"]
    assert shuffled.to_list() == plain.shuffle(seed=3).to_list() and shuffled._indices is None
    flat = load(publish(Spec.parse(path, flatten=True)))["train"]
    assert flat.to_list() == plain.flatten().to_list()
    assert len(list(objects.scan(make_store()))) == 3


def test_a_saved_dataset(tmp_path: Path) -> None:
    plain = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(rows(0, 9)), "test": datasets.Dataset.from_list(rows(9, 3))}
    )
    plain.save_to_disk(str(tmp_path / "saved"))
    found = load(publish(Spec.parse(str(tmp_path / "saved"))))
    assert {split: one.to_list() for split, one in found.items()} == {s: d.to_list() for s, d in plain.items()}
    one = load(publish(Spec.parse(f"{tmp_path}/saved:/test")))
    assert one.to_list() == plain["test"].to_list()
    with pytest.raises(dsmem.BadSource, match="train, test"):
        publish(Spec.parse(f"{tmp_path}/saved:/dev"))


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is worth a shard."""
    monkeypatch.setattr(gathering, "GROUP_BYTES", 1)


@pytest.mark.usefixtures("small_groups")
def test_several_files_one_shard_each(tmp_path: Path) -> None:
    for number in range(4):
        write_jsonl(tmp_path / f"{number}.jsonl", rows(number * 10, 10))
    spec = Spec.parse(f"{tmp_path}/*.jsonl")
    name = publish(spec)
    assert len(shards(make_store(), name)) == 4
    plain = datasets.load_dataset("json", data_files=f"{tmp_path}/*.jsonl", split="train")
    assert load(name)["train"].to_list() == plain.to_list()


@pytest.mark.usefixtures("small_groups")
def test_a_new_file_adds_a_shard_and_links_the_others(tmp_path: Path) -> None:
    for number in range(3):
        write_jsonl(tmp_path / f"{number}.jsonl", rows(number * 10, 10))
    spec = Spec.parse(f"{tmp_path}/*.jsonl")
    store = make_store()
    first = publish(spec)
    write_jsonl(tmp_path / "3.jsonl", rows(100, 5))
    second = publish(spec)
    before, after = shards(store, first), shards(store, second)
    assert set(before.values()) < set(after.values()) and len(after) == 4
    assert load(first)["train"]["id"][:] == list(range(30))  # readers keep their rows
    plain = datasets.load_dataset("json", data_files=f"{tmp_path}/*.jsonl", split="train")
    assert load(second)["train"].to_list() == plain.to_list()
    (tmp_path / "0.jsonl").unlink()
    third = publish(spec)
    assert set(shards(store, third).values()) < set(after.values())
    plain = datasets.load_dataset("json", data_files=f"{tmp_path}/*.jsonl", split="train")
    assert load(third)["train"].to_list() == plain.to_list()
    (ref,) = refs.all_refs(store)
    assert ref.object == third
    for name in (first, second):
        assert objects.remove(store, name)
    assert load(third)["train"].to_list() == plain.to_list()


def test_one_split_of_several_files(tmp_path: Path) -> None:
    files = {"train": [], "test": []}  # type: dict[str, list[str]]
    for number in range(4):
        path = write_jsonl(tmp_path / f"{number}.jsonl", rows(number * 10, 10))
        files["test" if number % 2 else "train"].append(str(path))
    everything = load(publish(Spec.of("json", data_files=files)))
    test = load(publish(Spec.of("json", data_files=files, split="test")))
    plain = datasets.load_dataset("json", data_files=files)
    assert {split: one.to_list() for split, one in everything.items()} == {s: d.to_list() for s, d in plain.items()}
    assert test.to_list() == plain["test"].to_list()


def test_files_whose_columns_differ_are_loaded_as_datasets_does(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "0.jsonl", [{"x": 1.5, "y": "a"}])
    write_jsonl(tmp_path / "1.jsonl", [{"x": 2, "y": "b"}])
    spec = Spec.parse(f"{tmp_path}/*.jsonl")
    plain = datasets.load_dataset("json", data_files=f"{tmp_path}/*.jsonl", split="train")
    name = publish(spec)
    assert load(name)["train"].to_list() == plain.to_list()
    assert load(name)["train"].features == plain.features


def test_touched_files_of_the_same_rows_are_the_same_object(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(0, 30))
    spec = Spec.parse(str(path))
    first = publish(spec)
    write_jsonl(path, rows(0, 30))
    assert publish(spec) == first
    (ref,) = refs.all_refs(make_store())
    assert ref.provenance.identity == spec.identity()


def test_generations_are_counted_with_the_table(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(0, 30))
    store, spec = make_store(), Spec.parse(str(path))
    assert building.published(store, spec).generation == 1
    write_jsonl(path, rows(0, 31))
    assert building.published(store, spec).generation == 2
    assert building.published(store, spec).generation == 2  # nothing has changed
    write_jsonl(path, rows(0, 32))
    assert building.published(store, spec).generation == 3
    assert building.published(store, Spec.parse(str(path), sample_limit=3)).generation == 1  # another dataset


def test_a_failure_leaves_what_was_there(tmp_path: Path, hf_cache: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(0, 30))
    spec = Spec.parse(str(path))
    name = publish(spec)
    path.write_text('{"id": 1}\n{"id": [')
    with pytest.raises(dsmem.BadSource, match="jsonl"):
        publish(spec)
    path.unlink()
    with pytest.raises(dsmem.SourceMissing):
        publish(spec)
    assert load(name)["train"]["id"][:] == list(range(30))
    assert [one.name for one in objects.scan(make_store())] == [name]
    assert [one for one in os.listdir(make_store().objects) if one.startswith(".")] == []
    assert [one for one in os.listdir(hf_cache) if one.startswith(".dsmem-")] == []


def test_a_source_that_changes_meanwhile_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(0, 30))
    original = gathering.whole

    def slow(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        write_jsonl(path, rows(5, 30))
        return found

    monkeypatch.setattr(gathering, "whole", slow)
    with pytest.raises(dsmem.SourceChanged):
        publish(Spec.parse(str(path)))
    assert list(objects.scan(make_store())) == []


def test_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(0, 30))
    monkeypatch.setenv("DSMEM_BUDGET", "1k")
    with pytest.raises(dsmem.NoSpace):
        publish(Spec.parse(str(path)))
    assert list(objects.scan(make_store())) == []


def test_four_processes_publish_one(tmp_path: Path) -> None:
    spec = Spec.parse(str(write_jsonl(tmp_path / "a.jsonl", rows(0, 30))))
    with all_started([lambda: publish(spec)] * 4) as running:
        assert len({child.result() for child in running}) == 1
    sweep(make_store())
    assert [one for one in os.listdir(make_store().objects) if one.startswith(".")] == []


def test_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    spec = Spec.parse(str(write_jsonl(tmp_path / "a.jsonl", rows(0, 30))))
    building.publish(make_store(), spec, progress=lambda done, total: seen.append((done, total)))
    assert seen and all(done <= total for done, total in seen)


def test_the_anchor_tells_what_was_asked(tmp_path: Path) -> None:
    spec = Spec.parse(str(write_jsonl(tmp_path / "a.jsonl", rows(0, 30))), sample_limit=3)
    anchor = directories.read_anchor(make_store().object_path(publish(spec)))
    assert Spec.from_dict(anchor.facts["spec"]) == spec
    assert json.loads(anchor.provenance.selection) == {"sample_limit": 3}


class Hub:
    """A hub that is asked for its revision, and gives rows; no network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.revision, self.loads = "one", 0
        monkeypatch.setattr(gathering, "hub_revision", lambda spec: self.revision)
        monkeypatch.setattr(gathering, "whole", self.whole)

    def whole(self, spec: Spec, cache_dir: str | None) -> dict[str, datasets.Dataset]:
        self.loads += 1
        return {"": datasets.Dataset.from_list(rows(self.loads, 5))}


def test_a_hub_is_loaded_again_when_its_revision_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    hub, spec = Hub(monkeypatch), Spec("org/name", split="train")
    first = publish(spec)
    assert publish(spec) == first and hub.loads == 1
    hub.revision = "two"
    second = publish(spec)
    assert second != first and hub.loads == 2
    hub.revision = ""  # it can't be asked: what is there stays
    assert publish(spec) == second and hub.loads == 2
    found: Any = dsmem.load_dataset("org/name", split="train")
    assert found.dsmem_source == "shared" and found["id"][:] == list(range(2, 7))


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    assert gathering.hub_revision(Spec("org/name")) == ""
    assert gathering.hub_revision(Spec("json", data_files='{"train":["https://127.0.0.1:9/a.jsonl"]}')) == ""


def test_what_a_killed_build_left_on_the_disk_goes(tmp_path: Path, hf_cache: Path) -> None:
    with scratch.directory() as held:
        abandoned = hf_cache / ".dsmem-0123456789abcdef.tmp"
        (abandoned / "json").mkdir(parents=True)
        publish(Spec.parse(str(write_jsonl(tmp_path / "a.jsonl", rows(0, 30)))))
        assert not abandoned.exists() and os.path.isdir(held)
    assert not os.path.isdir(held)


def fact(name: str) -> Fact:
    return (name, 0, ord(name), 1, 1)


@pytest.mark.parametrize(
    ("files", "known", "expected"),
    [
        ("ab", [], "a b"),
        ("abc", ["a", "b"], "a=0 b=1 c"),
        ("abcd", ["ab", "c"], "ab=0 c=1 d"),
        ("acd", ["ab", "c"], "a c=1 d"),
        ("xab", ["a", "b"], "x a=0 b=1"),
        ("b", ["a", "b"], "b=1"),
        ("ba", ["a", "b"], "b=1 a=0"),
        ("xy", ["a", "b"], "x y"),
        ("a", ["ab"], "a"),
    ],
)
@pytest.mark.usefixtures("small_groups")
def test_groups(files: str, known: list[str], expected: str) -> None:
    def shown(group: Group) -> str:
        names = "".join(one[0] for one in group.files)
        return names if group.known is None else f"{names}={group.known}"

    groups = gathering.grouped([fact(name) for name in files], [[fact(name) for name in some] for some in known])
    assert " ".join(map(shown, groups)) == expected


@pytest.mark.usefixtures("small_groups")
def test_many_files_are_few_groups() -> None:
    groups = gathering.grouped([(str(n), 0, n, 1, 1) for n in range(1000)], [])
    assert len(groups) == gathering.MOST_GROUPS
    assert [fact[0] for group in groups for fact in group.files] == [str(n) for n in range(1000)]


def test_small_files_are_one_group() -> None:
    half = gathering.GROUP_BYTES // 2
    facts = [(str(n), 0, n, half, 1) for n in range(4)]
    assert [len(group.files) for group in gathering.grouped(facts[:3], [])] == [3]
    assert [len(group.files) for group in gathering.grouped(facts, [])] == [2, 2]
    grown = gathering.grouped(facts, [facts[:3]])
    assert [(len(group.files), group.known) for group in grown] == [(3, 0), (1, None)]
