"""Compressed files, recognised by their first bytes and never by their names, as streams of what they hold."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Literal, cast

from dsmem.errors import BadSource

Compression = Literal["gz", "bz2", "xz", "zst"]
HEAD_BYTES = 10
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


@contextmanager
def opened(file: IO[bytes], compression: Compression | None, *, path: str) -> Iterator[IO[bytes]]:
    """What an open file holds, decoded; the file stays open. Raises BadSource for damaged and for truncated data."""
    try:
        if compression is None:
            yield file
        elif compression == "zst":
            import pyarrow as pa

            with pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd") as stream:
                yield cast("IO[bytes]", stream)
        else:
            yield _DECODERS[compression](file)
    except EOFError as exc:
        raise BadSource(f"{path}: the {compression} data is truncated") from exc
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError) as exc:
        raise BadSource(f"{path}: the {compression} data is damaged: {exc}") from exc
    except OSError as exc:
        if compression is None or exc.errno is not None:
            raise
        # bz2 and pyarrow tell of bad data by an OSError without a number.
        raise BadSource(f"{path}: the {compression} data is damaged: {exc}") from exc


def _gz(file: IO[bytes]) -> IO[bytes]:
    return cast("IO[bytes]", io.BufferedReader(gzip.GzipFile(fileobj=file, mode="rb"), 1 << 20))


def _bz2(file: IO[bytes]) -> IO[bytes]:
    return cast("IO[bytes]", bz2.BZ2File(file))


def _xz(file: IO[bytes]) -> IO[bytes]:
    return cast("IO[bytes]", lzma.LZMAFile(file))


_DECODERS = {"gz": _gz, "bz2": _bz2, "xz": _xz}
