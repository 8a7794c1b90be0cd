"""`.idx` and `.docs.npy` byte by byte: the first as Megatron-LM writes it, the second as numpy does."""

from __future__ import annotations

import io
import os
import struct
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsmem.tokens import index
from dsmem.tokens.index import EndsWriter, write_index
from dsmem.tokens.layout import ITEM_BYTES, TokenDtype

Lengths = st.lists(st.integers(0, 1000), max_size=30)
_same_file = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "BLOCK", 4)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def megatron(lengths: list[int], code: int, item_bytes: int) -> bytes:
    """What `_IndexWriter` of megatron.core writes for documents of one sequence each."""
    starts = [item_bytes * start for start in accumulate(lengths, initial=0)][: len(lengths)]
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(lengths), len(lengths) + 1)
    body = struct.pack(f"<{len(lengths)}i", *lengths) + struct.pack(f"<{len(lengths)}q", *starts)
    return head + body + struct.pack(f"<{len(lengths) + 1}q", *range(len(lengths) + 1))


@_same_file
@given(lengths=Lengths, dtype=st.sampled_from(["uint16", "uint32"]))
def test_index_is_megatrons(tmp_path: Path, lengths: list[int], dtype: TokenDtype) -> None:
    path = tmp_path / "out.idx"
    write_index(str(path), np.cumsum(lengths, dtype=np.uint64), dtype)
    assert path.read_bytes() == megatron(lengths, {"uint16": 8, "uint32": 4}[dtype], ITEM_BYTES[dtype])


@_same_file
@given(blocks=st.lists(Lengths, max_size=5))
def test_ends_are_numpys(tmp_path: Path, blocks: list[list[int]]) -> None:
    path = tmp_path / "out.docs.npy"
    with EndsWriter(str(path)) as writer:
        for block in blocks:
            writer.add(np.array(block, np.uint64))
    lengths = [length for block in blocks for length in block]
    assert (writer.documents, writer.tokens, writer.longest) == (len(lengths), sum(lengths), max(lengths, default=0))
    expected = io.BytesIO()
    np.save(expected, np.cumsum(lengths, dtype=np.uint64))
    assert path.read_bytes() == expected.getvalue()


def test_ends_that_failed_are_no_array(tmp_path: Path) -> None:
    """The header comes last: a file that was not finished can't be taken for one."""
    path = tmp_path / "out.docs.npy"
    with pytest.raises(RuntimeError), EndsWriter(str(path)) as writer:
        writer.add(np.array([3, 4], np.uint64))
        raise RuntimeError
    with pytest.raises(ValueError, match="pickle"):
        np.load(path)


def test_lengths_beyond_32_bits(tmp_path: Path) -> None:
    path = tmp_path / "out.idx"
    ends = np.array([2**31 - 1, 2**32 + 5, 2**40], np.uint64)
    write_index(str(path), ends[:1], "uint32")
    assert struct.unpack_from("<i", path.read_bytes(), 34) == (2**31 - 1,)
    ends = np.array([2**31 - 1, 2**32 - 2, 2**32 + 10], np.uint64)
    write_index(str(path), ends, "uint32")
    assert struct.unpack_from("<3q", path.read_bytes(), 34 + 12) == (0, 4 * (2**31 - 1), 4 * (2**32 - 2))
