"""Text to token files: `dsmem.tokenize`.

Plan (which files, which pieces), make parts in workers (`dsmem.tokens.run`), which write their ids where the output
will have them, then arrange the files (`dsmem.tokens.arrange`). The output depends on the input and the options alone;
memory is bounded by blocks, batches, parts that wait for their place (64 MiB in all workers), what engines remember
(`dsmem.tokens.renewing`) and what is taken alone (`dsmem.tokens.turns`), never by the size of the input.
"""

from __future__ import annotations

import codecs
import errno
import os
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Literal

from dsmem import proc, units
from dsmem.errors import NoDocuments, OutputFull, OutputGone, UsageError
from dsmem.progress import Progress, ignore
from dsmem.tokens import crowd, starting, workdir
from dsmem.tokens import inputs as gathering
from dsmem.tokens.arguments import need_callable, need_flag, need_number, need_text, need_whole, path_of, paths_of
from dsmem.tokens.claim import Claim, inode_of, inode_of_stdin
from dsmem.tokens.cutting import PART_BYTES, Separator
from dsmem.tokens.failures import made_public
from dsmem.tokens.inputs import BINARY, STDIN, Format, Source, Wanted
from dsmem.tokens.layout import TokenDtype
from dsmem.tokens.manifest import Place
from dsmem.tokens.options import (
    VERIFY_DOCUMENTS,
    Arrangement,
    OnError,
    Options,
    Tokenized,
    TooFewDocuments,
)
from dsmem.tokens.vocabularies import locate

_OTHER_DESCRIPTORS = 32
"""Left to what else is opened."""
MOST_WORKERS = 16
"""Unless more are asked for."""
_TOO_LARGE = f"with more and this tokenizer, memory might exceed {units.format_bytes(crowd.MOST_BYTES)}"
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
    tokens_progress: Callable[[int], None] | None = None,
) -> Tokenized:
    """Tokenize files, directories, globs, saved datasets or `-` into `out` (uint16 or uint32 ids, little-endian).

    Beside it: `.idx` for Megatron-LM, `.docs.npy` (uint64 ends of documents) and a `.json` manifest. The bytes are the
    same for any number of workers. A run that was killed continues when it is started again (`restart=True` begins
    anew). `progress` gets bytes of input, `tokens_progress` the tokens of all parts that are finished.

    Raises SourceMissing, BadSource (BadDocument names file and line), TableTooLarge, EngineDiffers (from the
    reference), UsageError, NoEndToken, OutputExists, OutputBusy, OtherPlan, OutputFull, OutputGone,
    SourceChanged, WorkerLost.

    >>> dsmem.tokenize("corpus.jsonl", "train.bin", tokenizer="tokenizer.json")  # doctest: +SKIP
    """
    began = time.perf_counter()
    named = paths_of("inputs", inputs)
    need_whole(
        workers=workers, part_bytes=part_bytes, shards=shards, shard_tokens=shard_tokens, shuffle_seed=shuffle_seed
    )
    need_number(val_fraction=val_fraction)
    need_callable(progress=progress, tokens_progress=tokens_progress or ignore)
    if not isinstance(verify, str):
        need_whole(verify=verify)
        verify = int(verify)
    names = {"split": split, "subset": subset, "bos_token": bos_token, "eos_token": eos_token}
    need_text(**{option: name for option, name in names.items() if name is not None})
    need_flag(parse_special=parse_special, restart=restart, overwrite=overwrite)
    options = Options(
        path_of("tokenizer", tokenizer), engine, text_field, split_on, encoding, bos, eos, bos_token, eos_token,
        parse_special, dtype, verify, on_error,
    )  # fmt: skip
    options.check()
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} workers can't be; at least 1")
    if part_bytes < 1 or (part_bytes > PART_BYTES and part_bytes % PART_BYTES):
        raise UsageError(f"parts are of up to {PART_BYTES} bytes, or of a multiple of that")
    shards, shard_tokens, shuffle_seed = (
        None if one is None else int(one) for one in (shards, shard_tokens, shuffle_seed)
    )
    part_bytes, val_fraction = int(part_bytes), float(val_fraction)  # numpy's are as good, and no JSON
    arrangement = Arrangement(
        shards=shards, shard_tokens=shard_tokens, val_fraction=val_fraction, shuffle_seed=shuffle_seed
    )
    arrangement.check()
    target = os.path.abspath(path_of("out", out))
    if not target.endswith(".bin"):
        raise UsageError(f"{out}: the name of a token file ends in .bin, by which Megatron-LM and dsmem know it")
    claim = Claim(target, arrangement, overwrite=overwrite)
    claim.refuse_reading(inode_of_stdin() if one == STDIN else inode_of(one) for one in (*named, options.tokenizer))
    claim.refuse_taken()  # again once the output is ours: this is to wait for nothing
    sources = gathering.gather(named, Wanted(format, split, subset))
    _check_countable(sources, arrangement, split_on)
    processes, why_fewer = _processes(sources, part_bytes, workers)
    with ExitStack() as stack:
        directory = stack.enter_context(workdir.locked(target))
        stack.callback(_remove_if_bare, directory)
        claim.refuse_taken()
        nursery = stack.enter_context(starting.nursery()) if processes else None
        located = locate(options.tokenizer, lambda: directory)
        claim.refuse_reading(inode_of(one.path) for one in sources)
        if os.path.dirname(located.path) != directory:  # else ranks that were put there
            claim.refuse_reading([inode_of(located.path)])
        if nursery is not None:
            nursery.expect(
                located,
                options.engine,
                parse_special=parse_special,
                processes=processes,
                tables=any(one.format in BINARY for one in sources),
                compare=options.verify == "all",
            )
        # While it loads:
        from dsmem.tokens.crew import Crew
        from dsmem.tokens.pieces import Cutting
        from dsmem.tokens.run import Run

        crew = None if nursery is None else stack.enter_context(Crew(nursery))
        cutting = Cutting(part_bytes, split_on, codecs.lookup(encoding).name, text_field, on_error == "skip")
        run = Run(sources, target, directory, options, located, cutting, bool(val_fraction), restart, crew)
        if crew is not None and crew.size < processes:
            processes, why_fewer = crew.size, "" if workers is None else _TOO_LARGE
        try:
            with made_public():
                records = run.make_parts(progress, tokens_progress)
            outputs = run.put_together(records, arrangement, claim, progress)
        except (NoDocuments, TooFewDocuments):
            workdir.remove(directory)  # its parts are of next to nothing
            raise
        except OSError as exc:
            if exc.errno in _FULL:
                raise OutputFull(
                    f"no space left for {target}: {units.format_bytes(_free(directory))} are free there",
                    limit=directory,
                ) from exc
            if exc.errno == errno.ENOENT and not os.path.isdir(directory):
                gone = directory if os.path.isdir(os.path.dirname(target)) else os.path.dirname(target)
                raise OutputGone(f"{gone} was removed while {target} was made in it", path=target) from exc
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
        engine=run.engine,
        verified=sum(record.verified for record in records),
        verified_in_pieces=sum(record.verified_in_pieces for record in records),
        skipped=sum(record.skipped for record in records),
        skipped_places=run.skipped_places(records),
        parts=len(records),
        resumed_parts=run.resumed_parts,
        workers=processes,
        why_fewer_workers=why_fewer,
        elapsed_s=time.perf_counter() - began,
    )


def _processes(sources: Sequence[Source], part_bytes: int, workers: int | None) -> tuple[int, str]:
    """How many workers: 0 where starting them takes longer than the work; and why they are fewer than asked for."""
    total_bytes = sum(source.size_bytes * (4 if source.compression else 1) for source in sources)
    is_stream = any(source.identity is None for source in sources)
    if total_bytes <= starting.HERE_BYTES and not is_stream and workers is None:
        return 0, ""
    has_tables = any(one.format in BINARY for one in sources)
    can_be, most = _most_processes(), crowd.most_workers(0, "bytes", has_tables=has_tables)
    wanted = min(workers or min(proc.usable_cpus(), MOST_WORKERS), can_be, most)
    used = wanted if is_stream else max(1, min(wanted, -(-total_bytes // part_bytes)))
    if workers is None or used == workers:
        return used, ""
    if used == can_be:
        return used, "more need more open files (ulimit -n)"
    return used, _TOO_LARGE if used == most else "the input is cut into no more parts"


def _most_processes() -> int:
    """A worker takes four descriptors of this process while it starts, and two after that."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (limit - len(os.listdir("/proc/self/fd")) - _OTHER_DESCRIPTORS) // 4)


def _remove_if_bare(directory: str) -> None:
    """A work directory that serves no later run."""
    if os.path.isdir(directory) and not workdir.serves(directory):
        workdir.remove(directory)


def _check_countable(sources: Sequence[Source], arrangement: Arrangement, split_on: Separator | None) -> None:
    """Raise UsageError for what the inputs tell before any of them is read."""
    texts = sum(source.format == "txt" for source in sources)
    if split_on is not None and not texts:
        found = ", ".join(sorted({source.format for source in sources}))
        raise UsageError(f"text files are split on {split_on}, and there is none: all are {found}")
    if split_on is None and texts == len(sources) and texts < (arrangement.shards or 0):
        raise UsageError(f"{texts} documents can't be spread over {arrangement.shards} shards: each text file is one")


def _free(directory: str) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize
