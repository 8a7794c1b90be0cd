"""The one pass over a source: whatever extents it has, every byte is hashed once and comes to its places."""

from __future__ import annotations

import os
import random
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dsmem import digest
from dsmem.errors import SourceChanged
from dsmem.pinning import copying
from dsmem.pinning.copying import Extent
from dsmem.pinning.pagecache import PageCache
from dsmem.progress import ByteCounter
from dsmem.store import hugepages
from dsmem.store.draft import Draft
from dsmem.store.hugepages import Extents

BLOCK = 4096
SLICE = 4 * BLOCK


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digest, "SLICE_BYTES", SLICE)
        patch.setattr(copying, "_BLOCK_BYTES", BLOCK)
        patch.setattr(copying, "_STRAIGHT_BYTES", 2 * BLOCK)
        patch.setattr(copying, "_REPORTED_BYTES", 2 * BLOCK)
        patch.setattr(copying, "_HASHED_BYTES", 3 * BLOCK)
        yield


def copied(content: bytes, extents: list[Extent], *, size_bytes: int, promised: int | None = None) -> tuple[bytes, str]:
    """What lies in the object, and the digest; progress is told to the last byte, and never goes back."""
    told = [0]
    counter = ByteCounter(lambda done, _: told.append(done), sum(one.size_bytes for one in extents))
    with tempfile.TemporaryFile(buffering=0) as source, Draft(None) as draft:
        source.write(content)
        expected = len(content) if promised is None else promised
        with PageCache(source.fileno(), expected) as cache:
            draft.allocate(size_bytes)
            found = copying.copy(source.fileno(), expected, draft, extents, [], None, counter, cache)
        assert told[-1] == max(told) == sum(one.size_bytes for one in extents)
        return os.pread(draft.fd, size_bytes, 0), found.tree_hex


PLACES = st.integers(0, 6 * SLICE // BLOCK).map(lambda number: number * BLOCK) | st.integers(0, 6 * SLICE)


@example(size_bytes=4 * SLICE, cuts=[(0, BLOCK + 9), (2 * SLICE, 3 * BLOCK)], tiny=0, seed=0)
@given(
    size_bytes=PLACES,
    cuts=st.lists(st.tuples(PLACES, st.integers(1, 3 * BLOCK) | st.integers(1, 3 * SLICE)), max_size=8),
    tiny=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
def test_any_extents_come_to_their_places(size_bytes: int, cuts: list[tuple[int, int]], tiny: int, seed: int) -> None:
    """They overlap, touch, lie in one block by the dozen, or span slices; an object is larger than their sum."""
    content = random.Random(seed).randbytes(size_bytes)
    cuts = [*cuts, *((7 * number, 5) for number in range(tiny))]
    extents: list[Extent] = []
    expected = bytearray()
    for start, length in cuts:
        length = min(length, size_bytes - start)
        if length > 0:
            expected += b"\0" * (seed % 3)
            extents.append(Extent(start, len(expected), length))
            expected += content[start : start + length]
    found, tree_hex = copied(content, extents, size_bytes=len(expected))
    assert found == expected
    slices = [digest.slice_digest(), *(digest.slice_digest() for _ in range(SLICE, size_bytes, SLICE))]
    for number, one in enumerate(slices):
        one.update(content[number * SLICE : (number + 1) * SLICE])
    assert tree_hex == digest.tree_digest([one.digest() for one in slices] if size_bytes else [])


@pytest.mark.parametrize("extents", [[], [Extent(0, 0, 3 * SLICE)], [Extent(SLICE + 5, 0, 9)]])
@pytest.mark.parametrize("left", [0, 1, SLICE - 1, 2 * SLICE + 5])
def test_a_source_that_became_shorter_is_no_source(extents: list[Extent], left: int) -> None:
    with pytest.raises(SourceChanged, match="shorter"):
        copied(b"x" * left, extents, size_bytes=3 * SLICE, promised=3 * SLICE)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All memory of an object counts as taken in huge pages; what was read straight into it, and what was written."""
    ways: list[str] = []
    read_from, write = Draft.read_from, Draft.write

    def reading(self: Draft, *arguments: Any) -> int:
        ways.append("read")
        return read_from(self, *arguments)

    def writing(self: Draft, offset: int, data: memoryview) -> None:
        ways.append("written")
        write(self, offset, data)

    monkeypatch.setattr(Extents, "take", lambda *_: True)
    monkeypatch.setattr(hugepages, "can_be_taken", lambda _: True)
    monkeypatch.setattr(Draft, "read_from", reading)
    monkeypatch.setattr(Draft, "write", writing)
    return ways


@pytest.mark.parametrize(("source", "way"), [(0, "read"), (40, "read"), (BLOCK - 32, "read"), (BLOCK - 8, "written")])
def test_memory_that_was_taken_is_read_into_but_where_that_is_slow(taken: list[str], source: int, way: str) -> None:
    """It is where the target lies 1 to 31 bytes further into its page than the source."""
    content = random.Random(source).randbytes(3 * SLICE + 9)
    found, tree_hex = copied(content, [Extent(source, 0, 2 * SLICE + 5)], size_bytes=2 * SLICE + 5)
    assert found == content[source : source + 2 * SLICE + 5]
    assert tree_hex == digest.tree_digest(_digest_of(content[at : at + SLICE]) for at in range(0, len(content), SLICE))
    # A block that only begins or ends the extent is written, whatever the way.
    assert way in taken and ("read" in taken) == (way == "read")


@pytest.mark.parametrize("left", [0, 1, BLOCK, SLICE - 1, 2 * SLICE + 5])
def test_a_source_that_became_shorter_is_none_for_memory_that_was_taken(taken: list[str], left: int) -> None:
    with pytest.raises(SourceChanged, match="shorter"):
        copied(b"x" * left, [Extent(0, 0, 3 * SLICE)], size_bytes=3 * SLICE, promised=3 * SLICE)
    assert "read" in taken


def test_what_has_no_huge_pages_is_written_and_the_rest_read_into(
    taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Extents, "take", lambda _, offset, size_bytes: offset // (2 * BLOCK) % 2 == 0)
    content = random.Random(0).randbytes(3 * SLICE + 9)
    found, tree_hex = copied(content, [Extent(BLOCK // 2, 0, 2 * SLICE + 5)], size_bytes=2 * SLICE + 5)
    assert found == content[BLOCK // 2 :][: 2 * SLICE + 5]
    assert tree_hex == digest.tree_digest(_digest_of(content[at : at + SLICE]) for at in range(0, len(content), SLICE))
    assert {"read", "written"} == set(taken)


def _digest_of(data: bytes) -> bytes:
    hasher = digest.slice_digest()
    hasher.update(data)
    return hasher.digest()


def test_a_stream_digest_that_can_not_be_told_of_ends_the_pass() -> None:
    """The thread that follows the copiers reports progress, too; without its digest there is no object."""

    def fail(done_bytes: int, total_bytes: int) -> None:
        if threading.current_thread().name == "dsmem-digest":
            raise ValueError("not heard")

    content = bytes(3 * SLICE)
    with tempfile.TemporaryFile(buffering=0) as source, Draft(None) as draft:
        source.write(content)
        with PageCache(source.fileno(), len(content)) as cache, pytest.raises(ValueError, match="not heard"):
            copying.copy(source.fileno(), len(content), draft, [], [], "md5", ByteCounter(fail, 1), cache)
