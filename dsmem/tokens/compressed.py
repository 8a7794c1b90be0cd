"""Compressed files, recognised by their first bytes and never by their names, as streams of what they hold.

Whatever can be decoded is given before what is wrong with the rest is told. Checksums come behind what they are of:
what was given before damage is found may be wrong, unless that is known beforehand (`dsmem.tokens.soundness`).
"""

from __future__ import annotations

import bz2
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Literal, Protocol, cast

from dsmem import units
from dsmem.errors import BadDocument

Compression = Literal["gz", "bz2", "xz", "zst"]
HEAD_BYTES = 10
_STEP_BYTES = 64 << 10
"""Read and decoded at once."""
_LOST_BYTES = 4 << 10
"""The same of what can't be read again: what raises keeps what it had decoded until then."""
_TRUNCATED = "Truncated compressed stream"
SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zstd")


def detect(head: bytes) -> Compression | None:
    """What the first HEAD_BYTES of a file say; bzip2 is told from text by the magic of its first block, too."""
    if head.startswith(b"\x1f\x8b\x08"):
        return "gz"
    if head.startswith(b"BZh") and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return "bz2"
    if head.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
        return "zst"
    return None


def peeked(stream: IO[bytes]) -> tuple[IO[bytes], Compression | None]:
    """A stream that can be read once only, from its beginning, and what its first bytes say."""
    head = stream.read(HEAD_BYTES)
    return cast("IO[bytes]", Joined(head, stream)), detect(head)


class Joined(io.RawIOBase):
    """Bytes that were read ahead, and then the rest; `rest` stays open."""

    def __init__(self, ahead: bytes, rest: IO[bytes]) -> None:
        self._ahead = ahead
        self._rest = rest

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """At most so many bytes, fewer where what was read ahead ends; all without a size, none at the end only."""
        if size < 0:
            return self._take(len(self._ahead)) + self._rest.read()
        return self._take(size) if self._ahead else self._rest.read(size)

    def _take(self, size: int) -> bytes:
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return data


@dataclass(frozen=True, slots=True)
class Damage:
    """Of what a file holds, decoded, only so many bytes are sound."""

    sound_bytes: int
    found_bytes: int
    """So many can be decoded, and these are not what they were."""
    reason: str


class Broken(BadDocument):
    """A file from some place on can't be read, for this `reason`; `is_doubtful`: some of what was read may be wrong."""

    def __init__(self, path: str, reason: str, *, is_doubtful: bool = False) -> None:
        super().__init__(f"{path}: {reason}", path=path)
        self.reason = reason
        self.is_doubtful = is_doubtful


@contextmanager
def opened(
    file: IO[bytes], compression: Compression | None, *, path: str, damage: Damage | None = None
) -> Iterator[IO[bytes]]:
    """What an open file holds, decoded; the file stays open. Reading raises Broken for damaged and truncated data:
    where the damage is known, before anything that it may have made wrong."""
    if compression is None:
        yield file
    else:
        yield cast("IO[bytes]", _Decoded(file, compression, path, damage))


def decoding(file: IO[bytes], compression: Compression) -> Decoder:
    """What a file holds, decoded, with what is wrong as it is found."""
    return _new(_Raw(file, _STEP_BYTES), compression)


def _new(raw: _Raw, compression: Compression) -> Decoder:
    return _Zst(raw) if compression == "zst" else _Streams(raw, _KINDS[compression])


class Damaged(Exception):
    """What is wrong with the data, '' where it ends too early; `lost`: more of it may be decoded by smaller steps."""

    def __init__(self, reason: str, *, lost: bool) -> None:
        super().__init__(reason)
        self.lost = lost


class Decoder(Protocol):
    """What a file holds."""

    sound_bytes: int
    """Of those given, up to the last place where a checksum was found to be right."""
    begin_bytes: int
    """Where the stream that is decoded begins in the file."""

    def read(self, size: int) -> bytes:
        """Some of the next bytes, b"" at the end; raises Damaged."""
        ...


class _Raw(io.RawIOBase):
    """What is decoded, as it lies, read in steps: from some place on byte by byte. The file stays open."""

    def __init__(self, file: IO[bytes], step_bytes: int, *, slowly_from: int = sys.maxsize) -> None:
        self._file = file
        self._step_bytes = step_bytes
        self._slowly_from = slowly_from
        self.at = 0
        self.last_at = 0
        """Where the last step began."""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """The next step, whatever the size."""
        is_slow = self.at >= self._slowly_from
        data = self._file.read(1 if is_slow else min(self._step_bytes, self._slowly_from - self.at))
        self.last_at = self.at
        self.at += len(data)
        return data


class _Decoded:
    """All that can be decoded, and then the error."""

    def __init__(self, file: IO[bytes], compression: Compression, path: str, damage: Damage | None) -> None:
        self._damage = damage
        self._file = file
        self._compression = compression
        self._path = path
        self._begin = file.tell() if file.seekable() else None
        self._step_bytes = _STEP_BYTES if file.seekable() else _LOST_BYTES
        self._raw = _Raw(file, self._step_bytes)
        self._decoder = _new(self._raw, compression)
        self._given_bytes = 0
        self._left: bytes = b""
        """What was decoded before the error and was not asked for yet."""
        self._error: Broken | None = None

    def read(self, size: int) -> bytes:
        """That many bytes, fewer before the end or what can't be read only."""
        found: list[bytes] = []
        left_bytes = size
        while left_bytes and (data := self._step(left_bytes)):
            found.append(data)
            left_bytes -= len(data)
        if self._error is not None and not found:
            raise self._error
        return b"".join(found)

    def _step(self, most_bytes: int) -> bytes:
        if self._error is None and self._damage is not None:
            most_bytes = min(most_bytes, self._damage.sound_bytes - self._given_bytes)
            if not most_bytes:
                self._error = self._broken(self._damage)
        if self._error is None:
            try:
                data = self._decoder.read(min(most_bytes, self._step_bytes))
            except Damaged as exc:
                self._left = self._lost() if exc.lost else b""
                if self._damage is not None:
                    self._left = self._left[: self._damage.sound_bytes - self._given_bytes]
                found_bytes = self._given_bytes + len(self._left)
                self._error = self._broken(self._damage or Damage(found_bytes, found_bytes, str(exc)))
            else:
                self._given_bytes += len(data)
                return data
        data, self._left = self._left[:most_bytes], self._left[most_bytes:]
        return data

    def _broken(self, damage: Damage) -> Broken:
        places = dict.fromkeys(map(units.format_bytes, (damage.sound_bytes, damage.found_bytes)))
        where = f"after {next(iter(places))}" if len(places) == 1 else f"between {' and '.join(places)}"
        how = f"damaged {where} of text: {damage.reason}" if damage.reason else f"truncated {where} of text"
        is_doubtful = bool(damage.reason) and self._damage is None and self._decoder.sound_bytes < damage.found_bytes
        return Broken(self._path, f"the {self._compression} data is {how}", is_doubtful=is_doubtful)

    def _lost(self) -> bytes:
        """What lies between what was given and the damage: all is decoded once more, the last step byte by byte. Of
        what can be read once only it stays lost; there steps are small."""
        if self._begin is None:
            return b""
        self._file.seek(self._begin)
        decoder = _new(_Raw(self._file, self._step_bytes, slowly_from=self._raw.last_at), self._compression)
        before_bytes, found = self._given_bytes, bytearray()
        with suppress(Damaged):
            while before_bytes and (data := decoder.read(min(before_bytes, _STEP_BYTES))):
                before_bytes -= len(data)
            # pyarrow reads on until it has all that it was asked for.
            while data := decoder.read(1 if self._compression == "zst" else _STEP_BYTES):
                found += data
        return bytes(found)


class _Zst:
    """Zstandard frames, one after the other, of which some may be skippable; where one ends can't be told."""

    sound_bytes = begin_bytes = 0

    def __init__(self, raw: _Raw) -> None:
        import pyarrow as pa

        self._stream = pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")

    def read(self, size: int) -> bytes:
        try:
            data: bytes = self._stream.read(size)
        except OSError as exc:
            if exc.errno is not None:
                raise
            # pyarrow tells of bad data by an OSError without a number.
            raise Damaged("" if _TRUNCATED in str(exc) else str(exc), lost=True) from exc
        return data


class _Library(Protocol):
    """A decompressor of the standard library."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class _Kind:
    """A format of streams that may follow one another, with zero bytes behind each."""

    new: Callable[[], _Library]
    errors: tuple[type[Exception], ...]
    padding: int = 1
    """Zero bytes behind a stream are a multiple of so many."""
    in_blocks: bool = False
    """What has been read is known to be sound when it is decoded to the last byte."""


class _Streams:
    """All streams of a file; the libraries' own files take what they can't read behind the first for nothing."""

    def __init__(self, raw: _Raw, kind: _Kind) -> None:
        self._raw = raw
        self._kind = kind
        self._stream = kind.new()
        self._held = b""
        """Read and not given to the stream."""
        self._ended = False
        self._given_bytes = self.sound_bytes = self.begin_bytes = 0

    def read(self, size: int) -> bytes:
        while not self._ended:
            if self._stream.eof:
                self.sound_bytes = self._given_bytes
                self._next()
                continue
            # A library that wants no more may still hold what it has decoded, or nothing: then it wants more next.
            is_asked = not self._held and self._wants
            if is_asked and self._kind.in_blocks:
                if data := self._decoded(b"", size):
                    return data
                self.sound_bytes = self._given_bytes
            more = self._raw.read() if is_asked else self._held
            if data := self._decoded(more, size):
                return data
            if is_asked and not more and not self._stream.eof:
                raise Damaged("", lost=False)
        return b""

    def _decoded(self, more: bytes, size: int) -> bytes:
        try:
            data = self._stream.decompress(more, size)
        except self._kind.errors as exc:
            raise Damaged(str(exc), lost=True) from exc
        self._held = getattr(self._stream, "unconsumed_tail", b"")
        self._given_bytes += len(data)
        return data

    @property
    def _wants(self) -> bool:
        return getattr(self._stream, "needs_input", True)

    def _next(self) -> None:
        """Go to the next stream, if there is one."""
        rest, zeros = self._stream.unused_data, 0
        while (stripped := rest.lstrip(b"\0")) == b"":
            zeros += len(rest)
            rest = self._raw.read()
            if not rest:
                self._ended = True
                break
        zeros += len(rest) - len(stripped)
        if zeros % self._kind.padding:
            raise Damaged(f"{zeros} zero bytes behind a stream", lost=False)
        self._stream, self._held = self._kind.new(), stripped
        self.begin_bytes = self._raw.at - len(stripped)


_KINDS = {
    "gz": _Kind(lambda: zlib.decompressobj(zlib.MAX_WBITS | 16), (zlib.error,)),
    "bz2": _Kind(bz2.BZ2Decompressor, (OSError, ValueError), in_blocks=True),
    "xz": _Kind(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), (lzma.LZMAError,), padding=4),
}
