"""Token files of every kind: what is found out about them, and what is refused."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsmem.errors import BadSource, SourceMissing, UsageError
from dsmem.tokens.layout import IDX_CODES, IDX_MAGIC
from dsmem.tokens.manifest import Input, Manifest, Tokenizer
from dsmem.tokens.opening import open_all, open_tokens

IDS = np.arange(100, dtype=np.uint16)


def manifest(dtype: Any = "uint16", tokens: int = 100) -> bytes:
    tokenizer = Tokenizer("bytes", "bytes", "", 257, 256, None, 256, "bytes", "1", "", 0, False)
    inputs = (Input("a.txt", 3, ""),)
    return Manifest("0.1.0", dtype, tokens, 2, 98, "none", "append", tokenizer, inputs, "").dump()


def megatron(ends: list[int], dtype: Any = "uint16", *, firsts: list[int] | None = None) -> bytes:
    """An index as Megatron-LM writes it, by struct and nothing of dsmem's."""
    starts = [0, *ends[:-1]] if ends else []
    item = {"uint16": 2, "uint32": 4}[dtype]
    lengths = [end - start for start, end in zip(starts, ends, strict=True)]
    firsts = firsts if firsts is not None else list(range(len(ends) + 1))
    head = IDX_MAGIC + struct.pack("<QBQQ", 1, IDX_CODES[dtype], len(ends), len(firsts))
    body = struct.pack(f"<{len(ends)}i", *lengths) + struct.pack(f"<{len(ends)}q", *(item * one for one in starts))
    return head + body + struct.pack(f"<{len(firsts)}q", *firsts)


def llmc(magic: int, version: int, ids: np.ndarray[Any, Any]) -> bytes:
    return struct.pack("<256i", magic, version, len(ids), *[0] * 253) + ids.tobytes()


def test_a_bare_file_is_uint16(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(IDS.tobytes())
    found = open_tokens(path)
    assert (found.dtype, found.tokens, found.offset_bytes, found.known_by) == ("uint16", 100, 0, "default")
    mapped = found.map()
    np.testing.assert_array_equal(mapped, IDS)
    assert mapped.dtype == np.uint16 and not mapped.flags.writeable
    assert found.documents() is None


def test_the_dtype_is_the_manifests_then_the_indexs(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(IDS.astype("<u4").tobytes())
    (tmp_path / "train.idx").write_bytes(megatron([40, 100], "uint32"))
    found = open_tokens(path)
    assert (found.dtype, found.tokens, found.known_by) == ("uint32", 100, "idx")
    (tmp_path / "train.json").write_bytes(manifest("uint16", 200))
    found = open_tokens(path)
    assert (found.dtype, found.tokens, found.known_by) == ("uint16", 200, "manifest")
    assert open_tokens(path, token_dtype="uint32").known_by == "asked"


@pytest.mark.parametrize(("magic", "version", "dtype"), [(20240520, 1, "uint16"), (20240801, 7, "uint32")])
def test_headers_of_llmc(tmp_path: Path, magic: int, version: int, dtype: Any) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(llmc(magic, version, IDS.astype(dtype)))
    for found in (open_tokens(path), open_tokens(path, token_dtype=dtype)):
        assert (found.dtype, found.tokens, found.offset_bytes) == (dtype, 100, 1024)
        np.testing.assert_array_equal(found.map(), IDS)
    path.write_bytes(llmc(magic, version, IDS.astype(dtype))[:-8])
    with pytest.raises(BadSource, match="its header says 100"):
        open_tokens(path)


def test_document_ends(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(IDS.tobytes())
    (tmp_path / "train.idx").write_bytes(megatron([10, 40, 40, 100]))
    assert _ends(path) == [10, 40, 40, 100]
    # Sentences in documents, the first and third document empty.
    (tmp_path / "train.idx").write_bytes(megatron([10, 40, 60, 100], firsts=[0, 0, 2, 2, 4]))
    assert _ends(path) == [0, 40, 40, 100]
    np.save(tmp_path / "train.docs.npy", np.array([7, 100], np.uint64))
    assert _ends(path) == [7, 100]


def _ends(path: Path) -> list[int]:
    found = open_tokens(path).documents()
    assert found is not None and found.dtype == np.uint64
    return [int(end) for end in found]


def test_side_files_of_somebody_else_are_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(IDS.tobytes())
    (tmp_path / "train.json").write_text('[{"text": "the data it was made from"}]')
    (tmp_path / "train.idx").write_bytes(b"TNTIDX\0\0" + b"\0" * 100)
    assert open_tokens(path).known_by == "default"
    assert open_tokens(path).documents() is None


def test_what_does_not_fit_is_refused_with_the_numbers(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(IDS.tobytes() + b"x")
    with pytest.raises(BadSource, match="201 bytes"):
        open_tokens(path)
    path.write_bytes(IDS.tobytes())
    with pytest.raises(BadSource, match="not whole tokens of uint32"):
        path.write_bytes(IDS[:99].tobytes())
        open_tokens(path, token_dtype="uint32")
    (tmp_path / "train.json").write_bytes(manifest())
    with pytest.raises(BadSource, match=r"holds 99 tokens of uint16, but .*json says 100"):
        open_tokens(path)
    assert open_tokens(path, token_dtype="uint16").tokens == 99
    (tmp_path / "train.json").write_bytes(manifest().replace(b"uint16", b"uint17"))
    with pytest.raises(BadSource, match=r"train\.json"):
        open_tokens(path)


@pytest.mark.parametrize("cut", [20, 60, -1])
def test_an_index_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(IDS.tobytes())
    (tmp_path / "train.idx").write_bytes(megatron([10, 100])[:cut])
    with pytest.raises(BadSource, match="cut short"):
        open_tokens(path)


def test_documents_of_another_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(IDS.tobytes())
    np.save(tmp_path / "train.docs.npy", np.array([7, 101], np.uint64))
    with pytest.raises(BadSource, match=r"token 101, but .* holds 100"):
        open_tokens(path).documents()
    np.save(tmp_path / "train.docs.npy", np.array([[7, 100]], np.int64))
    with pytest.raises(BadSource, match="uint64"):
        open_tokens(path).documents()
    (tmp_path / "train.docs.npy").write_bytes(b"no array")
    with pytest.raises(BadSource, match="no document ends"):
        open_tokens(path).documents()


def test_no_file_or_no_regular_one(tmp_path: Path) -> None:
    with pytest.raises(SourceMissing):
        open_tokens(tmp_path / "none.bin")
    with pytest.raises(BadSource, match="regular"):
        open_tokens(tmp_path)
    os.mkfifo(tmp_path / "pipe.bin")
    with pytest.raises(BadSource, match="regular"):
        open_tokens(tmp_path / "pipe.bin")
    with pytest.raises(UsageError, match="int64"):
        open_tokens(tmp_path / "none.bin", token_dtype="int64")  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        open_all([])


def test_an_empty_file_and_one_that_changed(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(b"")
    found = open_tokens(path)
    assert found.tokens == 0 and len(found.map()) == 0
    path.write_bytes(b"12")
    with pytest.raises(BadSource, match="changed"):
        found.map()


def test_size_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "huge.bin"
    with path.open("wb") as file:
        file.truncate(2 << 40)
    mapped = open_tokens(path).map()
    assert len(mapped) == 1 << 40 and int(mapped[-1]) == 0


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (struct.pack("<iii", 20240520, 2, 10), "llm.c's magic 20240520 with version 2, which is not known"),
        (b"\x93NUMPY\x01\x00v\x00{'de", r"numpy's header \(a .npy\)"),
        (b"\x1f\x8b\x08\0" * 3, "the header of gzip"),
        (b"(\xb5/\xfd" * 3, "the header of zstd"),
        (b"MMIDIDX\0\0\1\0\0", "that of a Megatron index"),
    ],
)
def test_known_headers_are_not_read_as_ids(head: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(head + bytes(100))
    with pytest.raises(BadSource, match=f"a.bin begins with {told}"):
        open_tokens(path)
    assert open_tokens(path, token_dtype="uint16").known_by == "asked"
