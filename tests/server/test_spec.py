"""Requests for tables: what means the same is equal, what does not is not."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from arrowtables import rows, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

import dsmem
from dsmem.server import catalogue
from dsmem.server.spec import Spec
from dsmem.store.root import make_store


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with data in it."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", rows(0, 3))
    (tmp_path / "b.csv").write_text("x\n1\n")
    return tmp_path


def test_a_file_however_it_is_spelt(here: Path) -> None:
    (here / "link").symlink_to(here)
    (here / "other.jsonl").symlink_to("link/a.jsonl")
    spelt = [
        Spec.parse("a.jsonl"),
        Spec.parse("./a.jsonl"),
        Spec.parse(str(here / "a.jsonl")),
        Spec.parse("link/a.jsonl"),
        Spec.of("a.jsonl"),
        Spec.of("json", data_files="a.jsonl"),
        Spec.of("json", data_files=["a.jsonl"]),
        Spec.of("json", data_files="other.jsonl"),
        Spec.of("json", data_files=f"link/../{here.name}/a.jsonl"),
        Spec.of("json", data_files={"train": "a.jsonl"}),
        Spec.of("json", data_files=here / "a.jsonl", cache_dir="elsewhere", num_proc=4, token="secret", name=None),
        Spec.of("json", data_files="a.jsonl", data_dir=None, revision="main", features=None),
    ]
    assert len({one.source for one in spelt}) == 1
    assert len(set(spelt)) == 1
    assert spelt[0].local_paths() == (str(here / "a.jsonl"),)
    assert "secret" not in spelt[0].source


def test_other_rows_are_another_request(here: Path) -> None:
    base: dict[str, object] = {"data_files": "a.jsonl"}
    others: list[dict[str, object]] = [
        {},
        {"split": "train"},
        {"split": "train[:10%]"},
        {"sample_limit": 10},
        {"sample_limit": 11},
        {"shuffle_seed": 0},
        {"shuffle_seed": 1},
        {"flatten": True},
        {"field": "rows"},
        {"data_files": ["a.jsonl", "b.csv"]},
        {"data_files": ["b.csv", "a.jsonl"]},
        {"data_files": {"test": "a.jsonl"}},
        {"name": "subset"},
    ]
    specs = [Spec.of("json", **{**base, **one}) for one in others]  # type: ignore[arg-type]
    assert len({one.source for one in specs}) == len(specs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("squad", Spec("squad")),
        ("org/name", Spec("org/name")),
        ("org/name:sub", Spec("org/name", "sub")),
        ("org/name:sub/train", Spec("org/name", "sub", split="train")),
        ("org/name:/train", Spec("org/name", split="train")),
        ("org/name:sub/train@v1.0", Spec("org/name", "sub", split="train", revision="v1.0")),
        ("org/name@main", Spec("org/name")),
        ("org/name@refs/pr/3", Spec("org/name", revision="refs/pr/3")),
        ("org/name:/train[:10%]+test", Spec("org/name", split="train[:10%]+test")),
    ],
)
def test_hub_sources(text: str, expected: Spec) -> None:
    assert Spec.parse(text) == expected
    arguments = {key: value for key, value in expected.arguments().items() if key != "path"}
    assert Spec.of(expected.path, **arguments) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "no such/file.jsonl", "./nothing", "missing.csv", "a b c", "x/y/z", "x:"])
def test_what_is_no_source(text: str) -> None:
    if text == "x:":
        assert Spec.parse(text) == Spec("x")
        return
    with pytest.raises(dsmem.UsageError):
        Spec.parse(text)


def test_what_can_not_be_meant() -> None:
    for arguments in ({"sample_limit": 0}, {"split": ["a", "b"]}, {"data_files": 3}, {"option": object()}):
        with pytest.raises(dsmem.UsageError):
            Spec.of("json", **arguments)


def test_splits_of_a_local_directory(here: Path) -> None:
    spec = Spec.parse(f"{here}:/train")
    assert (spec.path, spec.split) == (str(here), "train")
    assert Spec.of(here, split="train") == spec


def test_identity_follows_the_files(here: Path) -> None:
    spec = Spec.parse("*.jsonl")
    first = spec.identity()
    assert spec.identity() == first and first.dev == 0
    os.utime(here / "a.jsonl", ns=(0, 5))
    second = spec.identity()
    assert second != first
    write_jsonl(here / "c.jsonl", rows(0, 1))
    third = spec.identity()
    assert third not in (first, second)
    (here / "c.jsonl").unlink()
    assert spec.identity() == second
    (here / "a.jsonl").rename(here / "d.jsonl")
    assert spec.identity() != second
    (here / "d.jsonl").unlink()
    with pytest.raises(dsmem.SourceMissing):
        spec.identity()


def test_identities_of_different_requests_differ(here: Path) -> None:
    """Else what one has loaded would be taken for the other's."""
    one, two = Spec.parse("a.jsonl"), Spec.of("json", data_files="a.jsonl", field="x")
    assert one.identity() != two.identity()
    assert Spec("org/name").identity() != Spec("org/other").identity()
    assert Spec("org/name").identity() == Spec("org/name").identity()
    assert Spec("org/name").identity(revision="a") != Spec("org/name").identity(revision="b")


def test_caches_of_a_saved_directory_are_no_part_of_it(tmp_path: Path) -> None:
    for name in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow"):
        (tmp_path / name).write_text("{}")
    spec = Spec.parse(str(tmp_path))
    first = spec.identity()
    (tmp_path / "cache-0123.arrow").write_text("x")
    assert spec.identity() == first
    (tmp_path / "data-00000-of-00001.arrow").write_text("other")
    assert spec.identity() != first


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@given(texts, st.none() | texts, st.none() | texts, st.none() | texts, st.none() | st.integers(1), st.booleans())
def test_round_trip(
    path: str, name: str | None, split: str | None, revision: str | None, limit: int | None, flatten: bool
) -> None:
    spec = Spec(path, name, split=split, revision=revision, sample_limit=limit, flatten=flatten)
    assert Spec.from_dict(spec.as_dict()) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert isinstance(spec.label, str)


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        {},
        {"path": 1},
        {"path": "x", "sample_limit": True},
        {"path": "x", "sample_limit": 0},
        {"path": "x", "y": 1},
        {"path": "/tmp/\ud800"},
        {"path": "a\0b"},
        {"path": "json", "options": "{"},
        {"path": "json", "data_files": "[]"},
    ],
)
def test_what_is_no_record(record: object) -> None:
    with pytest.raises(ValueError, match="not a request"):
        Spec.from_dict(record)


def test_the_catalogue(expected_leftovers: set[str]) -> None:
    expected_leftovers.add("server/*")
    store = make_store()
    assert catalogue.read(store) == {}
    known = {"one": Spec("org/name", split="train"), "two": Spec.of("json", data_files="/x/a.jsonl")}
    catalogue.write(store, known)
    assert catalogue.read(store) == known
    Path(catalogue.path(store)).write_text('{"one": {"path": "x"}, "two": 3}')
    assert catalogue.read(store) == {"one": Spec("x")}
    Path(catalogue.path(store)).write_text("garbage")
    assert catalogue.read(store) == {}
