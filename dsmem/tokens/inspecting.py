"""What can be told about a token file without decoding it: its counts, its manifest, how long its documents are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import cast

import numpy as np

from dsmem.errors import UsageError
from dsmem.tokens import manifest as manifests
from dsmem.tokens.index import Ends, blocks_of, check_rising, lengths_of
from dsmem.tokens.layout import Beside, TokenDtype
from dsmem.tokens.manifest import Manifest
from dsmem.tokens.opening import Known, TokenFile, Tokens, open_tokens


@dataclass(frozen=True, slots=True)
class Bucket:
    """Documents of about the same length: `least` to `most` tokens, both included."""

    least: int
    most: int
    documents: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long documents are, in tokens, bos and eos included."""

    shortest: int
    mean: float
    longest: int
    histogram: tuple[Bucket, ...]
    """0 tokens, 1, 2 to 3, 4 to 7, …; from the first bucket that holds a document to the last."""


@dataclass(frozen=True, slots=True)
class Info:
    """One token file."""

    path: str
    size_bytes: int
    dtype: TokenDtype
    known_by: Known
    """What told the dtype; `default`: nothing did, and uint16 is a guess."""
    tokens: int
    documents: int | None
    """None where nothing tells; the manifest may count them where no side file tells where they end."""
    lengths: Lengths | None
    """None without documents."""
    beside: tuple[str, ...]
    """The side files that are there."""
    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A stretch of a token file."""

    path: str
    document: int | None
    """None where it was asked for by place."""
    start: int
    """Place of its first token in the file."""
    tokens: int
    """Of the whole document; of the stretch where it was asked for by place."""
    ids: tuple[int, ...]


def inspect(path: str | os.PathLike[str], *, token_dtype: TokenDtype | None = None) -> Info:
    """Look at a token file and what lies beside it; passes over the document ends twice, reads no token.

    Raises SourceMissing, and BadSource where a side file contradicts the `.bin`.
    """
    file = open_tokens(path, token_dtype=token_dtype)
    beside = Beside.of(file.path)
    ends = file.documents()
    if ends is not None:
        check_rising(cast(Ends, ends), file.path)
    manifest = manifest_of(file)
    counted = None if manifest is None else manifest.documents
    return Info(
        path=file.path,
        size_bytes=os.stat(file.path).st_size,
        dtype=file.dtype,
        known_by=file.known_by,
        tokens=file.tokens,
        documents=counted if ends is None else len(ends),
        lengths=None if ends is None or not len(ends) else _lengths(cast(Ends, ends)),
        beside=tuple(one for one in (beside.idx, beside.docs, beside.manifest) if os.path.exists(one)),
        manifest=manifest,
    )


def manifest_of(file: TokenFile) -> Manifest | None:
    """The manifest of a file that was opened by it."""
    if file.known_by != "manifest":
        return None
    return manifests.read(Beside.of(file.path).manifest)


def excerpt(
    path: str | os.PathLike[str],
    *,
    document: int | None = None,
    at: int | None = None,
    limit: int | None = None,
    token_dtype: TokenDtype | None = None,
) -> Excerpt:
    """A document (negative: counted from the end), or the tokens from a place on; at most `limit` of them.

    Raises UsageError for a document or a place that is not there, and where nothing tells of documents.
    """
    if (document is None) == (at is None):
        raise UsageError("either a document or a place")
    file = open_tokens(path, token_dtype=token_dtype)
    if at is not None:
        if not 0 <= at < file.tokens:
            raise UsageError(f"{file.path} has {file.tokens} tokens; there is none at {at}")
        start, stop = at, min(file.tokens, at + (256 if limit is None else limit))
    else:
        assert document is not None
        start, stop, document = _bounds(file, document)
    tokens: Tokens = file.map()[start : stop if limit is None else min(stop, start + limit)]
    return Excerpt(file.path, document, start, stop - start, tuple(tokens.tolist()))


def _bounds(file: TokenFile, document: int) -> tuple[int, int, int]:
    ends = file.documents()
    if ends is None:
        raise UsageError(f"nothing beside {file.path} tells where documents end; ask for tokens by their place")
    if not -len(ends) <= document < len(ends):
        raise UsageError(f"{file.path} has {len(ends)} documents; there is no {document}")
    number = document % len(ends)
    return int(ends[number - 1]) if number else 0, int(ends[number]), number


def _lengths(ends: Ends) -> Lengths:
    documents = np.zeros(65, np.int64)
    tokens = np.zeros(65, np.uint64)
    shortest, longest = 2**63, 0
    for before, block in blocks_of(ends):
        lengths = lengths_of(before, block)
        shortest, longest = min(shortest, int(lengths.min())), max(longest, int(lengths.max()))
        # frexp(n) = (m, e) with 2**(e-1) <= n < 2**e, and e = 0 for 0; exact below 2**53 tokens.
        powers = np.frexp(lengths.astype(np.float64))[1]
        documents += np.bincount(powers, minlength=65)
        np.add.at(tokens, powers, lengths)
    used = np.flatnonzero(documents)
    return Lengths(
        shortest=shortest,
        mean=int(ends[-1]) / len(ends),
        longest=longest,
        histogram=tuple(
            Bucket(
                least=1 << (power - 1) if power else 0,
                most=(1 << power) - 1,
                documents=int(documents[power]),
                tokens=int(tokens[power]),
            )
            for power in range(int(used[0]), int(used[-1]) + 1)
        ),
    )
