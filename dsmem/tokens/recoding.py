"""Text of any encoding read as UTF-8, and what can't be decoded named by its line."""

from __future__ import annotations

import codecs
from typing import IO, cast

from dsmem.errors import BadDocument


def as_utf8(stream: IO[bytes], encoding: str, *, path: str, skip_bad: bool = False) -> IO[bytes]:
    """The stream with its text in UTF-8 instead of another encoding; reading it raises BadDocument.

    `skip_bad`: what can't be decoded becomes a byte that is no UTF-8.
    """
    return stream if encoding == "utf-8" else cast("IO[bytes]", _Recoded(stream, encoding, path, skip_bad))


def _no_utf8(error: UnicodeError) -> tuple[str | bytes, int]:
    """For `codecs`: what can't be decoded is half of a surrogate pair, and that a byte which is nowhere in UTF-8."""
    if isinstance(error, UnicodeEncodeError):
        return b"\xff" * (error.end - error.start), error.end
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


class _Recoded:
    def __init__(self, stream: IO[bytes], encoding: str, path: str, skip_bad: bool) -> None:
        self._stream = stream
        self._errors = "strict"
        if skip_bad:
            self._errors = "dsmem.no_utf8"
            codecs.register_error(self._errors, _no_utf8)
        self._decoder = codecs.getincrementaldecoder(encoding)(self._errors)
        self._encoding = encoding
        self._path = path
        self._line = 1
        self._held = b""
        self._ended = False
        self._error: BadDocument | None = None

    def read(self, size: int) -> bytes:
        """That many bytes, fewer before the end or what can't be read only."""
        while not self._ended and len(self._held) < size:
            try:
                data = self._stream.read(1 << 20)
            except BadDocument as exc:  # whose turn comes when all before it is read
                self._error, self._ended = exc, True
                break
            self._ended = not data
            try:
                text = self._decoder.decode(data, final=self._ended)
            except UnicodeDecodeError as exc:
                before = exc.object[: exc.start].decode(self._encoding, "ignore").count("\n")
                raise self._bad(before, exc.reason) from exc
            except UnicodeError as exc:
                # What `codecs` says of it before it looks at any byte.
                both = f"{self._encoding}-le or {self._encoding}-be"
                raise self._bad(0, f"it begins without a byte order mark; the encoding {both} needs none") from exc
            try:
                self._held += text.encode("utf-8", self._errors)
            except UnicodeEncodeError as exc:
                before = text.count("\n", 0, exc.start)
                raise self._bad(before, "it holds half of a surrogate pair, which is no text") from exc
            self._line += text.count("\n")
        if self._error is not None and not self._held:
            raise self._error
        data, self._held = self._held[:size], self._held[size:]
        return data

    def _bad(self, lines_before: int, reason: str) -> BadDocument:
        line = str(self._line + lines_before)
        return BadDocument(f"{self._path}:{line}: not {self._encoding}: {reason}", path=self._path, place=line)
