"""Digests of a file in the page cache: each algorithm against md5 as people write it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator
from functools import partial
from pathlib import Path

import blake3
import xxhash

from dsmem.bench import limits, recipes
from dsmem.bench.harness import Comparison, Contender
from dsmem.bench.sizes import Need
from dsmem.bench.workbench import Case, Effort, Workbench
from dsmem.digest import ALGORITHMS, SLICE_BYTES, hash_file


def compare(bench: Workbench) -> Generator[Comparison]:
    """One comparison: all algorithms, the recipe, and reading the file."""
    path = bench.source.path
    limits.read_cached(path)
    ours = [
        Contender(
            f"dsmem hash --algo {algo}",
            "dsmem",
            partial(_hash, path, algo),
            answer=str,
            question=algo,
        )
        for algo in ALGORITHMS
    ]
    recipe = Contender("hashlib.md5", "recipe", lambda _: recipes.md5_of_file(path), answer=str, question="md5")
    limit = Contender("reading it, threads", "limit", lambda _: limits.read_cached(path))
    file_bytes = os.stat(path).st_size
    yield Comparison("the digest of a file", file_bytes, [*ours, recipe, limit], expected=_known(path))


def _hash(path: str, algo: str, _: None) -> str:
    return hash_file(path, algo, cache=False).hex


def _known(path: str) -> dict[str, str]:
    """The digests by the libraries themselves, xxh3-tree by its definition; md5 is the recipe's to say."""
    sha256, plain, blake = hashlib.sha256(), xxhash.xxh3_128(), blake3.blake3()
    slices = b""
    with Path(path).open("rb") as file:
        while piece := file.read(SLICE_BYTES):
            sha256.update(piece)
            plain.update(piece)
            blake.update(piece)
            slices += xxhash.xxh3_128_digest(piece)
    return {
        "sha256": sha256.hexdigest(),
        "xxh3-128": plain.hexdigest(),
        "blake3": blake.hexdigest(),
        "xxh3-tree": xxhash.xxh3_128_hexdigest(slices),
    }


CASE = Case(
    "hash",
    "files are identified at the speed of memory",
    compare,
    need=Need(memory=1, shared=0.01, files=1),
    effort=Effort(md5=2.6, fill=0, copy=4),
)
