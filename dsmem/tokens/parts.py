"""A part: the tokens of a piece of the input, complete once its record is there.

The ids of all parts lie in `tokens.bin` of the work directory, in the dtype of the output, where the output will have
them: a part is told where it begins when those before it are counted, and waits for that in memory (`Made`), or in
`part-N.bin` if it is large. `part-N.lengths` holds uint64 tokens per document, and `part-N.keys`, where documents are
to be split by content, a uint64 hash of each document's text. `part-N.json`, the record, is written last.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsmem import files
from dsmem.errors import BadDocument, WrongIds
from dsmem.tokens.holding import HashedFile, Held, Room
from dsmem.tokens.layout import LARGEST_ID, TokenDtype

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dsmem.tokens.engines import Ids, Lengths

_RECORD_BYTES = 64 << 20
_LOOP_TOKENS = 800
"""Tokens per document above which documents are joined one by one: a mask over all tokens costs as much as so many."""
_HELD_DOCUMENTS = 8192
"""Whose lengths are written together."""
_LOOP_CHARACTERS = 200
"""Characters per document above which looking at each takes less time than joining all."""


@dataclass(frozen=True, slots=True)
class Part:
    """A finished part, in input order within a sequence of them."""

    tokens_path: str
    """Ids, little-endian, bos and eos included."""
    lengths_path: str
    """uint64, tokens of each document, bos and eos included."""
    keys_path: str | None
    """uint64, xxh3-64 of each document's text as UTF-8; None unless it was asked for."""
    documents: int
    tokens: int
    text_bytes: int
    start_bytes: int = 0
    """Where its ids begin in their file."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is written about a finished part."""

    number: int
    documents: int
    tokens: int
    text_bytes: int
    start_bytes: int
    """Of its ids in the file of all."""
    size_bytes: int
    """Of its ids."""
    checksums: dict[str, str]
    """xxh3-128 of its ids and of each of its files, by suffix."""
    slices: dict[str, list[str]] = field(default_factory=dict)
    """By the index of an input: digests of the slices of an xxh3-tree that this part has read."""
    skipped: int = 0
    skipped_places: list[str] = field(default_factory=list)
    verified: int = 0
    verified_in_pieces: int = 0

    def part(self, directory: str) -> Part:
        """Where its files are."""
        stem = stem_of(directory, self.number)
        keys = f"{stem}.keys" if "keys" in self.checksums else None
        return Part(
            tokens_path(directory),
            f"{stem}.lengths",
            keys,
            self.documents,
            self.tokens,
            self.text_bytes,
            self.start_bytes,
        )


def stem_of(directory: str, number: int) -> str:
    """The path of a part's files, without their suffixes."""
    return f"{directory}/part-{number:06d}"


def tokens_path(directory: str) -> str:
    """The path of the ids of all parts."""
    return f"{directory}/tokens.bin"


def commit(directory: str, record: Record) -> None:
    """Write the record: from now on the part is finished."""
    files.write_atomic(f"{stem_of(directory, record.number)}.json", json.dumps(asdict(record)).encode())


def finished(directory: str, number: int) -> Record | None:
    """The record of a part if it is finished and its files are what they were."""
    stem = stem_of(directory, number)
    try:
        record = Record(**json.loads(files.read_own(f"{stem}.json", _RECORD_BYTES)))
        for suffix, checksum in record.checksums.items():
            if suffix == "bin":
                found = _checksum(tokens_path(directory), record.start_bytes, record.size_bytes)
            else:
                found = _checksum(f"{stem}.{suffix}")
            if found != checksum:
                return None
    except (OSError, ValueError, TypeError, AttributeError):
        return None  # not there, or torn: it is made anew
    return record


def forget(directory: str, first: int) -> None:
    """Of parts with that number and higher ones none is finished any longer."""
    for entry in list(os.scandir(directory)):
        stem, suffix = os.path.splitext(entry.name)
        if suffix == ".json" and stem.startswith("part-") and int(stem.removeprefix("part-")) >= first:
            os.unlink(entry.path)


def _checksum(path: str, start_bytes: int = 0, size_bytes: int = sys.maxsize) -> str:
    """xxh3-128 of so many bytes of a file, or of fewer if it ends before."""
    import xxhash

    hasher = xxhash.xxh3_128()
    with Path(path).open("rb", buffering=0) as file:
        file.seek(start_bytes)
        while data := file.read(min(size_bytes, 1 << 20)):
            hasher.update(data)
            size_bytes -= len(data)
    return hasher.hexdigest()


class PartWriter:
    """Collects the ids of a part and writes its other files; documents come in batches, or one in pieces."""

    def __init__(
        self,
        directory: str,
        number: int,
        dtype: TokenDtype,
        *,
        largest_id: int,
        head: Sequence[int],
        tail: Sequence[int],
        with_keys: bool,
        room: Room | None = None,
    ) -> None:
        self._directory = directory
        self._number = number
        self._dtype = f"<u{2 if dtype == 'uint16' else 4}"
        self._largest_id = min(largest_id, LARGEST_ID[dtype])
        self._head, self._tail = tuple(head), tuple(tail)
        self._stack = ExitStack()
        stem = stem_of(directory, number)
        self._tokens = Held(f"{stem}.bin", room or Room())
        self._lengths = self._stack.enter_context(HashedFile(f"{stem}.lengths"))
        self._keys = self._stack.enter_context(HashedFile(f"{stem}.keys")) if with_keys else None
        self._held_lengths: list[NDArray[np.uint64]] = []
        self._held_documents = 0
        self.documents = self.token_count = self.text_bytes = 0

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stack.close()
        if kind is not None:
            self._tokens.release()

    def add(self, texts: Sequence[str], ids: Ids, lengths: Lengths, text_bytes: int | None = None) -> None:
        """Whole documents, with what an engine gave for them; `text_bytes` as UTF-8, if that is known."""
        import numpy as np

        self._check(ids)
        framed = frame(ids, lengths, self._head, self._tail, self._dtype)
        self._tokens.write(framed)
        self._write_lengths(lengths + (len(self._head) + len(self._tail)))
        if self._keys is not None:
            import xxhash

            self._keys.write(np.array([xxhash.xxh3_64_intdigest(text.encode()) for text in texts], "<u8"))
        self.documents += len(texts)
        self.token_count += len(framed)
        self.text_bytes += _utf8_bytes(texts) if text_bytes is None else text_bytes

    def add_long(self, pieces: Iterable[Ids], seen: LongDocument) -> None:
        """One document in pieces; `seen` has met its bytes when they end. After BadDocument nothing of it is there."""
        import numpy as np

        count = len(self._head) + len(self._tail)
        before = self._tokens.mark()
        self._tokens.write(np.array(self._head, self._dtype))
        try:
            for ids in pieces:
                self._check(ids)
                self._tokens.write(ids.astype(self._dtype))
                count += len(ids)
        except BadDocument:
            self._tokens.go_back(before)
            raise
        self._tokens.write(np.array(self._tail, self._dtype))
        self._write_lengths(np.array([count]))
        if self._keys is not None:
            self._keys.write(np.array([seen.key()], "<u8"))
        self.documents += 1
        self.token_count += count
        self.text_bytes += seen.size_bytes

    def _write_lengths(self, lengths: Lengths) -> None:
        """Many at once."""
        self._held_lengths.append(lengths.astype("<u8"))
        self._held_documents += len(lengths)
        if self._held_documents >= _HELD_DOCUMENTS:
            self._flush_lengths()

    def _flush_lengths(self) -> None:
        import numpy as np

        if self._held_lengths:
            self._lengths.write(np.concatenate(self._held_lengths))
        self._held_lengths, self._held_documents = [], 0

    def _check(self, ids: Ids) -> None:
        if len(ids) and int(ids.max()) > self._largest_id:
            raise WrongIds(f"the engine gave the id {int(ids.max())}; the largest there can be is {self._largest_id}")

    def finish(self, **more: Any) -> Made:
        """Close the files; with what else there is to say in the record."""
        self._flush_lengths()
        self._stack.close()
        sums = {"bin": self._tokens.hexdigest(), "lengths": self._lengths.hexdigest()}
        if self._keys is not None:
            sums["keys"] = self._keys.hexdigest()
        record = Record(
            number=self._number,
            documents=self.documents,
            tokens=self.token_count,
            text_bytes=self.text_bytes,
            start_bytes=0,
            size_bytes=self._tokens.size_bytes,
            checksums=sums,
            **more,
        )
        return Made(self._directory, record, self._tokens)


class Made:
    """A part that is encoded and waits to be told where it begins."""

    def __init__(self, directory: str, record: Record, held: Held) -> None:
        self._directory = directory
        self._record = record
        self._held = held

    @property
    def number(self) -> int:
        """Of the part."""
        return self._record.number

    @property
    def size_bytes(self) -> int:
        """Of its ids."""
        return self._record.size_bytes

    def place(self, start_bytes: int) -> Record:
        """Write the ids there, and the record: from now on the part is finished."""
        self._held.write_to(tokens_path(self._directory), start_bytes)
        record = replace(self._record, start_bytes=start_bytes)
        commit(self._directory, record)
        return record


class LongDocument:
    """Counts and hashes the bytes of a document that is never in memory as a whole."""

    def __init__(self) -> None:
        import xxhash

        self.size_bytes = 0
        self._hasher = xxhash.xxh3_64()

    def update(self, data: bytes) -> bytes:
        """The data, seen."""
        self.size_bytes += len(data)
        self._hasher.update(data)
        return data

    def key(self) -> int:
        """xxh3-64 of all of it."""
        return self._hasher.intdigest()


def _utf8_bytes(texts: Sequence[str]) -> int:
    characters = sum(map(len, texts))
    if characters > _LOOP_CHARACTERS * len(texts):
        if all(map(str.isascii, texts)):
            return characters
        return sum([len(text) if text.isascii() else len(text.encode()) for text in texts])
    joined = "".join(texts)
    return characters if joined.isascii() else len(joined.encode())


def frame(ids: Ids, lengths: Lengths, head: Sequence[int], tail: Sequence[int], dtype: str) -> Any:
    """The ids in another dtype, with `head` before and `tail` after each document."""
    import numpy as np

    more = len(head) + len(tail)
    if more == 0:
        return ids.astype(dtype)
    if len(ids) > _LOOP_TOKENS * len(lengths):
        before, after = (np.array(some, dtype).tobytes() if some else b"" for some in (head, tail))
        narrowed: Any = ids.astype(dtype)
        data = memoryview(narrowed).cast("B")
        ends = (np.cumsum(lengths) * np.dtype(dtype).itemsize).tolist()
        texts = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        return np.frombuffer(b"".join((before, (after + before).join(texts), after)), dtype)
    out = np.empty(len(ids) + more * len(lengths), dtype)
    ends = np.cumsum(lengths + more)
    starts = ends - (lengths + more)
    for number, token in enumerate(head):
        out[starts + number] = token
    for number, token in enumerate(tail):
        out[ends - len(tail) + number] = token
    is_text = np.ones(len(out), bool)
    for number in range(len(head)):
        is_text[starts + number] = False
    for number in range(len(tail)):
        is_text[ends - len(tail) + number] = False
    out[is_text] = ids
    return out
