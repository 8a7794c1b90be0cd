"""The tree of a file: paths through links as HDF5 follows them, tensor names that never collide, JSON both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmem.arrays import tree
from dsmem.arrays.tree import Dataset, Tree
from dsmem.errors import DamagedObject
from dsmem.hdf5.scan import scan

PATHS = st.lists(
    st.one_of(
        st.sampled_from(
            ["__x", "%5F_x", "_x", "%5F%5F", "__", "%", "%25", "%5F", "a", "é", "\udcc3\udca9", "%C3%A9", "\n", "%0A"]
        ),
        st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=4),
        st.binary(min_size=1, max_size=3)
        .filter(lambda raw: b"/" not in raw and b"\0" not in raw)
        .map(lambda raw: raw.decode("utf-8", "surrogateescape")),
    ),
    min_size=1,
    max_size=3,
).map("/".join)


@given(st.lists(PATHS, min_size=2, max_size=30, unique_by=tree.raw))
def test_tensor_names_never_collide(paths: list[str]) -> None:
    names = [tree.tensor_name(path) for path in paths] + [tree.offsets_name(path) for path in paths]
    assert len(set(names)) == len(names)
    assert "__metadata__" not in names
    for name in names:
        name.encode()
        assert name.isascii()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("images", "images"),
        ("a/b c", "a/b c"),
        ("__metadata__", "%5F_metadata__"),
        ("__dsmem__/offsets/x", "%5F_dsmem__/offsets/x"),
        ("a/__metadata__", "a/__metadata__"),
        ("%5F_x", "%255F_x"),
        ("100%", "100%25"),
        ("é", "%C3%A9"),
        ("\udcff", "%FF"),
        ("a\nb", "a%0Ab"),
    ],
)
def test_tensor_names(path: str, name: str) -> None:
    assert tree.tensor_name(path) == name


@given(PATHS)
def test_names_as_h5py_gives_them(path: str) -> None:
    path = tree.text(tree.raw(path)[1:])  # surrogates that together are UTF-8 never come from a file
    shown: Any = tree.shown(path)
    assert tree.text(shown) == path
    raw = tree.raw(path).removeprefix(b"/")
    try:
        assert shown == raw.decode()
    except UnicodeDecodeError:
        assert shown == raw


LINKED = Tree(
    groups={"": ["a", "b"], "a": ["x", "up"], "c": []},
    datasets={"a/x": {}},
    aliases={"b": "a", "a/up": "", "y": "a/x"},
    soft_links={
        "absolute": "/a/x",
        "relative": "a/x",
        "a/sibling": "x",
        "self": "self",
        "one": "two",
        "two": "one",
        "through": "absolute",
        "group": "a",
        "gone": "nowhere",
        "a/root": "/",
        "dot": "./a/./x",
        "slashes": "a//x/",
        "up": "a/up/a/x",
        "empty": "",
    },
    types={"t": "<f4"},
)
RESOLVED: dict[str, str | None] = {
    "": "",
    "/": "",
    ".": "",
    "a": "a",
    "/a/": "a",
    "a/x": "a/x",
    "a//x": "a/x",
    "b": "a",
    "b/x": "a/x",
    "b/up/b/x": "a/x",
    "y": "a/x",
    "absolute": "a/x",
    "relative": "a/x",
    "a/sibling": "a/x",
    "b/sibling": "a/x",
    "through": "a/x",
    "group/x": "a/x",
    "group/sibling": "a/x",
    "self": None,
    "one": None,
    "gone": None,
    "a/root": "",
    "a/root/a/x": "a/x",
    "dot": "a/x",
    "slashes": "a/x",
    "up": "a/x",
    "a/x/y": None,
    "nope": None,
    "t": "t",
    "t/x": None,
    "a/..": None,
}


@pytest.mark.parametrize("path", RESOLVED)
def test_resolve(path: str) -> None:
    assert LINKED.resolve(path) == RESOLVED[path]


def test_resolve_from_a_group() -> None:
    assert LINKED.resolve("x", "a") == "a/x"
    assert LINKED.resolve("/a/x", "c") == "a/x"
    assert LINKED.resolve("sibling", "a") == "a/x"
    assert LINKED.resolve("", "a") == "a"
    assert LINKED.resolve("a", "a") is None


def test_kind() -> None:
    assert [LINKED.kind(path) for path in ("", "a/x", "t", "b", "nope")] == ["group", "dataset", "type", None, None]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["group", "dataset", "hard", "soft"]),
        st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join),
        st.lists(st.sampled_from(["a", "b", "c", "."]), min_size=1, max_size=4).map("/".join),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(
    steps=STEPS, asked=st.lists(st.lists(st.sampled_from(["a", "b", "c", "."]), max_size=4).map("/".join), max_size=8)
)
def test_links_lead_where_hdf5_says(steps: list[tuple[str, str, str, bool]], asked: list[str]) -> None:
    with h5py.File("links.h5", "w", driver="core", backing_store=False) as file:
        for kind, name, target, absolute in steps:
            try:
                if kind == "group":
                    file.create_group(name)
                elif kind == "dataset":
                    file[name] = 1
                elif kind == "hard":
                    file[name] = file[target]
                else:
                    file[name] = h5py.SoftLink(("/" if absolute else "") + target)
            except (ValueError, KeyError, RuntimeError, OSError):
                continue
        found = scan(file, "links.h5", file_bytes=0).tree
        for path in [*asked, *(name for _, name, _, _ in steps), *(target for _, _, target, _ in steps)]:
            ours = found.resolve(path)
            try:
                theirs = file[path or "/"]
            except (KeyError, RuntimeError):
                assert ours is None, path
                continue
            assert ours is not None, path
            assert file[ours or "/"] == theirs, path


def test_dump_and_load() -> None:
    again = tree.load("".join(LINKED.dumped()))
    assert again == LINKED
    odd = Tree(groups={"": ["\udcff"]}, soft_links={"\udcff": "ü"})
    assert "".join(odd.dumped()).isascii()
    assert tree.load("".join(odd.dumped())) == odd
    assert tree.load("".join(Tree().dumped())) == Tree()


@pytest.mark.parametrize("lengths", [[2500], [1, 999], [1000, 0, 1001, 3], [0] * 2500, [400] * 7])
def test_dumped_in_parts(lengths: list[int]) -> None:
    groups = {f"g{i}": [f'"{j}' for j in range(length)] for i, length in enumerate(lengths)}
    found = Tree(groups=groups, datasets={f"d{i}": {"chunks": [i]} for i in range(len(lengths))})
    parts = list(found.dumped())
    assert tree.load("".join(parts)) == found
    assert json.loads("".join(tree.dumped_table(groups.items()))) == groups
    assert max(map(len, parts)) < 40_000


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '{"groups": []}', '{"groups": {}, "datasets": 3}', "[" * 100_000]
)
def test_load_of_anything_else(text: str) -> None:
    with pytest.raises(DamagedObject):
        tree.load(text)


def test_describe_leaves_out_what_is_default() -> None:
    assert tree.describe(Dataset((3,), np.dtype("<f4")), None) == {}
    assert tree.describe(Dataset((3,), np.dtype("<f4"), maxshape=(3,)), None) == {}
    full = Dataset((3,), np.dtype(">f4"), chunks=(2,), maxshape=(None,), compression="szip", compression_opts=("nn", 8))
    record = json.loads(json.dumps(tree.describe(full, {"x": 1})))
    assert record == {
        "chunks": [2],
        "compression": "szip",
        "compression_opts": ["nn", 8],
        "maxshape": [None],
        "fillvalue": {"x": 1},
        "dtype": ">f4",
    }
    assert tree.options(record) == {"chunks": (2,), "compression": "szip", "compression_opts": ("nn", 8)}


def test_describe_null_and_variable_length() -> None:
    assert tree.describe(Dataset(None, np.dtype("<f4")), None) == {"null": True, "dtype": "<f4"}
    assert tree.describe(Dataset((2, 3), h5py.string_dtype()), None) == {"dtype": {"vlen": "str"}, "shape": [2, 3]}


def test_a_deep_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "deep.h5", "w") as file:
        path = "/".join("g" * 300)
        file[path + "/x"] = 1
        found = scan(file, "deep.h5", file_bytes=0).tree
    assert tree.load("".join(found.dumped())).resolve(path + "/x") == path + "/x"
