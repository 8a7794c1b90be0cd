"""HDF5 as it is found: every file of installed packages, and files that other libraries write.

Each is equal to what h5py reads, or refused by name, and then the rest of it is equal.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from compare import assert_same_file

import dsmem

ENDINGS = (".h5", ".hdf5", ".nc", ".nc4", ".he5", ".hdf")
PURE, PLATFORM = (Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib"))


def installed() -> Iterator[Path]:
    """HDF5 files (by their names) of installed packages."""
    for root in dict.fromkeys((PURE, PLATFORM)):
        yield from sorted(path for path in root.rglob("*") if path.suffix in ENDINGS and path.is_file())


INSTALLED = tuple(installed())


def conforms(path: Path) -> set[str]:
    """Pin the file and compare; returns the paths of what was refused by name."""
    explained = dsmem.explain(path)
    refused = {refusal.path for refusal in explained.refused}
    if refused:
        with pytest.raises(dsmem.Unsupported) as caught:
            dsmem.pin(path)
        assert {refusal.path for refusal in caught.value.refusals} == refused
        assert all(refusal.reason for refusal in caught.value.refusals)
    pinned = dsmem.pin(path, skip_unsupported=True, verify=True)
    assert {refusal.path for refusal in pinned.refused} == refused
    assert {one.path for one in explained.datasets} == {one.path for one in pinned.datasets}
    with dsmem.attach(pinned.name) as ours, h5py.File(path, "r") as theirs:
        assert_same_file(ours, theirs, without=refused | under_other_names(theirs, refused))
    with dsmem.File(path) as ours:
        assert (ours.source == "pinned") == (not refused), ours.why
    return refused


def under_other_names(file: Any, refused: Collection[str]) -> set[str]:
    """The same attributes ('/a@name') by way of other hard links: dsmem names each once."""
    attributes = [(path or "/", name) for path, at, name in (one.rpartition("@") for one in refused) if at]
    owners = [(file[path], name) for path, name in attributes if path in file]
    found: set[str] = set()
    todo, seen = [(file["/"], "")], set()
    while todo and owners:
        group, prefix = todo.pop()
        if group.id in seen:
            continue
        seen.add(group.id)
        for name in group:
            if group.get(name, getclass=True, getlink=True) is h5py.HardLink:
                node = group[name]
                found |= {f"{prefix}/{name}@{attribute}" for owner, attribute in owners if owner == node}
                if isinstance(node, h5py.Group):
                    todo.append((node, f"{prefix}/{name}"))
    return found


def test_some_files_are_installed() -> None:
    assert [path for path in INSTALLED if "h5py" in path.parts], "h5py's own test data are gone"


@pytest.mark.parametrize("path", INSTALLED, ids=lambda path: str(path.relative_to(PURE)))
def test_installed_file(path: Path) -> None:
    if not h5py.is_hdf5(path):
        with pytest.raises(dsmem.BadSource):
            dsmem.pin(path)
        return
    try:
        conforms(path)
    except dsmem.BadSource as exc:
        with pytest.raises((OSError, RuntimeError, ValueError)):
            read_all(path)
        assert str(path) in str(exc)


def read_all(path: Path) -> None:
    """Everything of a file, by h5py."""

    def read(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            node[()]

    with h5py.File(path, "r") as file:
        file.visititems(read)


# pandas


def frame() -> Any:
    pandas = pytest.importorskip("pandas")
    rows = 500
    return pandas.DataFrame(
        {
            "number": np.arange(rows),
            "float": np.linspace(0, 1, rows),
            "text": [f"row {i}" for i in range(rows)],
            "when": pandas.date_range("2020-01-01", periods=rows, freq="h"),
            "flag": np.arange(rows) % 3 == 0,
        }
    )


@pytest.mark.parametrize("complevel", [0, 5])
@pytest.mark.parametrize("layout", ["fixed", "table"])
def test_pandas(tmp_path: Path, layout: str, complevel: int) -> None:
    pytest.importorskip("tables")
    path = tmp_path / "frame.h5"
    numbers = frame()[["number", "float", "flag"]]
    numbers.to_hdf(path, key="numbers", format=layout, complevel=complevel)
    frame().to_hdf(path, key="all", format=layout, complevel=complevel)
    numbers["float"].to_hdf(path, key="deep/series", format=layout)
    refused = conforms(path)
    assert not [one for one in refused if one.startswith("/numbers")], refused


# PyTables


@pytest.mark.parametrize("compression", ["zlib", "blosc", "blosc2", "bzip2"])
def test_pytables(tmp_path: Path, compression: str) -> None:
    tables = pytest.importorskip("tables")
    if tables.which_lib_version(compression) is None:
        pytest.skip(f"PyTables without {compression}")
    path = tmp_path / "tables.h5"

    particle = {
        "name": tables.StringCol(16),
        "energy": tables.Float64Col(shape=(2, 3)),
        "count": tables.Int32Col(),
        "inner": {"when": tables.Time64Col(), "colour": tables.EnumCol({"red": 0, "green": 1}, "red", base="uint8")},
    }
    filters = tables.Filters(complevel=5, complib=compression, shuffle=True, fletcher32=compression != "blosc2")
    unchecked = tables.Filters(complevel=5, complib="zlib")  # what varies in length takes no checksum
    with tables.open_file(str(path), "w", filters=filters) as file:
        table = file.create_table("/", "particles", particle, "all of them")
        for i in range(300):
            row = table.row
            row["name"], row["count"], row["energy"] = f"p{i}", i, np.full((2, 3), i)
            row.append()
        table.flush()
        table.cols.count.create_index()
        file.create_array("/", "plain", np.arange(12).reshape(3, 4), "an array")
        file.create_array("/", "texts", [b"a", b"bcd"])
        file.create_carray("/group", "packed", obj=np.arange(3000.0).reshape(30, 100), createparents=True)
        grown = file.create_earray("/", "grown", tables.Int16Atom(), (0, 7))
        grown.append(np.ones((20, 7), np.int16))
        ragged = file.create_vlarray("/", "ragged", tables.Int32Atom(), filters=unchecked)
        ragged.append([1, 2, 3])
        ragged.append([])
        pickled = file.create_vlarray("/", "objects", tables.ObjectAtom(), filters=unchecked)
        pickled.append({"a": 1})
        file.create_soft_link("/", "soft", "/group/packed")
        file.create_hard_link("/", "hard", "/plain")
        file.create_external_link("/", "away", "other.h5:/x")
    refused = conforms(path)
    assert "/away" in refused
    assert not refused & {"/plain", "/texts", "/grown", "/group/packed"}, refused


# netCDF4


def write_netcdf(path: Path, **packing: Any) -> None:
    netcdf = pytest.importorskip("netCDF4")
    with netcdf.Dataset(path, "w") as file:
        file.title = "weather"
        file.createDimension("time", None)
        file.createDimension("x", 20)
        times = file.createVariable("time", "f8", ("time",))
        times.units = "hours since 2000-01-01"
        heat = file.createVariable("heat", "f4", ("time", "x"), fill_value=-9.0, chunksizes=(4, 10), **packing)
        heat.long_name = "temperature"
        times[:] = np.arange(10)
        heat[:] = np.arange(200).reshape(10, 20)
        file.createVariable("x", "i4", ("x",))[:] = np.arange(20)
        file.createVariable("names", str, ("x",))[:] = np.array([f"n{i}" for i in range(20)], object)
        group = file.createGroup("group")
        group.createVariable("scalar", "i8")[:] = 7
        group.createVariable("below", "u1", ("x",))[:] = np.arange(20)


DIMENSIONS = ("DIMENSION_LIST", "REFERENCE_LIST")


@pytest.mark.parametrize("packing", [{}, {"zlib": True}, {"zlib": True, "shuffle": False, "fletcher32": True}])
def test_netcdf(tmp_path: Path, packing: dict[str, Any]) -> None:
    path = tmp_path / "weather.nc"
    write_netcdf(path, **packing)
    refused = conforms(path)
    assert refused and all(one.rpartition("@")[2] in DIMENSIONS for one in refused), "only the scales' references"
    with dsmem.attach(dsmem.pin(path, skip_unsupported=True).name) as file:
        assert np.array_equal(file["heat"][:], np.arange(200, dtype="<f4").reshape(10, 20))
        assert file["heat"].attrs["long_name"] == b"temperature"
        assert file["group/below"].shape == (20,)


# hdf5plugin


def plugins() -> dict[str, tuple[str, dict[str, Any]]]:
    """All filters of hdf5plugin, with those options that make another format: class name and arguments."""
    codecs = ("blosclz", "lz4", "lz4hc", "zlib", "zstd")
    return {
        **{f"bitshuffle {codec}": ("Bitshuffle", {"cname": codec}) for codec in ("none", "lz4", "zstd")},
        **{f"blosc {c} {s}": ("Blosc", {"cname": c, "shuffle": s}) for c in codecs for s in (0, 1, 2)},
        **{f"blosc2 {c} {f}": ("Blosc2", {"cname": c, "filters": f}) for c in codecs for f in (0, 1, 2, 3)},
        "bzip2": ("BZip2", {}),
        "lz4": ("LZ4", {}),
        "lz4 blocks": ("LZ4", {"nbytes": 1024}),
        "zstd": ("Zstd", {}),
        "zfp": ("Zfp", {"reversible": True}),
        "zfp rate": ("Zfp", {"rate": 10}),
        "sz": ("SZ", {"absolute": 0.1}),
        "sz3": ("SZ3", {"absolute": 0.1}),
        "sperr": ("Sperr", {"rate": 8}),
        "fcidecomp": ("FciDecomp", {}),
        "htj2k": ("Htj2k", {}),
    }


LOSSY = {"zfp": ("<f4", "<f8"), "sz": ("<f4", "<f8"), "sz3": ("<f4", "<f8"), "sperr": ("<f4", "<f8")}
IMAGES = {"fcidecomp": ("u1", "<u2"), "htj2k": ("u1", "<u2")}
ALL_TYPES = ("u1", "<u2", "<i4", ">i4", "<f4", "<f8", "<c16", "S5")


@pytest.mark.parametrize("name", plugins())
def test_hdf5plugin(tmp_path: Path, name: str) -> None:
    hdf5plugin = pytest.importorskip("hdf5plugin")
    made_by, arguments = plugins()[name]
    if not hasattr(hdf5plugin, made_by):
        pytest.skip(f"hdf5plugin without {made_by}")
    options = getattr(hdf5plugin, made_by)(**arguments)
    path = tmp_path / "packed.h5"
    random = np.random.default_rng(3)
    smooth = np.add.outer(np.arange(37), np.arange(53)).astype("<f8") * 3 + random.random((37, 53))
    image = name.split()[0] in IMAGES
    chunks: Collection[tuple[int, int]] = [(37, 53)] if image else [(37, 53), (16, 16), (5, 53)]
    with h5py.File(path, "w") as file:
        for code in {**LOSSY, **IMAGES}.get(name.split()[0], ALL_TYPES):
            for chunk in chunks:
                file.create_dataset(f"{code}/{chunk}", data=smooth.astype(code), chunks=chunk, **options)
        if not image and name.split()[0] not in LOSSY:
            file.create_dataset("shuffled", data=smooth, chunks=(8, 53), shuffle=True, **options)
            file.create_dataset("part", shape=(37, 53), dtype="<i4", chunks=(8, 8), fillvalue=3, **options)[3:9] = 7
    assert conforms(path) == set()
