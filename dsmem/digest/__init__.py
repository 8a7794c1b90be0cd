"""Digests of files: computed at the speed of memory, remembered while the file stays the same.

What reads files is imported when it is first used (PEP 562): who hashes what it has in memory is quicker without.
"""

from typing import TYPE_CHECKING

from dsmem import lazy
from dsmem.digest.algorithms import (
    ALGORITHMS,
    DEFAULT_ALGORITHM,
    SLICE_BYTES,
    check_algorithm,
    slice_digest,
    stream,
    tree_digest,
)

if TYPE_CHECKING:
    from dsmem.digest.hashing import FileDigest, hash_descriptor, hash_file, open_source

_HOMES = dict.fromkeys(("FileDigest", "hash_descriptor", "hash_file", "open_source"), "dsmem.digest.hashing")
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

__getattr__, __dir__ = lazy.names(__name__, _HOMES)
