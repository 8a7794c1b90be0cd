"""Digests of files: computed at the speed of memory, remembered while the file stays the same."""

from dsmem.digest.algorithms import (
    ALGORITHMS,
    DEFAULT_ALGORITHM,
    SLICE_BYTES,
    check_algorithm,
    slice_digest,
    stream,
    tree_digest,
)
from dsmem.digest.hashing import FileDigest, hash_descriptor, hash_file, open_source

__all__ = [
    "ALGORITHMS",
    "DEFAULT_ALGORITHM",
    "SLICE_BYTES",
    "FileDigest",
    "check_algorithm",
    "hash_descriptor",
    "hash_file",
    "open_source",
    "slice_digest",
    "stream",
    "tree_digest",
]
