"""A seeded shuffle of range(n) without an index array: the place of any position is computed, in constant memory.

A Feistel network over the next power of two, with halves that differ by at most one bit, is a bijection whatever its
round function is; what falls outside of range(n) is sent through it again (cycle walking; Black and Rogaway, "Ciphers
with arbitrary finite domains", 2002). Not meant to keep secrets.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from dsmem.errors import UsageError

Indices = np.ndarray[Any, np.dtype[np.int64]]
_Words = np.ndarray[Any, np.dtype[np.uint64]]
_ROUNDS = 6
_BLOCK = 16384
"""Positions that are shuffled at once: their temporary arrays stay in the cache."""
_FIRST = np.uint64(0x9E3779B97F4A7C15)
_SECOND = np.uint64(0xD6E8FEB86659FD93)
_FOLD = np.uint64(32)


class Permutation:
    """A bijection of range(n) for n up to 2**63; another for every seed and every epoch, the same on every machine."""

    def __init__(self, n: int, seed: int, epoch: int = 0, *, name: str = "") -> None:
        """`name` tells apart several permutations of one seed."""
        if not 0 <= n <= 1 << 63:
            raise UsageError(f"a permutation of {n} things; it can be 0 to 2**63")
        self.n = n
        bits = max(2, (n - 1).bit_length())
        halves = (bits + 1) // 2, bits // 2
        digest = hashlib.sha256(f"{seed}/{epoch}/{n}/{name}".encode()).digest()
        digest += hashlib.sha256(digest).digest()
        self._keys = np.frombuffer(digest, "<u8", _ROUNDS)
        self._low_bits, self._low_mask = np.uint64(halves[1]), np.uint64((1 << halves[1]) - 1)
        # Round by round the left half takes up what the right one makes of itself, and they change places.
        self._shifts = [np.uint64(64 - halves[turn % 2]) for turn in range(_ROUNDS)]

    def __call__(self, positions: Indices) -> Indices:
        """Where the positions, each in range(n), go; int64, of the same shape."""
        flat = np.ascontiguousarray(positions, np.int64).reshape(-1)
        shuffled = np.empty(len(flat), np.int64)
        for start in range(0, len(flat), _BLOCK):
            shuffled[start : start + _BLOCK] = self._walk(flat[start : start + _BLOCK].astype(np.uint64))
        return shuffled.reshape(np.shape(positions))

    def _walk(self, words: _Words) -> _Words:
        words = self._mix(words)
        outside = np.flatnonzero(words >= np.uint64(self.n))
        while len(outside):
            again = self._mix(words[outside])
            words[outside] = again
            outside = outside[again >= np.uint64(self.n)]
        return words

    def _mix(self, words: _Words) -> _Words:
        """The network, once over range(2**bits)."""
        left, right = words >> self._low_bits, words & self._low_mask
        mixed, folded = np.empty_like(words), np.empty_like(words)
        for key, shift in zip(self._keys, self._shifts, strict=True):
            np.add(right, key, out=mixed)
            np.multiply(mixed, _FIRST, out=mixed)
            np.right_shift(mixed, _FOLD, out=folded)
            np.bitwise_xor(mixed, folded, out=mixed)
            np.multiply(mixed, _SECOND, out=mixed)
            np.right_shift(mixed, shift, out=mixed)
            np.bitwise_xor(left, mixed, out=left)
            left, right = right, left
        np.left_shift(left, self._low_bits, out=left)
        np.bitwise_or(left, right, out=left)
        return left
