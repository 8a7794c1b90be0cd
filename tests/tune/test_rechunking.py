"""Files written anew in other chunks: all the rest is as it was, and nothing is left where it fails or is killed."""

from __future__ import annotations

import os
import signal
import stat
import time
from pathlib import Path
from typing import Any

import children
import h5py
import numpy as np
import pytest
from compare import assert_same_value
from episodes import CAMERAS, SHAPE, check_aloha, write_aloha, write_encoded, write_robomimic
from h5py import h5g
from stores import InTmpfs

from dsmem.errors import BrokenEpisodes, DsmemError, OutputExists, OutputFull, SourceChanged, Unsupported
from dsmem.training import EpisodicDataset
from dsmem.tune import rechunking
from dsmem.tune.rechunking import rechunk

RAGGED: dict[str, Any] = {"compression": "gzip", "shuffle": True, "fletcher32": True, "chunks": (4, 5, 7, 2)}


@pytest.fixture
def ragged(tmp_path: Path) -> Path:
    """An episode in bad chunks, with one of everything that is to be kept."""
    path = write_aloha(tmp_path / "in.hdf5", steps=40, **RAGGED)
    with h5py.File(path, "a") as file:
        top = file["observations/images/top"]
        top.attrs["text"] = "hällo"
        top.attrs["big"] = np.arange(4, dtype=">i2")
        top.attrs["words"] = np.array(["a", "bc"], dtype=h5py.string_dtype())
        top.attrs["fields"] = np.array([(1, 2.5)], dtype=[("a", "u1"), ("b", "<f8")])
        file.attrs["nothing"] = h5py.Empty("f4")
        file.attrs["yes"] = True
        file["notes"] = np.array(["x", "yy"], dtype=h5py.string_dtype())
        file["a_name_before"] = top  # the walk meets this name first
        file["soft"] = h5py.SoftLink("/observations/qpos")
        file["dangling"] = h5py.SoftLink("/nowhere")
        file["observations/loop"] = file["/"]
        ordered = file.create_group("ordered", track_order=True)
        for name in "zax":
            ordered[name] = name
            ordered.attrs[name] = name
        file.create_dataset("growing", (3, 2), "i4", maxshape=(None, 2), chunks=(3, 2), fillvalue=7, compression="lzf")
        sparse = file.create_dataset("observations/images/sparse", (40, *SHAPE), np.uint8, fillvalue=9, **RAGGED)
        sparse[11] = 3
    return path


def links(path: Path) -> dict[str, tuple[str, int | str]]:
    """Every link: what kind, and the object (by the order in which it is met) or the path that it leads to."""
    found: dict[str, tuple[str, int | str]] = {}
    numbers: dict[Any, int] = {}

    def walk(group: Any, above: str) -> None:
        for name in group:
            here = f"{above}/{name}"
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.SoftLink):
                found[here] = ("soft", link.path)
                continue
            node = group[name]
            info = h5g.get_objinfo(node.id)
            key = tuple(info.objno)
            found[here] = (type(node).__name__, numbers.setdefault(key, len(numbers)))
            if isinstance(node, h5py.Group) and numbers[key] == len(numbers) - 1 and node != group.file["/"]:
                walk(node, here)

    with h5py.File(path) as file:
        numbers[tuple(h5g.get_objinfo(file["/"].id).objno)] = 0
        walk(file, "")
    return found


def assert_same_but_chunks(ours: Path, theirs: Path, changed: dict[str, tuple[int, ...]]) -> None:
    assert links(ours) == links(theirs) and list(links(ours)) == list(links(theirs))
    with h5py.File(ours) as new, h5py.File(theirs) as old:
        for path in ["/", *links(theirs)]:
            if old.get(path) is None:
                continue
            assert_same_value(dict(new[path].attrs).__repr__(), dict(old[path].attrs).__repr__(), path)
            assert list(new[path].attrs) == list(old[path].attrs)
            if not isinstance(old[path], h5py.Dataset):
                continue
            assert_same_value(new[path][()], old[path][()], path)
            for name in ("dtype", "shape", "maxshape", "compression", "compression_opts", "shuffle", "fletcher32"):
                assert getattr(new[path], name) == getattr(old[path], name), (path, name)
            assert new[path].fillvalue == old[path].fillvalue
            expected = changed.get(new[path].name.lstrip("/"), old[path].chunks)
            if path.lstrip("/") != "a_name_before":
                assert new[path].chunks == expected, path


def test_all_the_rest_is_kept(ragged: Path, tmp_path: Path) -> None:
    before = ragged.read_bytes()
    done = rechunk(ragged, tmp_path / "out.hdf5", [*CAMERAS, "sparse"])
    names = [f"observations/images/{camera}" for camera in (*CAMERAS, "sparse")]
    assert sorted(one.path for one in done.datasets) == sorted(names) and not done.left
    assert_same_but_chunks(tmp_path / "out.hdf5", ragged, dict.fromkeys(names, (40, *SHAPE)))
    assert ragged.read_bytes() == before and done.after_bytes == (tmp_path / "out.hdf5").stat().st_size
    check_aloha(EpisodicDataset([tmp_path / "out.hdf5"], CAMERAS), [ragged])
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "out.hdf5").stat().st_mode) == 0o666 & ~mask


def test_in_slabs(ragged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rechunking, "_SLAB_BYTES", 5 * 12 * 16 * 3)
    seen: list[tuple[int, int]] = []
    rechunk(ragged, tmp_path / "out.hdf5", CAMERAS, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == 2 * 10 and seen[-1] == (2 * 40 * 576, 2 * 40 * 576)  # four frames at a time
    check_aloha(EpisodicDataset([tmp_path / "out.hdf5"], CAMERAS), [ragged])


def test_robomimic(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "in.hdf5")
    with h5py.File(path, "a") as file:
        for name in ("demo_1", "demo_10"):
            frames = file[f"data/{name}/obs/agentview_image"][()]
            del file[f"data/{name}/obs/agentview_image"]
            file.create_dataset(f"data/{name}/obs/agentview_image", data=frames, chunks=(1, 2, 2, 1))
    done = rechunk(path, tmp_path / "out.hdf5", ["agentview"])
    changed = {f"data/{name}/obs/agentview_image" for name in ("demo_1", "demo_10")}
    assert {one.path for one in done.datasets} == changed
    with h5py.File(path) as old, h5py.File(tmp_path / "out.hdf5") as new:
        for name in changed:
            assert new[name].chunks == (len(old[name]), *SHAPE) and np.array_equal(old[name][()], new[name][()])
        assert list(old["mask/train"][()]) == list(new["mask/train"][()])


def test_a_user_block_and_the_order_of_the_root(tmp_path: Path) -> None:
    path = tmp_path / "in.hdf5"
    with h5py.File(path, "w", userblock_size=512, track_order=True) as file:
        file["zz"] = 1
        file["observations/qpos"] = np.zeros((40, 3))
        file.create_dataset("observations/images/top", data=np.ones((40, *SHAPE), np.uint8), chunks=(1, 2, 2, 1))
        file["action"] = np.zeros((40, 2))
    with open(path, "r+b") as raw:
        raw.write(b"#!/bin/sh\n")
    rechunk(path, tmp_path / "out.hdf5", ["top"])
    assert (tmp_path / "out.hdf5").read_bytes()[:512] == path.read_bytes()[:512]
    with h5py.File(tmp_path / "out.hdf5", track_order=True) as file:
        assert list(file) == ["zz", "observations", "action"] and file.userblock_size == 512


def test_nothing_to_change(tmp_path: Path) -> None:
    paths = [tmp_path / f"in_{number}.hdf5" for number in range(3)]
    write_aloha(paths[0])
    write_aloha(paths[1], compression="gzip", chunks=(9, *SHAPE))
    write_encoded(paths[2])
    for path in paths:
        done = rechunk(path, tmp_path / "out.hdf5", ["top"])
        assert (done.destination, done.datasets) == (None, ()) and not (tmp_path / "out.hdf5").exists()


def test_what_is_there_stays_unless_forced(ragged: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.hdf5"
    out.write_text("mine")
    with pytest.raises(OutputExists):
        rechunk(ragged, out, CAMERAS)
    assert out.read_text() == "mine"
    rechunk(ragged, out, CAMERAS, force=True)
    check_aloha(EpisodicDataset([out], CAMERAS), [ragged])
    old = EpisodicDataset([ragged], CAMERAS, use_shared_memory=False)
    rechunk(ragged, ragged, CAMERAS, force=True)  # also itself
    check_aloha(old, [out])
    assert sorted(os.listdir(tmp_path)) == ["cache", "in.hdf5", "out.hdf5"]  # the first is the digests''


def test_refused_by_name(ragged: Path, tmp_path: Path) -> None:
    with h5py.File(ragged, "a") as file:
        file["refs"] = np.array([file["action"].ref], dtype=h5py.ref_dtype)
        file["kind"] = np.dtype("f8")
        file["elsewhere"] = h5py.ExternalLink("other.h5", "/x")
    with pytest.raises(Unsupported) as caught:
        rechunk(ragged, tmp_path / "out.hdf5", CAMERAS)
    assert {refusal.path for refusal in caught.value.refusals} == {"/refs", "/kind", "/elsewhere"}
    (tmp_path / "bad.h5").write_text("no")
    with pytest.raises(BrokenEpisodes):
        rechunk(tmp_path / "bad.h5", tmp_path / "out.hdf5", CAMERAS)
    assert not (tmp_path / "out.hdf5").exists()


def test_filters_that_may_not_be_set_up_anew_are_left(tmp_path: Path) -> None:
    path = write_aloha(tmp_path / "in.hdf5", steps=40, chunks=(1, 2, 2, 1), scaleoffset=0)
    done = rechunk(path, tmp_path / "out.hdf5", CAMERAS)
    assert done.destination is None and set(done.left) == {f"observations/images/{camera}" for camera in CAMERAS}


def test_other_filters(tmp_path: Path) -> None:
    hdf5plugin = pytest.importorskip("hdf5plugin")
    ways = {"zstd": hdf5plugin.Zstd(), "lz4": hdf5plugin.LZ4(), "blosc": hdf5plugin.Blosc(cname="zstd")}
    for name, filters in {**ways, "lzf": {"compression": "lzf"}}.items():
        path = write_aloha(tmp_path / f"{name}.hdf5", steps=40, chunks=(1, 2, 2, 1), **filters)
        done = rechunk(path, tmp_path / f"{name}_out.hdf5", CAMERAS)
        assert len(done.datasets) == 2
        check_aloha(EpisodicDataset([tmp_path / f"{name}_out.hdf5"], CAMERAS), [path])


def test_a_change_meanwhile(ragged: Path, tmp_path: Path) -> None:
    def touch(done: int, total: int) -> None:
        os.utime(ragged)

    with pytest.raises(SourceChanged):
        rechunk(ragged, tmp_path / "out.hdf5", CAMERAS, progress=touch)
    assert os.listdir(tmp_path) == ["in.hdf5"]


def test_what_reads_otherwise_is_not_published(ragged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slabs, passes = rechunking._slabs, iter(range(10))

    def wrong(dataset: Any, together: int) -> Any:
        number = next(passes)
        for start, rows in slabs(dataset, together):
            rows[0, 0, 0, 0] ^= number == 3  # the second of those that are read back
            yield start, rows

    monkeypatch.setattr(rechunking, "_slabs", wrong)
    with pytest.raises(DsmemError, match="reads otherwise"):
        rechunk(ragged, tmp_path / "out.hdf5", CAMERAS)
    assert os.listdir(tmp_path) == ["in.hdf5"]


@pytest.mark.parametrize("at", [1, 10, 20])
def test_killed_it_leaves_nothing(ragged: Path, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rechunking, "_SLAB_BYTES", 1)
    calls = iter(range(1, 1000))

    def die(done: int, total: int) -> None:
        if next(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(children.ChildDied):
        children.call(lambda: rechunk(ragged, tmp_path / "out.hdf5", CAMERAS, progress=die))
    assert os.listdir(tmp_path) == ["in.hdf5"]
    rechunk(ragged, tmp_path / "out.hdf5", CAMERAS)


def test_interrupted_it_leaves_nothing(ragged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rechunking, "_SLAB_BYTES", 1)
    seen: list[int] = []

    def interrupt(done: int, total: int) -> None:
        seen.append(done)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt):
        rechunk(ragged, tmp_path / "out.hdf5", CAMERAS, progress=interrupt)
    assert os.listdir(tmp_path) == ["in.hdf5"] and len(seen) < 20


def test_a_full_disk(tiny_tmpfs: InTmpfs, tmp_path: Path) -> None:
    path = write_aloha(tmp_path / "in.hdf5", steps=300, compression="gzip", chunks=(1, 2, 2, 3))

    def fill(point: Path) -> tuple[str, list[str]]:
        try:
            rechunk(path, point / "out.hdf5", CAMERAS)
        except OutputFull as exc:
            return str(exc), os.listdir(point)
        return "", os.listdir(point)

    said, left = tiny_tmpfs(fill, size="256k")
    assert said.startswith("no room for ") and left == []


def test_no_unnamed_files(ragged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # as on a file system that has none: EISDIR
    longest = f"{'n' * 250}.hdf5"
    rechunk(ragged, tmp_path / longest, CAMERAS)
    check_aloha(EpisodicDataset([tmp_path / longest], CAMERAS), [ragged])
    with pytest.raises(SourceChanged):
        rechunk(ragged, tmp_path / "b.hdf5", CAMERAS, progress=lambda done, total: os.utime(ragged))
    assert sorted(os.listdir(tmp_path)) == ["cache", "in.hdf5", longest]  # the first is the digests''
