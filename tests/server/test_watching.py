"""Sources that change: a new generation beside the old one, which goes when nobody holds it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import children
import pytest
from daemons import Plans, eventually

from dsmem.files import FileIdentity
from dsmem.server import building, control, lifecycle
from dsmem.server.places import Places
from dsmem.server.spec import Spec
from dsmem.server.watching import Watched, Watcher, older, remove_free
from dsmem.store import leases, objects
from dsmem.store.root import Store, make_store


class Watching:
    """A watcher without its thread: `look` is called by hand."""

    def __init__(self, **watched: Watched) -> None:
        self.watched = watched
        self.news: list[str] = []
        self.gone: list[str] = []
        self.root = make_store().root
        self.watcher = Watcher(
            [self.root],
            snapshot=lambda: self.watched,
            changed=self.news.extend,
            gone=self.gone.extend,
            hub_s=0.05,
        )

    def look(self, times: int = 1) -> list[str]:
        self.news.clear()
        for _ in range(times):
            self.watcher.look()
        return list(self.news)


def watched(path: Path, name: str = "") -> Watched:
    spec = Spec(str(path))
    return Watched(spec, spec.identity(), name, make_store().root)


def test_what_is_as_it_was_is_no_news(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    assert Watching(a=watched(tmp_path / "a")).look(5) == []


def test_a_change_is_news_once_it_is_at_rest(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("1")
    watching = Watching(a=watched(path))
    watching.look()
    for size in range(2, 5):  # somebody writes
        path.write_text("x" * size)
        assert watching.look() == []
    assert watching.look() == ["a"]
    watching.watched["a"] = watched(path)  # it was loaded
    assert watching.look(3) == []


def test_a_source_that_is_gone_takes_nothing_away_and_may_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("1")
    watching = Watching(a=watched(path))
    path.rename(tmp_path / "away")
    assert watching.look(3) == []
    (tmp_path / "away").rename(path)
    assert watching.look(3) == []
    path.write_text("other")
    assert "a" in watching.look(3)


def test_what_failed_is_tried_again_only_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    watching = Watching(a=Watched(Spec(str(path)), None, "", ""))
    assert watching.look(3) == []
    path.write_text("1")
    assert watching.look(2) == ["a"]
    assert watching.look(4) == []
    path.write_text("22")
    assert watching.look(2) == ["a"]


def test_a_hub_is_asked_now_and_then() -> None:
    watching = Watching(a=Watched(Spec("hub/name"), FileIdentity(0, 1, 0, 0, 0), "", ""))
    assert watching.look(3) == []
    time.sleep(0.06)
    assert watching.look(3) == ["a"]


def test_an_object_that_is_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    watching = Watching(a=watched(tmp_path / "a", "gone-object"))
    assert (watching.look(), watching.gone) == ([], ["a"])


def test_older_generations(tmp_path: Path) -> None:
    store = make_store()
    path = tmp_path / "a.jsonl"
    spec = Spec.parse(str(_rows(path, 1)))
    first = building.publish(store, spec)
    held = leases.lease(store, first)
    _rows(path, 2)
    second = building.publish(store, spec)
    current = [Watched(spec, spec.identity(), second, store.root)]
    assert older(store.root, current) == {first}
    assert remove_free(store.root, {first}) == {first}
    held.map.close()
    assert remove_free(store.root, {first}) == set()
    assert [one.name for one in objects.scan(store)] == [second]
    assert older(store.root, current) == set()


def test_a_generation_that_is_kept_stays(tmp_path: Path) -> None:
    store = make_store()
    path = tmp_path / "a.jsonl"
    spec = Spec.parse(str(_rows(path, 1)))
    first = building.publish(store, spec)
    objects.keep(store, first, kept=True)
    _rows(path, 2)
    building.publish(store, spec)
    assert remove_free(store.root, {first}) == set()
    assert first in [one.name for one in objects.scan(store)]


@pytest.mark.slow
def test_refresh_end_to_end(plan: Plans, where: Places, tmp_path: Path) -> None:
    """With the real loader: rows come, readers of the old generation keep theirs, and it goes with them."""
    path = _rows(tmp_path / "rows.jsonl", 3)
    spec = Spec.parse(str(path))
    ours = plan(loader="dsmem.server.loader")
    lifecycle.ensure_started(plan=ours)
    control.ask({"op": "add", "name": "rows", "spec": spec.as_dict()}, where=where)
    first = _ready(where, 3)
    assert first["generation"] == 1
    store = Store(where.data_root)

    def read() -> tuple[int, int]:
        import dsmem

        before = dsmem.load_dataset("rows")["train"]
        _rows(path, 5)
        eventually(lambda: control.ask({"op": "status"}, where=where)["datasets"][0]["rows"] == 5, 60)
        assert os.path.isdir(store.object_path(first["object"]))
        return len(before), sum(before["x"])

    assert children.call(read, 90) == (3, 0 + 1 + 2)
    assert _ready(where, 5)["generation"] == 2
    eventually(lambda: not os.path.exists(store.object_path(first["object"])))
    path.write_text("{not json\n")
    eventually(lambda: control.ask({"op": "status"}, where=where)["datasets"][0]["error"], 60)
    told = control.ask({"op": "status"}, where=where)
    assert told["status"] == "degraded"
    assert (told["datasets"][0]["state"], told["datasets"][0]["rows"]) == ("ready", 5)
    lifecycle.stop(where)


def _rows(path: Path, count: int) -> Path:
    path.write_text("".join(f'{{"x": {number}}}\n' for number in range(count)))
    return path


def _ready(where: Places, rows: int) -> dict[str, Any]:
    answer = control.ask({"op": "wait", "dataset": "rows", "timeout_s": 60}, 65, where=where)["dataset"]
    assert answer["rows"] == rows
    return dict(answer)
