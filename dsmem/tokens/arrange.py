"""From parts to token files: one or many, in order or shuffled, with documents set aside for validation.

Everything is built complete beside the place where it goes and then renamed, a file's `.bin` last: a `.bin` under its
name is whole, and so is all that belongs to it. Memory is bounded whatever the size: what there is to know about
documents passes through in blocks, or lies in files of `staging`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dsmem import files, units
from dsmem.errors import OutputFull, SourceChanged, UsageError
from dsmem.progress import Progress
from dsmem.tokens import index, joining
from dsmem.tokens.index import BLOCK, EndsWriter
from dsmem.tokens.layout import ITEM_BYTES, LARGEST_IDX_ID, Beside, TokenDtype, val_path
from dsmem.tokens.manifest import Manifest
from dsmem.tokens.options import MOST_SHARDS, Arrangement, TooFewDocuments
from dsmem.tokens.parts import Part
from dsmem.tokens.streams import Split, Stream, documents_of, for_val, scattered, streams_of

_log = logging.getLogger(__name__)

Array = np.ndarray[Any, np.dtype[np.uint64]]
_MASKED_TOKENS = 1 << 22


@dataclass(frozen=True, slots=True)
class Arranged:
    """A token file that has its name."""

    path: str
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class _Target:
    """One output: which documents of its stream, and which of its tokens."""

    path: str
    split: Split
    shard: int
    shards: int
    first: int
    last: int
    start: int
    stop: int


def arrange(
    parts: Sequence[Part],
    out: str,
    dtype: TokenDtype,
    arrangement: Arrangement,
    *,
    staging: str,
    manifest: Manifest,
    progress: Progress,
    take_over: bool = False,
    before_publishing: Callable[[Sequence[tuple[Beside, Beside]]], None] = lambda pairs: None,
) -> tuple[Arranged, ...]:
    """Make the token files of these parts, `out` or files named after it, and return them in order, train before val.

    `staging` is a directory on the file system of `out`; a directory `arranged` is made in it, where files of an
    earlier try are overwritten, and removed at the end. The parts stay; with `take_over`, where all of them lie in one
    file as the output will have them, that file gets the name of the output as a second one, and nothing is copied.
    `before_publishing` is told where all files lie, complete, and which names they are about to get.
    `manifest` says what this function can't know: of its fields, counts, digest, split, shard and seed are filled in,
    while `text_bytes` and `skipped` stay those of all outputs together. Raises UsageError (also for more shards than
    documents), OutputFull before anything is written, SourceChanged when a part is not what its record says, OSError.
    """
    arrangement.check()
    if arrangement.val_fraction and any(part.keys_path is None for part in parts):
        raise UsageError("documents can be set aside by content only where parts have keys")
    staging = os.path.join(staging, "arranged")  # a name of its own: OUT may be called like a part
    os.makedirs(staging, exist_ok=True)
    item_bytes = ITEM_BYTES[dtype]
    total_bytes = sum(part.tokens for part in parts) * item_bytes
    take_over = take_over and arrangement == Arrangement() and joining.is_whole(parts, item_bytes)
    _require_room(staging, parts, 0 if take_over else total_bytes)
    count = joining.counter(total_bytes, progress)
    done = []
    streams = streams_of(parts, staging, val_fraction=arrangement.val_fraction, shuffle_seed=arrangement.shuffle_seed)
    targets = {stream.split: _targets(stream, out, arrangement) for stream in streams}
    taken = joining.take_over(_staged(staging, targets["all"][0]).bin, parts, total_bytes, count) if take_over else None
    if take_over and taken is None:
        _require_room(staging, parts, total_bytes)
    digests = (
        {"all": [taken.digest]}
        if taken
        else _write_tokens(parts, item_bytes, streams, targets, arrangement, staging, count)
    )
    for stream in streams:
        ends = np.load(stream.ends_path, mmap_mode="r")
        for target, digest in zip(targets[stream.split], digests[stream.split], strict=True):
            made = replace(
                manifest,
                dtype=dtype,
                tokens=target.stop - target.start,
                documents=target.last - target.first,
                digest=digest,
                split=target.split,
                val_fraction=arrangement.val_fraction,
                shard=target.shard,
                shards=target.shards,
                shuffle_seed=arrangement.shuffle_seed,
            )
            _write_beside(_staged(staging, target), target, stream, ends, made)
            done.append(Arranged(target.path, made))
    pairs = [(Beside.of(os.path.join(staging, os.path.basename(one.path))), Beside.of(one.path)) for one in done]
    if taken:
        taken.syncing.wait()
    before_publishing(pairs)
    for staged, final in pairs:
        _publish(staged, final)
    files.sync(os.path.dirname(out) or ".")
    for stream in streams:
        for path in (stream.ends_path, stream.origins_path):
            if path is not None:
                files.unlink_if_there(path)
    os.rmdir(staging)
    return tuple(done)


def shard_path(path: str, shard: int, shards: int) -> str:
    """OUT-00000-of-00003.bin, as Hugging Face names shards; they count from 0."""
    return f"{path.removesuffix('.bin')}-{shard:05d}-of-{shards:05d}.bin"


def even_cuts(ends: Array, shards: int) -> list[int]:
    """Where each shard ends, in documents: nearest to equal shares of the tokens, at least one document each."""
    documents, cuts = len(ends), [0]
    if shards > documents:
        raise TooFewDocuments(f"{documents} documents can't be spread over {shards} shards")
    tokens = int(ends[-1])
    for shard in range(1, shards):
        share = tokens * shard // shards
        after = int(np.searchsorted(ends, np.uint64(share)))  # the document within which the share ends
        before = int(ends[after - 1]) if after else 0
        cut = after if share - before <= int(ends[after]) - share else after + 1
        cuts.append(min(max(cut, cuts[-1] + 1), documents - (shards - shard)))
    return [*cuts[1:], documents]


def cuts_by_size(ends: Array, shard_tokens: int) -> list[int]:
    """Where each shard ends, in documents: as late as `shard_tokens` allows, but not before one document."""
    cuts, base, first = [], 0, 0
    while first < len(ends):
        fitting = int(np.searchsorted(ends, np.uint64(base + shard_tokens), "right"))
        first = max(fitting, first + 1)
        base = int(ends[first - 1])
        cuts.append(first)
    return cuts or [0]


def _targets(stream: Stream, out: str, arrangement: Arrangement) -> list[_Target]:
    path = val_path(out) if stream.split == "val" else out
    ends: Array = np.load(stream.ends_path, mmap_mode="r")
    cuts, named = [stream.documents], False
    if arrangement.shards is not None and stream.split != "val":
        cuts, named = even_cuts(ends, arrangement.shards), True
    elif arrangement.shard_tokens is not None:
        cuts, named = cuts_by_size(ends, arrangement.shard_tokens), True
        if len(cuts) > MOST_SHARDS:
            raise UsageError(
                f"{len(cuts)} shards are too many, {MOST_SHARDS} have names; all parts are kept for larger shards"
            )
    targets, longer = [], []
    for shard, (first, last) in enumerate(zip([0, *cuts], cuts, strict=False)):
        start, stop = (int(ends[at - 1]) if at else 0 for at in (first, last))
        name = shard_path(path, shard, len(cuts)) if named else path
        targets.append(_Target(name, stream.split, shard, len(cuts), first, last, start, stop))
        if arrangement.shard_tokens is not None and stop - start > arrangement.shard_tokens:
            longer.append(f"{name} of {stop - start}")
    if longer:
        _log.warning(
            "%d of %d shards hold more than %d tokens, each a single document; the first: %s",
            len(longer),
            len(cuts),
            arrangement.shard_tokens,
            longer[0],
        )
    return targets


def _write_tokens(
    parts: Sequence[Part],
    item_bytes: int,
    streams: Sequence[Stream],
    targets: dict[Split, list[_Target]],
    arrangement: Arrangement,
    staging: str,
    count: joining.Count,
) -> dict[Split, list[str]]:
    """Every `.bin`, in `staging`; returns the digests."""
    if arrangement.shuffle_seed is None and not arrangement.val_fraction:
        found = (
            joining.join(
                _staged(staging, target).bin,
                joining.stretches(parts, item_bytes, target.start * item_bytes, target.stop * item_bytes),
                count,
            )
            for target in targets["all"]
        )
        return {"all": list(found)}
    writers: dict[Split, joining.Writer] = {}
    for split, here in targets.items():
        sizes_bytes = [(target.stop - target.start) * item_bytes for target in here]
        writers[split] = joining.Writer([_staged(staging, target).bin for target in here], sizes_bytes, count)
    try:
        if arrangement.shuffle_seed is None:
            _divide(parts, item_bytes, arrangement.val_fraction, writers["train"], writers["val"])
        else:
            for stream in streams:
                joining.gather(parts, item_bytes, scattered(stream), writers[stream.split])
        return {split: writer.finish() for split, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.close()


def _divide(
    parts: Sequence[Part], item_bytes: int, val_fraction: float, train: joining.Writer, val: joining.Writer
) -> None:
    """Read all tokens once, in order, and hand each to the split of its document."""
    for part in parts:
        tokens = np.memmap(part.tokens_path, f"<u{item_bytes}", "r") if part.tokens else np.empty(0)
        first_token = part.start_bytes // item_bytes
        tokens = tokens[first_token : first_token + part.tokens]
        if len(tokens) != part.tokens:
            raise SourceChanged(f"{part.tokens_path} has {len(tokens)} tokens instead of {part.tokens}")
        at = 0
        for _, lengths, keys in documents_of([part]):
            assert keys is not None
            ends, held_back = np.cumsum(lengths), for_val(keys, val_fraction)
            start, stop = 0, int(ends[-1])
            while start < stop:
                end = min(start + _MASKED_TOKENS, stop)
                first, last = (int(np.searchsorted(ends, np.uint64(one), "right")) for one in (start, end - 1))
                until = np.minimum(ends[first : last + 1], np.uint64(end))
                here = np.diff(until, prepend=np.uint64(start)).astype(np.int64)
                mask = np.repeat(held_back[first : last + 1], here)
                block = tokens[at + start : at + end]
                val.write(_bytes_of(block[mask]))
                train.write(_bytes_of(block[~mask]))
                start = end
            at += stop


def _write_beside(staged: Beside, target: _Target, stream: Stream, ends: Array, manifest: Manifest) -> None:
    """The side files of one output; no `.idx` where Megatron's form can't hold what is there."""
    if (target.first, target.last) == (0, stream.documents):
        os.replace(stream.ends_path, staged.docs)  # which holds what would be written, and is synced
        longest = stream.longest
    else:
        longest = _write_ends(staged.docs, target, ends)
    files.unlink_if_there(staged.idx)
    if longest > index.LONGEST_IDX_DOCUMENT:
        _log.warning("%s gets no .idx: a document of %d tokens is too long for it", target.path, longest)
    elif manifest.dtype == "uint32" and manifest.tokenizer.largest_id > LARGEST_IDX_ID:
        _log.warning("%s gets no .idx: ids up to %d are too large for it", target.path, manifest.tokenizer.largest_id)
    else:
        index.write_index(staged.idx, np.load(staged.docs, mmap_mode="r"), manifest.dtype)
    with Path(staged.manifest).open("wb") as file:
        file.write(manifest.dump())
        file.flush()
        os.fsync(file.fileno())


def _write_ends(path: str, target: _Target, ends: Array) -> int:
    """The ends of the documents of one output; returns the tokens of the longest."""
    with EndsWriter(path) as writer:
        before = target.start
        for first in range(target.first, target.last, BLOCK):
            block = np.array(ends[first : min(first + BLOCK, target.last)], np.uint64)
            writer.add(index.lengths_of(before, block))
            before = int(block[-1])
    return writer.longest


def _publish(staged: Beside, final: Beside) -> None:
    """Rename all files of one output; an older `.bin` goes first, so that none ever lies beside another's files."""
    files.unlink_if_there(final.bin)
    for here, there in ((staged.idx, final.idx), (staged.docs, final.docs), (staged.manifest, final.manifest)):
        if os.path.exists(here):
            os.replace(here, there)
        else:
            files.unlink_if_there(there)
    os.replace(staged.bin, final.bin)


def _staged(staging: str, target: _Target) -> Beside:
    return Beside.of(os.path.join(staging, os.path.basename(target.path)))


def _require_room(staging: str, parts: Sequence[Part], total_bytes: int) -> None:
    documents = sum(part.documents for part in parts)
    need_bytes = total_bytes + documents * (8 + 8 + 20)  # the ends twice, and what .idx has a document
    found = os.statvfs(staging)
    free_bytes = found.f_bavail * found.f_frsize
    if found.f_blocks and need_bytes > free_bytes:
        need, free = units.format_bytes(need_bytes), units.format_bytes(free_bytes)
        raise OutputFull(
            f"the token files need {need} at {staging}, {free} are free",
            need_bytes=need_bytes,
            free_bytes=free_bytes,
            limit="file system",
        )


def _bytes_of(array: np.ndarray[Any, Any]) -> memoryview:
    return np.ascontiguousarray(array).view(np.uint8).data if array.size else memoryview(b"")
