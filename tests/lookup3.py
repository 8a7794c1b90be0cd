"""Bob Jenkins' lookup3 hash (public domain, http://burtleburtle.net/bob/c/lookup3.c): the checksum of HDF5 metadata."""

from __future__ import annotations

_MASK = 0xFFFFFFFF


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> (32 - bits)) & _MASK


def lookup3(data: bytes) -> int:
    """`hashlittle` of the data, initial value 0."""
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    if not data:
        return c
    for at in range(0, len(data), 12):
        block = data[at : at + 12].ljust(12, b"\0")
        a = (a + int.from_bytes(block[:4], "little")) & _MASK
        b = (b + int.from_bytes(block[4:8], "little")) & _MASK
        c = (c + int.from_bytes(block[8:], "little")) & _MASK
        if at + 12 >= len(data):
            break
        a, b, c = _mixed(a, b, c)
    return _final(a, b, c)


def _mixed(a: int, b: int, c: int) -> tuple[int, int, int]:
    a = (a - c & _MASK) ^ _rotated(c, 4)
    c = c + b & _MASK
    b = (b - a & _MASK) ^ _rotated(a, 6)
    a = a + c & _MASK
    c = (c - b & _MASK) ^ _rotated(b, 8)
    b = b + a & _MASK
    a = (a - c & _MASK) ^ _rotated(c, 16)
    c = c + b & _MASK
    b = (b - a & _MASK) ^ _rotated(a, 19)
    a = a + c & _MASK
    c = (c - b & _MASK) ^ _rotated(b, 4)
    b = b + a & _MASK
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    c = (c ^ b) - _rotated(b, 14) & _MASK
    a = (a ^ c) - _rotated(c, 11) & _MASK
    b = (b ^ a) - _rotated(a, 25) & _MASK
    c = (c ^ b) - _rotated(b, 16) & _MASK
    a = (a ^ c) - _rotated(c, 4) & _MASK
    b = (b ^ a) - _rotated(a, 14) & _MASK
    return (c ^ b) - _rotated(b, 24) & _MASK
