"""The documents of parts as streams: in which order they are written, how long they are, where they lie.

A stream is two files, 8 bytes a document each, which are passed over in blocks: memory does not grow with documents.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dsmem.errors import SourceChanged
from dsmem.tokens.index import BLOCK, EndsWriter, blocks_of, lengths_of
from dsmem.tokens.parts import Part
from dsmem.tokens.permutation import Permutation

_log = logging.getLogger(__name__)

Split = Literal["all", "train", "val"]
Array = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True, slots=True)
class Stream:
    """The documents of one split in the order in which they are written."""

    split: Split
    ends_path: str
    documents: int
    tokens: int
    longest: int
    """Tokens of the longest document."""
    origins_path: str | None
    """uint64, the first token of each in the parts; None where they follow each other there."""


def streams_of(parts: Sequence[Part], staging: str, *, val_fraction: float, shuffle_seed: int | None) -> list[Stream]:
    """Look at every document: its length, where it lies, to which split it belongs; files in `staging` hold that.

    One stream, `all`; with a fraction two, `train` and `val`. Raises SourceChanged for a part that is not as recorded.
    """
    splits: tuple[Split, ...] = ("train", "val") if val_fraction else ("all",)
    found = []
    for split in splits:
        ends_path = os.path.join(staging, f"{split}-ends.npy")
        origins_path = os.path.join(staging, f"{split}-origins.u64") if shuffle_seed is not None else None
        with EndsWriter(ends_path) as writer, ExitStack() as stack:
            origins = stack.enter_context(Path(origins_path).open("wb")) if origins_path is not None else None
            for starts, lengths, keys in documents_of(parts):
                chosen: Any = slice(None)
                if keys is not None and split != "all":
                    chosen = for_val(keys, val_fraction) == (split == "val")
                writer.add(lengths[chosen])
                if origins is not None:
                    origins.write(np.ascontiguousarray(starts[chosen], "<u8").data)
        stream = Stream(split, ends_path, writer.documents, writer.tokens, writer.longest, origins_path)
        found.append(stream if shuffle_seed is None else _shuffled(stream, shuffle_seed))
        if not stream.documents and split != "all":
            _log.warning("no document fell to %s: the file is empty", split)
    return found


def for_val(keys: Array, val_fraction: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which documents are for validation, by their keys alone."""
    return keys < np.uint64(int(val_fraction * 2**64))


def documents_of(parts: Sequence[Part]) -> Iterator[tuple[Array, Array, Array | None]]:
    """Blocks of (first token, counted through all parts; tokens; key) of every document, in order."""
    base = 0
    for part in parts:
        seen_documents, seen_tokens = 0, 0
        with ExitStack() as stack:
            lengths_file = stack.enter_context(Path(part.lengths_path).open("rb"))
            keys_file = stack.enter_context(Path(part.keys_path).open("rb")) if part.keys_path is not None else None
            while block := lengths_file.read(8 * BLOCK):
                lengths = np.frombuffer(block, "<u8").astype(np.uint64)
                keys = None if keys_file is None else np.frombuffer(keys_file.read(len(block)), "<u8")
                if keys is not None and len(keys) != len(lengths):
                    raise SourceChanged(f"{part.keys_path} has fewer keys than documents")
                ends = np.cumsum(lengths, dtype=np.uint64) + np.uint64(base + seen_tokens)
                yield ends - lengths, lengths, keys
                seen_documents += len(lengths)
                seen_tokens = int(ends[-1]) - base
        if (seen_documents, seen_tokens) != (part.documents, part.tokens):
            raise SourceChanged(
                f"{part.lengths_path} tells {seen_documents} documents, {seen_tokens} tokens "
                f"instead of {part.documents}, {part.tokens}"
            )
        base += part.tokens


def _shuffled(stream: Stream, seed: int) -> Stream:
    """The same documents in the order of the seed; files of the first order are replaced."""
    assert stream.origins_path is not None
    order = Permutation(stream.documents, seed, name="documents")
    ends = np.load(stream.ends_path, mmap_mode="r")
    if not stream.documents:
        return stream
    origins = np.memmap(stream.origins_path, "<u8", "r")
    new_ends, new_origins = f"{stream.ends_path}.new", f"{stream.origins_path}.new"
    with EndsWriter(new_ends) as writer, Path(new_origins).open("wb") as file:
        for start in range(0, stream.documents, BLOCK):
            chosen = order(np.arange(start, min(start + BLOCK, stream.documents)))
            before = np.where(chosen > 0, ends[np.maximum(chosen, 1) - 1], np.uint64(0))
            writer.add(ends[chosen] - before)
            file.write(np.ascontiguousarray(origins[chosen]).data)
    os.replace(new_ends, stream.ends_path)
    os.replace(new_origins, stream.origins_path)
    return stream


def scattered(stream: Stream) -> Iterator[tuple[Array, Array]]:
    """Blocks of (first token in the parts, tokens) in the order of the stream."""
    if not stream.documents:
        return
    assert stream.origins_path is not None
    origins = np.memmap(stream.origins_path, "<u8", "r")
    at = 0
    for before, ends in blocks_of(np.load(stream.ends_path, mmap_mode="r")):
        yield np.array(origins[at : at + len(ends)], np.uint64), lengths_of(before, ends)
        at += len(ends)
