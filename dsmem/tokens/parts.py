"""A part: the tokens of a piece of the input, in files of the work directory, complete once its record is there.

`part-N.bin` holds the ids in the dtype of the output, `part-N.lengths` uint64 tokens per document, and `part-N.keys`,
where documents are to be split by content, a uint64 hash of each document's text. `part-N.json` is written last.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """A finished part, in input order within a sequence of them."""

    tokens_path: str
    """Ids, little-endian, bos and eos included."""
    lengths_path: str
    """uint64, tokens of each document, bos and eos included."""
    keys_path: str | None
    """uint64, xxh3-64 of each document's text as UTF-8; None unless it was asked for."""
    documents: int
    tokens: int
    text_bytes: int
