"""What a file may not do unasked: lead to other files, declare what can't be. And what is done once it is allowed."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pytest
import zoo
from compare import assert_same_attributes, assert_same_dataset
from h5py import h5d, h5p, h5s, h5t, h5z

import dsmem
from dsmem import proc
from dsmem.errors import Refusal
from dsmem.hdf5 import filters, sizes
from dsmem.hdf5.scan import scan
from dsmem.pinning import planning, processes

Allowed = Literal["external", "oversized"]


def refusals(path: Path, *allow: Allowed) -> dict[str, Refusal]:
    """What `pin` refuses, and the same as `explain` tells it."""
    with pytest.raises(dsmem.Unsupported) as caught:
        dsmem.pin(path, allow=allow)
    assert dsmem.explain(path, allow=allow).refused == caught.value.refusals
    return {refusal.path: refusal for refusal in caught.value.refusals}


def virtual(file: Any, name: str, sources: list[tuple[str, str]], length: int = 4) -> None:
    layout = h5py.VirtualLayout(shape=(len(sources), length), dtype="<i4")
    for i, (filename, source) in enumerate(sources):
        layout[i] = h5py.VirtualSource(filename, source, shape=(length,))
    file.create_virtual_dataset(name, layout, fillvalue=-1)


def pattern(file: Any, name: str, filename: bytes, source: bytes) -> None:
    """A virtual dataset over two items of each of as many sources as there are."""
    plist = h5p.create(h5p.DATASET_CREATE)
    blocks, block = h5s.create_simple((2,), (h5s.UNLIMITED,)), h5s.create_simple((2,))
    blocks.select_hyperslab((0,), (h5s.UNLIMITED,), (2,), (2,))
    plist.set_virtual(blocks, filename, source, block)
    h5d.create(file.id, name.encode(), h5t.STD_I32LE, h5s.create_simple((2,), (h5s.UNLIMITED,)), plist)


def linked(directory: Path) -> Path:
    """main.h5 → other.h5 → third.h5 and back again, with every kind of link on the way."""
    directory.mkdir(parents=True, exist_ok=True)
    with h5py.File(directory / "main.h5", "w") as file:
        file["own"] = np.arange(4, dtype="<i4")
        file["away"] = h5py.ExternalLink("other.h5", "/")
        file["g/one"] = h5py.ExternalLink(str(directory / "other.h5"), "/deep/x")
        file["soft"] = h5py.SoftLink("/away/deep/x")
        file.attrs["title"] = "main"
    with h5py.File(directory / "other.h5", "w") as file:
        file["deep/x"] = np.arange(100, dtype=">f8")
        file["deep/x"].attrs["unit"] = "m"
        file.create_dataset("packed", data=np.arange(300), chunks=(7,), compression="gzip", shuffle=True)
        file["texts"] = np.array(["a", "bc"], zoo.TEXT)
        file["own"] = np.arange(9, dtype="<u2")
        file["deep/soft"] = h5py.SoftLink("/own")  # not the /own of main.h5
        file["deep/relative"] = h5py.SoftLink("x")
        file["deep/hard"] = file["packed"]
        file["back"] = h5py.ExternalLink("main.h5", "/")
        file["third"] = h5py.ExternalLink("third.h5", "/g")
        file["type"] = np.dtype("<f4")
        file["deep"].attrs["of"] = "other"
    with h5py.File(directory / "third.h5", "w") as file:
        file["g/y"] = np.arange(5, dtype="<c8")
        file["g/circle"] = h5py.ExternalLink("other.h5", "/deep")
        file["g/itself"] = h5py.ExternalLink("third.h5", "/g")
    return directory / "main.h5"


LINKED = (
    *("own", "soft", "g/one", "away/deep/x", "away/packed", "away/texts", "away/own", "away/deep/soft"),
    *("away/deep/relative", "away/deep/hard", "away/back/own", "away/third/y", "away/third/circle/x"),
    *("away/third/itself/itself/y", "away/back/away/back/g/one"),
)


def test_external_links_are_refused(tmp_path: Path) -> None:
    found = refusals(linked(tmp_path))
    assert found.keys() == {"/away", "/g/one"}
    assert found["/away"].reason == "an external link: it leads to other.h5:/"
    assert {one.allow for one in found.values()} == {"external"}


def test_external_links_are_followed_when_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = linked(tmp_path / "data")
    linked(tmp_path / "here")
    with h5py.File(tmp_path / "here" / "other.h5", "a") as file:  # what relative links would lead to from elsewhere
        file["deep/x"][...] = -1
    monkeypatch.chdir(tmp_path / "here")
    pinned = dsmem.pin(path, allow=["external"], verify=True)
    assert pinned.refused == ()
    with dsmem.attach(pinned.name) as ours, h5py.File(path, "r") as theirs:
        assert ours["away/deep/x"][3] == 3
        for name in LINKED:
            assert_same_dataset(ours[name], theirs[name], name)
            assert_same_attributes(ours[name], theirs[name], name)
        for group in ("/", "away", "away/deep", "away/third", "away/third/circle", "away/back/away"):
            assert list(ours[group]) == list(theirs[group]), group
            assert_same_attributes(ours[group], theirs[group], group)
        assert ours["away/type"].dtype == np.dtype("<f4")
    assert {one.tier for one in dsmem.explain(path, allow=["external"]).datasets if one.is_outside} == {"h5py"}


def test_files_that_lead_to_each_other(tmp_path: Path) -> None:
    """HDF5 closes each when it has been left, and opens it anew as another file."""
    for name, other in (("a", "b"), ("b", "c"), ("c", "b")):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["on"] = h5py.ExternalLink(f"{other}.h5", "/")
            file.attrs["name"] = name
    pinned = dsmem.pin(tmp_path / "a.h5", allow=["external"])
    with dsmem.attach(pinned.name) as file:
        assert [file["on/" * i].attrs["name"] for i in range(1, 7)] == ["b", "c"] * 3
    with pytest.raises(dsmem.NotPinned):
        dsmem.attach(tmp_path / "a.h5")  # though no dataset came from elsewhere


def test_what_was_read_from_other_files_is_frozen_and_attached_by_name(tmp_path: Path) -> None:
    path = linked(tmp_path)
    pinned = dsmem.pin(path, allow=["external"])
    with pytest.raises(dsmem.NotPinned, match=pinned.name):
        dsmem.attach(path)
    with dsmem.File(path) as file:
        assert file.source == "h5py"
    refusals(path)
    with h5py.File(tmp_path / "other.h5", "a") as file:
        file["deep/x"][...] = 7
    again = dsmem.pin(path, allow=["external"])
    assert (again.already, again.name) == (True, pinned.name)
    with dsmem.attach(pinned.name) as ours:
        assert ours["away/deep/x"][3] == 3


def test_a_file_that_leads_nowhere_is_complete_whatever_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "plain.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(3)
    pinned = dsmem.pin(path, allow=["external", "oversized"])
    with dsmem.attach(path) as file:
        assert file.object_name == pinned.name


def test_skipped_and_then_allowed(tmp_path: Path) -> None:
    path = linked(tmp_path)
    with h5py.File(path, "a") as file:
        file.attrs["ref"] = file["own"].ref
    less = dsmem.pin(path, skip_unsupported=True)
    more = dsmem.pin(path, skip_unsupported=True, allow=["external"])
    assert {one.path for one in less.refused} == {"/@ref", "/away", "/g/one"}
    assert {one.path for one in more.refused} == {"/@ref"}
    assert len(less.datasets) < len(more.datasets)
    assert dsmem.pin(path, skip_unsupported=True).name == less.name
    assert dsmem.pin(path, skip_unsupported=True, allow=["external"]).name == more.name


def test_only_what_is_selected_makes_it_partial(tmp_path: Path) -> None:
    path = linked(tmp_path)
    inside = dsmem.pin(path, only=["own"], allow=["external"])
    assert inside.name == dsmem.pin(path, only=["own"]).name
    outside = dsmem.pin(path, only=["away/deep/x"], allow=["external"])
    assert [one.path for one in outside.datasets] == ["away/deep/x"]


@pytest.mark.parametrize(
    ("filename", "target"), [("gone.h5", "/"), ("other.h5", "/gone"), ("text.h5", "/"), ("circle.h5", "/x")]
)
def test_external_links_to_nothing_stay_refused(tmp_path: Path, filename: str, target: str) -> None:
    path = linked(tmp_path)
    (tmp_path / "text.h5").write_text("not HDF5")
    with h5py.File(tmp_path / "circle.h5", "w") as file:
        file["x"] = h5py.ExternalLink("circle.h5", "/x")
    with h5py.File(path, "a") as file:
        file["broken"] = h5py.ExternalLink(filename, target)
    found = refusals(path, "external")
    assert found.keys() == {"/broken"}
    assert f"{filename}:{target}, which can't be opened" in found["/broken"].reason
    assert found["/broken"].allow is None


@pytest.mark.parametrize("absolute", [False, True])
def test_external_links_to_a_fifo_are_not_opened(tmp_path: Path, absolute: bool) -> None:
    """HDF5 would wait there until somebody writes to it."""
    path = linked(tmp_path)
    odd = tmp_path / "odd"
    os.mkfifo(odd)
    with h5py.File(path, "a") as file:
        file["broken"] = h5py.ExternalLink(str(odd) if absolute else "odd", "/x")
    found = refusals(path, "external")
    assert found.keys() == {"/broken"}
    assert found["/broken"].reason.endswith(f"odd:/x, which can't be opened ({odd} is not a file)")
    assert found["/broken"].allow is None


def test_links_that_lead_to_a_fifo_in_steps_are_not_followed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with h5py.File(tmp_path / "between.h5", "w") as file:
        file["out"] = h5py.ExternalLink("pipe", "/y")
        file["g/soft"] = h5py.SoftLink("/out/x")
        file["g/fine"] = np.arange(3)
        file["round"] = h5py.SoftLink("/round")
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["group"] = h5py.ExternalLink("between.h5", "/g")
        file["deep"] = h5py.ExternalLink("between.h5", "/out/x")
        file["round"] = h5py.ExternalLink("between.h5", "/round")
        layout = h5py.VirtualLayout((3,), "f4")
        layout[:] = h5py.VirtualSource(".", "/deep/q", (3,))
        file.create_virtual_dataset("virtual", layout)
    found = refusals(path, "external")
    assert found.keys() == {"/group/soft", "/deep", "/round", "/virtual"}
    assert all("pipe is not a file" in found[name].reason for name in ("/group/soft", "/deep"))
    assert "missing" in found["/virtual"].reason


def test_dangling_soft_links_of_other_files_are_refused(tmp_path: Path) -> None:
    path = linked(tmp_path)
    with h5py.File(tmp_path / "other.h5", "a") as file:
        file["dangling"] = h5py.SoftLink("/g/one")  # main.h5 has that, other.h5 has not
    assert refusals(path, "external").keys() == {"/away/dangling"}


def test_external_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.h5"
    raw = [("one.bin", 4, 20), (str(tmp_path / "two.bin"), 0, h5py.h5f.UNLIMITED)]
    with h5py.File(path, "w") as file:
        file.create_dataset("x", shape=(10,), dtype="<i4", external=raw)
    assert refusals(path)["/x"] == Refusal(
        "/x", f"its data lies in external files (one.bin, {tmp_path}/two.bin)", "external"
    )
    missing = refusals(path, "external")["/x"]
    assert "missing" in missing.reason and "one.bin" in missing.reason and missing.allow is None
    (tmp_path / "one.bin").write_bytes(np.arange(-1, 5, dtype="<i4").tobytes())
    (tmp_path / "two.bin").write_bytes(np.arange(5, 10, dtype="<i4").tobytes())
    pinned = dsmem.pin(path, allow=["external"], verify=True)
    with dsmem.attach(pinned.name) as ours, h5py.File(path, "r") as theirs:
        assert ours["x"][:].tolist() == list(range(10))
        assert_same_dataset(ours["x"], theirs["x"], "x")
    with pytest.raises(dsmem.NotPinned):
        dsmem.attach(path)
    (found,) = dsmem.explain(path, allow=["external"]).datasets
    assert (found.layout, found.tier, found.is_outside) == ("external", "h5py", True)


def test_virtual_over_other_files(tmp_path: Path) -> None:
    path = tmp_path / "v.h5"
    for i in range(7):
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:
            file["x"] = np.arange(i, i + 4, dtype="<i4")
    with h5py.File(path, "w") as file:
        file["own"] = np.arange(4, dtype="<i4")
        virtual(file, "v", [(f"{i}.h5", "x") for i in range(7)] + [(".", "own")])
    found = refusals(path)["/v"]
    assert found.reason == "a virtual dataset over other files (0.h5, 1.h5, 2.h5, 3.h5, 4.h5, …)"
    assert found.allow == "external"
    pinned = dsmem.pin(path, allow=["external"], verify=True)
    with dsmem.attach(pinned.name) as ours, h5py.File(path, "r") as theirs:
        assert_same_dataset(ours["v"], theirs["v"], "v")
        assert ours["v"][:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 0]
    (tmp_path / "5.h5").unlink()
    with h5py.File(tmp_path / "6.h5", "w"):
        pass
    with h5py.File(path, "a") as file:
        file["changed"] = 1
    missing = refusals(path, "external")["/v"]
    assert missing == Refusal("/v", "a virtual dataset over what is missing (5.h5:x, 6.h5:x)")


def test_virtual_over_a_pattern_of_other_files(tmp_path: Path) -> None:
    path = tmp_path / "v.h5"
    with h5py.File(path, "w") as file:
        pattern(file, "v", b"f%b.h5", b"x")
    assert refusals(path, "external")["/v"].reason == "a virtual dataset over what is missing (f%b.h5:x)"
    for i in range(3):
        with h5py.File(tmp_path / f"f{i}.h5", "w") as file:
            file["x"] = np.full(2, i, "<i4")
    with dsmem.attach(dsmem.pin(path, allow=["external"]).name) as ours:
        assert ours["v"][:].tolist() == [0, 0, 1, 1, 2, 2]


def _through_external_link(file: Any) -> None:
    file["away"] = h5py.ExternalLink("other.h5", "/")
    file["around"] = h5py.SoftLink("/away")
    virtual(file, "v", [(".", "around/x")])


def _over_one_that_leads_out(file: Any) -> None:
    virtual(file, "w", [("other.h5", "x")])
    virtual(file, "v", [(".", "own"), (".", "w")])


def _over_external_storage(file: Any) -> None:
    file.create_dataset("w", shape=(4,), dtype="<i4", external=[("raw.bin", 0, 16)])
    virtual(file, "v", [(".", "w")])


def _over_missing(file: Any) -> None:
    virtual(file, "v", [(".", "own"), (".", "gone"), (".", "own/below"), (".", "g")])
    file.create_group("g")


def _pattern_that_leads_out(file: Any) -> None:
    file["block0"] = np.arange(2, dtype="<i4")
    file["block1"] = h5py.ExternalLink("other.h5", "/x")
    pattern(file, "v", b".", b"block%b")


def _pattern_of_files(file: Any) -> None:
    pattern(file, "v", b"f%b.h5", b"x")


def test_virtual_over_what_hdf5_can_not_convert(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["texts"] = np.array([b"a"] * 4, "S2")
        file["numbers"] = np.arange(4, dtype=">f8")
        virtual(file, "v", [(".", "texts")])
        virtual(file, "w", [(".", "v")])
        virtual(file, "ok", [(".", "numbers")])
    reason = "a virtual dataset over data of a type that HDF5 can't convert to its own (texts)"
    assert refusals(path) == {f"/{name}": Refusal(f"/{name}", reason) for name in "vw"}
    assert {one.path for one in dsmem.pin(path, skip_unsupported=True).datasets} == {"texts", "numbers", "ok"}


def _over_itself(file: Any) -> None:
    virtual(file, "v", [(".", "w")])
    virtual(file, "w", [(".", "v")])


def _too_deep(file: Any) -> None:
    file["v30"] = np.arange(4, dtype="<i4")
    for i in range(30):
        virtual(file, "v" if i == 0 else f"v{i}", [(".", f"v{i + 1}")])


def _over_a_strange_filter(file: Any) -> None:
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk((4,))
    plist.set_filter(305, h5z.FLAG_OPTIONAL, (1,))
    h5d.create(file.id, b"w", h5t.STD_I32LE, h5s.create_simple((4,)), plist)
    virtual(file, "v", [(".", "w")])


VIRTUAL: dict[Callable[[Any], None], tuple[str, str | None]] = {
    _through_external_link: (r"virtual dataset over other files \(other.h5\)", "external"),
    _over_one_that_leads_out: (r"virtual dataset over other files \(other.h5\)", "external"),
    _pattern_that_leads_out: (r"virtual dataset over other files \(other.h5\)", "external"),
    _pattern_of_files: (r"virtual dataset over other files \(f%b.h5\)", "external"),
    _over_external_storage: (r"external files \(raw.bin\)", "external"),
    _over_missing: (r"over what is missing \(gone, own/below, g\)$", None),
    _over_itself: ("a virtual dataset over itself", None),
    _too_deep: ("more than 16 deep", None),
    _over_a_strange_filter: (r"filter 305 \(lzo\) is not installed", None),
}


@pytest.mark.parametrize("build", VIRTUAL, ids=lambda build: build.__name__.strip("_"))
def test_virtual_sources_that_lead_astray(tmp_path: Path, build: Callable[[Any], None]) -> None:
    path = tmp_path / "v.h5"
    with h5py.File(path, "w") as file:
        file["own"] = np.arange(4, dtype="<i4")
        build(file)
    found = refusals(path)["/v"]
    reason, allow = VIRTUAL[build]
    assert re.search(reason, found.reason)
    assert found.allow == allow
    assert "own" in {one.path for one in dsmem.pin(path, skip_unsupported=True).datasets}


def test_reading_what_would_crash_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "v.h5"
    with h5py.File(path, "w") as file:
        _over_itself(file)
        file["own"] = np.arange(3)
    with dsmem.File(path) as file:
        assert file["own"][1] == 1
        with pytest.raises(dsmem.BadSource, match="over itself"):
            file["v"][...]


def test_virtual_inside_with_awkward_names(tmp_path: Path) -> None:
    path = tmp_path / "v.h5"
    with h5py.File(path, "w") as file:
        file["g/100% sure"] = np.arange(4, dtype="<i4")
        file["ünï"] = np.arange(4, dtype="<i4")
        file["soft"] = h5py.SoftLink("g/100% sure")
        virtual(file, "v", [(".", "g/100%% sure"), (".", "/ünï"), (".", "./soft")])
        for i in range(3):
            file[f"block{i}"] = np.full(2, i, "<i4")
        pattern(file, "pattern", b".", b"block%b")
    pinned = dsmem.pin(path, verify=True)
    with dsmem.attach(path) as ours, h5py.File(path, "r") as theirs:
        assert ours.object_name == pinned.name
        assert_same_dataset(ours["v"], theirs["v"], "v")
        assert ours["pattern"][:].tolist() == theirs["pattern"][:].tolist() == [0, 0, 1, 1, 2, 2]


def test_other_files_that_change_while_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "v.h5", tmp_path / "grows.h5"
    with h5py.File(other, "w") as file:
        file.create_dataset("x", data=np.arange(4, dtype="<i4"), maxshape=(None,), chunks=(4,))
    layout = h5py.VirtualLayout(shape=(4,), maxshape=(None,), dtype="<i4")
    source = h5py.VirtualSource("grows.h5", "x", shape=(4,), maxshape=(None,))
    layout[: h5s.UNLIMITED] = source[: h5s.UNLIMITED]
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("v", layout)
        file["after"] = np.arange(1000)
    plan = planning.plan

    def grow(*arguments: Any) -> Any:
        with h5py.File(other, "a") as file:
            file["x"].resize((4000,))
        return plan(*arguments)

    monkeypatch.setattr(planning, "plan", grow)
    with pytest.raises(dsmem.SourceChanged, match="/v changed, in another file"):
        dsmem.pin(path, allow=["external"])
    monkeypatch.undo()


def oversized(path: Path, size: int) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("chunked", shape=(size,), dtype="<i4", chunks=(1000,))
        file.create_dataset("contiguous", shape=(size,), dtype="<i4")
        file["ok"] = np.arange(3)
    return path


def test_sizes_that_can_not_be(tmp_path: Path) -> None:
    path = oversized(tmp_path / "x.h5", 1 << 41)
    with h5py.File(path, "a") as file:
        file["chunked"][:1000] = 1
        virtual(file, "virtual", [(".", "ok")], length=1 << 41)
        file.create_dataset("texts", shape=(1 << 41,), dtype=zoo.TEXT, chunks=(1000,))
    assert path.stat().st_size < 64 << 10
    found = refusals(path)
    assert found["/chunked"] == Refusal("/chunked", "8.0 TiB declared, 3.9 KiB stored", "oversized")
    assert found["/contiguous"] == Refusal("/contiguous", "8.0 TiB declared, 0 B stored", "oversized")
    assert found["/virtual"].reason == "8.0 TiB declared, 24 B stored"
    assert found.keys() == {"/chunked", "/contiguous", "/virtual", "/texts"}
    assert [one.path for one in dsmem.pin(path, skip_unsupported=True).datasets] == ["ok"]
    with pytest.raises(dsmem.NoSpace):
        dsmem.pin(path, only=["chunked"], allow=["oversized"])


def test_sizes_that_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = oversized(tmp_path / "x.h5", 100_000)
    assert refusals_with_a_limit_of(monkeypatch, 399_999, path) == {"/chunked", "/contiguous"}
    assert refusals_with_a_limit_of(monkeypatch, 800_024, path) == set()
    monkeypatch.setattr(sizes, "LEAST_BYTES", 1000)
    pinned = dsmem.pin(path, allow=["oversized"])
    assert pinned.refused == ()
    with dsmem.attach(path) as ours, h5py.File(path, "r") as theirs:
        assert_same_dataset(ours["chunked"], theirs["chunked"], "chunked")
    packed = tmp_path / "packed.h5"
    with h5py.File(packed, "w") as file:
        file.create_dataset("zeros", data=np.zeros(1 << 20, "u1"), chunks=(1 << 18,), compression="gzip")
        file["zeros"].attrs["ratio"] = (1 << 20) / file["zeros"].id.get_storage_size()
        assert 500 < file["zeros"].attrs["ratio"] < 1000
    assert dsmem.explain(packed).refused == ()


def unwritten(path: Path, count: int, size: int) -> Path:
    """So many datasets of so many bytes, nothing of them stored; and one that is."""
    with h5py.File(path, "w") as file:
        for i in range(count):
            file.create_dataset(f"{i}/x", shape=(size,), dtype="u1", chunks=(size // 4,) if i % 2 else None)
        file["ok"] = np.arange(3)
        file["0/x"].attrs["unit"] = "m"
        file["0/again"] = file["0/x"]
        file["soft"] = h5py.SoftLink("/0/x")
    return path


def test_sizes_that_can_not_be_together(tmp_path: Path) -> None:
    path = unwritten(tmp_path / "x.h5", 8, 4 << 30)
    found = refusals(path)
    why = "32.0 GiB declared by all datasets together, 24 B stored"
    assert found == {name: Refusal(name, why, "oversized") for name in found}
    assert found.keys() >= {"/0/x", "/0/again", "/6/x"} and len(found) == 9
    assert {one.path for one in dsmem.explain(path, only=["0", "ok"]).refused} == {"/0/x", "/0/again"}
    assert dsmem.explain(path, only=["0"]).refused == ()
    assert dsmem.explain(path, allow=["oversized"]).refused == ()
    with pytest.raises(dsmem.NoSpace):
        dsmem.pin(path, allow=["oversized"], budget=16 << 30)


def test_what_is_left_of_sizes_that_can_not_be_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = unwritten(tmp_path / "x.h5", 4, 100_000)
    assert refusals_with_a_limit_of(monkeypatch, 400_024, path) == set()
    assert refusals_with_a_limit_of(monkeypatch, 200_024, path) == {"/0/x", "/0/again", "/1/x"}
    pinned = dsmem.pin(path, skip_unsupported=True)
    assert [one.path for one in pinned.datasets] == ["ok", "2/x", "3/x"]
    with dsmem.attach(pinned.name) as file:
        assert list(file["0"]) == []
        assert sorted(file) == ["0", "1", "2", "3", "ok", "soft"]
    with pytest.raises(dsmem.Unsupported):
        dsmem.File(path, preload=True)
    with h5py.File(path, "a") as held:
        held["many"] = np.zeros(1000, "u1")  # 400 bytes are enough for 400 kB, wherever they are
    assert refusals_with_a_limit_of(monkeypatch, 200_024, path) == set()


def test_bytes_that_many_datasets_share_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A contiguous dataset a kilobyte long costs a hostile file 300 bytes if it lies where another lies."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        for i in range(3):
            file[f"{i}"] = np.full(10_000, i, "u1")
    monkeypatch.setattr(sizes, "LEAST_BYTES", 10_000)
    monkeypatch.setattr(sizes, "_MOST_RATIO", 1)
    assert dsmem.explain(path).refused == ()
    with h5py.File(path, "r") as file:
        found = scan(file, str(path), file_bytes=20_000)
    assert [one.path for one in found.refusals] == ["/0"]
    assert found.refusals[0].reason == "29.3 KiB declared by all datasets together, 19.5 KiB stored"


def refusals_with_a_limit_of(monkeypatch: pytest.MonkeyPatch, limit_bytes: int, path: Path) -> set[str]:
    monkeypatch.setattr(sizes, "LEAST_BYTES", limit_bytes)
    return {one.path for one in dsmem.explain(path).refused}


@pytest.mark.parametrize("allow", ["external", ["everything"], ["external", ""]])
def test_what_may_be_allowed(tmp_path: Path, allow: Any) -> None:
    path = linked(tmp_path)
    for function in (dsmem.pin, dsmem.explain):
        with pytest.raises(dsmem.UsageError, match="external, oversized"):
            function(path, allow=allow)


def test_references_have_no_flag(tmp_path: Path) -> None:
    path = tmp_path / "refs.h5"
    with h5py.File(path, "w") as file:
        zoo.REFUSED["references"][0](file)
    found = refusals(path, "external", "oversized")
    assert len(found) == 5 and {one.allow for one in found.values()} == {None}


# Filters


def strange(path: Path, code: int) -> Path:
    with h5py.File(path, "w") as file:
        plist = h5p.create(h5p.DATASET_CREATE)
        plist.set_chunk((4,))
        plist.set_filter(code, h5z.FLAG_OPTIONAL, (1,))
        h5d.create(file.id, b"x", h5t.STD_I32LE, h5s.create_simple((8,)), plist)
    return path


def test_filters_that_nothing_has(tmp_path: Path) -> None:
    found = refusals(strange(tmp_path / "x.h5", 305))["/x"]
    lacks = "hdf5plugin lacks it, too; HDF5 takes a plugin of its own from HDF5_PLUGIN_PATH"
    assert found == Refusal("/x", f"filter 305 (lzo) is not installed: {lacks}")


IN_A_FRESH_INTERPRETER = """
import sys
import dsmem
from dsmem import proc
{hide}
assert "hdf5plugin" not in sys.modules
try:
    print(dsmem.explain({path!r}).datasets[0].filters, "hdf5plugin" in sys.modules)
    dsmem.pin({path!r}, verify=True)
    with dsmem.File({path!r}) as file:
        print(file.source, int(file["x"][:].sum()))
except dsmem.Unsupported as exc:
    print(exc.refusals[0].reason)
except IndexError:
    print(dsmem.explain({path!r}).refused[0].reason)
"""
HIDDEN = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "hdf5plugin" else found(name, *more)
"""


def in_a_fresh_interpreter(path: Path, hide: str = "") -> list[str]:
    code = IN_A_FRESH_INTERPRETER.format(path=str(path), hide=hide)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ["Blosc2", "Zstd"])
def test_hdf5plugin_is_used_when_it_is_needed(tmp_path: Path, name: str) -> None:
    hdf5plugin = pytest.importorskip("hdf5plugin")
    path = tmp_path / "packed.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.arange(1000), chunks=(100,), **getattr(hdf5plugin, name)())
    assert in_a_fresh_interpreter(path) == [f"('{name.lower()} (hdf5plugin)',) True", "pinned 499500"]
    code = {"Blosc2": 32026, "Zstd": 32015}[name]
    assert in_a_fresh_interpreter(path, HIDDEN) == [
        f"filter {code} ({name.lower()}) is not installed: pip install hdf5plugin"
    ]


def test_hdf5plugin_stays_out_where_it_is_not_needed(tmp_path: Path) -> None:
    path = tmp_path / "packed.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.arange(1000), chunks=(100,), compression="gzip")
    assert in_a_fresh_interpreter(path) == ["('gzip',) False", "pinned 499500"]


def test_where_filters_come_from() -> None:
    pytest.importorskip("hdf5plugin")
    assert [filters.origin(code) for code in (1, 2, 32000, 32001)] == [None, None, None, "hdf5plugin"]
    assert filters.origin(305) == "a plugin of HDF5's"


# What `File` makes of such files


def test_file_reads_through_h5py_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw.bin").write_bytes(np.arange(4, dtype="<i4").tobytes())
    cases: dict[str, Callable[[Any], None]] = {
        r"/away: an external link: it leads to other.h5:/$": lambda f: f.update(
            away=h5py.ExternalLink("other.h5", "/")
        ),
        r"/x: its data lies in external files \(raw.bin\)": lambda f: f.create_dataset(
            "x", shape=(4,), dtype="<i4", external=[("raw.bin", 0, 16)]
        ),
        r"/v: a virtual dataset over other files \(other.h5\)": lambda f: virtual(f, "v", [("other.h5", "own")]),
        r"/big: 8.0 TiB declared, 0 B stored": lambda f: f.create_dataset("big", shape=(1 << 41,), dtype="<i4"),
    }
    linked(tmp_path)
    for i, (why, build) in enumerate(cases.items()):
        path = tmp_path / f"case{i}.h5"
        with h5py.File(path, "w") as file:
            file["plain"] = np.arange(5)
            build(file)
        for options in ({}, {"pin": "auto"}):
            with dsmem.File(path, **options) as ours, h5py.File(path, "r") as theirs:  # type: ignore[arg-type]
                assert ours.source == "h5py"
                assert re.search(why, ours.why), ours.why
                assert ours["plain"].source == "mapped"
                if "big" not in ours:
                    theirs.visititems(
                        lambda name, node: (
                            assert_same_dataset(ours[name], node, name) if isinstance(node, h5py.Dataset) else None
                        )
                    )


def test_file_does_not_map_what_lies_in_another_file(tmp_path: Path) -> None:
    path = linked(tmp_path)
    with dsmem.File(path) as ours, h5py.File(path, "r") as theirs:
        for name in LINKED:
            assert_same_dataset(ours[name], theirs[name], name)
        assert (ours["own"].source, ours["away/deep/x"].source) == ("mapped", "h5py")
        assert ours["away/deep/x"].why == "in another file"


# What only h5py reads may be read by other processes, which have to find the same


def test_processes_find_the_same_files_and_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hdf5plugin = pytest.importorskip("hdf5plugin")
    monkeypatch.setattr(processes, "WORTH_BYTES", 1)
    monkeypatch.setattr(proc, "usable_cpus", lambda: 2)
    path = linked(tmp_path / "data")
    other = linked(tmp_path / "here").with_name("other.h5")
    with h5py.File(other, "a") as file:
        file["packed"][...] = -1
    monkeypatch.chdir(tmp_path / "here")
    with h5py.File(path, "a") as file:
        file.create_dataset("bzip2", data=np.arange(5000), chunks=(100,), **hdf5plugin.BZip2())
        virtual(file, "virtual", [(".", "bzip2")], length=5000)
    pinned = dsmem.pin(path, allow=["external"])
    with dsmem.attach(pinned.name) as ours, h5py.File(path, "r") as theirs:
        for name in ("away/packed", "bzip2", "virtual"):
            assert_same_dataset(ours[name], theirs[name], name)


@pytest.mark.parametrize("untrusted", [False, True])
def test_what_was_left_out_is_said_again(tmp_path: Path, untrusted: bool) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("refs", (4,), dtype=h5py.ref_dtype)
        file["data"] = [1, 2]
    first = dsmem.pin(path, skip_unsupported=True, untrusted=untrusted)
    assert [one.path for one in first.refused] == ["/refs"]
    again = dsmem.pin(path, skip_unsupported=True, untrusted=untrusted)
    assert again.already
    assert again.refused == first.refused
    whole = dsmem.pin(path, only=["data"], skip_unsupported=True)
    assert whole.refused == ()
    with path.open("rb") as writer:  # one that has not written yet
        fcntl.flock(writer, fcntl.LOCK_EX)
        busy = dsmem.pin(path, skip_unsupported=True, untrusted=untrusted)
    assert busy.already and busy.name == first.name


def test_a_type_that_is_nested_too_deep(tmp_path: Path) -> None:
    dtype: np.dtype[Any] = np.dtype("<i4")
    for _ in range(33):
        dtype = np.dtype([("a", dtype)])
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["data"] = np.zeros(3, dtype)
        file.attrs["value"] = np.zeros(3, dtype)
    assert {path: one.reason for path, one in refusals(tmp_path / "x.h5").items()} == {
        "/@value": "an attribute with a type nested more than 32 deep",
        "/data": "a type nested more than 32 deep",
    }


@pytest.mark.parametrize("untrusted", [False, True])
def test_more_bytes_than_numbers_of_64_bits_tell_of(tmp_path: Path, store_root: Path, untrusted: bool) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", shape=(2**61, 4), dtype="f8", chunks=(2**20, 4))
    with pytest.raises(dsmem.NoSpace, match="free"):
        dsmem.pin(tmp_path / "x.h5", allow=["oversized"], untrusted=untrusted)
    assert not list((store_root / "objects").iterdir())
