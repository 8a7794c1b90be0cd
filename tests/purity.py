"""Chunks of every pipeline, damaged ones, and whether what comes of one is decided by the chunk alone."""

from __future__ import annotations

import ctypes
import random
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from dsmem.hdf5.codecs import Pipeline, Undecodable
from dsmem.hdf5.filters import filters_of

_M_PERTURB = -6
"""malloc.h: fills memory that is handed out or given back with a byte."""
PIPELINES: dict[str, dict[str, Any]] = {
    "none": {"chunks": (5, 39)},
    "shuffle": {"shuffle": True},
    "gzip": {"compression": "gzip"},
    "shuffle+gzip+fletcher32": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    "lzf": {"compression": "lzf"},
    "szip": {"compression": "szip", "compression_opts": ("nn", 8)},
    "lz4": dict(hdf5plugin.LZ4()),
    "lz4, blocks": dict(hdf5plugin.LZ4(nbytes=64)),
    "zstd": dict(hdf5plugin.Zstd()),
    "blosc": dict(hdf5plugin.Blosc(cname="lz4", shuffle=1)),
    "blosc zlib": dict(hdf5plugin.Blosc(cname="zlib", shuffle=2)),
    "blosc zstd": dict(hdf5plugin.Blosc(cname="zstd", shuffle=2)),
    "blosclz": dict(hdf5plugin.Blosc(cname="blosclz", shuffle=0)),
    "blosc2": dict(hdf5plugin.Blosc2(cname="lz4")),
    "blosc2 zstd": dict(hdf5plugin.Blosc2(cname="zstd", filters=2)),
    "bitshuffle": dict(hdf5plugin.Bitshuffle(cname="none")),
    "bitshuffle lz4": dict(hdf5plugin.Bitshuffle(cname="lz4")),
    "bitshuffle lz4, blocks": dict(hdf5plugin.Bitshuffle(nelems=16, cname="lz4")),
    "bitshuffle zstd": dict(hdf5plugin.Bitshuffle(cname="zstd")),
}
SIZES = (5, 39)


def stored(name: str, dtype: str = "<i4", options: dict[str, Any] | None = None) -> tuple[Pipeline, bytes, bytes]:
    """What decodes a chunk, the chunk as it is stored, and its bytes as h5py reads them."""
    values = (np.arange(np.prod(SIZES)) // 5 % 30).astype(dtype).reshape(SIZES)
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        made = file.create_dataset("x", data=values, **({"chunks": SIZES} | (options or PIPELINES[name])))
        file.flush()
        _, raw = made.id.read_direct_chunk((0, 0))
        return Pipeline(filters_of(made.id.get_create_plist()), values.nbytes), raw, made[()].tobytes()


def damaged(raw: bytes, chance: random.Random) -> bytes:
    """Bits flipped, numbers set, bytes copied, left out or put in, as often near the beginning as anywhere."""
    content = bytearray(raw)
    at = chance.randrange(chance.choice([len(content), min(len(content), 140)]))
    kind = chance.randrange(6)
    if kind < 2:
        content[at] ^= 1 << chance.randrange(8)
    elif kind == 2:
        content[at] = chance.choice([0, 1, 127, 128, 255])
    elif kind == 3:
        number = chance.choice([0, 1, len(raw), len(raw) - 1, len(raw) + 1, 0x7FFFFFFF, 0xFFFFFFFF])
        content[at : at + 4] = number.to_bytes(4, chance.choice(["little", "big"]))
    elif kind == 4:
        del content[at : at + chance.choice([1, 2, 4, 9, len(content) - at])]
    else:
        content[at:at] = chance.randbytes(chance.choice([1, 4, 16]))
    return bytes(content)


def decoded(pipeline: Pipeline, data: bytes, size: int) -> set[bytes | None]:
    """What comes out of it into memory of two contents; None: an error."""
    found: set[bytes | None] = set()
    perturb = ctypes.CDLL(None).mallopt
    try:
        for before in (0xAA, 0x55):
            perturb(_M_PERTURB, before)
            out = np.full(size, before, np.uint8)
            try:
                pipeline.decode(memoryview(data), out, 0)
                found.add(out.tobytes())
            except Undecodable:
                found.add(None)
    finally:
        perturb(_M_PERTURB, 0)
    return found
