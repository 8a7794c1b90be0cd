"""Exports against the formats as their own writers make them."""

from __future__ import annotations

import csv
import gzip
import os
import struct
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenfiles import EOT, Documents, make_manifest, make_tokens, of_bytes, random_documents

from dsmem.errors import BadSource, OutputExists, UsageError
from dsmem.tokens import exporting, index, llmc
from dsmem.tokens.exporting import FORMS, Exported, Form, _for_people, export
from dsmem.tokens.layout import TokenDtype
from dsmem.tokens.manifest import Place

HEADERS = {"uint16": (20240520, 1), "uint32": (20240801, 7)}


def read_llmc(path: str | Path, dtype: TokenDtype) -> list[int]:
    """As dataloader.h of llm.c reads it."""
    data = Path(path).read_bytes()
    header = struct.unpack("<256i", data[:1024])
    assert header[:2] == HEADERS[dtype] and not any(header[3:])
    tokens: list[int] = np.frombuffer(data[1024:], np.dtype(dtype).newbyteorder("<")).tolist()
    assert header[2] == len(tokens)
    return tokens


def test_llmc(tmp_path: Path) -> None:
    make_tokens(tmp_path / "a.bin", of_bytes("ab", "", "c"))
    done = export(tmp_path / "a.bin", tmp_path / "b.bin", "llm.c")
    assert done == Exported("llm.c", (str(tmp_path / "b.bin"),), 6, 3)
    assert read_llmc(tmp_path / "b.bin", "uint16") == [EOT, 97, 98, EOT, EOT, 99]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.lists(st.integers(0, 255), max_size=12), max_size=12),
    bos=st.sampled_from(["none", "none", "prepend"]),
    eos=st.sampled_from(["append", "append", "prepend", "none"]),
    dtype=st.sampled_from(["uint16", "uint32"]),
    most=st.sampled_from([2**31 - 1, 16]),
)
def test_llmc_however_documents_are_marked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    texts: list[list[int]],
    bos: str,
    eos: str,
    dtype: TokenDtype,
    most: int,
) -> None:
    monkeypatch.setattr(index, "BLOCK", 3)
    monkeypatch.setattr(llmc, "BLOCK", 3)
    monkeypatch.setattr(llmc, "_BLOCK_TOKENS", 10)
    monkeypatch.setattr(llmc, "_MOST_TOKENS", most)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    for old in tmp_path.glob("b*.bin"):
        old.unlink()
    head = [EOT] * ((bos == "prepend") + (eos == "prepend"))
    documents = [[*head, *text, *([EOT] if eos == "append" else [])] for text in texts]
    wanted = [[*(head or [EOT]), *text] for text in texts]
    make_tokens(tmp_path / "a.bin", documents, dtype, manifest=make_manifest(dtype, bos=bos, eos=eos))  # type: ignore[arg-type]
    done = export(tmp_path / "a.bin", tmp_path / "b", "llm.c", overwrite=True)
    found = [read_llmc(path, dtype) for path in done.paths]
    assert [token for one in found for token in one] == [token for one in wanted for token in one]
    assert sorted(done.paths) == list(done.paths) == sorted(map(str, tmp_path.glob("b*.bin")))
    assert all(len(one) <= most for one in found)
    ends = set(accumulate(map(len, wanted)))
    assert all(end in ends for end in accumulate(map(len, found)) if end)
    for one, after in pairwise(found):  # as full as whole documents allow
        begun = sum(map(len, found[: found.index(after)]))
        following = next(
            (
                len(text)
                for start, text in zip(accumulate(map(len, wanted), initial=0), wanted, strict=False)
                if start == begun
            ),
            0,
        )
        assert len(one) + following > most


@pytest.mark.parametrize(
    ("eot", "eos", "head"),
    [(None, "append", [5]), (7, "append", [7, 5]), (5, "none", [5]), (7, "prepend", [7, 5, EOT])],
)
def test_llmc_begins_with_what_was_asked_for(tmp_path: Path, eot: int | None, eos: Place, head: list[int]) -> None:
    begins = [5, EOT] if eos == "prepend" else [5]
    documents = [[*begins, *text, *([EOT] if eos == "append" else [])] for text in ([1, 2], [], [3])]
    manifest = make_manifest("uint16", bos="prepend", eos=eos)
    manifest = replace(manifest, tokenizer=replace(manifest.tokenizer, bos_id=5))
    make_tokens(tmp_path / "a.bin", documents, manifest=manifest)
    export(tmp_path / "a.bin", tmp_path / "b", "llm.c", eot=eot)
    assert read_llmc(tmp_path / "b.bin", "uint16") == [*head, 1, 2, *head, *head, 3]


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("llm.c", ["b.bin"]),
        ("datatrove", ["b.ds", "b.ds.index", "b.ds.metadata"]),
        ("olmo", ["b.npy", "b.csv.gz"]),
    ],
)
def test_what_is_there_is_replaced_when_told_only(tmp_path: Path, form: Form, names: list[str]) -> None:
    make_tokens(tmp_path / "a.bin", of_bytes("ab", "c"))
    for name in names:
        mine = tmp_path / name
        mine.write_text("mine")
        there = sorted(os.listdir(tmp_path))
        with pytest.raises(OutputExists, match=f"{name} is there already") as told:
            export(tmp_path / "a.bin", tmp_path / "b", form)
        assert (told.value.path, mine.read_text()) == (str(mine), "mine")
        assert sorted(os.listdir(tmp_path)) == there
        export(tmp_path / "a.bin", tmp_path / "b", form, overwrite=True)
        assert mine.read_bytes() != b"mine"
        for done in names:
            (tmp_path / done).unlink()
    (tmp_path / names[-1]).mkdir()
    with pytest.raises(UsageError, match="is a directory"):
        export(tmp_path / "a.bin", tmp_path / "b", form, overwrite=True)


def test_what_is_taken_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tokens(tmp_path / "a.bin", of_bytes("ab", "c"))
    write = exporting._write_olmo

    def slow(*args: object) -> None:
        write(*args)  # type: ignore[arg-type]
        (tmp_path / "b.csv.gz").write_text("mine")

    monkeypatch.setattr(exporting, "_write_olmo", slow)
    with pytest.raises(OutputExists, match=r"b\.csv\.gz is there already"):
        export(tmp_path / "a.bin", tmp_path / "b", "olmo")
    assert (tmp_path / "b.csv.gz").read_text() == "mine"
    assert not (tmp_path / "b.npy").exists()


def test_shards_of_llmc_are_asked_for_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llmc, "_MOST_TOKENS", 4)
    make_tokens(tmp_path / "a.bin", of_bytes("abc", "def", "ghi"))
    (tmp_path / "b_000002.bin").write_text("mine")
    there = sorted(os.listdir(tmp_path))
    with pytest.raises(OutputExists, match=r"b_000002\.bin"):
        export(tmp_path / "a.bin", tmp_path / "b", "llm.c")
    assert sorted(os.listdir(tmp_path)) == there


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_read_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    make_tokens(tmp_path / "a.bin", of_bytes("ab"))
    os.link(tmp_path / "a.bin", tmp_path / "same.ds")
    (tmp_path / "link.npy").symlink_to("a.docs.npy")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for form, name in (("llm.c", "a"), ("olmo", "a.docs"), ("olmo", "link"), ("datatrove", "same")):
        with pytest.raises(UsageError, match="is what is to be exported, or lies beside it"):
            export(tmp_path / "a.bin", tmp_path / name, form, overwrite=overwrite)  # type: ignore[arg-type]
    (tmp_path / "a.docs.npy").unlink()  # the index tells as well; ids would then be taken for the document ends
    with pytest.raises(UsageError, match="is what is to be exported, or lies beside it"):
        export(tmp_path / "a.bin", tmp_path / "a.docs", "olmo", overwrite=overwrite)
    make_tokens(tmp_path / "other.bin", of_bytes("another"))
    with pytest.raises(OutputExists if not overwrite else UsageError, match="other"):
        export(tmp_path / "a.bin", tmp_path / "other", "llm.c", overwrite=overwrite)
    (tmp_path / "other.bin").unlink()
    with pytest.raises(UsageError, match=r"other\.idx is there, and it would be taken for that of the new file"):
        export(tmp_path / "a.bin", tmp_path / "other", "llm.c", overwrite=overwrite)
    for name, data in before.items():
        assert name == "a.docs.npy" or (tmp_path / name).exists() is (name != "link.npy")
        assert name in ("a.docs.npy", "link.npy") or (tmp_path / name).read_bytes() == data


def test_llmc_without_a_manifest(tmp_path: Path) -> None:
    for documents, wanted in (
        ([[1, 9], [9], [2, 9]], [9, 1, 9, 9, 2]),
        ([[9, 1], [9]], [9, 1, 9]),
        ([[1], [], [2, 9]], [9, 1, 9, 9, 2, 9]),
    ):
        make_tokens(tmp_path / "a.bin", documents)
        (tmp_path / "a.json").unlink()
        with pytest.raises(UsageError, match="--eot"):
            export(tmp_path / "a.bin", tmp_path / "b.bin", "llm.c")
        export(tmp_path / "a.bin", tmp_path / "b.bin", "llm.c", eot=9, overwrite=True)
        assert read_llmc(tmp_path / "b.bin", "uint16") == wanted
    with pytest.raises(UsageError, match="70000 is no id of uint16"):
        export(tmp_path / "a.bin", tmp_path / "c.bin", "llm.c", eot=70_000)


def test_documents_that_do_not_end_as_told_lose_nothing(tmp_path: Path) -> None:
    for documents in ([[1, EOT], [2, 3]], [[1, EOT], [], [2, EOT]], [[5] * 30]):
        make_tokens(tmp_path / "a.bin", documents)
        with pytest.raises(BadSource, match="do not end as the manifest says"):
            export(tmp_path / "a.bin", tmp_path / "b.bin", "llm.c")
    assert sorted(os.listdir(tmp_path)) == [".work", "a.bin", "a.docs.npy", "a.idx", "a.json"]


def test_a_document_that_llmc_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llmc, "_MOST_TOKENS", 4)
    make_tokens(tmp_path / "a.bin", of_bytes("a", "abcdef"))
    with pytest.raises(BadSource, match=r"document 1 of .* is too long"):
        export(tmp_path / "a.bin", tmp_path / "b.bin", "llm.c")


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_datatrove(tmp_path: Path, dtype: TokenDtype) -> None:
    documents = random_documents(40, dtype=dtype)
    make_tokens(tmp_path / "a.bin", documents, dtype)
    done = export(tmp_path / "a.bin", tmp_path / "b.ds", "datatrove")
    names = ["b.ds", "b.ds.index", "b.ds.metadata"]
    assert [Path(one).name for one in done.paths] == names
    assert (tmp_path / "b.ds").read_bytes() == (tmp_path / "a.bin").read_bytes()
    ends = list(accumulate(map(len, documents)))
    assert (tmp_path / "b.ds.index").read_bytes() == struct.pack(f"<{len(ends)}Q", *ends)
    size = 2 if dtype == "uint16" else 4
    assert (tmp_path / "b.ds.metadata").read_text() == f"bytes|{size}\n{ends[-1]}\n{_for_people(ends[-1])}"


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (0, "0.00 T"),
        (7, "7.00 T"),
        (31, "31.0 T"),
        (999, "999 T"),
        (1234, "1.23 kT"),
        (15_300_000, "15.3 MT"),
        (10**12, "1.00 TT"),
    ],
)
def test_counts_as_humanize_says_them(tokens: int, said: str) -> None:
    assert _for_people(tokens) == said


def test_olmo(tmp_path: Path) -> None:
    documents: Documents = [[1, 2, 3], [], [4]]
    make_tokens(tmp_path / "a.bin", documents, "uint32")
    done = export(tmp_path / "a.bin", tmp_path / "b", "olmo")
    assert [Path(one).name for one in done.paths] == ["b.npy", "b.csv.gz"]
    assert np.memmap(tmp_path / "b.npy", "<u4", "r").tolist() == [1, 2, 3, 4]
    with gzip.open(tmp_path / "b.csv.gz", "rt", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["0", "3", "0", "a.bin", "0"], ["3", "3", "1", "a.bin", "1"], ["3", "4", "2", "a.bin", "2"]]
    before = (tmp_path / "b.csv.gz").read_bytes()
    export(tmp_path / "a.bin", tmp_path / "b", "olmo", overwrite=True)
    assert (tmp_path / "b.csv.gz").read_bytes() == before


def test_exported_again_from_llmc(tmp_path: Path) -> None:
    """A header is passed over; the ends come from an index beside it."""
    make_tokens(tmp_path / "a.bin", of_bytes("ab", "c"))
    export(tmp_path / "a.bin", tmp_path / "b.bin", "llm.c")
    np.save(tmp_path / "b.docs.npy", np.array([3, 5], np.uint64))
    export(tmp_path / "b.bin", tmp_path / "c.ds", "datatrove")
    assert (tmp_path / "c.ds").read_bytes() == (tmp_path / "b.bin").read_bytes()[1024:]
    assert (tmp_path / "c.ds.metadata").read_text().startswith("Unknown Tokenizer|2\n5\n")


@pytest.mark.parametrize("form", FORMS)
def test_a_failure_leaves_what_was_there(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tokens(tmp_path / "a.bin", of_bytes("ab", "c"))
    (done, *_) = export(tmp_path / "a.bin", tmp_path / "b", form).paths  # type: ignore[arg-type]
    before, names = Path(done).read_bytes(), sorted(os.listdir(tmp_path))

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        export(tmp_path / "a.bin", tmp_path / "b", form, overwrite=True)  # type: ignore[arg-type]
    assert Path(done).read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == names


@pytest.mark.parametrize("form", ["llm.c", "datatrove", "olmo"])
def test_ends_that_fall_are_not_exported(form: Form, tmp_path: Path) -> None:
    make_tokens(tmp_path / "a.bin", [[1] * 5, [2] * 5, [3] * 5])
    np.save(tmp_path / "a.docs.npy", np.array([5, 3, 15], np.uint64))
    there = sorted(tmp_path.iterdir())
    with pytest.raises(BadSource, match="document 1 ends before the one in front of it"):
        export(tmp_path / "a.bin", tmp_path / "out", form)
    assert sorted(tmp_path.iterdir()) == there


def test_misuse(tmp_path: Path) -> None:
    make_tokens(tmp_path / "a.bin", of_bytes("ab"))
    before = (tmp_path / "a.bin").read_bytes()
    with pytest.raises(UsageError, match="is what is to be exported"):
        export(tmp_path / "a.bin", tmp_path / "a", "llm.c")
    assert (tmp_path / "a.bin").read_bytes() == before
    with pytest.raises(UsageError, match=r"the forms are llm\.c, datatrove, olmo"):
        export(tmp_path / "a.bin", tmp_path / "b", "tfrecord")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"there is no directory .*/none"):
        export(tmp_path / "a.bin", tmp_path / "none" / "b", "olmo")
    with pytest.raises(UsageError, match="only llm"):
        export(tmp_path / "a.bin", tmp_path / "b", "olmo", eot=5)
    (tmp_path / "bare.bin").write_bytes(b"\1\0")
    with pytest.raises(BadSource, match="documents"):
        export(tmp_path / "bare.bin", tmp_path / "b", "olmo")
