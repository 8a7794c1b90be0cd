"""Text to token files: `dsmem.tokenize`.

Plan (which files, which pieces), make parts in workers, then put them together (`dsmem.tokens.arrange`). The output
depends on the input and the options alone; memory is bounded by blocks, batches and the longest document among others,
never by the size of the input.
"""

from __future__ import annotations

import codecs
import errno
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import dsmem
from dsmem import digest, proc, units
from dsmem.errors import BadSource, OutputExists, OutputFull, SourceChanged, UsageError
from dsmem.files import FileIdentity
from dsmem.progress import Progress, ignore
from dsmem.tokens import inputs as gathering
from dsmem.tokens import pieces as cutting_up
from dsmem.tokens import workdir
from dsmem.tokens.crew import Crew
from dsmem.tokens.cutting import PART_BYTES, Separator
from dsmem.tokens.inputs import Format, Source, Wanted
from dsmem.tokens.layout import TokenDtype, shards_there, val_path
from dsmem.tokens.manifest import Input, Manifest, Place
from dsmem.tokens.manifest import Tokenizer as About
from dsmem.tokens.options import (
    VERIFY_DOCUMENTS,
    Arrangement,
    OnError,
    Options,
    Output,
    Tokenized,
    dtype_of,
    frame_of,
)
from dsmem.tokens.parts import Record, finished
from dsmem.tokens.pieces import Cutting, Piece
from dsmem.tokens.vocabularies import Located, describe, locate

if TYPE_CHECKING:
    from dsmem.tokens.engines import Engine

_HERE_BYTES = 24 << 20
"""Up to so much input this process is done before others have started."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


def tokenize(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] = "bytes",
    engine: str = "auto",
    format: Format | None = None,
    split: str | None = None,
    subset: str | None = None,
    text_field: str = "text",
    split_on: Separator | None = None,
    encoding: str = "utf-8",
    bos: Place = "none",
    eos: Place = "append",
    bos_token: str | None = None,
    eos_token: str | None = None,
    parse_special: bool = False,
    dtype: TokenDtype | None = None,
    verify: int | Literal["all"] = VERIFY_DOCUMENTS,
    on_error: OnError = "raise",
    shards: int | None = None,
    shard_tokens: int | None = None,
    val_fraction: float = 0.0,
    shuffle_seed: int | None = None,
    workers: int | None = None,
    restart: bool = False,
    overwrite: bool = False,
    part_bytes: int = PART_BYTES,
    progress: Progress = ignore,
) -> Tokenized:
    """Tokenize files, directories, globs, saved datasets or `-` into `out` (uint16 or uint32 ids, little-endian).

    Beside it: `.idx` for Megatron-LM, `.docs.npy` (uint64 ends of documents) and a `.json` manifest. The bytes are the
    same for any number of workers. A run that was killed continues when it is started again (`restart=True` begins
    anew). `progress` gets bytes of input.

    Raises SourceMissing, BadSource (BadDocument names file and line), EngineDiffers (from the reference),
    UsageError, NoEndToken, OutputExists, OutputBusy, OtherPlan, OutputFull, SourceChanged, WorkerLost.

    >>> dsmem.tokenize("corpus.jsonl", "train.bin", tokenizer="tokenizer.json")  # doctest: +SKIP
    """
    began = time.perf_counter()
    named = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    options = Options(
        os.fspath(tokenizer), engine, text_field, split_on, encoding, bos, eos, bos_token, eos_token, parse_special,
        dtype, verify, on_error,
    )  # fmt: skip
    options.check()
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} workers can't be; at least 1")
    if part_bytes < 1 or (part_bytes != PART_BYTES and part_bytes % digest.SLICE_BYTES and part_bytes > PART_BYTES):
        raise UsageError(f"parts are of up to {PART_BYTES} bytes, or of a multiple of that")
    arrangement = Arrangement(
        shards=shards, shard_tokens=shard_tokens, val_fraction=val_fraction, shuffle_seed=shuffle_seed
    )
    arrangement.check()
    target = os.path.abspath(os.fspath(out))
    _refuse_taken(
        [target, *([val_path(target)] if val_fraction else [])], overwrite, sharded=bool(shards or shard_tokens)
    )
    sources = gathering.gather([os.fspath(one) for one in named], Wanted(format, split, subset))
    cutting = Cutting(part_bytes, split_on, codecs.lookup(encoding).name, text_field)
    processes = _processes(sources, part_bytes, workers)
    with ExitStack() as stack:
        directory = stack.enter_context(workdir.locked(target))
        stack.callback(_remove_if_bare, directory)
        crew = stack.enter_context(Crew(processes)) if processes else None
        located = locate(options.tokenizer, lambda: directory)
        if crew is not None:
            crew.expect(located, options.engine, parse_special=parse_special)
        run = _Run(sources, target, directory, options, located, cutting, bool(val_fraction), restart)
        try:
            records = run.make_parts(crew, progress)
            outputs = run.put_together(records, arrangement, progress)
        except OSError as exc:
            if exc.errno in _FULL:
                raise OutputFull(
                    f"no space left for {target}: {units.format_bytes(_free(directory))} are free there",
                    limit=directory,
                ) from exc
            raise
        workdir.remove(directory)
    return Tokenized(
        outputs=outputs,
        tokens=sum(record.tokens for record in records),
        documents=sum(record.documents for record in records),
        text_bytes=sum(record.text_bytes for record in records),
        input_bytes=sum(source.size_bytes for source in sources),
        dtype=run.dtype,
        tokenizer=options.tokenizer,
        engine=run.engine.name,
        verified=sum(record.verified for record in records),
        skipped=sum(record.skipped for record in records),
        skipped_places=run.skipped_places(records),
        parts=len(records),
        resumed_parts=run.resumed_parts,
        workers=processes,
        elapsed_s=time.perf_counter() - began,
    )


class _Run:
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
    ) -> None:
        from dsmem.tokens import engines

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
        self._head, self._tail = frame_of(self._vocabulary, options)
        self.dtype = dtype_of(self._vocabulary, options.dtype)
        self.engine: Engine = engines.choose(self._vocabulary, options.engine, parse_special=options.parse_special)
        can_resume = all(source.identity is not None for source in sources)
        self._resumes = workdir.settle(directory, self._plan(), restart=restart, can_resume=can_resume)
        self.resumed_parts = 0

    def _plan(self) -> dict[str, object]:
        options, cutting = self._options, self._cutting
        return {
            "dsmem": dsmem.__version__,
            "tokenizer": [self._vocabulary.located.kind, self._vocabulary.sha256],
            "engine": [self.engine.name, self.engine.version],
            "bos": [options.bos, self._head],
            "eos": [options.eos, self._tail],
            "parse_special": options.parse_special,
            "dtype": self.dtype,
            "text_field": options.text_field,
            "split_on": cutting.split_on,
            "encoding": cutting.encoding,
            "part_bytes": cutting.part_bytes,
            "validation set": self._with_keys,
            "inputs": [
                [source.path, source.format, source.identity and source.identity.as_list()] for source in self._sources
            ],
        }

    def make_parts(self, crew: Crew | None, progress: Progress) -> list[Record]:
        """Every part, by workers or here; the records are in order."""
        from dsmem.tokens.encoding import ALL, Encoder, Recipe

        options = self._options
        recipe = Recipe(
            directory=self._directory,
            located=self._vocabulary.located,
            engine=self.engine.name,
            parse_special=options.parse_special,
            dtype=self.dtype,
            largest_id=self._vocabulary.largest_id,
            head=self._head,
            tail=self._tail,
            text_field=options.text_field,
            encoding=self._cutting.encoding,
            skip_bad=options.on_error == "skip",
            with_keys=self._with_keys,
            verify=ALL if options.verify == "all" else options.verify,
        )
        records: dict[int, Record] = {}
        report = _Progress(progress, self._sources)
        pending = self._pending(records, report)
        if crew is None:
            encoder = Encoder(recipe, self.engine)
            for piece in pending:
                records[piece.number] = encoder.encode(piece, report)
                if piece.is_spool:
                    os.unlink(piece.path)
        else:
            for record in crew.run(recipe, pending, report):
                records[record.number] = record
        report.finish()
        if not any(record.documents for record in records.values()):
            raise BadSource(f"no documents in {', '.join(source.path for source in self._sources[:3])}")
        return [records[number] for number in sorted(records)]

    def _pending(self, records: dict[int, Record], report: _Progress) -> Iterator[Piece]:
        """The pieces whose parts are still to be made; the others' records are put to the rest."""

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
                report(piece.weight_bytes)
            else:
                yield piece

    def put_together(
        self, records: Sequence[Record], arrangement: Arrangement, progress: Progress
    ) -> tuple[Output, ...]:
        """The output, from parts; raises SourceChanged."""
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
                spec=vocabulary.spec,
                kind=vocabulary.located.kind,
                sha256=vocabulary.sha256,
                vocab_size=vocabulary.vocab_size,
                largest_id=vocabulary.largest_id,
                bos_id=vocabulary.bos_id,
                eos_id=vocabulary.eos_id,
                engine=self.engine.name,
                engine_version=self.engine.version,
                reference="" if reference == self.engine.name else reference,
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
                found_hex = digest.tree_digest(bytes.fromhex(one) for one in slices[str(number)])
            else:
                found_hex = digest.hash_file(source.path).hex
            if FileIdentity.of(os.stat(source.path)) != source.identity:
                raise SourceChanged(f"{source.path} changed while it was tokenized")
            yield Input(source.path, source.size_bytes, f"xxh3-tree:{found_hex}")

    def skipped_places(self, records: Sequence[Record]) -> tuple[str, ...]:
        """The first documents that were left out."""
        from dsmem.tokens.documents import MOST_PLACES

        return tuple(place for record in records for place in record.skipped_places)[:MOST_PLACES]


class _Progress:
    """Adds up what is done; streams, whose size is not known, make the whole grow."""

    def __init__(self, progress: Progress, sources: Sequence[Source]) -> None:
        self._progress = progress
        self._grows = any(source.identity is None for source in sources)
        self._total_bytes = sum(source.size_bytes for source in sources)
        self._done_bytes = 0

    def __call__(self, more_bytes: int) -> None:
        self._done_bytes += more_bytes
        if self._grows:
            self._total_bytes = max(self._total_bytes, self._done_bytes)
        self._progress(min(self._done_bytes, self._total_bytes), self._total_bytes)

    def finish(self) -> None:
        """All is done: what was reported is only near to the sizes of the files."""
        self._progress(self._total_bytes, self._total_bytes)


def _processes(sources: Sequence[Source], part_bytes: int, workers: int | None) -> int:
    """How many workers: 0 where starting them takes longer than the work."""
    total_bytes = sum(source.size_bytes * (4 if source.compression else 1) for source in sources)
    is_stream = any(source.identity is None for source in sources)
    if total_bytes <= _HERE_BYTES and not is_stream and workers is None:
        return 0
    wanted = workers or proc.usable_cpus()
    return wanted if is_stream else max(1, min(wanted, -(-total_bytes // part_bytes)))


def _refuse_taken(paths: Sequence[str], overwrite: bool, *, sharded: bool) -> None:
    for path in paths:
        if os.path.isdir(path):
            raise UsageError(f"{path} is a directory")
        if not overwrite and os.path.lexists(path):
            raise OutputExists(f"{path} is there already", path=path)
        if sharded and not overwrite and (taken := shards_there(path)):
            raise OutputExists(f"{taken[0]} is there already", path=taken[0])
    parent = os.path.dirname(paths[0])
    if not os.path.isdir(parent):
        raise UsageError(f"there is no directory {parent}")


def _remove_if_bare(directory: str) -> None:
    """A work directory without a finished part serves no later run."""
    if os.path.isdir(directory):
        names: Mapping[str, None] = dict.fromkeys(os.listdir(directory))
        if not any(name.startswith("part-") and name.endswith(".json") for name in names):
            workdir.remove(directory)


def _free(directory: str) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize
