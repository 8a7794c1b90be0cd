"""`load_hf_datasets`: several datasets, sampled reproducibly, one after the other; the same rows shared or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from arrowtables import rows, write_jsonl

import dsmem
from dsmem.server import building, catalogue
from dsmem.server.spec import Spec
from dsmem.store.root import make_store

pytestmark = pytest.mark.usefixtures("hf_cache")


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    one = write_jsonl(tmp_path / "one" / "train.jsonl", rows(0, 40))
    two = write_jsonl(tmp_path / "two" / "train.jsonl", rows(100, 20))
    return {
        "datasets": [
            {"name": str(one.parent), "dataset_name": "one", "subset": None, "split": "train"},
            {"name": str(two.parent), "dataset_name": "two"},
        ]
    }


def ids(found: Any) -> list[int]:
    return list(found["id"])


def test_one_after_the_other(config: dict[str, Any]) -> None:
    expected = [*range(40), *range(100, 120)]
    assert ids(dsmem.load_hf_datasets(config)) == expected
    assert ids(dsmem.load_hf_datasets(config["datasets"])) == expected
    assert ids(dsmem.load_hf_datasets({"dataset": config})) == expected
    assert ids(dsmem.load_hf_datasets(config["datasets"][:1])) == list(range(40))


def test_a_sample(config: dict[str, Any]) -> None:
    first = ids(dsmem.load_hf_datasets(config, 0.1))
    assert first == ids(dsmem.load_hf_datasets(config, 0.1, 42))
    assert len(first) == 4 + 2 and first == sorted(first)
    assert first != ids(dsmem.load_hf_datasets(config, 0.1, seed=43))
    assert len(ids(dsmem.load_hf_datasets(config, 0.001))) == 2


def test_the_same_rows_shared(config: dict[str, Any], expected_leftovers: set[str]) -> None:
    expected_leftovers.add("server/*")
    expected = ids(dsmem.load_hf_datasets(config, 0.5))
    store = make_store()
    for entry in config["datasets"]:
        spec = Spec.parse(f"{entry['name']}:/train")
        building.publish(store, spec)
        catalogue.write(store, {**catalogue.read(store), entry["dataset_name"]: spec})
    assert ids(dsmem.load_hf_datasets(config, 0.5, use_shared_memory=True)) == expected
    assert ids(dsmem.load_hf_datasets({**config, "use_shared_memory": True}, 0.5)) == expected
    assert ids(dsmem.load_hf_datasets([{"dataset_name": "two"}], use_shared_memory=True)) == list(range(100, 120))


def test_off_by_default(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = dsmem.load_dataset

    def noting(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs["shared"])
        return original(*args, **kwargs)

    monkeypatch.setattr("dsmem.server.hf.load_dataset", noting)
    dsmem.load_hf_datasets(config)
    dsmem.load_hf_datasets(config, use_shared_memory=True)
    assert asked == [False, False, True, True]


@pytest.mark.parametrize("percentage", [0, -0.1, 1.01, 50, float("nan"), True, "0.5", None])
def test_a_percentage_is_a_fraction(percentage: Any) -> None:
    with pytest.raises(dsmem.UsageError):
        dsmem.load_hf_datasets([{"name": "x"}], percentage)


@pytest.mark.parametrize(
    "config", [None, {}, [], "x", {"datasets": []}, [3], [{}], [{"name": 1}], [{"name": "x", "y": 1}]]
)
def test_what_is_no_list_of_datasets(config: Any) -> None:
    with pytest.raises(dsmem.UsageError):
        dsmem.load_hf_datasets(config)
