"""The manifest `OUT.json`: what a token file was made from and how, as plain JSON; format 1."""

from __future__ import annotations

import json
import logging
import math
import os
from dataclasses import asdict, dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dsmem.errors import BadSource, DsmemError, SourceMissing
from dsmem.files import open_regular
from dsmem.tokens.layout import TokenDtype

_log = logging.getLogger(__name__)

FORMAT = 1
Place = Literal["append", "prepend", "none"]
MAX_BYTES = 256 << 20
"""A manifest lists its input files; a larger one is not read."""
_HEAD_BYTES = 256


class BadManifest(DsmemError, ValueError):
    """A manifest that is not one."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """By what text became ids."""

    spec: str
    """What `--tokenizer` was: a path, `tiktoken:NAME`, a hub id, `bytes`."""
    kind: Literal["tokenizer.json", "tiktoken", "sentencepiece", "bytes"]
    sha256: str
    """Of the tokenizer's file, or of its ranks; '' for bytes."""
    vocab_size: int
    largest_id: int
    """The largest id that can occur, added tokens included: it decides the dtype."""
    bos_id: int | None
    eos_id: int | None
    engine: str
    engine_version: str
    reference: str
    """With what the sample was compared, '' where the engine is its own reference."""
    verified_documents: int
    parse_special: bool


@dataclass(frozen=True, slots=True)
class Input:
    """One file that was read."""

    path: str
    size_bytes: int
    digest: str
    """`xxh3-tree:<hex>` of the file as it lies (compressed, if it is); '' for a stream, which is read once."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that is known about one token file."""

    dsmem: str
    dtype: TokenDtype
    tokens: int
    documents: int
    text_bytes: int
    """UTF-8 bytes of the text, without what bos and eos add; of all shards and splits together."""
    bos: Place
    eos: Place
    tokenizer: Tokenizer
    inputs: tuple[Input, ...]
    digest: str
    """`xxh3-tree:<hex>` of the `.bin`."""
    skipped: int = 0
    """Bad documents that `--on-error skip` left out; for all shards and splits together."""
    split: Literal["all", "train", "val"] = "all"
    val_fraction: float = 0.0
    shard: int = 0
    shards: int = 1
    shuffle_seed: int | None = None
    created: str = ""
    """UTC, ISO 8601."""

    def dump(self) -> bytes:
        """As JSON."""
        text = json.dumps({"dsmem_tokens": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False)
        # Of a path that is not UTF-8 its bytes are halves of surrogate pairs, which become the escapes of JSON.
        return text.encode("utf-8", "backslashreplace") + b"\n"


def load(data: bytes) -> Manifest:
    """The inverse of `dump`, checked; raises BadManifest."""
    try:
        raw: Any = json.loads(data)
        if not isinstance(raw, dict) or raw.pop("dsmem_tokens", None) != FORMAT:
            raise BadManifest("not a manifest of a token file")
        tokenizer = Tokenizer(**raw.pop("tokenizer"))
        inputs = tuple(Input(**one) for one in raw.pop("inputs"))
        found = Manifest(tokenizer=tokenizer, inputs=inputs, **raw)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise BadManifest(f"not a manifest of a token file: {exc}") from exc
    kinds: dict[type, dict[str, Any]] = {of: get_type_hints(of) for of in (Manifest, Tokenizer, Input)}
    for record in (found, found.tokenizer, *found.inputs):
        for name, kind in kinds[type(record)].items():
            if not _is(getattr(record, name), kind, least=None if name == "shuffle_seed" else 0):
                raise BadManifest(f"a manifest with a value that can't be: {name} is {getattr(record, name)!r}")
    if not found.shard < found.shards:
        raise BadManifest(f"a manifest with values that can't be: shard {found.shard} of {found.shards}")
    return found


def read(path: str) -> Manifest | None:
    """What lies there; None where nothing does, or a JSON file of somebody else's. Raises BadSource."""
    try:
        file = open_regular(path)
    except SourceMissing:
        return None
    with file:
        data = file.read(_HEAD_BYTES)
        if b'"dsmem_tokens"' not in data:
            _log.info("%s is no manifest of a token file: not looked at", path)
            return None
        if os.fstat(file.fileno()).st_size > MAX_BYTES:
            raise BadSource(f"{path} is larger than {MAX_BYTES} bytes: no manifest")
        data += file.read(MAX_BYTES - len(data))
    try:
        return load(data)
    except BadManifest as exc:
        raise BadSource(f"{path}: {exc}") from exc


def _is(value: object, kind: Any, *, least: int | None) -> bool:
    """Whether a value from JSON is of the kind that a field is annotated with; numbers are at least `least`."""
    origin = get_origin(kind)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(kind))
    if origin is UnionType:
        return any(_is(value, one, least=least) for one in get_args(kind))
    if kind is float or kind is int:
        fitting = type(value) is int or (kind is float and type(value) is float and math.isfinite(value))
        return fitting and (least is None or value >= least)  # type: ignore[operator] # a number, by now
    return isinstance(value, origin or kind)
