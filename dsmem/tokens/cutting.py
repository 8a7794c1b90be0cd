"""Where text may be cut between documents: ranges of files for workers, blocks for encoding.

Cuts depend on the bytes of the input and on the size of a part, never on how many work: that makes the output the same
for any number of workers. A document belongs to the range in which its first byte lies.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Literal

from dsmem import units
from dsmem.tokens.turns import Turn, Turns

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
_BLANK_LINE = re.compile(rb"\n\r?\n")


def too_long() -> str:
    """What is wrong with a document of more than MOST_DOCUMENT_BYTES among others."""
    limit = units.format_bytes(MOST_DOCUMENT_BYTES)
    return f"longer than {limit}, the most for a document among others in a file (a .txt that is one may have any size)"


def boundary(fd: int, position: int, size_bytes: int, separator: Separator, *, until: int | None = None) -> int:
    """The first place at or after `position` where a document begins; the end of the file if there is none.

    What lies beyond `until` is not looked at: a later place than that, if nothing begins before.
    """
    if position <= 0:
        return 0
    until = size_bytes if until is None else until
    found = (_next_line if separator == "line" else _next_paragraph)(fd, position, size_bytes, until)
    return found if found <= until else until + 1


def _next_line(fd: int, position: int, size_bytes: int, until: int) -> int:
    at = position - 1
    while at < size_bytes and at <= until:
        data = os.pread(fd, _SCAN_BYTES, at)
        found = data.find(b"\n")
        if found >= 0:
            return at + found + 1
        if not data:
            break
        at += len(data)
    return size_bytes if at >= size_bytes else until + 1


def _next_paragraph(fd: int, position: int, size_bytes: int, until: int) -> int:
    begin = max(position - 4, 0)
    held = b""
    while begin + len(held) < size_bytes and begin <= until:
        data = os.pread(fd, _SCAN_BYTES, begin + len(held))
        if not data:
            break
        held += data
        is_whole = begin + len(held) >= size_bytes
        for match in _BLANK.finditer(held):
            if held[match.end() :] in (b"", b"\r") and not is_whole:
                break  # it may go on
            if begin + match.end() >= position:
                return begin + match.end()
        done = len(held.rstrip(b"\r\n"))
        begin, held = begin + done, held[done:]
    return size_bytes if begin + len(held) >= size_bytes else until + 1


def bounds(fd: int, start: int, end: int, size_bytes: int, separator: Separator) -> tuple[int, int, bool]:
    """From where to where the documents lie that begin in a range; and whether the last of them is too long: then it
    goes on behind the range, and nobody looks for its end."""
    first = boundary(fd, start, size_bytes, separator, until=end)
    if first >= end:
        return end, end, False
    limit = end + MOST_DOCUMENT_BYTES
    last = boundary(fd, end, size_bytes, separator, until=limit)
    return (first, end, True) if last > limit else (first, last, False)


def last_cut(block: bytes | bytearray, begin: int, size: int, separator: Separator) -> int:
    """The last place in the first bytes of a block, after `begin`, where documents may be parted; 0 if none is."""
    if separator == "line":
        return block.rfind(b"\n", begin, size) + 1
    at = block.rfind(b"\n\n", max(begin - 1, 0), size)
    at_return = block.rfind(b"\n\r\n", max(begin - 2, 0), size)
    return max(at + 2 if at >= 0 else 0, at_return + 3 if at_return >= 0 else 0)


def first_cut(block: bytes | bytearray, begin: int, size: int, separator: Separator) -> int:
    """The first such place; 0 if there is none."""
    if separator == "line":
        return block.find(b"\n", begin, size) + 1
    found = _BLANK_LINE.search(block, max(begin - 2, 0), size)
    return found.end() if found else 0


def blocks(
    fd: int,
    start: int,
    end: int,
    separator: Separator,
    leave_out: Callable[[int], None],
    *,
    is_open: bool = False,
    turn: Turn | None = None,
) -> Iterator[tuple[int, memoryview]]:
    """Whole documents of a range that holds nothing else, in blocks of about BLOCK_BYTES, each with its offset.

    A document that is too long is in none: `leave_out` is called with its offset; `is_open`: the last is. A block is
    good until the next one is asked for: the memory is used again. It waits for its turn to hold a long document; if
    the last is never asked for, it is the caller's to end the turn.
    """
    turn = turn or Turn(Turns(None), alone_bytes=MOST_DOCUMENT_BYTES)
    buffer = bytearray(BLOCK_BYTES)
    held = searched = 0
    """Bytes in the buffer, and of those the ones in which documents are parted nowhere."""
    while start < end or held:
        if held == len(buffer):
            if held > MOST_DOCUMENT_BYTES:
                leave_out(start - held)
                start, held, searched = min(boundary(fd, start, end, separator), end), 0, 0
                buffer = bytearray(BLOCK_BYTES)
                turn.done()
                continue
            size = min(2 * held, MOST_DOCUMENT_BYTES + BLOCK_BYTES)
            turn.need(size)
            larger = bytearray(size)
            larger[:held] = buffer
            buffer = larger
            del larger
        room = memoryview(buffer)[held : min(held + BLOCK_BYTES, len(buffer), held + end - start)]
        done = os.preadv(fd, [room], start) if start < end else 0
        room.release()
        start, held = start + done, held + done
        is_last = done == 0 or start >= end
        cut = held if is_last and not is_open else last_cut(buffer, searched, held, separator)
        if cut > MOST_DOCUMENT_BYTES:
            first = first_cut(buffer, searched, held, separator) or held
            if first > MOST_DOCUMENT_BYTES:
                leave_out(start - held)
                held, cut = held - first, cut - first
                buffer = buffer[first:] + bytes(BLOCK_BYTES)
        searched = held
        if cut:
            yield start - held, memoryview(buffer)[:cut]
            rest = held - cut
            if len(buffer) > BLOCK_BYTES >= rest:
                buffer = buffer[cut:held] + bytes(BLOCK_BYTES - rest)
                turn.done()
            else:
                buffer[:rest] = buffer[cut:held]
            held = searched = rest
        if is_last:
            if held:
                leave_out(start - held)
            del buffer
            turn.done()
            return
