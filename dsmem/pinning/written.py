"""The header of a finished object, read in windows: parsed as a whole it takes 1 to 2 KB for each dataset.

Nothing of it is taken for granted: whatever dsmem can't have written is DamagedObject.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import secrets
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from dsmem.arrays import header, jsontext, views
from dsmem.arrays.header import Tensor
from dsmem.arrays.jsontext import Text
from dsmem.arrays.rows import Rows
from dsmem.arrays.summary import DatasetSummary, summary_of
from dsmem.errors import DamagedObject
from dsmem.pinning.summaries import summaries

_MOST_METADATA = 16
_CODES = tuple(header.ITEM_BYTES)
_CLOSES = {"groups": "]", "datasets": "}", "aliases": '"', "soft_links": '"', "types": "}"}
"""With what most entries end of each part of a `Tree`."""


class Written:
    """Where the texts of `__metadata__` lie in an object, and its tensors; raises DamagedObject.

    `exactly`: the tensors also have to be told in no other form than ours, and to lie one behind the other.
    """

    def __init__(self, fd: int, *, exactly: bool = False) -> None:
        self._fd = fd
        size_bytes = os.fstat(fd).st_size
        self.data_start = 8 + header.length(memoryview(os.pread(fd, 8, 0)), size_bytes)
        self.data_bytes = size_bytes - self.data_start
        self.places: dict[str, tuple[int, int]] = {}
        """Of each text of `__metadata__`, as an escaped string of JSON without the quotes."""
        self._marks = _Marks()
        with _said("the header is not JSON of the expected form"):
            tensors = _Tensors(self._marks, self._entries(exactly=exactly))
        if exactly:
            tensors.check_places(self.data_bytes)
        self._tensors = tensors

    def raw(self, key: str) -> bytes:
        """A text of `__metadata__` as it is written, still escaped."""
        begin, end = self.places[key]
        return os.pread(self._fd, end - begin, begin)

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
            text = self._text(views.ATTRIBUTES_KEY)
            for _, table in text.entries("}"):
                _require(isinstance(table, dict))
            text.end()

    def _entries(self, *, exactly: bool) -> Iterator[tuple[str, Tensor]]:
        text = Text(jsontext.pieces(self._fd, 8, self.data_start))
        _require(next(text.keys(), None) == "__metadata__")
        self._find_places(text)
        end = text.position
        """Of what was read, had dsmem written it."""
        for name, entry in text.entries("}", inside=True):
            _require(name != "__metadata__")
            tensor = header.checked(name, entry, self.data_bytes)
            if exactly:
                end += len(",") + len(header.entries([(name, tensor)]))
            yield name, tensor
        # No form is shorter than ours: one of that length differs in the order of what an entry says at most.
        _require(not exactly or text.position == end + len("}"))
        text.end()

    def _find_places(self, text: Text) -> None:
        for key in text.keys():  # noqa: SIM118
            _require(key not in self.places and len(self.places) < _MOST_METADATA)
            begin = 8 + text.position + 1
            for _ in text.string():
                pass
            self.places[key] = begin, 8 + text.position - 1

    def _text(self, key: str) -> Text:
        begin, end = self.places[key]
        return Text(Text(jsontext.pieces(self._fd, begin - 1, end + 1)).string())

    def _checked_tree(self) -> Iterator[DatasetSummary]:
        """The same as `tree.load` looks at, and that no part comes twice."""
        nodes, datasets, targets = array("Q"), array("Q"), array("Q")
        parts = set()
        text = self._text(views.TREE_KEY)
        for part in text.keys():  # noqa: SIM118 - no dict
            _require(part not in parts)
            parts.add(part)
            if part not in _CLOSES:
                text.value()
                continue
            for path, value in text.entries(_CLOSES[part]):
                if part == "datasets":
                    _require(isinstance(value, dict))
                    yield summary_of(self._tensors.named, path, value)
                    datasets.append(self._marks.of(path))
                elif part in ("aliases", "soft_links"):
                    _require(isinstance(value, str))
                    if part == "aliases":
                        targets.append(self._marks.of(value))
                else:
                    nodes.append(self._marks.of(path))
        text.end()
        _require(len(np.unique(datasets)) == len(datasets))
        _require(bool(np.isin(targets, np.concatenate([nodes, datasets])).all()))


class _Marks:
    """Numbers of 64 bits for names, alike for none that differ: nobody who writes names knows the key."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)

    def of(self, name: str) -> int:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8, key=self._key)
        return int.from_bytes(digest.digest(), "little")


class _Tensors:
    """Tensors by name, in some 50 bytes each; raises ValueError when a name comes twice."""

    def __init__(self, marks: _Marks, entries: Iterator[tuple[str, Tensor]]) -> None:
        self._marks = marks
        names = array("Q")
        self._codes, self._begins, self._ends = array("B"), array("q"), array("q")
        self._dimensions, self._dimensions_end = array("Q"), array("Q", [0])
        for name, tensor in entries:
            names.append(marks.of(name))
            self._codes.append(_CODES.index(tensor.dtype))
            self._begins.append(tensor.begin)
            self._ends.append(tensor.end)
            self._dimensions.extend(tensor.shape)
            self._dimensions_end.append(len(self._dimensions))
        marks_of_all = np.array(names, np.uint64)
        order = np.argsort(marks_of_all)
        in_order = marks_of_all[order]
        _require(not (in_order[1:] == in_order[:-1]).any())
        self._names = array("Q", in_order.tobytes())
        self._numbers = array("q", order.tobytes())

    def named(self, name: str) -> Tensor:
        """The one of that name; raises KeyError."""
        mark = self._marks.of(name)
        place = bisect.bisect_left(self._names, mark)
        if place == len(self._names) or self._names[place] != mark:
            raise KeyError(name)
        number = self._numbers[place]
        shape = tuple(self._dimensions[self._dimensions_end[number] : self._dimensions_end[number + 1]])
        return Tensor(_CODES[self._codes[number]], shape, self._begins[number], self._ends[number])

    def check_places(self, data_bytes: int) -> None:
        """Raise DamagedObject unless they take all of the data, none of it twice."""
        begins, ends = np.array(self._begins, np.int64), np.array(self._ends, np.int64)
        order = np.lexsort((ends, begins))
        if not np.array_equal(begins[order], np.concatenate([[0], ends[order]])[:-1]):
            raise DamagedObject("its tensors overlap or leave gaps")
        if data_bytes != (ends.max() if len(ends) else 0):
            raise DamagedObject("its tensors are shorter than its data")


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
