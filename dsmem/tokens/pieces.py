"""Pieces: the input cut into what becomes one part each, in order, by bytes and never by who works.

Plain files of many documents are cut into ranges, tables at row groups or batches, small files are put together. What
must be decoded first is spooled (`dsmem.tokens.spools`), as far as it is sound where bad documents are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dsmem.tokens import parts, workdir
from dsmem.tokens.cutting import Separator
from dsmem.tokens.inputs import BINARY, Source

if TYPE_CHECKING:
    from dsmem.tokens.compressed import Compression
    from dsmem.tokens.excerpts import Excerpt
    from dsmem.tokens.spools import Spool

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
    left_out: tuple[str, ...] = ()
    """What whoever cut it has found to be bad: documents behind the others of this piece."""
    excerpt: tuple[int, ...] = ()
    """Of a row group, only these pages (`Excerpt.dump`)."""
    is_hashed: bool = True
    """Whoever reads it computes digests of its slices: it begins and ends where they do, or ends with the file."""

    @classmethod
    def load(cls, raw: dict[str, Any]) -> Piece:
        """From what `asdict` gave."""
        files = tuple(tuple(one) for one in raw["files"])
        return cls(**{**raw, "files": files, "left_out": tuple(raw["left_out"]), "excerpt": tuple(raw["excerpt"])})

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


def plan(sources: Sequence[Source], how: Cutting, directory: str, is_done: Callable[[int], bool]) -> Iterator[Piece]:
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
        if source.format in BINARY:
            yield from _table(numbers, index, source, how, is_last=index == len(sources) - 1)
        elif is_whole or source.identity is None or source.compression or source.format == "json" or not how.is_utf8:
            yield from _spooled(numbers, index, source, how, directory, is_done)
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
    small_from = _small_from(size_bytes, part_bytes, is_last=is_last)
    start = 0
    while start < size_bytes:
        end = min(start + _share(start, small_from, part_bytes), size_bytes)
        hashed = start < small_from
        yield Piece(next(numbers), kind, path, path, start, end, end - start, source=index, is_hashed=hashed)
        start = end


def _small_from(size_bytes: int, part_bytes: int, *, is_last: bool) -> int:
    """Where smaller pieces begin: of the last file, if it has some parts, for the last one to two."""
    small_from = (size_bytes // part_bytes - 1) * part_bytes
    return small_from if is_last and small_from >= 2 * part_bytes >= 2 * LAST_SHARE else size_bytes


def _share(start: int, small_from: int, part_bytes: int) -> int:
    """The bytes of a piece that begins there."""
    return part_bytes if start < small_from else part_bytes // LAST_SHARE


def _kind(source: Source, how: Cutting) -> Kind:
    return "jsonl" if source.format in ("jsonl", "json") else how.split_on or "files"


def _table(numbers: Iterator[int], index: int, source: Source, how: Cutting, *, is_last: bool) -> Iterator[Piece]:
    """Row groups or record batches, as many as have the bytes of a part in the column of text, or pages of a row group
    that has more."""
    from dsmem.tokens import arrowfiles, tables  # which need numpy

    is_parquet = source.format == "parquet"
    sizes = (tables.row_groups if is_parquet else arrowfiles.record_batches)(source.path, how.text_field)
    total_bytes = sum(size for size, _ in sizes)
    small_from = _small_from(total_bytes, how.part_bytes, is_last=is_last and is_parquet)
    metadata: Any = None
    begin, first, done_bytes, held_bytes, held_rows = 0, 1, 0, 0, 0

    def piece(end: int, size_bytes: int, rows: int, excerpt: tuple[int, ...] = ()) -> Piece:
        nonlocal first, done_bytes
        first += rows
        done_bytes += size_bytes
        return Piece(
            next(numbers),
            "parquet" if is_parquet else "arrow",
            source.path,
            source.path,
            begin,
            end,
            source.size_bytes * size_bytes // max(total_bytes, 1),
            first=first - rows,
            source=index,
            excerpt=excerpt,
        )

    for number, (size_bytes, rows) in enumerate(sizes):
        share = _share(done_bytes, small_from, how.part_bytes)
        cut: list[tuple[Excerpt, int]] = []
        if is_parquet and size_bytes > share:
            metadata = metadata or tables.metadata_of(source.path)
            shares = _shares(done_bytes + held_bytes, size_bytes, small_from, how.part_bytes)
            cut = tables.excerpts_of(source.path, metadata, number, how.text_field, shares)
        if len(cut) > 1:
            if held_rows:
                yield piece(number, held_bytes, held_rows)
                held_bytes = held_rows = 0
            begin = number
            for excerpt, excerpt_bytes in cut:
                yield piece(number + 1, excerpt_bytes, excerpt.rows, excerpt.dump())
            begin = number + 1
            continue
        held_bytes += size_bytes
        held_rows += rows
        if held_bytes >= share or number == len(sizes) - 1:
            yield piece(number + 1, held_bytes, held_rows)
            begin, held_bytes, held_rows = number + 1, 0, 0
    if held_bytes or held_rows:
        yield piece(len(sizes), held_bytes, held_rows)


def _shares(start: int, size_bytes: int, small_from: int, part_bytes: int) -> list[int]:
    """The bytes of the pieces of a row group; the last counts for all that follow."""
    shares, end = [], start + size_bytes
    while start < min(small_from, end):
        shares.append(part_bytes)
        start += part_bytes
    return [*shares, _share(start, small_from, part_bytes)]


def _spooled(
    numbers: Iterator[int], index: int, source: Source, how: Cutting, directory: str, is_done: Callable[[int], bool]
) -> Iterator[Piece]:
    from dsmem.tokens import spools

    kind = _kind(source, how)
    number = -1
    damage = spools.damage_of(source) if how.skip_bad and source.compression and kind != "files" else None
    mark = Path(directory, f"{workdir.DAMAGED}{index}")

    def path_of() -> str | None:
        nonlocal number
        number = next(numbers)
        if mark.exists() != (damage is not None):
            # Parts from here on are of another run, which took more for sound, or less.
            parts.forget(directory, number)
            if damage is None:
                mark.unlink()
            else:
                mark.touch()
        return None if is_done(number) else f"{directory}/spool-{number:06d}"

    def piece(one: Spool) -> Piece:
        return Piece(
            number,
            kind,
            one.path,
            source.shown,
            0,
            one.size_bytes,
            one.weight_bytes,
            is_spool=True,
            first=one.first,
            unit=one.unit,
            source=index,
            left_out=one.left_out,
            files=((index, one.path, None),) if kind == "files" and not one.left_out else (),
        )

    if kind == "files":
        yield piece(spools.spooled_whole(source, path_of(), encoding=how.encoding, skip_bad=how.skip_bad))
        return
    separator: Separator = "blank" if kind == "blank" else "line"
    yield from map(
        piece,
        spools.spooled(
            source,
            separator,
            piece_bytes=how.part_bytes,
            encoding=how.encoding,
            skip_bad=how.skip_bad,
            path_of=path_of,
            damage=damage,
        ),
    )
