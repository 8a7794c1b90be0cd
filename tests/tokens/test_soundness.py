"""Of a damaged compressed file only what a checksum holds for is sound, and where it is cut off all of it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import zlib
from collections.abc import Callable

import pytest
import zstandard

from dsmem.tokens import compressed, soundness
from dsmem.tokens.compressed import Broken, Compression, Damage

PART = 30_000


def text(count: int, seed: int) -> bytes:
    return "".join(random.Random(seed).choices("abcdefgh \n", k=count)).encode()


def by_parts(pack: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda data: b"".join(pack(data[at : at + PART]) for at in range(0, len(data), PART))


def number(value: int) -> bytes:
    """As indices of xz have it."""
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + number(value >> 7)


def xz_of_blocks(data: bytes) -> bytes:
    """One stream with a block for each part, as `xz --block-size` writes it."""
    blocks, records = [], []
    for at in range(0, len(data), PART):
        stream = lzma.compress(data[at : at + PART], preset=0)
        index_bytes = 4 * (int.from_bytes(stream[-8:-4], "little") + 1)
        blocks.append(stream[12 : -12 - index_bytes])
        index = stream[-12 - index_bytes : -12]
        padding = (-len(index[2:-4].rstrip(b"\0"))) % 4
        assert index[:2] == b"\0\1" and padding >= 0
        size, shift = 0, 0
        for byte in index[2:]:
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        records.append(number(size) + number(len(data[at : at + PART])))
    index = b"\0" + number(len(records)) + b"".join(records)
    index += bytes(-len(index) % 4)
    index += zlib.crc32(index).to_bytes(4, "little")
    ends = (len(index) // 4 - 1).to_bytes(4, "little") + stream[-4:-2]
    foot = zlib.crc32(ends).to_bytes(4, "little") + ends + b"YZ"
    return stream[:12] + b"".join(blocks) + index + foot


zst = zstandard.ZstdCompressor(write_checksum=True).compress
PACKED: dict[str, tuple[Compression, int, Callable[[bytes], bytes]]] = {
    "gz": ("gz", 0, gzip.compress),
    "gz, members": ("gz", PART, by_parts(gzip.compress)),
    "bz2": ("bz2", 200_000, lambda data: bz2.compress(data, 1)),
    "xz": ("xz", 0, lzma.compress),
    "xz, blocks": ("xz", 2 * PART, xz_of_blocks),
    "xz, streams": ("xz", 2 * PART, lambda data: xz_of_blocks(data[:70_000]) + bytes(8) + xz_of_blocks(data[70_000:])),
    "zst": ("zst", 0, zst),
    "zst, frames": ("zst", PART, by_parts(zst)),
    "zst, skippable": ("zst", PART, by_parts(lambda data: b"\x50\x2a\x4d\x18\3\0\0\0abc" + zst(data))),
}
"""How, how much may be lost before what is damaged (0: everything), and what packs."""


def given(data: bytes, kind: Compression) -> tuple[Damage | None, bytes, str]:
    """What is wrong, what is given, and what is told of the rest."""
    file = io.BytesIO(data)
    damage = soundness.damage_of(file, kind)
    assert file.tell() == 0
    found = bytearray()
    with compressed.opened(file, kind, path="x", damage=damage) as stream:
        try:
            while part := stream.read(20_000):
                found += part
        except Broken as exc:
            return damage, bytes(found), exc.reason
    return damage, bytes(found), ""


@pytest.mark.parametrize("name", PACKED)
def test_what_is_whole_and_what_is_cut_off_is_sound(name: str) -> None:
    kind, _, pack = PACKED[name]
    data = text(300_000, 1)
    packed = pack(data)
    assert given(packed, kind) == (None, data, "")
    for share in (0.3, 0.9):
        damage, found, reason = given(packed[: int(len(packed) * share)], kind)
        assert damage is None and data.startswith(found) and "truncated" in reason


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("bits", ["one", "some"])
def test_what_is_damaged_is_sound_as_far_as_checksums_hold(name: str, bits: str) -> None:
    kind, least_bytes, pack = PACKED[name]
    data = text(300_000, 2)
    packed = pack(data)
    randoms = random.Random(name + bits)
    for _ in range(25):
        at = randoms.randrange(len(packed) // 10, len(packed) - 600)
        changed = bytearray(packed)
        if bits == "one":
            changed[at] ^= 1 << randoms.randrange(8)
        else:
            changed[at : at + 500] = bytes(500)
        damage, found, reason = given(bytes(changed), kind)
        assert damage is not None and "damaged" in reason
        assert data.startswith(found) and len(found) == damage.sound_bytes
        before_bytes = at * len(data) // len(packed)
        assert len(found) <= before_bytes + PART // 2  # which varies a little
        if least_bytes:
            assert len(found) > before_bytes - 2 * least_bytes


def test_an_end_of_gzip_that_is_not_found_is_damage() -> None:
    """It looks as if more were to come."""
    wrong = cut_off = 0
    for seed in range(40):
        data = text(5000, seed)
        packed = bytearray(gzip.compress(data))
        packed[-9 - seed % 3] ^= 1 << seed % 8
        damage, found, reason = given(bytes(packed), "gz")
        assert data.startswith(found) or not found
        wrong += damage is not None
        cut_off += damage is not None and "not found" in reason
    assert wrong > 20 and cut_off > 3


def test_an_index_of_xz_that_lies_is_not_followed() -> None:
    data = text(100_000, 3)
    packed = bytearray(xz_of_blocks(data))
    packed[len(packed) // 2] ^= 1
    for at in (-12, -8, -5, -1, -20):
        changed = bytearray(packed)
        changed[at] ^= 0xFF
        damage, found, _ = given(bytes(changed), "xz")
        assert damage is not None and found == b""
