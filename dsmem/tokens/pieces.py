"""Pieces: the input cut into what becomes one part each, in order, by bytes and never by who works.

Plain files of many documents are cut into ranges, tables at row groups or batches, small files are put together. What
must be decoded first (compressed files, JSON arrays, streams, other encodings) is spooled: whole documents in files of
the work directory, one a piece, removed when its part is finished.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from dsmem.errors import BadSource
from dsmem.files import FileIdentity
from dsmem.tokens import compressed, cutting, recoding
from dsmem.tokens.compressed import Compression, Joined
from dsmem.tokens.cutting import Separator
from dsmem.tokens.documents import need_column
from dsmem.tokens.inputs import STDIN, Source

Kind = Literal["jsonl", "line", "blank", "files", "parquet", "arrow"]
LAST_SHARE = 4
"""The end of the last file is cut into so many pieces a part: else all wait for the one who got the last."""
_MOST_FILES = 4096
"""In one piece."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What becomes one part; JSON holds all of it."""

    number: int
    kind: Kind
    path: str
    """The file to read."""
    shown: str
    """The file that messages name."""
    start: int
    """Bytes; row groups or batches of tables."""
    end: int
    weight_bytes: int
    """For progress."""
    is_spool: bool = False
    """The file holds this piece's documents and nothing else."""
    first: int = 1
    """The number of a spool's first line, or of a table's first row."""
    unit: str = ""
    source: int = 0
    """The index of the input."""
    files: tuple[tuple[int, str, Compression | None], ...] = ()
    """Of `files`: index, path, compression of each, a document each."""
    is_hashed: bool = True
    """Whoever reads it computes digests of its slices: it begins and ends where they do, or ends with the file."""

    @classmethod
    def load(cls, raw: dict[str, Any]) -> Piece:
        """From what `asdict` gave."""
        return cls(**{**raw, "files": tuple(tuple(one) for one in raw["files"])})

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Cutting:
    """How inputs are cut."""

    part_bytes: int
    split_on: Separator | None
    """Of .txt: None = a file is a document."""
    encoding: str
    """As `codecs` names it."""
    text_field: str
    skip_bad: bool = False
    """What can't be decoded becomes bytes that are no UTF-8, for whoever reads the documents."""

    @property
    def is_utf8(self) -> bool:
        """Whether bytes can be cut and read as they lie."""
        return self.encoding == "utf-8"


def plan(sources: Sequence[Source], how: Cutting, spools: str, is_done: Callable[[int], bool]) -> Iterator[Piece]:
    """Every piece in order; a spool is written to the directory when it is asked for, unless its part is done.

    Raises BadSource, SourceMissing, OSError.
    """
    numbers = iter(range(sys.maxsize))
    waiting: list[tuple[int, Source]] = []
    waiting_bytes = 0
    for index, source in enumerate(sources):
        is_whole = source.format == "txt" and how.split_on is None
        if is_whole and source.identity is not None:
            if waiting and (waiting_bytes + source.size_bytes > how.part_bytes or len(waiting) >= _MOST_FILES):
                yield _together(next(numbers), waiting)
                waiting, waiting_bytes = [], 0
            waiting.append((index, source))
            waiting_bytes += source.size_bytes
            continue
        if waiting:
            yield _together(next(numbers), waiting)
            waiting, waiting_bytes = [], 0
        if source.format in ("parquet", "arrow"):
            yield from _table(numbers, index, source, how)
        elif is_whole or source.identity is None or source.compression or source.format == "json" or not how.is_utf8:
            yield from _spooled(numbers, index, source, how, spools, is_done)
        else:
            yield from _ranges(numbers, index, source, how, is_last=index == len(sources) - 1)
    if waiting:
        yield _together(next(numbers), waiting)


def _together(number: int, sources: list[tuple[int, Source]]) -> Piece:
    size_bytes = sum(source.size_bytes for _, source in sources)
    named = tuple((index, source.path, source.compression) for index, source in sources)
    return Piece(number, "files", named[0][1], named[0][1], 0, size_bytes, size_bytes, files=named)


def _ranges(numbers: Iterator[int], index: int, source: Source, how: Cutting, *, is_last: bool) -> Iterator[Piece]:
    kind = _kind(source, how)
    path, size_bytes, part_bytes = source.path, source.size_bytes, how.part_bytes
    small_bytes = part_bytes // LAST_SHARE
    # Of a file of some parts the last one to two.
    small_from = (size_bytes // part_bytes - 1) * part_bytes
    if not is_last or small_from < 2 * part_bytes or not small_bytes:
        small_from = size_bytes
    start = 0
    while start < size_bytes:
        end = min(start + (part_bytes if start < small_from else small_bytes), size_bytes)
        hashed = start < small_from
        yield Piece(next(numbers), kind, path, path, start, end, end - start, source=index, is_hashed=hashed)
        start = end


def _kind(source: Source, how: Cutting) -> Kind:
    return "jsonl" if source.format in ("jsonl", "json") else how.split_on or "files"


def _table(numbers: Iterator[int], index: int, source: Source, how: Cutting) -> Iterator[Piece]:
    """Row groups or record batches, as many as have the bytes of a part in the column of text."""
    sizes = _row_groups(source.path, how) if source.format == "parquet" else _batches(source.path, how)
    total_bytes = max(sum(size for size, _ in sizes), 1)
    begin, first, held_bytes, held_rows = 0, 1, 0, 0
    for number, (size_bytes, rows) in enumerate(sizes):
        held_bytes += size_bytes
        held_rows += rows
        if held_bytes >= how.part_bytes or number == len(sizes) - 1:
            yield Piece(
                next(numbers),
                "parquet" if source.format == "parquet" else "arrow",
                source.path,
                source.path,
                begin,
                number + 1,
                source.size_bytes * held_bytes // total_bytes,
                first=first,
                source=index,
            )
            begin, first, held_bytes, held_rows = number + 1, first + held_rows, 0, 0


def _row_groups(path: str, how: Cutting) -> list[tuple[int, int]]:
    from pyarrow import parquet

    with reading(path), parquet.ParquetFile(path) as file:
        names = [file.schema_arrow.field(number).name for number in range(len(file.schema_arrow))]
        need_column(path, names, how.text_field)
        groups = range(file.metadata.num_row_groups)
        found = [text_of_group(file.metadata, group, how.text_field) for group in groups]
        return [(one.text_bytes, one.rows) for one in found]


@dataclass(frozen=True, slots=True)
class RowGroup:
    """What a Parquet file says about the text in a row group."""

    text_bytes: int
    stored_bytes: int
    """Compressed."""
    rows: int


def text_of_group(metadata: Any, group: int, text_field: str) -> RowGroup:
    """The column of text in a row group."""
    about = metadata.row_group(group)
    chunks = [about.column(number) for number in range(about.num_columns)]
    mine = [one for one in chunks if one.path_in_schema == text_field]
    return RowGroup(
        sum(one.total_uncompressed_size for one in mine),
        sum(one.total_compressed_size for one in mine),
        about.num_rows,
    )


def _batches(path: str, how: Cutting) -> list[tuple[int, int]]:
    with reading(path), record_batches(path) as (schema, batches):
        need_column(path, schema.names, how.text_field)
        number = schema.get_field_index(how.text_field)
        return [(batch.column(number).nbytes, batch.num_rows) for batch in batches]


@contextmanager
def record_batches(path: str) -> Iterator[tuple[Any, Iterator[Any]]]:
    """The schema and the record batches of an Arrow file, of either form, mapped."""
    import pyarrow as pa

    with pa.memory_map(path) as file:
        magic = file.read(6)
        file.seek(0)
        if magic == b"ARROW1":
            reader = pa.ipc.open_file(file)
            yield reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            stream = pa.ipc.open_stream(file)
            yield stream.schema, iter(stream)


@contextmanager
def reading(path: str) -> Iterator[None]:
    """What pyarrow says about a file that is no table, as BadSource."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowSerializationError) as exc:
        raise BadSource(f"{path} can't be read as a table: {str(exc).splitlines()[0]}") from exc
    except OSError as exc:
        if exc.errno is not None:
            raise
        raise BadSource(f"{path} can't be read as a table: {str(exc).splitlines()[0]}") from exc


def _spooled(
    numbers: Iterator[int], index: int, source: Source, how: Cutting, spools: str, is_done: Callable[[int], bool]
) -> Iterator[Piece]:
    kind = _kind(source, how)
    separator: Separator = "blank" if kind == "blank" else "line"
    with _raw(source) as (raw, compression), compressed.opened(raw, compression, path=source.path) as plain:
        text = recoding.as_utf8(plain, how.encoding, path=source.path, skip_bad=how.skip_bad)
        if kind == "files":
            yield _whole(next(numbers), index, source, text, spools, is_done)
            return
        cut, unit = _pieces(text, source, how, separator)
        before_bytes, first = 0, 1
        for data in cut:
            number = next(numbers)
            path = f"{spools}/spool-{number:06d}"
            if not is_done(number):
                with Path(path).open("wb") as file:
                    file.write(data)
            at = raw.tell() if source.identity is not None else before_bytes + len(data)
            yield Piece(
                number,
                kind,
                path,
                source.path,
                0,
                len(data),
                at - before_bytes,
                is_spool=True,
                first=first,
                unit=unit,
                source=index,
            )
            before_bytes, first = at, first + data.count(b"\n")


def _whole(
    number: int, index: int, source: Source, text: IO[bytes], spools: str, is_done: Callable[[int], bool]
) -> Piece:
    """A stream that is one document."""
    path = f"{spools}/spool-{number:06d}"
    size_bytes = 0
    if not is_done(number):
        with Path(path).open("wb") as file:
            while data := text.read(1 << 20):
                size_bytes += file.write(data)
    return Piece(
        number,
        "files",
        path,
        source.path,
        0,
        size_bytes,
        size_bytes,
        is_spool=True,
        source=index,
        files=((index, path, None),),
    )


def _pieces(text: IO[bytes], source: Source, how: Cutting, separator: Separator) -> tuple[Iterator[bytes], str]:
    """The documents of a stream in pieces, and what is counted to name one: lines or elements."""
    if source.format != "json":
        return cutting.pieces(text.read, separator, how.part_bytes), ""
    peeked = text.read(1 << 16)
    rest = cast("IO[bytes]", Joined(peeked, text))
    if not cutting.is_array(peeked):
        if peeked.split(b"\n", 1)[0].strip() == b"{":
            raise BadSource(
                f"{source.path} is a JSON object over several lines, neither an array nor one object a line"
            )
        return cutting.pieces(rest.read, separator, how.part_bytes), ""
    lines = _Lines(cutting.elements(rest, path=source.path, skip_bad=how.skip_bad))
    return cutting.pieces(lines.read, "line", how.part_bytes), "element"


class _Lines:
    """Elements of a JSON array as lines: a line end inside one becomes a carriage return, which JSON allows and forbids
    in the same places."""

    def __init__(self, elements: Iterator[bytes]) -> None:
        self._elements = elements

    def read(self, size: int) -> bytes:
        held: list[bytes] = []
        held_bytes = 0
        for element in self._elements:
            held.append(element.replace(b"\n", b"\r") if b"\n" in element else element)
            held_bytes += len(element) + 1
            if held_bytes >= size:
                break
        return b"\n".join([*held, b""])


@contextmanager
def _raw(source: Source) -> Iterator[tuple[IO[bytes], Compression | None]]:
    """The bytes as they lie, and how they are compressed: of a stream that is known only now."""
    if source.path == STDIN:
        yield compressed.peeked(sys.stdin.buffer)
        return
    with Path(source.path).open("rb") as file:
        if source.identity is None:
            yield compressed.peeked(file)
            return
        if FileIdentity.of(os.fstat(file.fileno())) != source.identity:
            raise BadSource(f"{source.path} is not the file that it was a moment ago")
        yield file, source.compression
