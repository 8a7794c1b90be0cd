"""A piece to a part: read its documents, encode them, compare some with the reference, write.

The same in a worker and in the process that was asked.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dsmem import malloc
from dsmem.errors import BadDocument, BadSource
from dsmem.tokens import contractions, crowd, cutting, documents, engines, feeding, renewing, turns
from dsmem.tokens.asking import Asked
from dsmem.tokens.cutting import BLOCK_BYTES
from dsmem.tokens.documents import Batch, Faults, Lines
from dsmem.tokens.failures import translated
from dsmem.tokens.feeding import Read, decoded, feed, is_longer, long_bytes, reading, reading_bytes
from dsmem.tokens.holding import Room, share_bytes
from dsmem.tokens.longrows import Long
from dsmem.tokens.parts import LongDocument, Made, PartWriter
from dsmem.tokens.pieces import Piece
from dsmem.tokens.recipe import Recipe
from dsmem.tokens.renewing import Renewing
from dsmem.tokens.sampling import Verifying, portions
from dsmem.tokens.slices import Slices
from dsmem.tokens.turns import Turn, Turns

if TYPE_CHECKING:
    from dsmem.tokens.compressed import Compression
    from dsmem.tokens.engines import Engine, Ids

_MOST_ASKED = 1 << 19
"""Characters of a text that is sent since the engine may split it wrongly: for a longer one a tokenizer is loaded."""
_ALONE_BYTES, _LEAST_ALONE_BYTES = 128 << 20, 16 << 20
"""Of documents among others that all workers read at once, and one: a longer one is read while nobody else encodes."""
Report = Callable[[int], None]
"""Called with bytes of input done since the last call."""


class Encoder:
    """Makes parts of pieces, one after the other."""

    def __init__(
        self,
        recipe: Recipe,
        engine: Engine | None = None,
        *,
        reference: Engine | None = None,
        ask: Callable[[str], list[int]] | None = None,
    ) -> None:
        """With an engine and a reference where they are loaded; `ask` encodes as the reference, in another process, and
        exactly where there is none."""
        self._recipe = recipe
        self._room = Room(share_bytes(recipe.workers))
        self._turns = Turns(
            None if recipe.workers == 1 else recipe.directory,
            weight=crowd.weight(recipe.workers, recipe.largest_id, recipe.engine),
            are_many=renewing.are_many(recipe.workers),
        )
        self._turn = Turn(self._turns, alone_bytes=max(_ALONE_BYTES // recipe.workers, _LEAST_ALONE_BYTES))
        engine = engine or engines.load(recipe.located, recipe.engine, parse_special=recipe.parse_special)
        if ask is not None or reference is not None:
            engines.mend_by(engine, self._exact)
        if engine.name == "fastokens":
            engine = Renewing(
                engine,
                renewing.share_bytes(recipe.workers, recipe.largest_id),
                lambda: self._room.taken_bytes,
                is_one_of_many=renewing.are_many(recipe.workers, recipe.largest_id),
            )
            self._turns.before_waiting(engine.rest)
        self.engine = self._in_turn(engine)
        self._reference = reference and self._in_turn(reference)
        self._ask_exact = ask
        self._asked: Engine | None = None
        if ask is not None and recipe.can_ask:
            asked = Asked(engines.reference_of(recipe.located), ask, self.engine.seams)
            self._asked = turns.InTurn(asked, self._turns)

    def _in_turn(self, engine: Engine) -> Engine:
        return turns.InTurn(engine, self._turns, is_large=self._recipe.largest_id >= renewing.MANY_IDS)

    def _exact(self, text: str) -> Ids:
        """What the engine is known to split wrongly, by what is loaded elsewhere or, of a long text, by one at a time:
        a tokenizer that is loaded once more for each worker may take 300 MiB."""
        if len(text) <= _MOST_ASKED or contractions.ODD in text:
            if self._ask_exact is not None:
                return np.array(self._ask_exact(text), np.uint32)
            if self._reference is not None:
                return self._reference.encode([text])[0]
        with self._turns.one("vocabulary"):
            ids, _ = engines.by_regex(self._recipe.located, parse_special=self._recipe.parse_special).encode([text])
            malloc.give_back()
        return ids

    def encode(self, piece: Piece, report: Report) -> Made:
        """Make the part but for its place; after BadSource, EngineDiffers or OSError it has no record."""
        recipe = self._recipe
        verifying = Verifying(self, piece, recipe)
        faults = Faults(recipe.skip_bad, encoding=recipe.encoding if piece.is_spool else "utf-8")
        slices: dict[str, list[str]] = {}
        with (
            self._turn,  # which ends with the piece, however that ends: others wait for it
            PartWriter(
                recipe.directory,
                piece.number,
                recipe.dtype,
                largest_id=recipe.largest_id,
                head=recipe.head,
                tail=recipe.tail,
                with_keys=recipe.with_keys,
                room=self._room,
            ) as writer,
        ):
            if piece.kind == "files":
                self._files(piece, writer, verifying, faults, slices, report)
            else:
                for batch in self._batches(piece, faults, slices):
                    if isinstance(batch, Long):
                        self._add_row(batch, writer, verifying, faults)
                    else:
                        self._add(batch, writer, verifying, faults)
                    report(batch.input_bytes)
                    del batch  # which may be large, before the next
            for message in piece.left_out:
                faults.add_told(message)
            return writer.finish(
                slices=slices,
                skipped=faults.count,
                skipped_places=faults.places,
                verified=verifying.count,
                verified_in_pieces=verifying.in_pieces,
            )

    def _add(self, batch: Batch, writer: PartWriter, verifying: Verifying, faults: Faults) -> None:
        """Encode the texts of a batch, long ones by themselves, in their order."""
        if batch.long is not None:
            read = reading_bytes(batch.long)
            self._add_long(read, writer, verifying, faults, path=batch.path, place=batch.place(0))
            return
        begin = 0
        longest = long_bytes(self.engine)
        has_long = batch.most_bytes > longest and 4 * max(map(len, batch.texts), default=0) > longest
        for index, text in enumerate(batch.texts if has_long else ()):
            if not is_longer(text, longest):
                continue
            self._add_short(batch, begin, batch.texts[begin:index], writer, verifying)
            place = partial(batch.place, index)
            self._add_long(reading(text), writer, verifying, faults, path=batch.path, place=place)
            begin = index + 1
        self._add_short(batch, begin, batch.texts[begin:] if begin else batch.texts, writer, verifying)

    def _add_short(self, batch: Batch, begin: int, texts: list[str], writer: PartWriter, verifying: Verifying) -> None:
        for some in portions(texts, batch.most_bytes, 2 * BLOCK_BYTES // turns.weight_of(self.engine.name)):
            try:
                with translated(batch.path):
                    ids, lengths = self.engine.encode(some)
            except BadSource:
                names = (feeding.named(batch.path, batch.place(index)) for index in range(begin, begin + len(some)))
                self._name_first_refused(some, names)
                raise
            verifying.look(some, ids, lengths, path=batch.path, place=batch.place, begin=begin)
            writer.add(some, ids, lengths, batch.text_bytes if some is batch.texts else None)
            begin += len(some)

    def _name_first_refused(self, texts: list[str], names: Iterable[str]) -> None:
        """Raise BadSource, by its name, for the first text that the engine does not take by itself either."""
        for text, name in zip(texts, names, strict=True):
            with translated(name):
                self.engine.encode([text])

    def _add_row(self, row: Long, writer: PartWriter, verifying: Verifying, faults: Faults) -> None:
        """Encode a long document among others."""
        if faults.skip:  # once a part of it is written there is no way back
            try:
                _check_utf8(row.open(), path=row.path, place=row.place)
            except BadDocument as exc:
                faults.add_told(str(exc))
                return
        self._add_long(row.open(), writer, verifying, faults, path=row.path, place=row.place)

    def _add_long(
        self, read: Read, writer: PartWriter, verifying: Verifying, faults: Faults, *, path: str, place: feeding.Place
    ) -> None:
        seen, comparing = LongDocument(), verifying.long()
        fed = feed(self.engine, lambda size: seen.update(read(size)), path=path, place=place, comparing=comparing)
        try:
            with translated(path):
                writer.add_long(fed, seen)
        except feeding.NoCut as exc:
            if not faults.skip:
                raise
            faults.add_told(str(exc))
            if comparing is not None:
                verifying.take_back()

    def _batches(self, piece: Piece, faults: Faults, slices: dict[str, list[str]]) -> Iterator[Batch | Long]:
        recipe = self._recipe
        if piece.kind in ("parquet", "arrow"):
            from dsmem.tokens import arrowfiles, columns, tables
            from dsmem.tokens.excerpts import Excerpt

            which = piece.path, piece.start, piece.end, recipe.text_field, self._turns
            excerpt = Excerpt.load(piece.excerpt) if piece.excerpt else None
            of = tables.of_row_groups(*which, excerpt) if piece.kind == "parquet" else arrowfiles.of_batches(*which)
            with of as found:
                yield from columns.rows(
                    found, piece.first, path=piece.shown, text_field=recipe.text_field, faults=faults
                )
            return
        with Path(piece.path).open("rb", buffering=0) as file:
            fd = file.fileno()
            separator: cutting.Separator = "blank" if piece.kind == "blank" else "line"
            lines = Lines(piece.path, piece.start, piece.first if piece.is_spool else None, piece.unit)
            hashing = piece.is_hashed and not piece.is_spool
            read = Slices(piece.start, piece.end)
            start, end, is_open = piece.start, piece.end, False
            if not piece.is_spool:
                size_bytes = os.fstat(fd).st_size
                start, end, is_open = cutting.bounds(fd, piece.start, piece.end, size_bytes, separator)

            def leave_out(offset: int) -> None:
                faults.add(piece.shown, documents.Place(lines, offset), cutting.too_long())

            blocks = cutting.blocks(fd, start, end, separator, leave_out, is_open=is_open, turn=self._turn)
            if hashing:
                blocks = read.watch(fd, blocks)
            if piece.kind == "jsonl":
                yield from documents.json_lines(
                    blocks, path=piece.shown, text_field=recipe.text_field, lines=lines, faults=faults
                )
            elif piece.kind == "line":
                yield from documents.plain_lines(blocks, path=piece.shown, lines=lines, faults=faults)
            else:
                yield from documents.paragraphs(blocks, path=piece.shown, lines=lines, faults=faults)
            if hashing:
                slices[str(piece.source)] = read.digests()

    def _files(
        self,
        piece: Piece,
        writer: PartWriter,
        verifying: Verifying,
        faults: Faults,
        slices: dict[str, list[str]],
        report: Report,
    ) -> None:
        """A document a file; small ones are encoded together."""
        texts: list[str] = []
        paths: list[str] = []
        held_bytes = 0
        longest = long_bytes(self.engine)

        def flush() -> None:
            nonlocal held_bytes
            try:
                with translated(" or ".join(paths if len(paths) <= 3 else [*paths[:3], "another"])):
                    ids, lengths = self.engine.encode(texts)
            except BadSource:
                self._name_first_refused(texts, paths)
                raise
            for number, path in enumerate(paths):
                verifying.look_at(texts, ids, lengths, number, path=path)
            writer.add(texts, ids, lengths)
            report(held_bytes)
            texts.clear()
            paths.clear()
            held_bytes = 0

        for index, path, compression in piece.files:
            shown = piece.shown if piece.is_spool else path
            try:
                with self._document(path, compression, piece) as read:
                    head = _exactly(read, longest + 1)
                    if len(head) <= longest:
                        texts.append(decoded(head, path=shown))
                        paths.append(shown)
                        held_bytes += len(head)
                    else:
                        if faults.skip:
                            # Once a part of it is written there is no way back.
                            with self._document(path, compression, piece) as first:
                                _check_utf8(first, path=shown)
                        flush()
                        self._add_long(_from(head, read), writer, verifying, faults, path=shown, place="")
                        report(os.stat(path).st_size)
            except BadDocument as exc:
                if not faults.skip:
                    raise
                faults.add_told(str(exc))
            if not piece.is_spool:
                with Path(path).open("rb") as file:
                    whole = Slices(0, os.fstat(file.fileno()).st_size)
                    whole.look_at(file.fileno(), whole.end)
                slices[str(index)] = whole.digests()
            if held_bytes >= BLOCK_BYTES:
                flush()
        flush()

    @contextmanager
    def _document(self, path: str, compression: Compression | None, piece: Piece) -> Iterator[Read]:
        """`read(size)` over the UTF-8 of a file that is one document."""
        from dsmem.tokens import compressed, recoding

        with Path(path).open("rb") as file, compressed.opened(file, compression, path=path) as plain:
            encoding = "utf-8" if piece.is_spool else self._recipe.encoding
            yield recoding.as_utf8(plain, encoding, path=path).read

    def reference(self, *, now: bool) -> Engine:
        """The engine to compare with: one that asks, or one that is loaded when it is first asked for; `now`: whoever
        is asked will answer at once."""
        if now and self._reference is None and self._asked is not None:
            return self._asked
        if self._reference is None:
            recipe = self._recipe
            name = engines.reference_of(recipe.located)
            with self._turns.one("vocabulary"):
                loaded = engines.load(recipe.located, name, parse_special=recipe.parse_special)
                malloc.give_back()  # two thirds of what loading takes
            self._reference = self._in_turn(loaded)
        return self._reference

    def rest(self) -> None:
        """There may be nothing to encode for long: hold little meanwhile."""
        self._turns.rest()

    def expected(self, text: str, *, now: bool) -> Ids:
        """What the reference gives."""
        return self.reference(now=now).encode([text])[0]


def _exactly(read: Read, size: int) -> bytes:
    """That many bytes, fewer at the end only."""
    held: list[bytes] = []
    left = size
    while left and (data := read(left)):
        held.append(data)
        left -= len(data)
    return b"".join(held)


def _from(ahead: bytes, read: Read) -> Read:
    def then(size: int) -> bytes:
        nonlocal ahead
        if ahead:
            data, ahead = ahead[:size], ahead[size:]
            return data
        return read(size)

    return then


def _check_utf8(read: Read, *, path: str, place: feeding.Place = "") -> None:
    """Look through a document before any of it is written; raises BadDocument, with a line if no place is given."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    while True:
        data = read(1 << 20)
        try:
            decoder.decode(data, final=not data)
        except UnicodeDecodeError as exc:
            line += exc.object.count(b"\n", 0, exc.start)
            reason = f"not UTF-8: byte 0x{exc.object[exc.start]:02x}"
            where = feeding.said(place) or str(line)
            raise BadDocument(f"{path}:{where}: {reason}", path=path, place=where) from exc
        if not data:
            return
        line += data.count(b"\n")
