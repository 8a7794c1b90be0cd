"""`dsmem.load_dataset`: the rows of `datasets.load_dataset`, shared where they are published, and said to be so."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from arrowtables import rows, write_jsonl

import dsmem
from dsmem.server import building, catalogue, client
from dsmem.server.spec import Spec
from dsmem.store import leases, objects
from dsmem.store.root import make_store

pytestmark = pytest.mark.usefixtures("hf_cache")


@pytest.fixture(autouse=True)
def quiet(expected_leftovers: set[str]) -> Iterator[None]:
    expected_leftovers.add("server/*")
    yield
    gc.collect()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(write_jsonl(tmp_path / "a.jsonl", rows(0, 30)))


def publish(spec: Spec, name: str = "") -> str:
    store = make_store()
    if name:
        catalogue.write(store, {**catalogue.read(store), name: spec})
    return building.publish(store, spec)


def load(*args: Any, **kwargs: Any) -> Any:
    return dsmem.load_dataset(*args, **kwargs)


def test_the_same_rows_shared_and_loaded(path: str) -> None:
    plain: Any = datasets.load_dataset("json", data_files=path)
    first = load("json", data_files=path)
    assert first.dsmem_source == "loaded"
    publish(Spec.parse(path))
    found = load("json", data_files=path)
    assert found.dsmem_source == "shared" and isinstance(found, datasets.DatasetDict)
    assert found["train"].to_list() == plain["train"].to_list() == first["train"].to_list()
    assert found["train"].features == plain["train"].features
    assert str(found["train"].split) == "train"
    one = load("json", data_files=path, split="train")
    assert one.dsmem_source == "shared" and one.to_list() == plain["train"].to_list()
    assert one[3] == plain["train"][3] and one[2:5] == plain["train"][2:5] and one[[7, 2]] == plain["train"][[7, 2]]
    assert one.__getitems__([1, 4]) == plain["train"].__getitems__([1, 4])
    assert load(path, split=datasets.Split.TRAIN).dsmem_source == "shared"


def test_what_is_said_of_the_rows_comes_along(tmp_path: Path) -> None:
    features = datasets.Features(
        {"label": datasets.ClassLabel(names=["no", "yes"]), "more": [{"x": datasets.Value("int8")}]}
    )
    info = datasets.DatasetInfo(description="of rows", citation="nobody", features=features, homepage="here")
    plain = datasets.Dataset.from_dict({"label": [0, 1], "more": [[], [{"x": 1}]]}, features=features, info=info)
    plain.save_to_disk(str(tmp_path / "saved"))
    publish(Spec.parse(str(tmp_path / "saved")))
    found = load(str(tmp_path / "saved"))
    assert found.dsmem_source == "shared" and found.features == plain.features and found.to_list() == plain.to_list()
    assert found.info.features == features and found.features["label"].int2str(1) == "yes"
    said = ("description", "citation", "homepage", "license", "version")
    assert {name: getattr(found.info, name) for name in said} == {name: getattr(plain.info, name) for name in said}
    again = pickle.loads(pickle.dumps(found))
    assert again.info == found.info and again.to_list() == plain.to_list()


def test_a_split_that_was_published_alone(path: str) -> None:
    publish(Spec.of("json", data_files=path, split="train[:10]"))
    assert load("json", data_files=path, split="train").dsmem_source == "loaded"
    part = load("json", data_files=path, split="train[:10]")
    assert part.dsmem_source == "shared" and len(part) == 10


def test_by_a_name_of_the_catalogue(path: str) -> None:
    spec = Spec.parse(path)
    publish(spec, "mine")
    found = load("mine", split="train")
    assert found.dsmem_source == "shared" and len(found) == 30
    objects_held = found
    assert load("mine")["train"].to_list() == objects_held.to_list()


def test_a_name_leads_to_its_source_when_nothing_is_published(path: str) -> None:
    """No server lives, nothing is in the store: the catalogue still knows what the name means."""
    catalogue.write(make_store(), {"mine": Spec.parse(path)})
    found = load("mine", split="train")
    assert found.dsmem_source == "loaded" and found.to_list() == rows(0, 30)
    assert load("mine")["train"].to_list() == rows(0, 30)


def test_a_sample_is_another_dataset(path: str, caplog: pytest.LogCaptureFixture) -> None:
    publish(Spec.parse(path, sample_limit=5), "few")
    assert len(load("json", data_files=path, split="train")) == 30
    assert len(load("json", data_files=path, split="train", sample_limit=5)) == 5
    with caplog.at_level(logging.WARNING):
        assert len(load("few", split="train")) == 5
    assert "sample" in caplog.text
    assert load("few", split="train", sample_limit=7).num_rows == 7


def test_a_revision_that_differs_is_an_error(path: str) -> None:
    catalogue.write(make_store(), {"mine": Spec("org/name", revision="abc")})
    with pytest.raises(dsmem.UsageError, match="abc"):
        load("mine", revision="def")


def test_a_path_that_is_also_a_name(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    catalogue.write(make_store(), {"a.jsonl": Spec("org/name")})
    with pytest.raises(dsmem.Ambiguous) as caught:
        load("a.jsonl")
    assert caught.value.candidates == ("./a.jsonl", "name a.jsonl")
    catalogue.write(make_store(), {"a.jsonl": Spec.parse("./a.jsonl")})
    assert load("a.jsonl", split="train").num_rows == 30


def test_a_source_that_changed_is_loaded(path: str, caplog: pytest.LogCaptureFixture) -> None:
    publish(Spec.parse(path))
    write_jsonl(Path(path), rows(50, 3))
    with caplog.at_level(logging.WARNING):
        found = load("json", data_files=path, split="train")
    assert found.dsmem_source == "loaded" and found.to_list() == rows(50, 3)
    assert "has changed since it was published" in caplog.text


def test_fallback_error(path: str) -> None:
    with pytest.raises(dsmem.NotPinned):
        load("json", data_files=path, fallback="error")
    publish(Spec.parse(path))
    assert load("json", data_files=path, fallback="error")["train"].num_rows == 30
    with pytest.raises(dsmem.UsageError):
        load("json", data_files=path, fallback="never")


def test_not_shared(path: str) -> None:
    publish(Spec.parse(path))
    assert load("json", data_files=path, split="train", shared=False).dsmem_source == "loaded"
    assert load("json", data_files=path, split="train", keep_in_memory=True).dsmem_source == "loaded"
    stream = load("json", data_files=path, split="train", streaming=True)
    assert stream.dsmem_source == "loaded" and len(list(stream)) == 30


def test_several_splits_at_once(path: str) -> None:
    publish(Spec.parse(path))
    one, two = load("json", data_files=path, split=["train", "train[:3]"])
    assert (one.num_rows, two.num_rows) == (30, 3)
    assert (one.dsmem_source, two.dsmem_source) == ("shared", "loaded")


def test_positional_arguments(path: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "elsewhere")
    found = load("json", None, None, path, "train", cache)
    assert found.dsmem_source == "loaded" and os.path.isdir(cache)


def test_damage_is_fallen_back_from_aloud(path: str, caplog: pytest.LogCaptureFixture) -> None:
    name = publish(Spec.parse(path))
    file = Path(make_store().object_path(name), "train", "data-00000.arrow")
    file.chmod(0o600)
    os.truncate(file, 100)
    with caplog.at_level(logging.WARNING):
        found = load("json", data_files=path, split="train")
    assert found.dsmem_source == "loaded" and found.num_rows == 30
    assert "not as it was published" in caplog.text


def test_a_store_that_is_not_ours_is_an_error(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "link"
    elsewhere.symlink_to(tmp_path)
    monkeypatch.setenv("DSMEM_ROOT", str(elsewhere))
    with pytest.raises(dsmem.UnsafeRoot):
        load("json", data_files=path)
    monkeypatch.setenv("DSMEM_ROOT", str(make_store(str(tmp_path / "store")).root))
    monkeypatch.setenv("DSMEM_DATA_DIR", path)
    with pytest.raises(dsmem.UnsafeRoot):
        load("json", data_files=path)


def test_a_lease_lives_with_the_rows(path: str) -> None:
    name, store = publish(Spec.parse(path)), make_store()
    assert leases.is_free(store, name)
    found = load("json", data_files=path, split="train")
    view = found.select(range(5))
    del found
    gc.collect()
    assert not leases.is_free(store, name)
    with pytest.raises(dsmem.InUse):
        objects.remove(store, name)
    assert view["id"][:] == list(range(5))
    del view
    gc.collect()
    assert leases.is_free(store, name)


def test_readers_keep_their_rows_over_a_refresh(path: str) -> None:
    spec = Spec.parse(path)
    publish(spec)
    old = load("json", data_files=path, split="train")
    write_jsonl(Path(path), rows(100, 4))
    publish(spec)
    new = load("json", data_files=path, split="train")
    assert old["id"][:] == list(range(30)) and new["id"][:] == list(range(100, 104))


def _sum(dataset: Any) -> int:
    return sum(dataset["id"])


def _first(dataset: Any, queue: Any) -> None:
    queue.put((dataset[0]["text"], len(dataset)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers(method: str, path: str) -> None:
    torch_data = pytest.importorskip("torch.utils.data")
    publish(Spec.parse(path))
    found = load("json", data_files=path, split="train").with_format("torch").select_columns("id")
    loader = torch_data.DataLoader(found, batch_size=7, num_workers=1, multiprocessing_context=method)
    seen = [int(one) for batch in loader for one in batch["id"]]
    assert seen == list(range(30))


def test_a_derived_dataset_in_a_spawned_process(path: str) -> None:
    name, store = publish(Spec.parse(path)), make_store()
    found = load("json", data_files=path, split="train").filter(lambda row: row["id"] % 2 == 1)
    copy = pickle.loads(pickle.dumps(found))
    assert copy["id"][:] == found["id"][:]
    del found
    gc.collect()
    with pytest.raises(dsmem.InUse):  # the copy maps the files and has no lease
        objects.remove(store, name)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=_first, args=(copy, queue))
    worker.start()
    assert queue.get(timeout=60) == ("row 1", 15)
    worker.join()


_FRESH = """
import os, sys
import dsmem
assert not {"datasets", "pyarrow", "numpy", "torch"} & set(sys.modules)
found = dsmem.load_dataset("json", data_files=sys.argv[1], split="train")
assert found.dsmem_source == "shared" and found[3]["id"] == 3
loaded = dsmem.load_dataset("json", data_files=sys.argv[1], split="train", shared=False)
assert loaded.to_list() == found.to_list()
never = {"pyarrow.flight", "torch", "dsmem.server.control", "dsmem.server.daemon", "dsmem.server.building"}
print(*sorted(never & set(sys.modules)))
"""


def test_what_a_fresh_interpreter_imports(path: str) -> None:
    """Forked children of a process that has touched pyarrow.flight hang."""
    publish(Spec.parse(path))
    done = subprocess.run([sys.executable, "-c", _FRESH, path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_asks_a_server_for_what_the_catalogue_names(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Spec.parse(path)
    catalogue.write(make_store(), {"mine": spec})
    asked = []

    def answer(wanted: Any, server_timeout: float | None, auto_start: bool | None) -> str:
        asked.append((wanted.name, server_timeout, auto_start))
        publish(spec)
        return make_store().root

    monkeypatch.setattr(client, "_ask_server", answer)
    found = load("mine", split="train", server_timeout=3, auto_start=True)
    assert found.dsmem_source == "shared" and asked == [("mine", 3, True)]


@pytest.mark.parametrize("error", [dsmem.LoadFailed, dsmem.ServerTimeout, dsmem.NoServer])
def test_a_server_that_does_not_help(
    error: type[dsmem.DsmemError], path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(*_: object) -> str:
        raise error("it was like this")

    monkeypatch.setattr(client, "_ask_server", answer)
    with caplog.at_level(logging.INFO):
        found = load("json", data_files=path, split="train")
    assert found.dsmem_source == "loaded" and "it was like this" in caplog.text


def test_a_denial_of_the_server_is_an_error(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*_: object) -> str:
        raise dsmem.UnsafeRoot("another user's socket")

    monkeypatch.setattr(client, "_ask_server", answer)
    with pytest.raises(dsmem.UnsafeRoot):
        load("json", data_files=path)
