"""The digests dsmem knows: four plain streams, and xxh3-tree, which threads can compute out of order.

xxh3-tree = xxh3-128 over the concatenated 16-byte xxh3-128 digests (big-endian, canonical) of the file's 32 MiB slices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol

import xxhash

from dsmem.errors import UsageError

ALGORITHMS = ("xxh3-tree", "xxh3-128", "blake3", "sha256", "md5")
DEFAULT_ALGORITHM = "xxh3-tree"
SLICE_BYTES = 32 << 20


class Hasher(Protocol):
    """A digest fed in order."""

    def update(self, data: memoryview, /) -> object: ...
    def hexdigest(self) -> str: ...


def check_algorithm(algo: str) -> None:
    """Raise UsageError for a name that is none of ALGORITHMS."""
    if algo not in ALGORITHMS:
        raise UsageError(f"unknown digest {algo!r}; it is one of {', '.join(ALGORITHMS)}")


def stream(algo: str) -> Hasher:
    """A fresh hasher for one of the plain streams (every algorithm but xxh3-tree)."""
    check_algorithm(algo)
    if algo == "md5":
        return hashlib.md5(usedforsecurity=False)
    if algo == "sha256":
        return hashlib.sha256()
    if algo == "blake3":
        import blake3

        hasher: Hasher = blake3.blake3(max_threads=blake3.blake3.AUTO)
        return hasher
    if algo == "xxh3-128":
        return xxhash.xxh3_128()
    raise UsageError("xxh3-tree is computed from slices, not from a stream")


def slice_digest() -> xxhash.xxh3_128:
    """The hasher of one slice of an xxh3-tree."""
    return xxhash.xxh3_128()


def tree_digest(slices: Iterable[bytes]) -> str:
    """xxh3-tree in hex from the digests of the slices, in file order; an empty file has none."""
    return xxhash.xxh3_128(b"".join(slices)).hexdigest()
