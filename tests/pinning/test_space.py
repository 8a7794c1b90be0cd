"""A store without room: NoSpace with the numbers, before or in the middle of the copy; never a SIGBUS, never a leak."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from children import call
from samples import MIB, assert_reads_as_h5py, settle, write_sample
from stores import InTmpfs, named_bytes, refuse, unnamed_bytes, used_bytes

import dsmem
from dsmem import files, proc
from dsmem.hdf5.scan import scan
from dsmem.pinning import copying, decoding, processes
from dsmem.pinning.beside import beside_bytes
from dsmem.store import hugepages, objects, refs, space
from dsmem.store.draft import Draft
from dsmem.store.root import Store, make_store

HUGE = pytest.mark.parametrize("huge", ["never", "advise", "taken"])
"""On the mount: none, by itself, and none but what dsmem takes."""


def blind(monkey: pytest.MonkeyPatch) -> None:
    """Space is no longer looked at before it is taken."""
    monkey.setattr(space, "require", lambda *_: None)


def drafts_in_place(monkey: pytest.MonkeyPatch) -> list[bool]:
    """How the drafts made from now on are filled."""
    found: list[bool] = []
    original = Draft.allocate

    def allocate(draft: Draft, size_bytes: int) -> None:
        found.append(draft.in_place)
        original(draft, size_bytes)

    monkey.setattr(Draft, "allocate", allocate)
    return found


def assert_refused(path: Path, point: Path) -> dsmem.NoSpace:
    """Pinning is refused with numbers that make sense, and nothing is left, the error still at hand."""
    try:
        dsmem.pin(path)
    except dsmem.NoSpace as exc:
        assert unnamed_bytes(point) == 0, "memory stays as long as someone looks at the error"
        error = exc
    else:
        raise AssertionError("it was pinned")
    assert error.need_bytes > error.free_bytes >= 0
    assert error.limit == f"tmpfs at {point}"
    assert error.free_bytes <= 4 * MIB
    assert refuse(point / "store") == []
    assert os.listdir(point / "store/objects") == []
    assert used_bytes(point) == named_bytes(point) == 0
    return error


@HUGE
def test_a_file_that_fits_is_pinned(huge: str, tmp_path: Path, tiny_tmpfs: InTmpfs) -> None:
    path = settle(write_sample(tmp_path / "data.h5", 5 * MIB // 2))

    def body(point: Path, monkey: pytest.MonkeyPatch) -> None:
        in_place = drafts_in_place(monkey)
        pinned = dsmem.pin(path, verify=True)
        assert set(in_place) == {huge == "advise"}
        with dsmem.attach(path) as file:
            assert_reads_as_h5py(file, path)
        assert pinned.size_bytes <= used_bytes(point) < pinned.size_bytes + 2 * MIB
        assert objects.remove(make_store(), pinned.name)
        assert used_bytes(point) == 0

    in_pages(tiny_tmpfs, body, huge)


@HUGE
def test_a_file_too_large_is_refused_before_a_byte_is_written(huge: str, tmp_path: Path, tiny_tmpfs: InTmpfs) -> None:
    path = settle(write_sample(tmp_path / "data.h5", 8 * MIB))

    def body(point: Path, monkey: pytest.MonkeyPatch) -> None:
        monkey.setattr(Draft, "allocate", None)
        error = assert_refused(path, point)
        assert 8 * MIB < error.need_bytes < 9 * MIB
        assert "8.1 MiB needed" in str(error)

    in_pages(tiny_tmpfs, body, huge)


@HUGE
def test_space_runs_out_in_the_middle(huge: str, tmp_path: Path, tiny_tmpfs: InTmpfs) -> None:
    path = settle(write_sample(tmp_path / "data.h5", 8 * MIB))

    def body(point: Path, monkey: pytest.MonkeyPatch) -> None:
        blind(monkey)
        in_place = drafts_in_place(monkey)
        assert_refused(path, point)
        assert set(in_place) == {huge == "advise"}
        fits = settle(write_sample(tmp_path / "fits.h5", MIB))
        dsmem.pin(fits)
        with dsmem.attach(fits) as file:
            assert_reads_as_h5py(file, fits)

    in_pages(tiny_tmpfs, body, huge)


@HUGE
@pytest.mark.parametrize("filler", ["images", "gzip"])
def test_another_process_takes_the_space_meanwhile(huge: str, filler: str, tmp_path: Path, tiny_tmpfs: InTmpfs) -> None:
    """The last pages go to someone else after the look: also those of the lock file's progress, and of the ref."""
    path = tmp_path / "data.h5"
    if filler == "images":
        write_sample(path, 2 * MIB)
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("data", data=np.zeros((512, 4096), np.uint8), chunks=(64, 4096), compression="gzip")
    settle(path)

    def body(point: Path, monkey: pytest.MonkeyPatch) -> None:
        original = copying.copy

        def copy(*args: Any) -> Any:
            (point / "other").write_bytes(bytes(3 * MIB))
            return original(*args)

        monkey.setattr(copying, "copy", copy)
        with pytest.raises(dsmem.NoSpace) as caught:
            dsmem.pin(path)
        assert caught.value.need_bytes > caught.value.free_bytes
        (point / "other").unlink()
        assert unnamed_bytes(point) == 0
        assert refuse(point / "store") == []

    in_pages(tiny_tmpfs, body, huge)


@HUGE
def test_texts_grow_past_the_estimate(huge: str, tmp_path: Path, tiny_tmpfs: InTmpfs) -> None:
    """Of variable-length data HDF5 tells only the size of the pointers: they are met while reading."""
    path = tmp_path / "texts.h5"
    with h5py.File(path, "w") as file:
        file["texts"] = np.array(["x" * 60_000 + str(i) for i in range(120)], object)
        file["lists"] = np.arange(1000)
    settle(path)

    def body(point: Path, monkey: pytest.MonkeyPatch) -> None:
        assert_refused(path, point)

    in_pages(tiny_tmpfs, body, huge)


@pytest.mark.parametrize("missing_bytes", [0, 1, 4096, 8192, 12288, 16384, 40960])
def test_the_last_pages(missing_bytes: int, tmp_path: Path, tiny_tmpfs: InTmpfs) -> None:
    """An object fits, or nearly: what the lock and the ref take counts too. Pinned whole, or NoSpace and nothing."""
    path = settle(write_sample(tmp_path / "data.h5", MIB))

    def body(point: Path, monkey: pytest.MonkeyPatch) -> None:
        size_bytes = dsmem.pin(path).size_bytes
        store = make_store()
        objects.remove(store, next(objects.scan(store)).name)
        pages = -(-size_bytes // 4096) * 4096
        filler_bytes = 4 * MIB - pages + (missing_bytes - 20480)
        (point / "filler").write_bytes(bytes(filler_bytes))
        try:
            dsmem.pin(path)
        except dsmem.NoSpace as exc:
            assert exc.need_bytes > exc.free_bytes
            assert os.listdir(store.objects) == []
            assert named_bytes(point / "store") == 0
        else:
            with dsmem.attach(path) as file:
                assert_reads_as_h5py(file, path)
        assert unnamed_bytes(point) == 0
        assert refuse(point / "store") == []

    tiny_tmpfs(patched(body))


def test_no_room_for_the_ref(tmp_path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The object was published already: what failed takes no memory all the same."""
    path = settle(write_sample(tmp_path / "data.h5", MIB))

    def full(store: Store, ref: refs.Ref) -> None:
        assert os.listdir(store.objects) == [ref.object]
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(refs, "write", full)
        with pytest.raises(dsmem.NoSpace):
            dsmem.pin(path)
    assert os.listdir(store_root / "objects") == []
    dsmem.pin(path)


@pytest.mark.parametrize("left_bytes", [0, 4096, 8192])
def test_a_full_store_can_be_read_and_cleaned(left_bytes: int, tmp_path: Path, tiny_tmpfs: InTmpfs) -> None:
    """Objects have no holes: reading one never needs memory, which on a full tmpfs would be a SIGBUS."""
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as file:
        file["images"] = np.arange(1 << 18, dtype=np.uint32)
        file.create_dataset("never written", (1000, 100), np.float64)
        file.create_dataset("sparse", (1000, 1000), np.uint8, chunks=(10, 1000), fillvalue=0)[500] = 7
        file.create_dataset("no texts", (500,), h5py.string_dtype())
        file.create_dataset("null", data=h5py.Empty("f4"))
    settle(path)

    def body(point: Path, monkey: pytest.MonkeyPatch) -> None:
        pinned = dsmem.pin(path)
        object_path = point / "store/objects" / pinned.name
        with open(object_path, "rb") as file:
            assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == pinned.size_bytes
        fill(point / "filler", left_bytes)
        with dsmem.attach(path) as attached:
            assert_reads_as_h5py(attached, path)
        other = settle(write_sample(tmp_path / "other.h5", MIB))
        with pytest.raises(dsmem.NoSpace) as caught:
            dsmem.pin(other)
        assert caught.value.reclaimable_bytes == pinned.size_bytes
        store = make_store()
        assert objects.remove(store, pinned.name)
        dsmem.pin(other)

    tiny_tmpfs(patched(body))


def test_an_object_with_holes_is_damaged_and_no_sigbus(tmp_path: Path, tiny_tmpfs: InTmpfs) -> None:
    """Nothing that dsmem published: a sparse copy. To read its holes through a map needs memory that is not there."""
    path = settle(write_sample(tmp_path / "data.h5", MIB))

    def body(point: Path, monkey: pytest.MonkeyPatch) -> None:
        name = dsmem.pin(path).name
        real = point / "store/objects" / name
        whole = real.read_bytes()
        real.unlink()
        with open(real, "wb") as file:
            file.write(whole[: len(whole) // 2 & ~4095])
            file.truncate(len(whole))
        empty = point / "store/objects/empty-0123456789abcdef"
        with open(empty, "wb") as file:
            file.truncate(len(whole))
        fill(point / "filler", 0)
        for one in (path, name, empty.name):
            with pytest.raises(dsmem.DamagedObject):
                dsmem.attach(one)
        assert all(one.damaged for one in objects.scan(Store(str(point / "store"))))

    tiny_tmpfs(patched(body))


def test_auto_falls_back_when_nothing_fits(tmp_path: Path, tiny_tmpfs: InTmpfs) -> None:
    path = settle(write_sample(tmp_path / "data.h5", 8 * MIB))

    def body(point: Path, monkey: pytest.MonkeyPatch) -> None:
        with dsmem.File(path, pin="auto") as file:
            assert file.source == "h5py"
            assert "MiB needed" in file.why
            assert_reads_as_h5py(file, path)
        assert used_bytes(point) == 0

    tiny_tmpfs(patched(body))


def test_every_inode_is_taken(tmp_path: Path, tiny_tmpfs: InTmpfs) -> None:
    path = settle(write_sample(tmp_path / "data.h5", MIB))

    def body(point: Path, monkey: pytest.MonkeyPatch) -> None:
        make_store()
        with pytest.raises(OSError, match="No space") as made:
            for i in range(10_000):
                (point / str(i)).touch()
        assert made.value.errno == errno.ENOSPC
        with pytest.raises(dsmem.NoSpace):
            dsmem.pin(path)
        (point / "0").unlink()
        (point / "1").unlink()
        with pytest.raises(dsmem.NoSpace):
            dsmem.pin(path)
        assert unnamed_bytes(point) == 0

    tiny_tmpfs(patched(body), size="4m,nr_inodes=100")


def fill(path: Path, left_bytes: int) -> None:
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as exc:
            assert exc.errno == errno.ENOSPC
        file.truncate(max(os.path.getsize(path) - left_bytes, 0))


def in_pages(tiny_tmpfs: InTmpfs, body: Callable[[Path, pytest.MonkeyPatch], None], huge: str) -> None:
    """Run the body on a small tmpfs of that kind."""

    def taking(point: Path, monkey: pytest.MonkeyPatch) -> None:
        if huge == "taken":
            monkey.setattr(hugepages, "LEAST_BYTES", 0)
        body(point, monkey)

    tiny_tmpfs(patched(taking), huge="never" if huge == "taken" else huge)


def patched(body: Callable[[Path, pytest.MonkeyPatch], None]) -> Callable[[Path], None]:
    """The body with a MonkeyPatch that is undone at its end."""

    def run(point: Path) -> None:
        with pytest.MonkeyPatch.context() as monkey:
            body(point, monkey)

    return run


def test_a_limit_of_the_process_is_not_a_full_store(store_root: Path) -> None:
    store = make_store()

    def said(limit_bytes: int) -> str:
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, resource.RLIM_INFINITY))
        return str(space.no_space(store, 1 << 20))

    mapped_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    assert call(partial(said, mapped_bytes + (1 << 19))).endswith(
        " free (address space of this process, ulimit -v); unused objects hold 0 B"
    )
    assert "a moment ago" in call(partial(said, mapped_bytes + (1 << 30)))


@pytest.mark.parametrize("limit_bytes", [MIB, 0])
@pytest.mark.parametrize("untrusted", [False, True])
def test_a_limit_of_the_size_of_files_is_told_as_such(untrusted: bool, limit_bytes: int, tmp_path: Path) -> None:
    """ulimit -f: what is too large is the object, not the file that is read."""
    path = settle(write_sample(tmp_path / "data.h5"))
    with h5py.File(path, "a") as file:
        file["large"] = np.zeros(2 * MIB, "u1")

    def pin() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        dsmem.pin(path, untrusted=untrusted)

    with pytest.raises(dsmem.NoSpace, match="needed for a file of the store, which may not be larger than") as caught:
        call(pin)
    assert caught.value.limit == dsmem.errors.FILE_SIZE
    assert caught.value.free_bytes == limit_bytes < caught.value.need_bytes


def test_a_file_system_may_limit_the_size_of_files_too(
    tmp_path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(files, "pwrite_full", too_large)
    with Draft(make_store()) as draft, pytest.raises(dsmem.NoSpace, match="larger than its file system allows"):
        draft.write(0, memoryview(b"x"))


@pytest.mark.parametrize("budget", [None, 1 << 40])
@pytest.mark.parametrize("untrusted", [False, True])
def test_what_reading_takes_must_fit_the_cgroup_too(
    untrusted: bool, budget: int | None, tmp_path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the kernel kills whoever pins, in the middle."""
    path = settle(write_sample(tmp_path / "data.h5"))
    with h5py.File(path, "a") as file:
        file.create_dataset("chunked", data=np.zeros(4 * MIB, "u1"), chunks=(2 * MIB,), compression="gzip")
    pinned = dsmem.pin(path)
    object_bytes = pinned.size_bytes + space.BOOKKEEPING_BYTES
    objects.remove(make_store(), pinned.name)
    beside_bytes = proc.usable_cpus() * (2 + 2 + 4) * MIB  # to copy; a chunk, and what decoding takes

    def with_free(free_bytes: int) -> None:
        group = proc.CgroupMemory("/tight", 2, limit_bytes=free_bytes, usage_bytes=0, reclaimable_bytes=0)
        monkeypatch.setattr(proc, "cgroup_memory", lambda: (group,))

    with_free(object_bytes + beside_bytes - 1)
    with pytest.raises(
        dsmem.NoSpace, match=rf"needed and {beside_bytes / MIB:.1f} MiB to read with, .* \(?cgroup /tight"
    ):
        dsmem.pin(path, untrusted=untrusted, budget=budget)
    assert os.listdir(store_root / "objects") == []
    with_free(object_bytes + beside_bytes + (64 << 10))  # what is guessed before reading is some pages more
    assert not dsmem.pin(path, untrusted=untrusted, budget=budget).already


def test_what_reading_takes_is_guessed_by_how_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kinds.h5"
    with h5py.File(path, "w") as file:
        file["contiguous"] = np.zeros(1000)
        file.create_dataset("small", data=np.zeros((200, 64, 64), "u1"), chunks=(1, 64, 64), compression="gzip")
        file.create_dataset("slow", data=np.zeros(3 * MIB, "i4"), chunks=(MIB // 4,), scaleoffset=0)
        file.create_dataset("texts", data=["x"] * 10, dtype=h5py.string_dtype())
    monkeypatch.setattr(proc, "usable_cpus", lambda: 4)

    def guess(*names: str) -> int:
        with h5py.File(path) as file:
            found = scan(file, str(path), only=names, file_bytes=path.stat().st_size)
            return beside_bytes(found.items)

    copying = guess("contiguous")
    assert copying == 8 * MIB
    assert guess("small") == copying + 4 * (4096 + 4 * MIB)
    assert guess("slow") == copying + 9 * MIB
    assert guess("texts") == copying + 3200
    assert guess("small", "slow", "texts") == guess("small") + guess("slow") + guess("texts") - 2 * copying
    monkeypatch.setattr(decoding, "WORTH_CHUNKS", 200)
    assert guess("small") == copying + 4 * (4096 + 4 * MIB) + 3 * 24 * MIB
    monkeypatch.setattr(processes, "WORTH_BYTES", MIB)
    assert guess("slow") == copying + 9 * MIB + 3 * 25 * MIB
