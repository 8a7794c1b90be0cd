"""One run of `dsmem tokenize`: pieces become parts, by workers or here, and parts the output, with its manifest.

A part that an earlier run has finished is taken over if it is what its record says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import dsmem
from dsmem import digest, malloc
from dsmem.errors import NoDocuments, SourceChanged
from dsmem.files import FileIdentity
from dsmem.progress import Progress, ignore
from dsmem.tokens import crowd, workdir
from dsmem.tokens import pieces as cutting_up
from dsmem.tokens.claim import Claim
from dsmem.tokens.crew import Crew
from dsmem.tokens.failures import translated
from dsmem.tokens.inputs import BINARY, Source
from dsmem.tokens.manifest import Input, Manifest
from dsmem.tokens.manifest import Tokenizer as About
from dsmem.tokens.options import Arrangement, Options, Output, dtype_of, frame_of
from dsmem.tokens.parts import Record, finished
from dsmem.tokens.pieces import Cutting, Piece
from dsmem.tokens.places import Places
from dsmem.tokens.recipe import ALL, Recipe
from dsmem.tokens.slices import Slices
from dsmem.tokens.vocabularies import Located, describe, meant_from_here

if TYPE_CHECKING:
    from dsmem.tokens.engines import Engine, EngineName


_REGEX_BYTES = 16 << 20
"""How much this process may grow by as it encodes for workers."""
_LONG_CHARACTERS = 1 << 16
"""Encoded for a worker: it took some MiB."""
MOST_NAMED = 3
"""Inputs in which no document was found."""


class Run:
    """One run, once the work directory is ours."""

    def __init__(
        self,
        sources: Sequence[Source],
        target: str,
        directory: str,
        options: Options,
        located: Located,
        cutting: Cutting,
        with_keys: bool,
        restart: bool,
        crew: Crew | None,
    ) -> None:
        self._sources = sources
        self._target = target
        self._directory = directory
        self._options = options
        self._cutting = cutting
        self._with_keys = with_keys
        self._vocabulary = describe(
            options.tokenizer,
            scratch=lambda: directory,
            bos_token=options.bos_token,
            eos_token=options.eos_token,
            located=located,
        )
        malloc.give_back()  # two thirds of what describing takes
        self._head, self._tail = frame_of(self._vocabulary, options)
        self.dtype = dtype_of(self._vocabulary, options.dtype)
        self._crew = crew
        self._engine: Engine | None = None
        self._asked: Engine | None = None
        self._is_shared = False
        self.engine = self._choose()
        if crew is not None:
            most = crowd.most_workers(
                self._vocabulary.largest_id,
                self.engine,
                has_tables=any(source.format in BINARY for source in sources),
                compares_all=options.verify == "all",
                is_shared=self._is_shared,
            )
            crew.keep(most)
        self._engine_version = _version_of(self.engine)
        can_resume = all(source.identity is not None for source in sources)
        self._verify = ALL if options.verify == "all" else options.verify
        self._resumes = workdir.settle(
            directory,
            self._plan(),
            verify=0 if self._is_reference() else self._verify,
            restart=restart,
            can_resume=can_resume,
        )
        self.resumed_parts = 0

    def _choose(self) -> EngineName:
        """The engine: what workers have loaded by now, or what is loaded here to find out why not.

        Raises UsageError, WorkerLost.
        """
        wanted = self._options.engine
        found = None
        if self._crew is not None:
            self._crew.ask_fitting(self._vocabulary.added)
            # While an engine is loaded elsewhere: what tells its version.
            import importlib.metadata  # noqa: F401

            from dsmem.tokens import engines

            if any(source.format in BINARY for source in self._sources):
                import pyarrow.parquet  # noqa: F401

            unfit = engines.obstacle(self._vocabulary, parse_special=self._options.parse_special)
            found = self._crew.fitting()
            if found is not None and wanted in ("auto", found) and (found != "fastokens" or not unfit):
                self._is_shared = True
                return found
        from dsmem.tokens import engines

        self._engine = engines.choose(self._vocabulary, wanted, parse_special=self._options.parse_special)
        return self._engine.name

    def _is_reference(self) -> bool:
        """Whether the engine is its own reference: then nothing is compared."""
        from dsmem.tokens import engines

        return engines.reference_of(self._vocabulary.located) == self.engine

    def _plan(self) -> dict[str, object]:
        options, cutting = self._options, self._cutting
        return {
            "dsmem": dsmem.__version__,
            "tokenizer": [self._vocabulary.located.kind, self._vocabulary.sha256],
            "engine": [self.engine, self._engine_version],
            "bos": [options.bos, self._head],
            "eos": [options.eos, self._tail],
            "parse_special": options.parse_special,
            "dtype": self.dtype,
            "text_field": options.text_field,
            "split_on": cutting.split_on,
            "encoding": cutting.encoding,
            "part_bytes": cutting.part_bytes,
            "last parts": cutting_up.LAST_SHARE,
            "row groups": "cut at pages",
            "validation set": self._with_keys,
            "inputs": [
                [source.path, source.format, source.identity and source.identity.as_list()] for source in self._sources
            ],
        }

    def make_parts(self, progress: Progress, tokens_progress: Callable[[int], None] | None = None) -> list[Record]:
        """Every part, by workers or here; the records are in order."""
        options = self._options
        recipe = Recipe(
            directory=self._directory,
            located=self._vocabulary.located,
            engine=self.engine,
            parse_special=options.parse_special,
            dtype=self.dtype,
            largest_id=self._vocabulary.largest_id,
            head=self._head,
            tail=self._tail,
            text_field=options.text_field,
            encoding=self._cutting.encoding,
            skip_bad=options.on_error == "skip",
            with_keys=self._with_keys,
            verify=self._verify,
            workers=1 if self._crew is None else self._crew.size,
            # Who waits for more of a stream answers nobody meanwhile.
            can_ask=self._vocabulary.reference is not None and not any(one.identity is None for one in self._sources),
        )
        records: dict[int, Record] = {}
        places = Places()
        report = _Progress(progress, tokens_progress, self._sources)
        pending = self._pending(records, places, report)
        if self._crew is None:
            from dsmem.tokens.encoding import Encoder

            encoder = Encoder(recipe, self._engine, reference=self._reference())
            for piece in pending:
                made = encoder.encode(piece, report)
                places.count(made.number, made.size_bytes)
                for number, start_bytes in places.known():
                    records[number] = made.place(start_bytes)
                    report.count(records[number])
                if piece.is_spool:
                    os.unlink(piece.path)
        else:
            for record in self._crew.run(recipe, pending, places, report, self._compare, _import_the_rest):
                records[record.number] = record
                report.count(record)
            self._crew.dismiss()
        places.finish()
        report.finish()
        if not any(record.documents for record in records.values()):
            raise self._no_documents([records[number] for number in sorted(records)])
        return [records[number] for number in sorted(records)]

    def _no_documents(self, records: Sequence[Record]) -> NoDocuments:
        named = [source.shown for source in self._sources[:MOST_NAMED]]
        more = f" and {len(self._sources) - len(named)} more" if len(self._sources) > len(named) else ""
        skipped = sum(record.skipped for record in records)
        bad = f": {skipped} bad {'one was' if skipped == 1 else 'ones were'} left out" if skipped else ""
        return NoDocuments(
            f"no documents in {', '.join(named)}{more}{bad}", skipped=skipped, places=self.skipped_places(records)
        )

    def _reference(self) -> Engine | None:
        """What was loaded to describe the tokenizer, as an engine."""
        from dsmem.tokens import engines

        return engines.reference_in(self._vocabulary, parse_special=self._options.parse_special)

    def _by_regex(self) -> Engine:
        """What is exact, where there is no reference; for short texts."""
        from dsmem.tokens import engines
        from dsmem.tokens.renewing import Renewing

        loaded = engines.by_regex(self._vocabulary.located, parse_special=self._options.parse_special)
        return Renewing(loaded, _REGEX_BYTES, lambda: 0)

    def _compare(self, text: str) -> list[int]:
        """What the reference gives, for a worker that compares, or whose engine would split a text wrongly."""
        self._asked = self._asked or self._reference() or self._by_regex()
        with translated("a document that is compared"):
            ids: list[int] = self._asked.encode([text])[0].tolist()
        if len(text) > _LONG_CHARACTERS:
            malloc.give_back()
        return ids

    def _pending(self, records: dict[int, Record], places: Places, report: _Progress) -> Iterator[Piece]:
        """The pieces whose parts are still to be made; the others' records are put to the rest, and their places."""

        def is_done(number: int) -> bool:
            if not self._resumes:
                return False
            if number not in records:
                record = finished(self._directory, number)
                if record is None or (record.skipped and self._options.on_error != "skip"):
                    return False
                records[number] = record
                self.resumed_parts += 1
            return True

        for piece in cutting_up.plan(self._sources, self._cutting, self._directory, is_done):
            if is_done(piece.number):
                record = records[piece.number]
                places.count(piece.number, record.size_bytes, placed_at=record.start_bytes)
                report(piece.weight_bytes)
                report.count(record)
            else:
                yield piece

    def put_together(
        self, records: Sequence[Record], arrangement: Arrangement, claim: Claim, progress: Progress
    ) -> tuple[Output, ...]:
        """The output, from parts; raises SourceChanged, OutputExists."""
        from dsmem.tokens.arrange import arrange

        manifest = self._manifest(records)
        arranged = arrange(
            [record.part(self._directory) for record in records],
            self._target,
            self.dtype,
            arrangement,
            staging=self._directory,
            manifest=manifest,
            progress=ignore,
            take_over=True,
            before_publishing=claim.publish,
        )
        return tuple(
            Output(one.path, one.manifest.split, one.manifest.tokens, one.manifest.documents) for one in arranged
        )

    def _manifest(self, records: Sequence[Record]) -> Manifest:
        """What is known before documents are arranged."""
        from dsmem.tokens import engines

        options, vocabulary = self._options, self._vocabulary
        reference = engines.reference_of(vocabulary.located)
        return Manifest(
            dsmem=dsmem.__version__,
            dtype=self.dtype,
            tokens=sum(record.tokens for record in records),
            documents=sum(record.documents for record in records),
            text_bytes=sum(record.text_bytes for record in records),
            bos=options.bos,
            eos=options.eos,
            tokenizer=About(
                spec=meant_from_here(vocabulary.spec),
                kind=vocabulary.located.kind,
                sha256=vocabulary.sha256,
                vocab_size=vocabulary.vocab_size,
                largest_id=vocabulary.largest_id,
                bos_id=vocabulary.bos_id,
                eos_id=vocabulary.eos_id,
                engine=self.engine,
                engine_version=self._engine_version,
                reference="" if reference == self.engine else reference,
                verified_documents=sum(record.verified for record in records),
                parse_special=options.parse_special,
            ),
            inputs=tuple(self._inputs(records)),
            digest="",
            skipped=sum(record.skipped for record in records),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _inputs(self, records: Sequence[Record]) -> Iterator[Input]:
        """Every input with its digest: from what parts have read, else read now; raises SourceChanged."""
        slices: dict[str, list[str]] = {}
        for record in records:
            for index, found in record.slices.items():
                slices.setdefault(index, []).extend(found)
        for number, source in enumerate(self._sources):
            if source.identity is None:
                yield Input(source.path, source.size_bytes, "")
                continue
            if str(number) in slices and self._cutting.part_bytes % digest.SLICE_BYTES == 0:
                found = [*slices[str(number)], *_rest_of(source, len(slices[str(number)]))]
                found_hex = digest.tree_digest(bytes.fromhex(one) for one in found)
            else:
                found_hex = digest.hash_file(source.path).hex
            if FileIdentity.of(os.stat(source.path)) != source.identity:
                raise SourceChanged(f"{source.path} changed while it was tokenized")
            yield Input(source.path, source.size_bytes, f"xxh3-tree:{found_hex}")

    def skipped_places(self, records: Sequence[Record]) -> tuple[str, ...]:
        """The first documents that were left out."""
        from dsmem.tokens.documents import MOST_PLACES

        return tuple(place for record in records for place in record.skipped_places)[:MOST_PLACES]


def _version_of(engine: EngineName) -> str:
    """Of its package, which is where workers find it, too."""
    if engine == "bytes":
        return "1"
    from importlib.metadata import version  # takes longer than most imports, and few ask

    return version(engine)


def _rest_of(source: Source, seen: int) -> list[str]:
    """Digests of the slices that no part has read as a whole."""
    start = seen * digest.SLICE_BYTES
    if start >= source.size_bytes:
        return []
    rest = Slices(start, source.size_bytes)
    with Path(source.path).open("rb") as file:
        rest.look_at(file.fileno(), source.size_bytes)
    return rest.digests()


def _import_the_rest() -> None:
    """What is needed when workers have something to do, or at the end."""
    import dsmem.tokens.arrange  # noqa: F401


class _Progress:
    """Adds up what is done; streams, whose size is not known, make the whole grow."""

    def __init__(
        self, progress: Progress, tokens_progress: Callable[[int], None] | None, sources: Sequence[Source]
    ) -> None:
        self._progress = progress
        self._tokens_progress = tokens_progress
        self._tokens = 0
        self._grows = any(source.identity is None for source in sources)
        self._total_bytes = sum(source.size_bytes for source in sources)
        self._done_bytes = 0

    def __call__(self, more_bytes: int) -> None:
        self._done_bytes += more_bytes
        if self._grows:
            self._total_bytes = max(self._total_bytes, self._done_bytes)
        self._progress(min(self._done_bytes, self._total_bytes), self._total_bytes)

    def count(self, record: Record) -> None:
        """A part is finished."""
        self._tokens += record.tokens
        if self._tokens_progress is not None:
            self._tokens_progress(self._tokens)

    def finish(self) -> None:
        """All is done: what was reported is only near to the sizes of the files."""
        self._progress(self._total_bytes, self._total_bytes)
