"""What `asstr`, `astype` and `fields` do to what a dataset reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np


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
        return picked if np.ndim(value) else picked[()]

    return pick, packed


def converted(value: Any, target: np.dtype[Any]) -> Any:
    """The value in another dtype; integers that don't fit are clipped to its range (HDF5's rule, not numpy's)."""
    array = np.asarray(value)
    if target.kind in "iu" and array.dtype.kind in "iuf":
        bounds = np.iinfo(target)
        low, high = bounds.min, bounds.max
        if array.dtype.kind in "iu":
            own = np.iinfo(array.dtype)
            low, high = max(low, own.min), min(high, own.max)
        array = np.clip(array, low, high)
    result = array.astype(target)
    return result if np.ndim(value) else result[()]
