"""The header of a finished object, read in windows: parsed as a whole it takes 1 to 2 KB for each dataset.

Nothing of it is taken for granted: whatever dsmem can't have written is DamagedObject.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from dsmem.arrays import header, views
from dsmem.arrays.columns import Column, Numbers, column, in_order, windows
from dsmem.arrays.header import Tensor
from dsmem.arrays.longheader import LongHeader
from dsmem.arrays.rows import Rows
from dsmem.arrays.summary import DatasetSummary, summary_of
from dsmem.errors import DamagedObject
from dsmem.pinning.summaries import summaries

_CODES = tuple(header.ITEM_BYTES)
_CLOSES = {"groups": "]", "datasets": "}", "aliases": '"', "soft_links": '"', "types": "}"}
"""With what most entries end of each part of a `Tree`."""


class Written:
    """Where the texts of `__metadata__` lie in an object, and its tensors; raises DamagedObject.

    `exactly`: the tensors also have to be told in no other form than ours, and to lie one behind the other.
    """

    def __init__(self, fd: int, *, exactly: bool = False) -> None:
        self._marks = _Marks()
        with _said("the header is not JSON of the expected form"):
            self._header = LongHeader(fd)
            tensors = _Tensors(self._marks, self._entries(exactly=exactly))
        self.data_bytes = self._header.data_bytes
        self.places = self._header.places
        if exactly:
            tensors.check_places(self.data_bytes)
        self._tensors = tensors

    def raw(self, key: str) -> bytes:
        """A text of `__metadata__` as it is written, still escaped."""
        return self._header.raw(key)

    def datasets(self) -> Sequence[DatasetSummary]:
        """Every dataset, in the order of the tree, which is checked as a whole; raises DamagedObject."""
        rows: Rows[tuple[str, tuple[int, ...] | None, str, int]] = Rows()
        with _said("the object's tree is not of the expected form"):
            for one in self._checked_tree():
                rows.append((one.path, one.shape, one.dtype, one.size_bytes))
        return summaries(len(rows), lambda number: DatasetSummary(*rows[number]))

    def check_attributes(self) -> None:
        """Raise DamagedObject unless they are tables."""
        with _said("its attributes are not tables"):
            text = self._header.json(views.ATTRIBUTES_KEY)
            for _, table in text.entries("}"):
                _require(isinstance(table, dict))
            text.end()

    def _entries(self, *, exactly: bool) -> Iterator[tuple[str, Tensor]]:
        written, end = self._header, self._header.position
        """Of what was read, had dsmem written it."""
        for name, entry in written.entries():
            tensor = header.checked(name, entry, written.data_bytes)
            if exactly:
                end += len(",") + len(header.entries([(name, tensor)]))
            yield name, tensor
        # No form is shorter than ours: one of that length differs in the order of what an entry says at most.
        _require(not exactly or written.position == end + len("}"))
        written.end()

    def _checked_tree(self) -> Iterator[DatasetSummary]:
        """The same as `tree.load` looks at, and that no part comes twice."""
        nodes, datasets, targets = Column("Q"), Column("Q"), Column("Q")
        parts = set()
        text = self._header.json(views.TREE_KEY)
        for part in text.keys():  # noqa: SIM118 - no dict
            _require(part not in parts)
            parts.add(part)
            if part not in _CLOSES:
                text.value()
                continue
            for path, value in text.entries(_CLOSES[part], without_lists=part == "groups"):
                if part in ("aliases", "soft_links"):
                    _require(isinstance(value, str))
                    if part == "aliases":
                        targets.append(self._marks.of(value))
                    continue
                (datasets if part == "datasets" else nodes).append(self._marks.of(path))
                if part == "datasets":
                    _require(isinstance(value, dict))
                    yield summary_of(self._tensors.named, path, value)
        text.end()
        for some in _ascending(datasets.array()):
            _require(not (some[1:] == some[:-1]).any())
        if len(targets):
            _require(_are_among(targets.array(), nodes.array(), datasets.array()))


class _Marks:
    """Numbers of 64 bits for names, alike for none that differ: nobody who writes names knows the key."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)

    def of(self, name: str) -> int:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8, key=self._key)
        return int.from_bytes(digest.digest(), "little")


class _Tensors:
    """Tensors by name, in columns; raises ValueError when a name comes twice."""

    def __init__(self, marks: _Marks, entries: Iterator[tuple[str, Tensor]]) -> None:
        self._marks = marks
        names, codes, begins, ends = Column("Q"), Column("B"), Column("q"), Column("q")
        dimensions, dimensions_end = Column("Q"), Column("Q")
        dimensions_end.append(0)
        for name, tensor in entries:
            names.append(marks.of(name))
            codes.append(_CODES.index(tensor.dtype))
            begins.append(tensor.begin)
            ends.append(tensor.end)
            for length in tensor.shape:
                dimensions.append(length)
            dimensions_end.append(len(dimensions))
        self._codes, self._begins, self._ends = codes.array(), begins.array(), ends.array()
        self._dimensions, self._dimensions_end = dimensions.array(), dimensions_end.array()
        marks_of_all, ordered, numbers = names.array(), Column("Q"), Column("I")
        for some in in_order(marks_of_all):
            here = marks_of_all[some]
            _require(not (here[1:] == here[:-1]).any())
            ordered.extend(here)
            numbers.extend(some)
        self._names, self._numbers = ordered.array(), numbers.array()

    def named(self, name: str) -> Tensor:
        """The one of that name; raises KeyError."""
        mark = np.uint64(self._marks.of(name))
        place = int(np.searchsorted(self._names, mark))
        if place == len(self._names) or self._names[place] != mark:
            raise KeyError(name)
        number = int(self._numbers[place])
        first, last = self._dimensions_end[number : number + 2].tolist()
        shape = tuple(self._dimensions[first:last].tolist())
        return Tensor(_CODES[self._codes[number]], shape, int(self._begins[number]), int(self._ends[number]))

    def check_places(self, data_bytes: int) -> None:
        """Raise DamagedObject unless they take all of the data, none of it twice."""
        end = 0
        for some in in_order(self._begins):
            begins, ends = self._begins[some], self._ends[some]
            order = np.lexsort((ends, begins))
            if not np.array_equal(begins[order], np.concatenate([[end], ends[order]])[:-1]):
                raise DamagedObject("its tensors overlap or leave gaps")
            end = int(ends.max(initial=end))
        if data_bytes != end:
            raise DamagedObject("its tensors are shorter than its data")


def _ascending(marks: Numbers) -> Iterator[Numbers]:
    """All of them in order, some at a time, equal ones together."""
    return (marks[some] for some in in_order(marks))


def _are_among(marks: Numbers, *others: Numbers) -> bool:
    known = [column("Q", _ascending(some)) for some in others if len(some)]
    for window in windows(len(marks)):
        few = marks[window]
        found = np.zeros(len(few), bool)
        for column_of in known:
            found |= column_of[np.searchsorted(column_of, few) % len(column_of)] == few
        if not found.all():
            return False
    return True


def _require(is_right: bool) -> None:
    if not is_right:
        raise ValueError("not as it should be")


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Turn what Python raises for a text that dsmem can't have written into DamagedObject."""
    try:
        yield
    except DamagedObject:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as exc:
        raise DamagedObject(what) from exc
