"""Objects that are directories: made whole or not at all, leased by their anchor, listed, kept, evicted, removed."""

from __future__ import annotations

import json
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from children import all_started, started
from directory_objects import FILES, data_of, fill, hidden, make, request_for, source_of
from stores import InTmpfs, used_bytes

import dsmem
from dsmem import files
from dsmem.progress import ignore
from dsmem.shm import cleaning
from dsmem.shm.listing import list_objects
from dsmem.store import budget, directories, leases, objects, refs, space
from dsmem.store.obtain import Filled, obtain_as
from dsmem.store.root import make_store
from dsmem.store.staging import DirectoryDraft
from dsmem.store.sweep import sweep


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    return path


def release(obtained: object) -> str:
    """The name of an object, its lease let go."""
    obtained.lease.map.close()  # type: ignore[attr-defined]
    return str(obtained.ref.object)  # type: ignore[attr-defined]


@contextmanager
def mapped(path: str) -> Iterator[None]:
    """A data file mapped without any lease, as a dataset that was sent to another process is."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        yield


def test_made_once_and_read_only(source: Path) -> None:
    first = make(source)
    assert first.loaded
    name, store = release(first), make_store()
    assert data_of(store, name) == FILES
    path = Path(store.object_path(name))
    assert stat.S_IMODE(path.stat().st_mode) == 0o500
    assert {stat.S_IMODE(one.stat().st_mode) for one in path.rglob("*") if one.is_file()} == {0o400}
    assert stat.S_IMODE((path / "train").stat().st_mode) == 0o500
    again = make(source)
    assert not again.loaded and release(again) == name
    assert hidden(store) == []


def test_the_anchor_tells_all(source: Path) -> None:
    name, store = release(make(source)), make_store()
    anchor = directories.read_anchor(store.object_path(name))
    assert anchor.provenance.source == source_of(source)
    assert dict(anchor.sizes) == {path: len(data) for path, data in FILES.items()}
    assert anchor.kind == "dataset" and anchor.facts == {"rows": 7}


def test_equal_contents_are_one_object(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("{}\n")
    assert release(make(source)) == release(make(other, number=1))
    assert release(make(other, {"data-00000.arrow": b"c"}, number=2)) != release(make(source))


def test_a_digest_that_collides_makes_another_object(source: Path) -> None:
    def colliding(data: bytes, draft: DirectoryDraft, _: object) -> Filled:
        fill(draft, {"x": data})
        return Filled("md5:same", "", lambda made: draft.seal(made, kind="dataset", facts={}))

    names = []
    for number, data in enumerate((b"one", b"two")):
        request = request_for(source, number)
        names.append(release(obtain_as(DirectoryDraft, make_store(), request, partial(colliding, data), ignore)))
    assert len(set(names)) == 2
    assert [data_of(make_store(), name) for name in names] == [{"x": b"one"}, {"x": b"two"}]


def test_a_lease_holds_it(source: Path) -> None:
    made, store = make(source), make_store()
    name = made.ref.object
    with pytest.raises(dsmem.InUse):
        objects.remove(store, name)
    assert not leases.is_free(store, name)
    made.lease.map.close()
    assert leases.is_free(store, name)
    assert objects.remove(store, name)
    assert os.listdir(store.objects) == [] and list(refs.all_refs(store)) == []


def test_what_is_removed_before_it_is_locked_is_not_leased(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, store = release(make(source)), make_store()
    original = files.try_lock

    def late(fd: int, *, exclusive: bool) -> bool:
        monkeypatch.setattr(files, "try_lock", original)
        objects.remove(store, name)
        return original(fd, exclusive=exclusive)

    monkeypatch.setattr(files, "try_lock", late)
    with pytest.raises(dsmem.NotPinned):
        leases.lease(store, name)


def test_what_is_replaced_while_it_is_opened_is_not_damaged(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, store = release(make(source)), make_store()
    original = leases._open

    def late(path: str, *, within: int | None = None) -> int:
        fd = original(path, within=within)
        if within is None:
            monkeypatch.setattr(leases, "_open", original)
            objects.remove(store, name)
            release(make(source))
        return fd

    monkeypatch.setattr(leases, "_open", late)
    with pytest.raises(dsmem.NotPinned):
        leases.lease(store, name)
    leases.lease(store, name).map.close()


def test_a_mapped_data_file_holds_it(source: Path) -> None:
    """What was derived from a table and sent to another process maps its files, and has no lease."""
    name, store = release(make(source)), make_store()
    with mapped(f"{store.object_path(name)}/data-00000.arrow"):
        with pytest.raises(dsmem.InUse) as caught:
            objects.remove(store, name)
        assert caught.value.pids == (os.getpid(),)
        (entry,) = list_objects().entries
        assert [one.pid for one in entry.holders or ()] == [os.getpid()]
        assert space.unused(store) == []
        assert objects.remove(store, name, force=True)
    assert os.listdir(store.objects) == []


def test_a_file_that_two_generations_share_holds_neither(source: Path) -> None:
    store = make_store()
    old = release(make(source))
    shared = f"{store.object_path(old)}/data-00000.arrow"

    def build(draft: DirectoryDraft, _: object) -> Filled:
        os.link(shared, f"{draft.path}/data-00000.arrow")
        return fill(draft, {"new": b"n" * 10})

    new = release(obtain_as(DirectoryDraft, store, request_for(source, 1), build, ignore))
    assert os.stat(shared).st_nlink == 2
    with mapped(f"{store.object_path(new)}/data-00000.arrow"):
        assert objects.remove(store, old)
    assert data_of(store, new)["data-00000.arrow"] == FILES["data-00000.arrow"]


def test_listed_with_size_source_and_holders(source: Path) -> None:
    made = make(source)
    (entry,) = list_objects().entries
    assert entry.kind == "dataset" and entry.name == made.ref.object and entry.damaged is None
    anchor = Path(make_store().object_path(entry.name)) / "anchor"
    assert entry.size_bytes == sum(map(len, FILES.values())) + anchor.stat().st_size
    assert [one.pid for one in entry.holders or ()] == [os.getpid()]
    (seen,) = entry.sources
    assert (seen.path, seen.state) == (str(source), "changed")  # the identity was invented
    release(made)
    source.unlink()
    assert list_objects().entries[0].sources[0].state == "gone"


def test_cleaned_by_the_path_of_its_source(source: Path) -> None:
    name = release(make(source))
    done = cleaning.clean(cleaning.plan([str(source)]))
    assert done.removed == (name,) and list_objects().entries == ()


def test_it_is_no_arrays(source: Path) -> None:
    name = release(make(source))
    with pytest.raises(dsmem.UsageError, match="load_dataset"):
        dsmem.attach(name)


def test_kept(source: Path) -> None:
    name, store = release(make(source)), make_store()
    objects.keep(store, name, kept=True)
    assert list_objects().entries[0].kept
    assert not objects.remove(store, name, spare_kept=True)
    objects.keep(store, name, kept=False)
    assert objects.remove(store, name, spare_kept=True)


def test_evicted_when_the_budget_needs_the_room(source: Path) -> None:
    store = make_store()
    name = release(make(source))
    size_bytes = sum(one.size_bytes for one in objects.scan(store))
    assert budget.make_room(store, 100, size_bytes + 200).names == ()
    assert budget.make_room(store, 1000, size_bytes + 200).names == (name,)
    assert os.listdir(store.objects) == []
    made = make(source)
    with pytest.raises(dsmem.NoSpace):
        budget.make_room(store, 1000, size_bytes + 200)
    release(made)


def replace_anchor(path: Path, data: bytes) -> None:
    (path / "anchor").unlink()
    (path / "anchor").write_bytes(data)


def link_the_anchor(path: Path) -> None:
    (path / "anchor").unlink()
    (path / "anchor").symlink_to("/etc/passwd")


OUTSIDE = json.dumps({"version": 1, "kind": "dataset", "sizes": {"../x": 1}, "facts": {}}).encode()
DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated": lambda path: os.truncate(path / "data-00000.arrow", 10),
    "a file is gone": lambda path: (path / "train/data-00000.arrow").unlink(),
    "no anchor": lambda path: (path / "anchor").unlink(),
    "a link for an anchor": link_the_anchor,
    "garbage": lambda path: replace_anchor(path, b"\xff{"),
    "a path outside": lambda path: replace_anchor(path, OUTSIDE),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_seen_and_can_be_removed(how: str, source: Path) -> None:
    name, store = release(make(source)), make_store()
    path = Path(store.object_path(name))
    for one in (path, *path.rglob("*")):
        one.chmod(0o700)
    DAMAGE[how](path)
    (found,) = objects.scan(store)
    assert found.damaged is not None
    assert objects.remove(store, name)
    assert os.listdir(store.objects) == []


def test_a_lost_ref_is_rebuilt_from_the_anchor(source: Path) -> None:
    name, store = release(make(source)), make_store()
    (ref,) = refs.all_refs(store)
    os.unlink(f"{store.refs}/{ref.file_name()}")
    sweep(store)
    assert [one.object for one in refs.all_refs(store)] == [name]


def test_a_failed_build_leaves_nothing(source: Path) -> None:
    def build(draft: DirectoryDraft, _: object) -> Filled:
        fill(draft)
        raise ArithmeticError("enough")

    with pytest.raises(ArithmeticError):
        obtain_as(DirectoryDraft, make_store(), request_for(source), build, ignore)
    assert os.listdir(make_store().objects) == []


def test_no_space(source: Path, tiny_tmpfs: InTmpfs) -> None:
    def body(point: Path) -> None:
        store = make_store()
        before = used_bytes(point)
        with pytest.raises(dsmem.NoSpace) as caught:
            make(source, {"x": b"x" * (3 << 20)})
        assert caught.value.need_bytes >= 3 << 20
        assert os.listdir(store.objects) == [] and used_bytes(point) == before

        def build(draft: DirectoryDraft, _: object) -> Filled:  # what was not asked for in advance
            try:
                Path(draft.path, "x").write_bytes(b"x" * (3 << 20))
            except OSError as exc:
                raise draft.translated(exc, 3 << 20) from exc
            raise AssertionError

        with pytest.raises(dsmem.NoSpace):
            obtain_as(DirectoryDraft, store, request_for(source), build, ignore)
        assert os.listdir(store.objects) == [] and used_bytes(point) == before

    tiny_tmpfs(body, size="2m")


def test_eight_processes_make_one(source: Path) -> None:
    def one() -> tuple[str, bool]:
        made = make(source)
        return made.ref.object, made.loaded

    with all_started([one] * 8) as running:
        seen = [child.result() for child in running]
    assert len({name for name, _ in seen}) == 1
    assert sum(loaded for _, loaded in seen) == 1
    assert hidden(make_store()) == []


def test_eight_processes_make_and_remove(source: Path) -> None:
    """Whoever has a lease reads all of it, whatever the others remove."""

    def one() -> None:
        store = make_store()
        for _ in range(10):
            made = make(source)
            assert data_of(store, made.ref.object) == FILES
            made.lease.map.close()
            try:
                objects.remove(store, made.ref.object)
            except dsmem.InUse:
                continue

    with all_started([one] * 8) as running:
        for child in running:
            child.result()
    sweep(make_store())
    assert hidden(make_store()) == []


def test_a_draft_at_work_is_spared_by_a_sweep(source: Path) -> None:
    store = make_store()
    with DirectoryDraft(store) as draft:
        fill(draft)
        sweep(store)
        assert Path(draft.path, "data-00000.arrow").exists()
        assert cleaning.plan(everything=True).sweep_bytes == 0
    assert hidden(store) == []


def test_another_user_is_locked_out(source: Path, store_root: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    from children import become

    name = release(make(source))
    path = make_store().object_path(name)

    def other() -> bool:
        become(65534)
        try:
            os.listdir(path)
        except PermissionError:
            return True
        return False

    with started(other) as child:
        assert child.result()
