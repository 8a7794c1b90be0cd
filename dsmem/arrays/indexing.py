"""Read from an ndarray by the rules of h5py's Dataset: at most one list, increasing; no negative steps.

Invariant: an accepted key means what it means to h5py; ints, slices, `...` and `()` give views, never copies.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

# bool is not here: to numpy it is a mask, to h5py the integer 0 or 1.
_INTEGERS = frozenset({int, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.intp})


class PastTheEnd(IndexError, OSError):
    """A list names the place just after the last one: h5py lets HDF5 refuse that, with an OSError."""


class _MultiBlock(Protocol):
    """What h5py.MultiBlockSlice offers: `count` blocks of `block` places, `stride` apart."""

    start: int
    stride: int
    count: int | None
    block: int

    def indices(self, length: int) -> tuple[int, int, int, int]: ...


def select(array: NDArray[Any], key: Any, *, rank: int | None = None) -> Any:
    """What `dataset[key]` of h5py 3.16 gives for a dataset that holds `array`.

    Ints, slices, `...` and `()` give views of `array`, or the element where no axis is left (a numpy scalar;
    a np.void that shares memory; for object arrays the object). Lists, masks, a MultiBlockSlice and field
    names give new C-contiguous arrays. `rank`: how many leading axes are the dataset's, where its element type
    is itself an array; by default all are.

    Raises as h5py does: IndexError out of range (PastTheEnd for the place just after the last, in a list),
    TypeError (lists out of order, two lists, masks of another shape, None, floats), ValueError (too many
    indices, two ellipses, steps below 1, unknown fields, slices of a scalar).

    Accidents of h5py 3.16 that are not repeated: unsigned arrays out of order come back sorted (TypeError
    here), negative int8 lists overflow on long axes, steps from 2**64 on overflow, and a list beside a
    MultiBlockSlice fails for dtypes other than plain numbers.
    """
    if rank is None:
        # The keys of training loops. What numpy refuses is judged again below, by h5py's rules.
        kind = type(key)
        if kind in _INTEGERS:
            try:
                return array[key]
            except (IndexError, OverflowError):
                pass
        elif kind is slice:
            if array.ndim and _is_forward(key):
                return array[key]
        elif kind is tuple:
            if _is_basic(key):
                try:
                    return array[key]
                except (IndexError, OverflowError):
                    pass
        elif key is Ellipsis:
            return array[...]
        elif kind is list or kind is np.ndarray:
            index = np.asarray(key)
            if index.ndim == 1 and index.dtype.kind in "iu" and array.ndim and _is_plain(index, len(array)):
                return _gather(array, index, 0)
        rank = array.ndim
    args = key if isinstance(key, tuple) else (key,)
    if any(part is None for part in args):
        raise TypeError("Indexing with None (or np.newaxis) is not supported")
    names = [part for part in args if isinstance(part, str)]
    if names:
        return _select_fields(array, names, tuple(part for part in args if not isinstance(part, str)), rank)
    return _select(array, args, rank)


def length(array: NDArray[Any], *, rank: int | None = None) -> int:
    """Size of the first axis, as `len(dataset)`; TypeError for a scalar."""
    if (array.ndim if rank is None else rank) == 0:
        raise TypeError("Attempt to take len() of scalar dataset")
    return len(array)


def iterate(array: NDArray[Any], *, rank: int | None = None) -> Iterator[Any]:
    """Views along the first axis, as `iter(dataset)`; the first step raises TypeError for a scalar."""
    if (array.ndim if rank is None else rank) == 0:
        raise TypeError("Can't iterate over a scalar dataset")
    yield from array


def _is_forward(part: slice) -> bool:
    return part.step is None or (type(part.step) is int and part.step > 0)


def _is_basic(key: tuple[object, ...]) -> bool:
    for part in key:
        if type(part) not in _INTEGERS and not (isinstance(part, slice) and _is_forward(part)):
            return False
    return True


def _select_fields(array: NDArray[Any], names: list[str], args: tuple[object, ...], rank: int) -> Any:
    """The named fields of a compound array: one by itself, several packed in the order given."""
    fields = array.dtype.fields
    if fields is None:
        raise ValueError("Field names only allowed for compound types")
    for name in names:
        if name not in fields:
            raise ValueError(f"Field {name} does not appear in this type.")
    if len(names) > 1:
        packed = np.dtype([(name, fields[name][0]) for name in names])
        return _select(array[names], args, rank).astype(packed)
    found = _select(array[names[0]], args, rank)
    if isinstance(found, np.ndarray) and np.may_share_memory(found, array):
        return found.copy(order="C")
    return found


def _select(array: NDArray[Any], args: tuple[object, ...], rank: int) -> Any:
    """Apply a key without field names and without None."""
    if rank == 0:
        if not args:
            return array[()]
        if len(args) == 1 and args[0] is Ellipsis:
            return array[...]
        raise ValueError("Illegal slicing argument for scalar dataspace: only [()] and [...] are possible")
    shape = array.shape[:rank]
    if len(args) == 1 and isinstance(args[0], np.ndarray) and args[0].dtype.kind == "b":
        mask = args[0]
        if mask.shape == shape:
            return array[mask]
        if mask.shape != shape[:1]:
            raise TypeError(
                f"Boolean indexing array has incompatible shape: {mask.shape} for a dataset of shape {shape}"
            )
    basic: list[int | slice] = []
    gathers: list[tuple[int, NDArray[Any]]] = []
    kept_axes = 0
    seen_list = seen_blocks = False
    for axis, part in _placed(args, rank):
        size = shape[axis]
        if isinstance(part, slice):
            basic.append(_forward(part, size))
            kept_axes += 1
            continue
        number = _as_integer(part)
        if number is not None:
            basic.append(_in_range(number, size))
            continue
        if _is_multi_block(part):
            places = _blocks(part, size)
            seen_blocks = True
        else:
            index = _as_index(part, size, rank)
            if seen_list:
                raise TypeError("Only one indexing vector or array is currently allowed for fancy indexing")
            seen_list = True
            places = _in_order(index, size)
        if isinstance(places, slice):
            basic.append(places)
        else:
            basic.append(slice(None))
            gathers.append((kept_axes, places))
        kept_axes += 1
    found = array[tuple(basic)]
    for axis, index in gathers:
        found = _gather_checked(found, index, axis)
    return found.copy(order="C") if seen_blocks and not gathers else found


def _placed(args: tuple[object, ...], rank: int) -> Iterator[tuple[int, object]]:
    """Each part of a key with its axis, `...` as full slices; ValueError at the first that has no axis."""
    count = len(args)
    axis = 0
    seen_ellipsis = False
    for part in args:
        if part is Ellipsis:
            if seen_ellipsis:
                raise ValueError("Only one ellipsis may be used.")
            seen_ellipsis = True
            count -= 1
        if (rank < count) if part is Ellipsis else (axis >= rank):
            raise ValueError(f"{count} indexing arguments for {rank} dimensions")
        if part is Ellipsis:
            for _ in range(rank - count):
                yield axis, slice(None)
                axis += 1
        else:
            yield axis, part
            axis += 1


def _forward(part: slice, size: int) -> slice:
    step = part.indices(size)[2]
    if step < 1:
        raise ValueError(f"Step must be >= 1 (got {step})")
    return part


def _as_integer(part: object) -> int | None:
    """The integer that `part` stands for (bool and 0-d integer arrays do, np.bool_ does not), or None."""
    try:
        return operator.index(part)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        return None


def _in_range(number: int, size: int) -> int:
    if -size <= number < size:
        return number
    where = f"(0-{size - 1})" if size else "empty dimension"
    raise IndexError(f"Index ({number}) out of range for {where}")


def _is_multi_block(part: object) -> TypeGuard[_MultiBlock]:
    return all(hasattr(part, name) for name in ("start", "stride", "count", "block", "indices"))


def _blocks(part: _MultiBlock, size: int) -> slice | NDArray[Any]:
    """The places of a MultiBlockSlice: a slice where one says the same, else an array of them."""
    start, stride, count, block = part.indices(size)
    if block == stride:
        return slice(start, start + count * block)
    if block == 1:
        return slice(start, start + (count - 1) * stride + 1, stride)
    firsts = np.arange(start, start + count * stride, stride)
    return (firsts[:, None] + np.arange(block)).ravel()


def _as_index(part: object, size: int, rank: int) -> NDArray[Any]:
    """A list, array or mask for one axis as a 1-D integer array, not yet checked against the axis."""
    if isinstance(part, np.ndarray):
        index: NDArray[Any] = np.asarray(part)
        if index.ndim != 1:
            raise TypeError("Only 1D arrays allowed for fancy indexing")
    else:
        index = np.asarray(part)
        if index.ndim != 1:
            raise TypeError(f"Selection can't process {part!r}")
        if index.size == 0:
            index = index.astype(np.intp)
    if index.dtype.kind == "b":
        if rank == 1:
            raise TypeError("Only a boolean array, alone in the key, can select from a 1D dataset")
        if index.size != size:
            raise TypeError(f"boolean index did not match indexed array: {index.size} values for {size}")
        return index.nonzero()[0]
    if index.dtype.kind not in "iu":
        raise TypeError("Indexing arrays must have integer dtypes")
    return index


def _is_plain(index: NDArray[Any], size: int) -> bool:
    """Whether 1-D integers are increasing places of an axis, at least one, none counted from the end."""
    count = index.size
    return (
        count > 0
        and index.item(0) >= 0
        and index.item(-1) < size
        and (count == 1 or np.count_nonzero(index[1:] > index[:-1]) == count - 1)
    )


def _in_order(index: NDArray[Any], size: int) -> NDArray[Any]:
    """Increasing places counted from the front, of which the last may still be `size` (see PastTheEnd)."""
    if _is_plain(index, size):
        return index
    if index.dtype.kind == "i":
        index = index.astype(np.int64)
        index[index < 0] += size
    if np.any((index < 0) | (index > size)):
        where = f"(0-{size - 1})" if size else "empty dimension"
        raise IndexError(f"Fancy indexing out of range for {where}")
    if np.any(index[1:] <= index[:-1]):
        raise TypeError("Indexing elements must be in increasing order")
    return index


def _gather_checked(array: NDArray[Any], index: NDArray[Any], axis: int) -> NDArray[Any]:
    size = array.shape[axis]
    if index.size and index.item(-1) >= size:
        # h5py notices only when there is something to read.
        others = array.shape[:axis] + array.shape[axis + 1 :]
        if 0 not in others:
            where = f"(0-{size - 1})" if size else "empty dimension"
            raise PastTheEnd(f"Fancy indexing out of range for {where}: {size}")
        return np.empty((*array.shape[:axis], index.size, *array.shape[axis + 1 :]), array.dtype)
    return _gather(array, index, axis)


def _gather(array: NDArray[Any], index: NDArray[Any], axis: int) -> NDArray[Any]:
    """The places `index` of one axis, as a new C-contiguous array."""
    flags = array.flags
    if flags.c_contiguous and flags.aligned:
        return array.take(index, axis)
    # take() would first copy all of a strided array.
    return np.ascontiguousarray(array[(slice(None),) * axis + (index,)])
