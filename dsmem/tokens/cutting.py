"""Where text may be cut between documents: ranges of files for workers, blocks for encoding.

Cuts depend on the bytes of the input and on the size of a part, never on how many work: that makes the output the same
for any number of workers. A document belongs to the range in which its first byte lies.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import IO, Literal

from dsmem import units
from dsmem.errors import BadDocument, BadSource

Separator = Literal["line", "blank"]
"""What ends a document: the end of its line, or blank lines after it."""
PART_BYTES = 32 << 20
"""One slice of an xxh3-tree, so that a worker hashes what it has just read."""
BLOCK_BYTES = 512 << 10
"""What is read, parsed and encoded at once: it stays in the cache from one to the next (4 MiB took a third longer)."""
MOST_DOCUMENT_BYTES = 128 << 20
"""Of a document in a file with others: its bytes and its text (up to four times that) must fit into memory together."""
_SCAN_BYTES = 1 << 20
_BLANK = re.compile(rb"\r?\n(?:\r?\n)+")
_SPACE = b" \t\r\n"
"""What JSON takes for white space."""
_NO_VALUE = b","
"""For an element that is none: no parser takes it, and whoever parses it tells where it is."""
_BOM = b"\xef\xbb\xbf"
_MARKS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)


class TooLong(BadSource):
    """A document of more than MOST_DOCUMENT_BYTES among others, `offset` bytes into the file."""

    def __init__(self, message: str, *, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


def boundary(fd: int, position: int, size_bytes: int, separator: Separator) -> int:
    """The first place at or after `position` where a document begins; the end of the file if there is none.

    Raises TooLong.
    """
    if position <= 0:
        return 0
    if separator == "line":
        return _next_line(fd, position, size_bytes)
    begin = max(position - 4, 0)
    held = b""
    while begin + len(held) < size_bytes:
        held += os.pread(fd, _SCAN_BYTES, begin + len(held))
        is_whole = begin + len(held) >= size_bytes
        for match in _BLANK.finditer(held):
            if match.end() >= len(held) - 1 and not is_whole:
                break  # it may go on
            if begin + match.end() >= position:
                return begin + match.end()
        if len(held) > MOST_DOCUMENT_BYTES:
            raise _too_long(position)
    return size_bytes


def _next_line(fd: int, position: int, size_bytes: int) -> int:
    at = position - 1
    while at < size_bytes:
        data = os.pread(fd, _SCAN_BYTES, at)
        found = data.find(b"\n")
        if found >= 0:
            return at + found + 1
        if not data:
            break
        at += len(data)
        if at - position > MOST_DOCUMENT_BYTES:
            raise _too_long(position)
    return size_bytes


def _too_long(offset: int) -> TooLong:
    limit = units.format_bytes(MOST_DOCUMENT_BYTES)
    return TooLong(
        f"a document is longer than {limit}, the most for one among others in a file, and can't be left out; "
        "a .txt file that is one document may be of any size",
        offset=offset,
    )


def last_cut(block: bytes | bytearray, size: int, separator: Separator) -> int:
    """The last place in the first bytes of a block where documents may be parted; 0 if there is none."""
    if separator == "line":
        return block.rfind(b"\n", 0, size) + 1
    at = block.rfind(b"\n\n", 0, size)
    at_return = block.rfind(b"\n\r\n", 0, size)
    return max(at + 2 if at >= 0 else 0, at_return + 3 if at_return >= 0 else 0)


def blocks(fd: int, start: int, end: int, separator: Separator) -> Iterator[memoryview]:
    """Whole documents of a range that holds nothing else, in blocks of about BLOCK_BYTES; raises TooLong.

    A block is good until the next one is asked for: the memory is used again.
    """
    buffer = bytearray(BLOCK_BYTES)
    held = 0
    while start < end or held:
        if held == len(buffer):
            if held > MOST_DOCUMENT_BYTES:
                raise _too_long(start - held)
            buffer = buffer + bytes(len(buffer))
        room = memoryview(buffer)[held : held + min(len(buffer) - held, end - start)]
        done = os.preadv(fd, [room], start) if start < end else 0
        start, held = start + done, held + done
        is_last = done == 0 or start >= end
        cut = held if is_last else last_cut(buffer, held, separator)
        if cut:
            yield memoryview(buffer)[:cut]
            buffer[: held - cut] = buffer[cut:held]
            held -= cut
        if is_last:
            return


def pieces(read: Callable[[int], bytes], separator: Separator, piece_bytes: int) -> Iterator[bytes]:
    """Whole documents in pieces of at least that many bytes (the last may have less), cut by bytes alone."""
    held: list[bytes] = []
    held_bytes = offset = 0
    while True:
        data = read(min(piece_bytes, BLOCK_BYTES))
        if not data:
            break
        held.append(data)
        held_bytes += len(data)
        if held_bytes < piece_bytes:
            continue
        whole = b"".join(held)
        cut = last_cut(whole, len(whole), separator)
        if cut:
            yield whole[:cut]
            offset += cut
            whole = whole[cut:]
        elif len(whole) > max(MOST_DOCUMENT_BYTES, piece_bytes):
            raise _too_long(offset)
        held, held_bytes = [whole], len(whole)
    rest = b"".join(held)
    if rest:
        yield rest


def is_array(head: bytes) -> bool:
    """Whether a JSON file that begins so is an array."""
    return head.removeprefix(_BOM).lstrip(_SPACE).startswith(b"[")


def elements(stream: IO[bytes], *, path: str, skip_bad: bool = False) -> Iterator[bytes]:
    """The elements of a JSON array, one after the other, as they stand there; raises BadSource, BadDocument, TooLong.

    Only brackets and strings are looked at: whoever parses an element finds what is wrong inside it, also that there is
    none between two commas. `skip_bad`: an array that is cut off ends with an element that is none.
    """
    held, at, depth, offset, number = b"", 0, 0, 0, 1
    start: int | None = None
    done = False
    while True:
        data = stream.read(_SCAN_BYTES)
        held += data
        for match in _MARKS.finditer(held, at):
            if done:
                break
            mark = match[0][:1]
            if match[0] == b'"':
                break  # a string whose end is still to come
            at = match.end()
            if mark == b'"':
                continue
            if mark in b"[{":
                depth += 1
                if depth == 1:
                    if mark != b"[" or held[: match.start()].removeprefix(_BOM).strip(_SPACE):
                        raise BadSource(f"{path} does not begin as a JSON array")
                    start = at
                continue
            if mark in b"]}":
                depth -= 1
            if depth < 0 or start is None:
                raise BadSource(f"{path} does not begin as a JSON array")
            if (depth == 1 and mark == b",") or depth == 0:
                if depth == 0 and mark != b"]":
                    raise BadSource(f"{path}:element {number}: its JSON array is closed by {mark.decode()}")
                element = held[start : match.start()].strip(_SPACE)
                if element or mark == b"," or number > 1:
                    yield element if element.strip() else _NO_VALUE
                number += 1
                start, done = at, depth == 0
        if done:
            if held[at:].strip(_SPACE):
                raise BadSource(f"{path} goes on after its JSON array")
            if not data:
                return
            held, at = b"", 0
            continue
        if not data:
            if not skip_bad or start is None:
                raise BadDocument(
                    f"{path} ends inside its JSON array, in element {number}", path=path, place=f"element {number}"
                )
            element = held[start:].strip(_SPACE)
            if element:
                yield element
            if depth == 1 and b'"' not in held[at:]:
                yield _NO_VALUE
            return
        if held.find(b'"', at) < 0:
            at = len(held)
        cut = at if start is None else start
        held, at, offset = held[cut:], at - cut, offset + cut
        start = None if start is None else 0
        if len(held) > MOST_DOCUMENT_BYTES:
            raise _too_long(offset)
