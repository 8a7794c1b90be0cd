"""Compressed files, recognised by their first bytes and never by their names, as streams of what they hold.

Whatever can be decoded is given before what is wrong with the rest is told.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Literal, cast

from dsmem import units
from dsmem.errors import BadDocument

Compression = Literal["gz", "bz2", "xz", "zst"]
HEAD_BYTES = 10
_STEP_BYTES = 1 << 20
_ZST_BYTES = 4 << 10
"""What pyarrow reads at once: where it raises, it keeps what it had read until then."""
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


class Broken(BadDocument):
    """A file from some place on can't be read, for this `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}", path=path)
        self.reason = reason


@contextmanager
def opened(file: IO[bytes], compression: Compression | None, *, path: str) -> Iterator[IO[bytes]]:
    """What an open file holds, decoded; the file stays open. Reading raises Broken for damaged and truncated data."""
    if compression is None:
        yield file
    elif compression == "zst":
        import pyarrow as pa

        with pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd") as stream:
            yield cast("IO[bytes]", _Decoded(stream.read, _ZST_BYTES, compression, path))
    else:
        read = _DECODERS[compression](file)
        yield cast("IO[bytes]", _Decoded(read, _STEP_BYTES, compression, path))


class _Decoded:
    """What `read1` gives, and then what it raises."""

    def __init__(self, read1: Callable[[int], bytes], step_bytes: int, compression: Compression, path: str) -> None:
        self._read1 = read1
        self._step_bytes = step_bytes
        self._compression = compression
        self._path = path
        self._given_bytes = 0
        self._error: Broken | None = None

    def read(self, size: int) -> bytes:
        """That many bytes, fewer before the end or what can't be read only."""
        found: list[bytes] = []
        left_bytes = size
        while left_bytes and self._error is None and (data := self._step(left_bytes)):
            found.append(data)
            left_bytes -= len(data)
        if self._error is not None and not found:
            raise self._error
        return b"".join(found)

    def _step(self, most_bytes: int) -> bytes:
        try:
            data = self._read1(min(most_bytes, self._step_bytes))
        except EOFError:
            self._break("truncated")
        except (gzip.BadGzipFile, zlib.error, lzma.LZMAError) as exc:
            self._break("damaged", str(exc))
        except OSError as exc:
            if exc.errno is not None:
                raise
            # bz2 and pyarrow tell of bad data by an OSError without a number.
            if _TRUNCATED in str(exc):
                self._break("truncated")
            else:
                self._break("damaged", str(exc))
        else:
            self._given_bytes += len(data)
            return data
        return b""

    def _break(self, how: str, why: str = "") -> None:
        after = units.format_bytes(self._given_bytes)
        reason = f"the {self._compression} data is {how} after {after} of text{why and f': {why}'}"
        self._error = Broken(self._path, reason)


def _gz(file: IO[bytes]) -> Callable[[int], bytes]:
    return gzip.GzipFile(fileobj=file, mode="rb").read1


def _bz2(file: IO[bytes]) -> Callable[[int], bytes]:
    return bz2.BZ2File(file).read1


def _xz(file: IO[bytes]) -> Callable[[int], bytes]:
    return lzma.LZMAFile(file).read1


_DECODERS = {"gz": _gz, "bz2": _bz2, "xz": _xz}
