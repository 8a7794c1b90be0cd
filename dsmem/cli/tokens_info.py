"""`dsmem tokens info`: what a token file is, what it was made from, how long its documents are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dsmem import units
from dsmem.cli.commands import Dtype, Json
from dsmem.cli.output import Column, Output

if TYPE_CHECKING:
    from dsmem.tokens.inspecting import Bucket, Info
    from dsmem.tokens.manifest import Manifest

EXAMPLES = (
    "dsmem tokens info train.bin",
    "dsmem tokens info owt.bin --dtype uint32",
    "dsmem tokens info train.bin --json",
)

_KNOWN_BY = {
    "asked": "as you say",
    "manifest": "by the manifest",
    "idx": "by the .idx",
    "header": "by llm.c's header",
    "default": "a guess: nothing tells it",
}
_BAR = 40


def info(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A token file.")],
    dtype: Dtype = None,
    json: Json = False,
) -> None:
    """Tell what a token file holds and was made from.

    That is counts, the manifest, and a histogram of document lengths. A bare .bin is enough; what lies beside it tells
    the rest.
    """
    from dsmem.tokens.inspecting import inspect

    out = Output(as_json=json)
    found = inspect(file, token_dtype=dtype)
    if json:
        out.json(found)
        return
    out.record([*_of_file(found), *(() if found.manifest is None else _of_manifest(found.manifest))])
    if found.lengths is not None:
        if out.terminal:
            out.line("")
        most = max(bucket.documents for bucket in found.lengths.histogram)
        columns = [
            Column("length", "length", right=True),
            Column("documents", "documents", show="{:,}".format, right=True),
            Column("tokens", "tokens", show="{:,}".format, right=True),
            *([Column("", "share")] if out.terminal else []),
        ]
        rows = [_bucket(bucket, most, drawn=out.terminal) for bucket in found.lengths.histogram]
        out.table(columns, rows)


def _of_file(found: Info) -> list[tuple[str, str]]:
    pairs = [
        ("file", found.path),
        ("size", units.format_bytes(found.size_bytes)),
        ("tokens", f"{found.tokens:,}"),
        ("dtype", f"{found.dtype} ({_KNOWN_BY[found.known_by]})"),
        ("documents", "unknown: nothing tells where they end" if found.documents is None else f"{found.documents:,}"),
    ]
    if found.lengths is not None:
        lengths = found.lengths
        pairs.append(("lengths", f"{lengths.shortest:,} to {lengths.longest:,} tokens, {lengths.mean:,.1f} on average"))
    return [*pairs, *(("beside it", path) for path in found.beside)]


def _of_manifest(manifest: Manifest) -> list[tuple[str, str]]:
    tokenizer = manifest.tokenizer
    by_reference = f", {tokenizer.verified_documents:,} documents compared with {tokenizer.reference}"
    engine = f"{tokenizer.engine} {tokenizer.engine_version}{by_reference if tokenizer.reference else ''}"
    pairs = [
        ("tokenizer", f"{tokenizer.spec} ({tokenizer.kind}, {tokenizer.vocab_size:,} tokens)"),
        ("encoded by", engine),
        ("bos, eos", f"{manifest.bos} {tokenizer.bos_id}, {manifest.eos} {tokenizer.eos_id}"),
        ("digest", manifest.digest),
        ("made", f"{manifest.created} by dsmem {manifest.dsmem}".strip()),
    ]
    alone = manifest.shards == 1 and manifest.split == "all"
    if alone and manifest.tokens:
        pairs.append(("text", f"{units.format_bytes(manifest.text_bytes)}, {_per_token(manifest)} bytes a token"))
    if manifest.split != "all":
        pairs.append(("split", f"{manifest.split}, {manifest.val_fraction:g} of the documents for validation"))
    if manifest.shards > 1:
        pairs.append(("shard", f"{manifest.shard + 1} of {manifest.shards}"))
    if manifest.shuffle_seed is not None:
        pairs.append(("shuffled", f"seed {manifest.shuffle_seed}"))
    if manifest.skipped:
        pairs.append(("skipped", f"{manifest.skipped:,} bad documents"))
    for one in manifest.inputs:
        pairs.append(("input", f"{one.path} ({units.format_bytes(one.size_bytes)})"))
    return pairs


def _per_token(manifest: Manifest) -> str:
    return f"{manifest.text_bytes / manifest.tokens:.2f}"


def _bucket(bucket: Bucket, most: int, *, drawn: bool) -> list[object]:
    length = str(bucket.least) if bucket.least == bucket.most else f"{bucket.least}–{bucket.most}"
    return [length, bucket.documents, bucket.tokens, *(["█" * -(-bucket.documents * _BAR // most)] if drawn else [])]
