"""Ids back to text, by the tokenizer that a manifest names; for people to look at, not for speed.

A tokenizer's file that is no longer the one the manifest tells of is refused: its text would be a lie.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from dsmem.errors import BadSource
from dsmem.tokens import vocabularies
from dsmem.tokens.manifest import Tokenizer
from dsmem.tokens.vocabularies import END_OF_TEXT, Located

Decode = Callable[[Sequence[int]], str]


def decoder(tokenizer: Tokenizer) -> Decode:
    """A function from ids to text, special tokens by their names.

    Bytes that are no UTF-8 (an excerpt may end within a character) become U+FFFD. Raises SourceMissing, BadSource (the
    file has changed, or is none), UsageError (a package is needed that is not installed); the function raises BadSource
    for ids that the tokenizer does not have.
    """
    decode = _decoder(tokenizer)

    def checked(ids: Sequence[int]) -> str:
        largest = max(ids, default=0)
        if largest > tokenizer.largest_id:
            raise BadSource(f"id {largest} is beyond {tokenizer.largest_id}, the largest of {tokenizer.spec}")
        try:
            return decode(ids)
        except (KeyError, IndexError, OverflowError) as exc:
            raise BadSource(f"{tokenizer.spec} lacks an id that stands there: {exc}") from exc

    return checked


def _decoder(tokenizer: Tokenizer) -> Decode:
    if tokenizer.kind == "bytes":
        return _bytes
    with tempfile.TemporaryDirectory(prefix="dsmem-") as scratch:
        found = vocabularies.describe(tokenizer.spec, scratch=lambda: scratch)
        if found.sha256 != tokenizer.sha256:
            raise BadSource(f"{tokenizer.spec} is no longer the tokenizer that encoded this: its content has changed")
        return _load(found.located)


def _bytes(ids: Sequence[int]) -> str:
    texts = [bytes([one]) if one < vocabularies.BYTES_END else END_OF_TEXT.encode() for one in ids]
    return b"".join(texts).decode("utf-8", "replace")


def _load(located: Located) -> Decode:
    if located.kind == "tokenizer.json":
        reference = vocabularies.load_reference(located.path)
        return lambda ids: str(reference.decode(list(ids), skip_special_tokens=False))
    if located.kind == "sentencepiece":
        model = vocabularies.load_sentencepiece(located.path)
        return lambda ids: str(model.decode(list(ids)))
    tiktoken: Any = vocabularies.need("tiktoken")
    from tiktoken.load import load_tiktoken_bpe

    encoding = tiktoken.Encoding(
        "dsmem",
        pat_str=located.pattern,
        mergeable_ranks=load_tiktoken_bpe(located.path),
        special_tokens=located.special_tokens,
    )
    return lambda ids: str(encoding.decode(list(ids), errors="replace"))
