"""`dsmem tokenize`: text of any size to a file of token ids."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dsmem import units
from dsmem.cli import progress
from dsmem.cli.commands import Json
from dsmem.cli.output import Column, Output, note
from dsmem.errors import UsageError

if TYPE_CHECKING:
    from dsmem.tokens.options import Tokenized

EXAMPLES = (
    "dsmem tokenize corpus.jsonl -o train.bin --tokenizer tokenizer.json",
    "dsmem tokenize data/ 'more/*.txt.zst' -o train.bin --val-fraction 0.001",
    "dsmem tokenize books.txt -o books.bin --split-on BLANK --tokenizer tiktoken:o200k_base",
    "dsmem tokenize - -o dump.bin --on-error skip < dump.jsonl",
)
_SCALES = {"k": 10**3, "m": 10**6, "g": 10**9}

OUTPUTS = (
    Column("file", "path"),
    Column("split", "split"),
    Column("tokens", "tokens", show=lambda count: f"{count:,}", right=True),
    Column("documents", "documents", show=lambda count: f"{count:,}", right=True),
)


def tokenize(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Files (.txt .jsonl .json .parquet .arrow, compressed or not), directories, globs, saved datasets, "
            "names of datasets on the hub, - for standard input. Of a directory: all of these below it, but hidden "
            "ones and token files.",
        ),
    ],
    out: Annotated[str, typer.Option("-o", "--out", metavar="OUT.bin", help="The file to write.")],
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer",
            metavar="FILE|NAME",
            help="tokenizer.json, a .tiktoken or SentencePiece .model file, tiktoken:NAME, a model on the hub, bytes.",
        ),
    ] = "bytes",
    engine: Annotated[
        Literal["auto", "fastokens", "tokenizers", "tiktoken", "sentencepiece", "bytes"],
        typer.Option("--engine", help="What encodes; auto is the fastest that is exact."),
    ] = "auto",
    format: Annotated[
        Literal["txt", "jsonl", "json", "parquet", "arrow"] | None,
        typer.Option("--format", help="What every input is, whatever its name; standard input is jsonl otherwise."),
    ] = None,
    split: Annotated[str | None, typer.Option("--split", metavar="NAME", help="The split of a dataset.")] = None,
    subset: Annotated[str | None, typer.Option("--subset", metavar="NAME", help="The subset of a dataset.")] = None,
    text_field: Annotated[
        str, typer.Option("--text-field", metavar="NAME", help="The field that holds text.")
    ] = "text",
    split_on: Annotated[
        Literal["LINE", "BLANK"] | None,
        typer.Option("--split-on", help="Documents of a .txt: lines, or what blank lines part.", case_sensitive=False),
    ] = None,
    encoding: Annotated[str, typer.Option("--encoding", metavar="NAME", help="Of text and JSON files.")] = "utf-8",
    bos: Annotated[
        Literal["append", "prepend", "none"], typer.Option("--bos", help="Where documents get a bos token.")
    ] = "none",
    eos: Annotated[
        Literal["append", "prepend", "none"], typer.Option("--eos", help="Where documents get an eos token.")
    ] = "append",
    bos_token: Annotated[str | None, typer.Option("--bos-token", metavar="TOKEN", help="Which is bos.")] = None,
    eos_token: Annotated[str | None, typer.Option("--eos-token", metavar="TOKEN", help="Which is eos.")] = None,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Take '<|endoftext|>' and the like in documents for what they name.")
    ] = False,
    dtype: Annotated[
        Literal["uint16", "uint32"] | None,
        typer.Option("--dtype", help="Of the ids; the narrowest that holds them otherwise."),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option("--verify", metavar="N|all", help="Documents of every 16th part to compare with the reference."),
    ] = None,
    on_error: Annotated[
        Literal["raise", "skip"],
        typer.Option(
            "--on-error",
            help="A bad document ends the run, or is left out; damaged compressed files from where their "
            "checksums fail, for which these are decompressed twice.",
        ),
    ] = "raise",
    shards: Annotated[int | None, typer.Option("--shards", metavar="N", help="Write so many files.")] = None,
    shard_tokens: Annotated[
        str | None, typer.Option("--shard-tokens", metavar="N", help="Write files of at most so many tokens: 100M.")
    ] = None,
    val_fraction: Annotated[
        float, typer.Option("--val-fraction", metavar="X", help="Documents for OUT.val.bin, chosen by their content.")
    ] = 0.0,
    shuffle_docs: Annotated[
        int | None, typer.Option("--shuffle-docs", metavar="SEED", help="Shuffle the documents by this seed.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", metavar="N", help="Processes, as far as 1 GiB allows; one a CPU otherwise, 16 at most."
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, whatever an earlier run has left behind.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what is there of that output, all of its shards.")
    ] = False,
    json: Json = False,
) -> None:
    """Turn text into a file of token ids.

    nanoGPT and Megatron-LM read it as it is. A run that was killed goes on when it is started again.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads, which nothing here uses, spin when it begins
    from dsmem.tokens import workdir
    from dsmem.tokens.options import VERIFY_DOCUMENTS
    from dsmem.tokens.tokenize import tokenize as run

    shown = Output(as_json=json)
    with progress.bar("tokenizing", ["."]) as bar:
        try:
            done = run(
                inputs,
                out,
                tokenizer=tokenizer,
                engine=engine,
                format=format,
                split=split,
                subset=subset,
                text_field=text_field,
                split_on=None if split_on is None else "line" if split_on == "LINE" else "blank",
                encoding=encoding,
                bos=bos,
                eos=eos,
                bos_token=bos_token,
                eos_token=eos_token,
                parse_special=parse_special,
                dtype=dtype,
                verify=VERIFY_DOCUMENTS if verify is None else _verify(verify),
                on_error=on_error,
                shards=shards,
                shard_tokens=None if shard_tokens is None else _count(shard_tokens),
                val_fraction=val_fraction,
                shuffle_seed=shuffle_docs,
                workers=workers,
                restart=restart,
                overwrite=force,
                progress=bar.follow("."),
                tokens_progress=lambda tokens: bar.tell(f"{tokens / 1e6:,.1f}M tokens"),
            )
        except KeyboardInterrupt:
            if os.path.isdir(workdir.path_of(os.path.abspath(out))):  # else there is nothing to go on from
                note("the same command goes on where this one was; --restart begins anew")
            raise
    _show(shown, done, workers)


def _verify(text: str) -> int | Literal["all"]:
    if text == "all":
        return "all"
    if not text.isdecimal():
        raise UsageError(f"--verify {text!r} is neither a number of documents nor all")
    return int(text)


def _count(text: str) -> int:
    """'100M' → 100000000."""
    number, scale = (text[:-1], _SCALES[text[-1].lower()]) if text[-1:].lower() in _SCALES else (text, 1)
    if not number.isdecimal():
        raise UsageError(f"{text!r} is not a number of tokens; write 250000 or 100M")
    return int(number) * scale


def _show(out: Output, done: Tokenized, wanted: int | None) -> None:
    if done.skipped:
        out.warning(f"{done.skipped} bad documents were left out:")
        for place in done.skipped_places:
            out.warning(place)
    if out.as_json:
        out.json(done)
        return
    out.table(OUTPUTS, [[one.path, one.split, one.tokens, one.documents] for one in done.outputs])
    rate = done.text_bytes / max(done.elapsed_s, 1e-9) / 1e6
    resumed = f", {done.resumed_parts} of {done.parts} parts taken over" if done.resumed_parts else ""
    verified = f"{done.verified} documents compared" if done.verified else "none compared"
    if done.verified_in_pieces:
        verified += f", {done.verified_in_pieces} of them not as a whole: too long"
    out.result(
        f"{units.format_bytes(done.text_bytes)} of text to {done.tokens:,} {done.dtype} tokens by {done.engine} "
        f"in {units.format_duration(done.elapsed_s)}, {rate:.0f} MB/s{resumed}; {verified}"
    )
    if done.why_fewer_workers:
        out.result(f"{done.workers} of {wanted} workers: {done.why_fewer_workers}")
