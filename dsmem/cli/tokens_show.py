"""`dsmem tokens show`: a document of a token file as text, or as ids where its tokenizer can't be had."""

from __future__ import annotations

from typing import Annotated

import typer

from dsmem.cli.commands import Dtype, Json
from dsmem.cli.output import Output, escape
from dsmem.errors import DsmemError, UsageError

EXAMPLES = (
    "dsmem tokens show train.bin --doc 3",
    "dsmem tokens show train.bin --doc -1 --ids",
    "dsmem tokens show train.bin --at 1000000 --limit 64",
)


def show(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A token file.")],
    doc: Annotated[int | None, typer.Option("--doc", metavar="N", help="The document, from 0; -1 is the last.")] = None,
    at: Annotated[
        int | None, typer.Option("--at", metavar="TOKEN", help="A place in the file instead; needs no documents.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", help="Show no more than N tokens.")] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Show ids, not text.")] = False,
    dtype: Dtype = None,
    json: Json = False,
) -> None:
    """Show one document of a token file as text.

    The tokenizer is the one that the manifest names. Without --doc and --at it is the first document; --at without
    --limit shows 256 tokens.
    """
    from dsmem.tokens.decoding import decoder
    from dsmem.tokens.inspecting import excerpt, manifest_of
    from dsmem.tokens.opening import open_tokens

    out = Output(as_json=json)
    if doc is not None and at is not None:
        raise UsageError("--doc or --at, not both")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} shows nothing")
    found = excerpt(file, document=0 if doc is None and at is None else doc, at=at, limit=limit, token_dtype=dtype)
    text, why = None, None
    if not ids:
        manifest = manifest_of(open_tokens(file, token_dtype=dtype))
        if manifest is None:
            why = "no manifest names the tokenizer"
        else:
            try:
                text = decoder(manifest.tokenizer)(found.ids)
            except (DsmemError, OSError) as exc:
                why = str(exc)
    if json:
        out.json({"excerpt": found, "text": text, "why_no_text": why})
        return
    if why is not None:
        out.warning(f"shown as ids: {why}")
    if text is None:
        out.line(" ".join(map(str, found.ids)))
    elif out.terminal:
        for line in text.split("\n"):
            out.line(escape(line))
    else:
        out.raw(text.encode("utf-8", "replace") + (b"" if text.endswith("\n") else b"\n"))
    what = "tokens" if found.document is None else f"document {found.document}, tokens"
    shown = "" if len(found.ids) == found.tokens else f", {len(found.ids):,} of {found.tokens:,}"
    out.result(f"{what} {found.start:,} to {found.start + len(found.ids):,}{shown}")
