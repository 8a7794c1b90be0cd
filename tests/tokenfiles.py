"""Token files and parts made by hand, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import dsmem
from dsmem.progress import ignore
from dsmem.tokens.arrange import Arranged, arrange
from dsmem.tokens.layout import LARGEST_ID, TokenDtype
from dsmem.tokens.manifest import Manifest, Place, Tokenizer
from dsmem.tokens.options import Arrangement
from dsmem.tokens.parts import Part

Documents = Sequence[Sequence[int]]
EOT = 256
"""What the built-in tokenizer `bytes` ends a document with."""


def make_part(
    directory: Path, number: int, documents: Documents, dtype: TokenDtype, keys: Sequence[int] | None
) -> Part:
    """One part, as a worker leaves it."""
    stem = directory / f"part-{number}"
    tokens = [token for document in documents for token in document]
    np.array(tokens, np.dtype(dtype).newbyteorder("<")).tofile(f"{stem}.bin")
    np.array([len(document) for document in documents], "<u8").tofile(f"{stem}.lengths")
    if keys is not None:
        np.array(keys, "<u8").tofile(f"{stem}.keys")
    keys_path = None if keys is None else f"{stem}.keys"
    return Part(f"{stem}.bin", f"{stem}.lengths", keys_path, len(documents), len(tokens), 4 * len(tokens))


def make_manifest(
    dtype: TokenDtype, *, largest_id: int | None = None, eos: Place = "append", bos: Place = "none"
) -> Manifest:
    """What `dsmem tokenize --tokenizer bytes` would say; counts and digest are filled in by `arrange`."""
    tokenizer = Tokenizer(
        spec="bytes",
        kind="bytes",
        sha256="",
        vocab_size=257,
        largest_id=EOT if largest_id is None else largest_id,
        bos_id=EOT,
        eos_id=EOT,
        engine="bytes",
        engine_version=dsmem.__version__,
        reference="",
        verified_documents=0,
        parse_special=False,
    )
    return Manifest(dsmem.__version__, dtype, 0, 0, 0, bos, eos, tokenizer, (), "")


def make_tokens(
    out: Path,
    documents: Documents,
    dtype: TokenDtype = "uint16",
    arrangement: Arrangement | None = None,
    *,
    manifest: Manifest | None = None,
) -> tuple[Arranged, ...]:
    """Token files of these documents, complete, by `arrange` from one part."""
    work = out.parent / ".work"
    work.mkdir(exist_ok=True)
    keys = [hash(tuple(document)) % 2**64 for document in documents]
    part = make_part(work, 0, documents, dtype, keys)
    manifest = manifest or make_manifest(dtype)
    if not manifest.text_bytes:
        manifest = replace(manifest, text_bytes=part.text_bytes)
    arrangement = arrangement or Arrangement()
    return arrange([part], str(out), dtype, arrangement, staging=str(work), manifest=manifest, progress=ignore)


def of_bytes(*texts: str) -> list[list[int]]:
    """Documents of the tokenizer `bytes`, EOT appended."""
    return [[*text.encode(), EOT] for text in texts]


def random_documents(count: int, *, seed: int = 0, longest: int = 40, dtype: TokenDtype = "uint16") -> list[list[int]]:
    """Documents of random ids and lengths; some are empty."""
    random = np.random.default_rng(seed)
    return [
        random.integers(0, LARGEST_ID[dtype], random.integers(0, longest), dtype=np.uint64).tolist()
        for _ in range(count)
    ]
