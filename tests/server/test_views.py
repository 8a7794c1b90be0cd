"""What clients compute lies outside the store, and is found again over generations of equal rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from arrowtables import rows, write_jsonl

import dsmem
from dsmem.server import building, views
from dsmem.server.spec import Spec
from dsmem.store import objects
from dsmem.store.root import make_store

pytestmark = pytest.mark.usefixtures("hf_cache")

CALLS: list[int] = []


def slowly(row: dict[str, Any]) -> dict[str, Any]:
    CALLS.append(row["id"])
    return {"double": row["id"] * 2}


def even(row: dict[str, Any]) -> bool:
    return bool(row["id"] % 2 == 0)


def load(path: Path) -> Any:
    found = dsmem.load_dataset("json", data_files=str(path), split="train")
    assert found.dsmem_source == "shared"
    return found


def in_store() -> list[str]:
    root = Path(make_store().objects)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_nothing_is_written_into_the_store(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(0, 30))
    building.publish(make_store(), Spec.parse(str(path)))
    before = in_store()
    found = load(path)
    assert found.map(slowly)["double"][:3] == [0, 2, 4]
    assert found.filter(even).num_rows == 15
    assert found.shuffle(seed=1).flatten_indices().num_rows == 30
    assert found.train_test_split(0.5)["train"].num_rows == 15
    assert in_store() == before
    (cached,) = {os.path.dirname(one["filename"]) for one in found.cache_files}
    assert cached == views.directory(os.path.basename(cached))
    assert [name for name in os.listdir(cached) if name.startswith("cache-")] != []


def test_caches_are_found_again_by_another_generation(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(0, 30))
    store, spec = make_store(), Spec.parse(str(path))
    first = building.publish(store, spec)
    CALLS.clear()
    load(path).map(slowly)
    assert len(CALLS) == 30
    load(path).map(slowly)
    assert len(CALLS) == 30
    # Another object of the same rows: from a source that was written anew, after the first was removed.
    objects.remove(store, first, force=True)
    write_jsonl(path, rows(0, 30))
    building.publish(store, spec)
    assert load(path).map(slowly)["double"][29] == 58
    assert len(CALLS) == 30
    # Other rows do not find them.
    write_jsonl(path, rows(1, 30))
    building.publish(store, spec)
    assert load(path).map(slowly)["double"][29] == 60
    assert len(CALLS) == 60


def test_links_follow_the_object(tmp_path: Path) -> None:
    one, two = tmp_path / "one" / "data-00000.arrow", tmp_path / "two" / "data-00000.arrow"
    (link,) = views.make("abc", [str(one)])
    assert os.readlink(link) == str(one)
    assert views.make("abc", [str(two)]) == (link,)
    assert os.readlink(link) == str(two)
    assert os.listdir(os.path.dirname(link)) == ["data-00000.arrow"]


def test_without_a_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (link,) = views.make("abc", ["/x/data-00000.arrow"])
    assert link == f"{tmp_path}/dsmem-views-{os.geteuid()}/abc/data-00000.arrow"
    os.chmod(f"{tmp_path}/dsmem-views-{os.geteuid()}", 0o777)
    with pytest.raises(dsmem.UnsafeRoot):
        views.make("abc", ["/x/data-00000.arrow"])
