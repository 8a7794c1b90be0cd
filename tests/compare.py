"""Compares what dsmem hands out with what h5py does, by h5py's own walk: h5py says what there is and what it is.

Nothing of dsmem is used here but the file under test. Equal means: the same type, the same dtype with its metadata at
every level, the same bits (so NaN payloads, negative zeros and padding count), in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import h5py
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
_PROPERTIES = (
    "shape",
    "dtype",
    "size",
    "ndim",
    "nbytes",
    "maxshape",
    "chunks",
    "compression",
    "compression_opts",
    "shuffle",
    "fletcher32",
    "scaleoffset",
    "fillvalue",
)


def assert_same_dtype(ours: np.dtype[Any], theirs: np.dtype[Any], where: str) -> None:
    """Equal dtypes, h5py's metadata included, at every level."""
    assert ours == theirs, f"{where}: dtype {ours} is not {theirs}"
    assert ours.str == theirs.str, f"{where}: dtype {ours.str} is not {theirs.str}"
    assert ours.itemsize == theirs.itemsize, where
    mine, other = dict(ours.metadata or {}), dict(theirs.metadata or {})
    assert mine.keys() == other.keys(), f"{where}: metadata {mine} is not {other}"
    for key, value in other.items():
        if isinstance(value, np.dtype):
            assert_same_dtype(np.dtype(mine[key]), value, f"{where} of {key}")
        else:
            assert mine[key] == value, f"{where}: metadata {mine} is not {other}"
            assert type(mine[key]) is type(value), f"{where}: metadata {mine} is not {other}"
    if theirs.subdtype is not None:
        assert ours.subdtype is not None, where
        assert ours.subdtype[1] == theirs.subdtype[1], where
        assert_same_dtype(ours.subdtype[0], theirs.subdtype[0], f"{where} in an array")
    assert ours.names == theirs.names, where
    for name in theirs.names or ():
        assert ours.fields is not None and theirs.fields is not None
        assert ours.fields[name][1:] == theirs.fields[name][1:], f"{where}.{name}"
        assert_same_dtype(ours.fields[name][0], theirs.fields[name][0], f"{where}.{name}")


def assert_same_value(ours: Any, theirs: Any, where: str) -> None:
    """Equal Python types, dtypes and bits; object arrays item by item."""
    assert type(ours) is type(theirs), f"{where}: {type(ours)} is not {type(theirs)}"
    if isinstance(theirs, h5py.Empty):
        assert_same_dtype(ours.dtype, theirs.dtype, where)
    elif isinstance(theirs, np.ndarray):
        assert ours.shape == theirs.shape, f"{where}: shape {ours.shape} is not {theirs.shape}"
        assert_same_dtype(ours.dtype, theirs.dtype, where)
        if theirs.dtype.names is not None and theirs.dtype.hasobject:
            for name in theirs.dtype.names:
                assert_same_value(ours[name], theirs[name], f"{where} field {name}")
        elif theirs.dtype.kind == "O":
            for i, (mine, other) in enumerate(zip(ours.ravel(), theirs.ravel(), strict=True)):
                assert_same_value(mine, other, f"{where} item {i}")
        else:
            assert _bits(ours) == _bits(theirs), f"{where}: {ours!r:.200} is not {theirs!r:.200}"
    elif isinstance(theirs, h5py.Reference):
        assert bool(ours) == bool(theirs), where
    elif isinstance(theirs, np.void) and theirs.dtype.hasobject:
        assert_same_value(np.array(ours), np.array(theirs), where)
    elif isinstance(theirs, np.generic):
        assert_same_dtype(ours.dtype, theirs.dtype, where)
        assert _bits(np.asarray(ours)) == _bits(np.asarray(theirs)), f"{where}: {ours!r} is not {theirs!r}"
    else:
        assert ours == theirs, f"{where}: {ours!r:.200} is not {theirs!r:.200}"


def _bits(array: Array) -> bytes:
    """All bytes of the items in C order, the padding inside compounds included, but not that of long doubles."""
    if array.size == 0:
        return b""
    if array.dtype.char in "gG":
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, 16)[:, :10].tobytes()
    return array.view(f"V{array.dtype.itemsize}").tobytes()


def assert_same_outcome(ours: Callable[[], Any], theirs: Callable[[], Any], where: str) -> None:
    """Both return equal values, or ours raises what theirs raises (or a subclass)."""
    try:
        expected = theirs()
    except Exception as exc:  # noqa: BLE001 - whatever it is, ours must raise it too
        _assert_raises(ours, type(exc), exc, where)
        return
    assert_same_value(ours(), expected, where)


def _assert_raises(ours: Callable[[], Any], kind: type[Exception], exc: Exception, where: str) -> None:
    try:
        found = ours()
    except Exception as mine:  # noqa: BLE001 - judged here
        assert isinstance(mine, kind), f"{where}: {mine!r} is not {exc!r}"
        return
    raise AssertionError(f"{where}: {found!r:.200} where h5py raises {exc!r}")


def assert_same_attributes(ours: Any, theirs: Any, where: str, without: Collection[str] = ()) -> None:
    """Equal names in equal order, and equal values; `without` names those to pass over."""
    expected = [name for name in theirs.attrs if name not in without]
    found = [name for name in ours.attrs if name not in without]
    assert found == expected, f"{where}: attributes {found} are not {expected}"
    for name in expected:
        assert_same_value(ours.attrs[name], theirs.attrs[name], f"{where}@{name}")


def assert_same_dataset(ours: Any, theirs: Any, where: str) -> None:
    """Equal properties, equal values, in whole and in part."""
    for name in _PROPERTIES:
        if name == "fillvalue" and _has_no_fill_value(theirs):
            continue
        assert_same_outcome(lambda n=name: getattr(ours, n), lambda n=name: getattr(theirs, n), f"{where}.{name}")  # type: ignore[misc]
    assert_same_outcome(lambda: len(ours), lambda: len(theirs), f"len({where})")
    assert_same_outcome(lambda: ours[()], lambda: theirs[()], f"{where}[()]")
    assert_same_outcome(lambda: ours[...], lambda: theirs[...], f"{where}[...]")
    assert_same_outcome(lambda: ours[:], lambda: theirs[:], f"{where}[:]")
    if theirs.shape:
        assert_same_outcome(lambda: ours[0], lambda: theirs[0], f"{where}[0]")
        assert_same_outcome(lambda: ours[..., -1], lambda: theirs[..., -1], f"{where}[..., -1]")
        assert_same_outcome(lambda: ours[::2], lambda: theirs[::2], f"{where}[::2]")
        if not _is_array_of_arrays(theirs):
            assert_same_outcome(lambda: np.asarray(ours), lambda: np.asarray(theirs), f"asarray({where})")


def _has_no_fill_value(theirs: Any) -> bool:
    """Old files may leave it undefined, of which h5py tells by a RuntimeError; dsmem says zero."""
    created = theirs.id.get_create_plist()
    return bool(created.fill_value_defined() == h5py.h5d.FILL_VALUE_UNDEFINED)


def _is_array_of_arrays(theirs: Any) -> bool:
    """h5py's `np.asarray` of these is not the dataset but a broadcast of it."""
    try:
        return theirs.dtype.subdtype is not None
    except TypeError:
        return False


def assert_same_node(ours: Any, theirs: Any, where: str, without: Collection[str] = ()) -> None:
    """The same kind of object with the same name, attributes and, for datasets, values."""
    assert ours is not None, f"{where} is missing"
    assert ours.name == theirs.name, f"{where}: {ours.name!r} is not {theirs.name!r}"
    assert ours.parent.name == theirs.parent.name, f"parent of {where}"
    left_out = [name.removeprefix(f"{where}@") for name in without if name.startswith(f"{where}@")]
    assert_same_attributes(ours, theirs, where, left_out)
    if isinstance(theirs, h5py.Dataset):
        assert_same_dataset(ours, theirs, where)
    elif isinstance(theirs, h5py.Datatype):
        assert_same_dtype(ours.dtype, theirs.dtype, where)


def assert_same_file(ours: Any, theirs: Any, without: Collection[str] = (), *, visits: bool = True) -> None:
    """Everything h5py finds in `theirs` is in `ours`, in its order, and nothing else.

    `without`: absolute paths of what was left out ('/a/b'), and of attributes ('/a@name'). `visits`: compare
    `visititems` too, for which HDF5 has its own idea of a damaged file.
    """
    assert_same_node(ours, theirs, "/", without)
    todo: list[tuple[Any, Any]] = [(ours, theirs)]
    seen = set()
    while todo:
        mine, other = todo.pop()
        if other.id in seen:
            continue
        seen.add(other.id)
        prefix = "" if other.name == "/" else _text(other.name)
        names = [name for name in other if f"{prefix}/{_text(name)}" not in without]
        assert list(mine) == names, f"{other.name}: {list(mine)} is not {names}"
        assert list(mine.keys()) == names
        assert len(mine) == len(names)
        assert [name for name, _ in mine.items()] == names
        assert [name for name, node in mine.items() if node is None] == [n for n in names if _get(other, n) is None]
        for name, value in zip(names, mine.values(), strict=True):
            where = f"{prefix}/{_text(name)}"
            if isinstance(name, str):  # h5py can't ask for the link of any other
                _assert_same_link(mine, other, name, where)
            node = _get(other, name)
            if node is None:
                assert value is None, where
                continue
            assert_same_node(value, node, where, without)
            if isinstance(node, h5py.Group):
                todo.append((value, node))
    if not visits:
        return
    expected: list[str] = []
    theirs.visititems(lambda name, node: expected.append(f"{name!r} {node.name!r} {type(node).__name__}"))
    if not without:
        found: list[str] = []
        ours.visititems(lambda name, node: found.append(f"{name!r} {node.name!r} {_class_name(node)}"))
        assert found == expected, f"visititems: {found} is not {expected}"


def _text(name: str | bytes) -> str:
    """A name for messages; h5py gives bytes where it is not UTF-8."""
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name


def _get(group: Any, name: str) -> Any:
    """What a link leads to; None for nowhere, which h5py says of links in a circle by a RuntimeError."""
    try:
        return group.get(name)
    except RuntimeError:
        return None


def _assert_same_link(ours: Any, theirs: Any, name: str, where: str) -> None:
    link, expected = ours.get(name, getlink=True), theirs.get(name, getlink=True)
    assert type(link) is type(expected), where
    if isinstance(expected, h5py.SoftLink):
        assert link.path == expected.path, where
    assert ours.get(name, getclass=True, getlink=True) is type(expected), where
    assert (name in ours) == (name in theirs), where


def _class_name(node: Any) -> str:
    if hasattr(node, "shape"):
        return "Dataset"
    return "Group" if hasattr(node, "visititems") else "Datatype"
