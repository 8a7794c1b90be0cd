"""Pinning what is chunked and compressed: against h5py into the same kind of memory, and against sharing by hand."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

import dsmem
from dsmem.bench import limits, recipes, sources
from dsmem.bench.cases import pin
from dsmem.bench.harness import Comparison, Contender
from dsmem.bench.sizes import Need
from dsmem.bench.sources import Array, Source
from dsmem.bench.workbench import Case, Effort, Workbench

_SHARE = 8
"""Each file is this part of the size of the run: there are four, and h5py decodes a fifth of a GB/s."""
_BLOCK_BYTES = 4 << 20
"""This much is different data; further chunks repeat those, so that making a file takes no time to compress it."""


@dataclass(frozen=True, slots=True)
class _Kind:
    title: str
    sample: tuple[int, ...]
    chunk: tuple[int, ...]
    make: Callable[[tuple[int, ...]], Array]
    options: dict[str, Any]


def _photos(shape: tuple[int, ...]) -> Array:
    """uint8 images: smooth, of moderate contrast, with the noise of a sensor; gzip makes them 1.5–1.8 times smaller."""
    return _waves(shape, contrast=20, noise=1.5)


def _drawings(shape: tuple[int, ...]) -> Array:
    """uint8 images of few levels, which lzf compresses too."""
    return _waves(shape, contrast=100, noise=3) // 16 * 16


def _waves(shape: tuple[int, ...], *, contrast: float, noise: float) -> Array:
    across = np.linspace(0, 8 * np.pi, shape[-1])
    smooth = contrast * np.sin(across)[:, None] * np.cos(across)[None] + 128
    return (smooth + np.random.default_rng(0).normal(0, noise, shape)).clip(0, 255).astype(np.uint8)


def _signals(shape: tuple[int, ...]) -> Array:
    """float32 random walks, as sensors give them."""
    return np.cumsum(np.random.default_rng(0).normal(size=shape), axis=-1).astype(np.float32)


_KINDS = (
    _Kind("gzip-4 images", (256, 256), (1, 256, 256), _photos, {"compression": "gzip", "compression_opts": 4}),
    _Kind("shuffle + gzip floats", (256, 256), (4, 256, 256), _signals, {"compression": "gzip", "shuffle": True}),
    _Kind("lzf images", (256, 256), (4, 256, 256), _drawings, {"compression": "lzf"}),
    _Kind("gzip in chunks of 1×64×64", (64, 64), (1, 64, 64), _photos, {"compression": "gzip"}),
)


def compare(bench: Workbench) -> Generator[Comparison]:
    """A comparison for each kind of file; the first recipe is h5py's own read_direct into a fresh map."""
    for number, kind in enumerate(_KINDS):
        path = bench.new_file(f"decode-{number}.h5")
        try:
            source = _make(path, kind, bench.size_bytes // _SHARE)
            yield _comparison(bench, kind, source)
        finally:
            path.unlink(missing_ok=True)


def _comparison(bench: Workbench, kind: _Kind, source: Source) -> Comparison:
    limits.read_cached(source.path)
    ours = Contender(
        "dsmem.pin",
        "dsmem",
        lambda _: dsmem.pin(source.path),
        answer=lambda _: pin.attached(source),
        around=bench.place.store,
    )
    direct = Contender(
        "h5py read_direct into a new map",
        "recipe",
        partial(_read_direct, source),
        answer=lambda array: sources.content_digest({"x": array}),
        around=partial(limits.new_file, bench.place.shared),
    )
    by_hand = Contender(
        "md5 + h5py + SharedMemory",
        "recipe",
        partial(pin.pin_by_hand, source),
        answer=pin.in_segments,
        around=pin.segments,
    )
    limit = Contender(
        "pwrite of a hot buffer, threads",
        "limit",
        partial(limits.fill_hot_bytes, source.data_bytes),
        around=partial(limits.new_file, bench.place.shared),
    )
    title = f"{kind.title}, digest included"
    return Comparison(title, source.data_bytes, [ours, direct, by_hand, limit], watch=str(bench.place.shared))


def _make(path: Path, kind: _Kind, size_bytes: int) -> Source:
    """A file of one dataset, `x`."""
    first = kind.make((_BLOCK_BYTES // math.prod(kind.sample) // 4 * 4, *kind.sample))
    first = first[: _BLOCK_BYTES // (first.nbytes // len(first))]
    with h5py.File(path, "w") as file:
        repeats = max(size_bytes // first.nbytes, 1)
        shape = (repeats * len(first), *kind.sample)
        dataset = file.create_dataset("x", shape, first.dtype, chunks=kind.chunk, **kind.options)
        dataset[: len(first)] = first
        below = (0,) * len(kind.sample)
        chunks = [
            (start, *dataset.id.read_direct_chunk((start, *below))) for start in range(0, len(first), kind.chunk[0])
        ]
        for repeat in range(1, repeats):
            for start, mask, data in chunks:
                dataset.id.write_direct_chunk((repeat * len(first) + start, *below), data, mask)
    return sources.look_at(str(path))


def _read_direct(source: Source, target: BinaryIO) -> Array:
    target.truncate(source.data_bytes)
    return recipes.read_direct_into(mmap.mmap(target.fileno(), source.data_bytes), source.path, "x")


CASE = Case(
    "decode",
    "what is compressed is decoded by every core, not by one",
    compare,
    need=Need(memory=1.0, shared=0.4, files=1.5),
    effort=Effort(md5=6, fill=1, copy=1, fixed_s=2.0),
    takes_file=False,
)
