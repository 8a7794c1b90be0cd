"""Files of many small chunks are decoded by processes: equal to h5py, clear errors, nothing left behind."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import children
import h5py
import hdf5plugin
import numpy as np
import psutil
import pytest
from children import started
from samples import assert_reads_as_h5py, settle
from stores import InTmpfs, refuse

import dsmem
from dsmem import proc
from dsmem.pinning import decoders, decoding

DECODER = "dsmem.pinning.decoder"
DIFFERENT = 61


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "WORTH_CHUNKS", 1)
    monkeypatch.setattr(decoding, "LEAST_CHUNKS", 1)
    monkeypatch.setattr(proc, "usable_cpus", lambda: 3)  # two processes


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether it was plain, of each band: processes decode them all here, and no thread beside them."""
    found: list[bool] = []
    original = decoders.Decoders.decode

    def decode(self: decoders.Decoders, number: int, band: Any, *, is_plain: bool) -> int | None:
        found.append(is_plain)
        while (done := original(self, number, band, is_plain=is_plain)) is None:
            time.sleep(0.001)
        return done

    monkeypatch.setattr(decoders.Decoders, "decode", decode)
    return found


def helpers_of(pid: int) -> list[psutil.Process]:
    """The running decoders below a process."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if DECODER in child.cmdline():
                    found.append(child)
    return found


def photos(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(100, 3, shape).astype(np.uint8)


def write(path: Path, samples: int = 4096, **options: bool) -> Path:
    """Images in chunks of 1×64×64, gzip: 61 different ones, again and again."""
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", (samples, 64, 64), "u1", chunks=(1, 64, 64), compression="gzip", **options)
        dataset[:DIFFERENT] = photos(DIFFERENT, 64, 64)
        stored = [dataset.id.read_direct_chunk((i, 0, 0)) for i in range(DIFFERENT)]
        for i in range(DIFFERENT, samples):
            mask, data = stored[i % DIFFERENT]
            dataset.id.write_direct_chunk((i, 0, 0), data, mask)
    return settle(path)


def damage(path: Path, chunk: int) -> None:
    """Overwrite the middle of a chunk of `x`."""
    with h5py.File(path) as file:
        info = file["x"].id.get_chunk_info(chunk)
    with path.open("r+b") as file:
        file.seek(info.byte_offset + 10)
        file.write(b"\xff" * 40)
    settle(path)


def variety(file: h5py.File) -> None:
    """What is not plain: edges, holes, masks, other filters, chunks narrower than a row, other types."""
    data = photos(500, 30, 40)
    file.create_dataset("edges", data=data, chunks=(3, 30, 40), compression="gzip")
    file.create_dataset("tiles", data=data, chunks=(3, 7, 11), compression="gzip")
    file.create_dataset("shuffled", data=np.cumsum(data, axis=0, dtype="<i4"), chunks=(1, 30, 40), shuffle=True,
                        compression="gzip", fletcher32=True)  # fmt: skip
    file.create_dataset("lzf", data=data // 16, chunks=(1, 30, 40), compression="lzf")
    file.create_dataset("blosc", data=data, chunks=(2, 30, 40), **hdf5plugin.Blosc())
    file.create_dataset("no filter", data=data, chunks=(1, 30, 40))
    file.create_dataset("big-endian", data=data.astype(">f4"), chunks=(1, 30, 40), compression="gzip")
    file.create_dataset("one axis", data=data.reshape(-1), chunks=(1000,), compression="gzip")
    holes = file.create_dataset("holes", (500, 30, 40), "<i2", chunks=(1, 30, 40), compression="gzip", fillvalue=-7)
    holes[100:300] = data[100:300]
    file.create_dataset("nothing", (50, 30, 40), "<f4", chunks=(1, 30, 40), compression="gzip", fillvalue=0.5)
    masked = file.create_dataset("masked", data=data, chunks=(1, 30, 40), compression="gzip")
    masked.id.write_direct_chunk((3, 0, 0), data[0].tobytes(), 1)


@pytest.mark.parametrize("huge", ["never", "advise"])
def test_plain_chunks_equal_h5py(tmp_path: Path, tiny_tmpfs: InTmpfs, asked: list[bool], huge: str) -> None:
    path = write(tmp_path / "x.h5")

    def body(_: Path) -> list[bool]:
        dsmem.pin(path, verify=True)
        with dsmem.attach(path) as file:
            assert_reads_as_h5py(file, path)
        return asked

    asked = tiny_tmpfs(body, size="64m", huge=huge)
    assert len(asked) == 8
    assert all(asked)


@pytest.mark.parametrize("huge", ["never", "advise"])
def test_every_other_kind_equals_h5py(tmp_path: Path, tiny_tmpfs: InTmpfs, asked: list[bool], huge: str) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        variety(file)
    settle(path)

    def body(_: Path) -> list[bool]:
        dsmem.pin(path, verify=True)
        with dsmem.attach(path) as file:
            assert_reads_as_h5py(file, path)
        return asked

    asked = tiny_tmpfs(body, size="128m", huge=huge)
    assert len(asked) >= 11
    assert not all(asked)


@pytest.mark.parametrize("huge", ["never", "advise"])
def test_what_finds_all_processes_busy_is_decoded_by_a_thread(
    tmp_path: Path, tiny_tmpfs: InTmpfs, monkeypatch: pytest.MonkeyPatch, huge: str
) -> None:
    path = write(tmp_path / "x.h5", 1000)
    with h5py.File(path, "a") as file:
        variety(file)
    settle(path)
    original, turns = decoders.Decoders.decode, itertools.count()

    def decode(self: decoders.Decoders, number: int, band: Any, *, is_plain: bool) -> int | None:
        return original(self, number, band, is_plain=is_plain) if next(turns) % 2 else None

    monkeypatch.setattr(decoders.Decoders, "decode", decode)

    def body(_: Path) -> int:
        dsmem.pin(path, verify=True)
        with dsmem.attach(path) as file:
            assert_reads_as_h5py(file, path)
        return next(turns)

    assert tiny_tmpfs(body, size="128m", huge=huge) > 12


def test_what_has_no_store_is_filled_too(tmp_path: Path, asked: list[bool]) -> None:
    path = write(tmp_path / "x.h5", 1000)
    with dsmem.File(path, preload=True) as file:
        assert_reads_as_h5py(file, path)
    assert asked
    assert helpers_of(os.getpid()) == []


def test_untrusted_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    path = write(tmp_path / "x.h5", 1000)
    dsmem.pin(path, untrusted=True)
    with dsmem.attach(path) as file:
        assert_reads_as_h5py(file, path)


def test_only_small_chunks_and_only_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[bool]) -> None:
    small, large = write(tmp_path / "small.h5", 100), tmp_path / "large.h5"
    with h5py.File(large, "w") as file:
        file.create_dataset("x", data=photos(100, 256, 256), chunks=(1, 256, 256), compression="gzip")
    settle(large)
    dsmem.pin(large)
    monkeypatch.setattr(decoding, "WORTH_CHUNKS", 101)
    dsmem.pin(small)
    assert asked == []
    monkeypatch.setattr(decoding, "WORTH_CHUNKS", 100)
    dsmem.pin(small, name="again", only=["x"])
    assert asked == [True]


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5")
    seen: list[tuple[int, int]] = []
    dsmem.pin(path, progress=lambda done, total: seen.append((done, total)))
    done = [one for one, _ in seen]
    assert seen[-1] == (4096 * 4096, 4096 * 4096)
    assert done == sorted(done)
    assert len(set(done)) >= 8


@pytest.mark.parametrize("kind", ["plain", "shuffled"])
def test_a_damaged_chunk_is_named(tmp_path: Path, store_root: Path, asked: list[bool], kind: str) -> None:
    path = write(tmp_path / "x.h5", shuffle=kind == "shuffled")
    damage(path, 3210)
    with pytest.raises(dsmem.BadSource, match=rf"{path}: /x: the chunk at \(3210, 0, 0\) can't be decoded"):
        dsmem.pin(path)
    assert asked
    assert helpers_of(os.getpid()) == []
    assert list((store_root / "objects").iterdir()) == []


def test_a_process_that_dies_is_one_clear_error(tmp_path: Path, store_root: Path) -> None:
    path = write(tmp_path / "x.h5")
    killed = False

    def kill_one(done_bytes: int, total_bytes: int) -> None:
        nonlocal killed
        if done_bytes and not killed:
            killed = True
            helpers_of(os.getpid())[0].kill()

    with pytest.raises(dsmem.BadSource, match=r"decoded chunks for us ended \(signal 9\)"):
        dsmem.pin(path, progress=kill_one)
    assert killed
    assert helpers_of(os.getpid()) == []
    assert list((store_root / "objects").iterdir()) == []
    dsmem.pin(path)


@pytest.mark.parametrize("huge", ["never", "advise"])
def test_a_full_store_is_no_space(
    tmp_path: Path, tiny_tmpfs: InTmpfs, monkeypatch: pytest.MonkeyPatch, asked: list[bool], huge: str
) -> None:
    path = write(tmp_path / "x.h5")
    monkeypatch.setattr("dsmem.store.space.require", lambda *_: None)

    def body(point: Path) -> tuple[int, int, bool]:
        with pytest.raises(dsmem.NoSpace) as caught:
            dsmem.pin(path)
        assert helpers_of(os.getpid()) == []
        assert refuse(point / "store") == []
        return caught.value.need_bytes, caught.value.free_bytes, bool(asked)

    need_bytes, free_bytes, was_asked = tiny_tmpfs(body, size="8m", huge=huge)
    assert need_bytes > 1 << 20
    assert free_bytes < need_bytes
    assert was_asked


@pytest.mark.parametrize("is_interrupt", [True, False], ids=["Ctrl-C", "SIGKILL"])
def test_nothing_is_left_of_a_pin_that_was_stopped(
    tmp_path: Path, store_root: Path, expected_leftovers: set[str], is_interrupt: bool
) -> None:
    path = write(tmp_path / "x.h5")
    begun, pause = tmp_path / "begun", threading.Event()

    def pin() -> str:
        def slowly(done_bytes: int, total_bytes: int) -> None:
            if done_bytes:
                begun.touch()
                pause.wait(0.5)

        try:
            dsmem.pin(path, progress=slowly)
        except KeyboardInterrupt:
            return f"interrupted, {len(helpers_of(os.getpid()))} left"
        return "finished"

    with started(pin) as child:
        deadline = time.monotonic() + 20
        while not begun.exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        running = helpers_of(child.pid)
        assert len(running) == 2
        if is_interrupt:
            os.killpg(child.pid, signal.SIGINT)  # as a terminal does: the decoders get it too
            assert child.result() == "interrupted, 0 left"
        else:
            expected_leftovers.add("locks/*")
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
        alive = children.alive(running, 10)
        assert alive == []
    assert list((store_root / "objects").iterdir()) == []


def test_more_datasets_than_descriptors(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for number in range(120):
            for name, options in (("plain", {}), ("shuffled", {"shuffle": True})):
                data = np.arange(number, number + 100, dtype="<i4")
                file.create_dataset(f"{name}/{number}", data=data, chunks=(10,), compression="gzip", **options)
    path = settle(tmp_path / "x.h5")

    def pin() -> str:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(200, soft), hard))
        return dsmem.pin(path).name

    with dsmem.attach(children.call(pin)) as file:
        assert_reads_as_h5py(file, path)


def test_few_chunks_are_not_worth_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[bool]) -> None:
    """However many datasets there are of them."""
    monkeypatch.setattr(decoding, "LEAST_CHUNKS", 11)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for number, items in enumerate((100, 100, 110)):
            data = np.arange(number, number + items, dtype="<i4")
            file.create_dataset(f"{number}", data=data, chunks=(10,), compression="gzip")
    path = settle(tmp_path / "x.h5")
    assert [one.in_processes for one in dsmem.explain(path).datasets] == [False, False, True]
    with dsmem.attach(dsmem.pin(path).name) as file:
        assert_reads_as_h5py(file, path)
    assert asked
