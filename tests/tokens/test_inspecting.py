"""What is told about token files: counts, lengths, excerpts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenfiles import make_tokens, of_bytes, random_documents

from dsmem.errors import BadSource, SourceMissing, UsageError
from dsmem.tokens import index, inspecting
from dsmem.tokens.inspecting import excerpt, inspect
from dsmem.tokens.manifest import load


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_complete_file(tmp_path: Path, dtype: str) -> None:
    documents = random_documents(50, dtype=dtype)  # type: ignore[arg-type]
    make_tokens(tmp_path / "a.bin", documents, dtype)  # type: ignore[arg-type]
    found = inspect(tmp_path / "a.bin")
    assert (found.dtype, found.known_by, found.documents) == (dtype, "manifest", 50)
    assert found.tokens == sum(map(len, documents))
    assert found.size_bytes == found.tokens * (2 if dtype == "uint16" else 4)
    assert [Path(one).name for one in found.beside] == ["a.idx", "a.docs.npy", "a.json"]
    assert found.manifest == load((tmp_path / "a.json").read_bytes())


def test_a_bare_file(tmp_path: Path) -> None:
    np.arange(10, dtype="<u2").tofile(tmp_path / "a.bin")
    found = inspect(tmp_path / "a.bin")
    assert (found.dtype, found.known_by, found.tokens) == ("uint16", "default", 10)
    assert (found.documents, found.lengths, found.beside, found.manifest) == (None, None, (), None)
    assert inspect(tmp_path / "a.bin", token_dtype="uint32").tokens == 5


def test_with_megatrons_index_alone(tmp_path: Path) -> None:
    make_tokens(tmp_path / "a.bin", [[1, 2], [70_000]], "uint32")
    (tmp_path / "a.json").unlink()
    (tmp_path / "a.docs.npy").unlink()
    found = inspect(tmp_path / "a.bin")
    assert (found.dtype, found.known_by, found.documents, found.manifest) == ("uint32", "idx", 2, None)
    assert excerpt(tmp_path / "a.bin", document=1).ids == (70_000,)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.one_of(st.integers(0, 9), st.integers(0, 2**40)), min_size=1, max_size=30))
def test_histogram(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "BLOCK", 4)
    found = inspecting._lengths(np.cumsum(lengths, dtype=np.uint64))
    assert (found.shortest, found.longest) == (min(lengths), max(lengths))
    assert found.mean == pytest.approx(sum(lengths) / len(lengths))
    for bucket in found.histogram:
        inside = [one for one in lengths if bucket.least <= one <= bucket.most]
        assert (bucket.documents, bucket.tokens) == (len(inside), sum(inside))
    assert sum(bucket.documents for bucket in found.histogram) == len(lengths)
    assert found.histogram[0].documents and found.histogram[-1].documents
    for before, after in zip(found.histogram, found.histogram[1:], strict=False):
        assert after.least == before.most + 1


def test_excerpts(tmp_path: Path) -> None:
    documents = [[1, 2, 3], [], [4], [5, 6]]
    make_tokens(tmp_path / "a.bin", documents)
    path = tmp_path / "a.bin"
    for number, document in enumerate(documents):
        found = excerpt(path, document=number)
        assert (found.ids, found.tokens, found.document) == (tuple(document), len(document), number)
        assert excerpt(path, document=number - 4) == found
    cut = excerpt(path, document=0, limit=2)
    assert (cut.ids, cut.tokens, cut.start) == ((1, 2), 3, 0)
    anywhere = excerpt(path, at=2, limit=3)
    assert (anywhere.ids, anywhere.document, anywhere.start, anywhere.tokens) == ((3, 4, 5), None, 2, 3)
    assert excerpt(path, at=5).ids == (6,)


def test_what_is_not_there(tmp_path: Path) -> None:
    make_tokens(tmp_path / "a.bin", [[1, 2, 3]])
    with pytest.raises(UsageError, match="has 1 documents; there is no 1"):
        excerpt(tmp_path / "a.bin", document=1)
    with pytest.raises(UsageError, match="there is none at 3"):
        excerpt(tmp_path / "a.bin", at=3)
    with pytest.raises(UsageError, match="either a document or a place"):
        excerpt(tmp_path / "a.bin")
    with pytest.raises(SourceMissing):
        inspect(tmp_path / "none.bin")
    (tmp_path / "bare.bin").write_bytes(b"\1\0")
    with pytest.raises(UsageError, match="ask for tokens by their place"):
        excerpt(tmp_path / "bare.bin", document=0)
    with (tmp_path / "a.bin").open("ab") as file:
        file.write(b"\0\0")
    with pytest.raises(BadSource, match=r"4 tokens of uint16, but .* says 3"):
        inspect(tmp_path / "a.bin")


def test_ends_that_fall(tmp_path: Path) -> None:
    make_tokens(tmp_path / "a.bin", [[1] * 5, [2] * 5, [3] * 5])
    np.save(tmp_path / "a.docs.npy", np.array([5, 3, 15], np.uint64))
    with pytest.raises(BadSource, match=r"a\.bin: document 1 ends before the one in front of it"):
        inspect(tmp_path / "a.bin")


def test_no_documents(tmp_path: Path) -> None:
    make_tokens(tmp_path / "a.bin", of_bytes())
    found = inspect(tmp_path / "a.bin")
    assert (found.tokens, found.documents, found.lengths) == (0, 0, None)
