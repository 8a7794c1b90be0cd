"""What `asstr`, `astype` and `fields` do to what a dataset reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

_BY_WAY_OF = {"i1": np.int32, "u1": np.int32, "i2": np.int32, "u2": np.int32, "u4": np.int64}
"""Which integers C makes of floats first, where a processor has no instruction for it."""


class Readable(Protocol):
    """What a conversion wraps."""

    @property
    def shape(self) -> tuple[int, ...] | None: ...
    @property
    def size(self) -> int | None: ...
    @property
    def ndim(self) -> int: ...
    def __getitem__(self, key: Any) -> Any: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...


class Converted:
    """A dataset whose reads pass through a conversion: what `asstr`, `astype` and `fields` return."""

    def __init__(self, dataset: Readable, convert: Callable[[Any], Any], dtype: np.dtype[Any]) -> None:
        self._dataset = dataset
        self._convert = convert
        self.dtype = dtype
        """What it reads as."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The dataset's."""
        return self._dataset.shape

    @property
    def size(self) -> int | None:
        """The dataset's."""
        return self._dataset.size

    @property
    def ndim(self) -> int:
        """The dataset's."""
        return self._dataset.ndim

    def __getitem__(self, key: Any) -> Any:
        return self._convert(self._dataset[key])

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        return (self._convert(row) for row in self._dataset)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if copy is False:
            raise ValueError("a conversion makes a copy")
        return np.asarray(self[()], dtype=dtype or self.dtype)


def unchanged(value: Any) -> Any:
    """What a null dataspace reads as, whatever it is to be."""
    return value


def decoder(encoding: str, errors: str) -> Callable[[Any], Any]:
    """A function from bytes, or an array of them, to str, or an object array of them."""

    def decode(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.decode(encoding, errors)
        strings = np.empty(value.shape, dtype=object)
        flat = strings.reshape(-1)
        for i, item in enumerate(value.reshape(-1)):
            flat[i] = item.decode(encoding, errors)
        return strings

    return decode


def fields_of(names: str | Sequence[str], dtype: np.dtype[Any]) -> tuple[Callable[[Any], Any], np.dtype[Any]]:
    """A function from compound items to one field of them, or to some, packed; and the dtype it gives.

    Raises ValueError for an unknown name, or items that are not compound.
    """
    fields = dtype.fields
    if fields is None:
        raise ValueError("Field names only allowed for compound types")
    chosen = [names] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in fields:
            raise ValueError(f"Field {name} does not appear in this type.")
    packed = fields[chosen[0]][0] if isinstance(names, str) else np.dtype([(n, fields[n][0]) for n in chosen])

    def pick(value: Any) -> Any:
        array = np.asarray(value)
        picked = array[names].copy() if isinstance(names, str) else array[chosen].astype(packed)
        return picked if isinstance(value, np.ndarray) else picked[()]

    return pick, packed


def converted(value: Any, source: np.dtype[Any], target: np.dtype[Any]) -> Any:
    """What was read of a dataset of dtype `source` in another; what doesn't fit integers is clipped as HDF5 does it."""
    array = np.asarray(value)
    with np.errstate(invalid="ignore", over="ignore"):
        is_swap = source.itemsize == target.itemsize and source.isnative != target.isnative  # HDF5 only swaps bytes
        if target.kind in "iu" and array.dtype.kind in "iu" and not is_swap:
            bounds, own = np.iinfo(target), np.iinfo(array.dtype)
            array = np.asarray(np.clip(array, max(bounds.min, own.min), min(bounds.max, own.max)))
        elif target.kind in "iu" and array.dtype.kind == "f":
            both_native = source.isnative and target.isnative
            array = _as_c_does(array, target) if both_native else _clipped(array, target)
        result = array.astype(target)
    return result if isinstance(value, np.ndarray) else result[()]


def _clipped(floats: np.ndarray[Any, Any], target: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Floats as integers where one of both is not in the processor's order: HDF5 works with the bits, 0 is no number.

    The largest integer may be no float; what is one is the first number that is too large: a power of two.
    """
    wide = floats.astype(np.promote_types(floats.dtype, np.float32))  # the power may be no number of 16 bits
    bounds = np.iinfo(target)
    above, below = wide >= wide.dtype.type(2.0 ** int(bounds.max).bit_length()), wide < bounds.min
    wide[above | below | np.isnan(wide)] = 0
    result = wide.astype(target)
    result[above], result[below] = bounds.max, bounds.min
    return result


def _as_c_does(floats: np.ndarray[Any, Any], target: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Floats as integers, both in the processor's order: HDF5 clips only where the floats' largest is beyond them.

    And only beyond the upper bound as a float, which may be rounded up. The rest is what C does with what does not fit.
    """
    bounds, kind = np.iinfo(target), floats.dtype.type
    result = floats.astype(_BY_WAY_OF.get(target.str[1:], target)).astype(target)
    if float(np.finfo(kind).max) > bounds.max:
        result[floats > kind(bounds.max)], result[floats < kind(bounds.min)] = bounds.max, bounds.min
    return result
