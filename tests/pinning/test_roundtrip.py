"""Random trees of groups, dtypes, shapes, links and attributes: equal to h5py in every way of reading."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors
from compare import assert_same_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ways import WAYS

from dsmem import files
from dsmem.store.root import make_store

NAMES = st.one_of(
    st.sampled_from(
        ["a", "b", "__metadata__", "__x", "%5F", "%5F_x", "a b", "é", "..", "x%2Fy", "z", "\n", "dsmem", "\U0001f600"]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=6).filter(
        lambda name: name != "."
    ),
).filter(lambda name: name != ".")
NUMBERS = st.sampled_from(
    [
        "?",
        "u1",
        "i1",
        "<u2",
        ">u2",
        "<i2",
        ">i2",
        "<u4",
        ">i4",
        "<i8",
        ">u8",
        "<f2",
        ">f2",
        "<f4",
        ">f4",
        "<f8",
        ">f8",
        "<c8",
        ">c8",
        "<c16",
        ">c16",
    ]
).map(np.dtype)
FIXED = st.one_of(
    NUMBERS,
    st.integers(1, 9).map(lambda size: np.dtype(f"S{size}")),
    st.integers(1, 9).map(lambda size: np.dtype(f"V{size}")),
    st.integers(1, 9).map(lambda size: h5py.string_dtype("utf-8", size)),
    st.builds(
        lambda base, names: h5py.enum_dtype({name: i for i, name in enumerate(names)}, basetype=base),
        st.sampled_from(["u1", "<i2", ">i4"]),
        st.lists(st.sampled_from("abcdefg"), min_size=1, unique=True),
    ),
)


def compounds(inner: st.SearchStrategy[np.dtype[Any]]) -> st.SearchStrategy[np.dtype[Any]]:
    shapes = st.sampled_from([(), (2,), (2, 1)])
    fields = st.lists(st.tuples(inner, shapes, st.integers(0, 5)), min_size=1, max_size=4)

    def build(parts: list[tuple[np.dtype[Any], tuple[int, ...], int]]) -> np.dtype[Any]:
        offset, offsets, formats = 0, [], []
        for dtype, shape, pad in parts:
            formats.append(np.dtype((dtype, shape)) if shape else dtype)
            offsets.append(offset + pad)
            offset += pad + formats[-1].itemsize
        names = [f"f{i}" for i in range(len(parts))]
        return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": offset + parts[0][2]})

    return fields.map(build)


DTYPES = st.one_of(NUMBERS, FIXED, compounds(FIXED), compounds(compounds(FIXED)))
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
TEXTS = st.one_of(
    st.text(max_size=8).filter(lambda text: "\0" not in text), st.binary(max_size=5).filter(lambda b: b"\0" not in b)
)


@st.composite
def arrays(draw: st.DrawFn, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Random bits of a random dtype."""
    dtype = draw(DTYPES)
    count = int(np.prod(shape, dtype=int))
    seed = draw(st.integers(0, 2**31))
    raw = np.random.default_rng(seed).integers(0, 256, count * dtype.itemsize, np.uint8)
    if dtype.kind == "b" or dtype.names is not None:
        raw = raw % 2
    return raw.view(dtype).reshape(shape) if count else np.empty(shape, dtype)


@st.composite
def datasets(draw: st.DrawFn) -> Callable[[Any, str], None]:
    """A function that creates one dataset."""
    shape = draw(SHAPES)
    kind = draw(st.sampled_from(["fixed", "fixed", "fixed", "chunked", "text", "lists", "null", "unwritten", "partly"]))
    if kind == "text":
        items = np.empty(shape, object)
        items.reshape(-1)[:] = [draw(TEXTS) for _ in range(items.size)]
        return lambda group, name: group.create_dataset(name, data=items, dtype=h5py.string_dtype())
    if kind == "lists":
        lengths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
        base = draw(st.sampled_from(["<i4", "<f8", "u1"]))

        def lists(group: Any, name: str) -> None:
            made = group.create_dataset(name, shape=(len(lengths),), dtype=h5py.vlen_dtype(base))
            for i, length in enumerate(lengths):
                made[i] = np.arange(length)

        return lists
    data = draw(arrays(shape))
    if kind == "null":
        return lambda group, name: group.create_dataset(name, data=h5py.Empty(data.dtype))
    options: dict[str, Any] = {}
    if (kind in ("chunked", "partly")) and shape and 0 not in shape:
        options = {
            "chunks": tuple(draw(st.integers(1, n)) for n in shape),
            "compression": draw(st.sampled_from([None, "gzip", "lzf"])),
            "shuffle": draw(st.booleans()),
            "fletcher32": draw(st.booleans()),
            "maxshape": tuple(draw(st.sampled_from([n, None, n + 2])) for n in shape),
        }
    if kind in ("unwritten", "partly"):
        fill = data.reshape(-1)[0] if data.size and data.dtype.kind in "iufc" and draw(st.booleans()) else None

        def partly(group: Any, name: str) -> None:
            made = group.create_dataset(name, shape=shape, dtype=data.dtype, fillvalue=fill, **options)
            if kind == "partly" and data.size:
                made[(0,) * len(shape)] = data[(0,) * len(shape)]

        return partly
    return lambda group, name: group.create_dataset(name, data=data, **options)


@st.composite
def attributes(draw: st.DrawFn) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name in draw(st.lists(NAMES, max_size=3, unique=True)):
        kind = draw(st.sampled_from(["array", "text", "texts", "empty"]))
        if kind == "array":
            value: Any = draw(arrays(draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=1, max_side=3))))
        elif kind == "text":
            value = draw(st.text(max_size=9).filter(lambda text: "\0" not in text))
        elif kind == "texts":
            value = np.array(
                draw(st.lists(st.sampled_from(["", "a", "é"]), min_size=1, max_size=3)), h5py.string_dtype()
            )
        else:
            value = h5py.Empty(draw(DTYPES))
        found.append((name, value))
    return found


Step = tuple[str, list[str], Any, list[tuple[str, Any]]]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("group"), st.lists(NAMES, min_size=1, max_size=3), st.booleans(), attributes()),
        st.tuples(st.just("dataset"), st.lists(NAMES, min_size=1, max_size=3), datasets(), attributes()),
        st.tuples(st.just("dataset"), st.lists(NAMES, min_size=1, max_size=3), datasets(), attributes()),
        st.tuples(st.just("hard"), st.lists(NAMES, min_size=1, max_size=2), st.lists(NAMES, max_size=2), st.just([])),
        st.tuples(
            st.just("soft"),
            st.lists(NAMES, min_size=1, max_size=2),
            st.lists(NAMES, min_size=1, max_size=3),
            st.just([]),
        ),
        st.tuples(st.just("type"), st.lists(NAMES, min_size=1, max_size=2), DTYPES, st.just([])),
    ),
    max_size=8,
)


def build(path: Path, steps: list[Step], options: dict[str, Any]) -> None:
    with h5py.File(path, "w", **options) as file:
        for kind, parts, what, attrs in steps:
            name = "/".join(parts)
            try:
                if kind == "group":
                    node = file.create_group(name, track_order=what)
                elif kind == "dataset":
                    what(file, name)
                    node = file[name]
                elif kind == "hard":
                    file[name] = file["/" + "/".join(what)]
                    continue
                elif kind == "soft":
                    file[name] = h5py.SoftLink("/".join(what))
                    continue
                else:
                    file[name] = what
                    continue
                for key, value in attrs:
                    node.attrs[key] = value
            except (ValueError, KeyError, RuntimeError, OSError, TypeError):
                continue  # a name that is taken, or lies below a dataset: HDF5 leaves the rest as it was


OPTIONS = st.sampled_from(
    [
        {},
        {"libver": "latest"},
        {"userblock_size": 512},
        {"track_order": True},
        {"libver": "latest", "userblock_size": 1024},
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(steps=STEPS, options=OPTIONS)
def test_random_files_read_as_with_h5py(steps: list[Step], options: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patched:
        patched.setattr(files, "_TIMESTAMP_GRAIN_S", 0.0)  # nobody edits these
        path = Path(directory) / "random.h5"
        build(path, steps, options)
        for way, opened in WAYS.items():
            try:
                with opened(path) as ours, h5py.File(path, "r") as theirs:
                    assert_same_file(ours, theirs)
            except BaseException as exc:
                exc.add_note(f"read the way called {way}")
                raise
        store = Path(make_store().objects)
        for one in store.iterdir():
            with safetensors.safe_open(one, "np") as file:
                assert "__metadata__" not in file.keys()  # noqa: SIM118 - not a mapping
        shutil.rmtree(store.parent)
