"""Every way in which a token file can be wrong is named, beside what is right."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenfiles import EOT, Documents, make_manifest, make_tokens, of_bytes

from dsmem.errors import BadSource, SourceMissing
from dsmem.tokens import index, manifest, opening, verifying
from dsmem.tokens.inspecting import inspect
from dsmem.tokens.layout import TokenDtype
from dsmem.tokens.manifest import Manifest
from dsmem.tokens.opening import open_tokens
from dsmem.tokens.verifying import Verified, verify

TEXTS = ("hello", "", "world, a longer text", "é")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "BLOCK", 2)
    monkeypatch.setattr(verifying, "_BLOCK_TOKENS", 5)
    monkeypatch.setattr(opening, "_AT_ONCE", 2)


def bad(found: Verified) -> dict[str, str]:
    return {check.name: check.detail for check in found.checks if check.state == "bad"}


def states(found: Verified) -> dict[str, str]:
    return {check.name: check.state for check in found.checks}


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_good_file(tmp_path: Path, dtype: TokenDtype) -> None:
    make_tokens(tmp_path / "a.bin", of_bytes(*TEXTS), dtype)
    told: list[tuple[int, int]] = []
    found = verify(tmp_path / "a.bin", progress=lambda done, total: told.append((done, total)))
    assert found.ok and found.phantom_eos == 0
    assert set(states(found).values()) == {"ok"}
    assert list(states(found)) == ["manifest", "size", "documents", "index", "ids", "bos and eos", "checksum"]
    assert told[-1] == ((tmp_path / "a.bin").stat().st_size,) * 2


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\1\0")


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def _replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def _set_ends(path: Path, change: Callable[[np.ndarray], object]) -> None:
    ends = np.load(path)
    change(ends)
    np.save(path, ends)


FAULTS: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "a byte of text": (lambda at: _flip(at / "a.bin", 2), {"checksum": "instead of xxh3-tree:"}),
    "longer": (
        lambda at: _append(at / "a.bin"),
        {"size": "holds 32 tokens of uint16", "documents": "ends at token 31", "checksum": "instead"},
    ),
    "half a token": (lambda at: (at / "a.bin").write_bytes(b"123"), {"size": "3 bytes", "checksum": "instead"}),
    "no manifest": (
        lambda at: (at / "a.json").write_text('{"dsmem_tokens": 1}'),
        {"manifest": "not a manifest", "size": ""},
    ),
    "fewer documents": (lambda at: _edit(at / "a.json", documents=3), {"documents": "has 4 ends, the manifest says 3"}),
    "another digest": (lambda at: _edit(at / "a.json", digest="sha256:00"), {"checksum": "instead of sha256:00"}),
    "no digest": (lambda at: _edit(at / "a.json", digest="foo"), {"checksum": "'foo', which is no checksum"}),
    "a digest that is a number": (
        lambda at: _edit(at / "a.json", digest=5),
        {"manifest": "digest is 5", "size": "digest is 5"},
    ),
    "a manifest that is a directory": (
        lambda at: _replace_by_directory(at / "a.json"),
        {"manifest": "a.json is no regular file", "size": "a.json is no regular file"},
    ),
    "a manifest that is a FIFO": (
        lambda at: _replace_by_fifo(at / "a.json"),
        {"manifest": "a.json is no regular file", "size": "a.json is no regular file"},
    ),
    "a manifest that is too large": (
        lambda at: os.truncate(at / "a.json", manifest.MAX_BYTES + 1),
        {"manifest": "a.json is larger than", "size": "a.json is larger than"},
    ),
    "somebody else's manifest": (
        lambda at: (at / "a.json").write_text('{"text": "the data it was made from"}'),
        {"manifest": "a.json is not the manifest of a token file"},
    ),
    "an index that is a directory": (
        lambda at: _replace_by_directory(at / "a.idx"),
        {"index": "a.idx is no regular file"},
    ),
    "an index that is a FIFO": (lambda at: _replace_by_fifo(at / "a.idx"), {"index": "a.idx is no regular file"}),
    "ends and an index that are FIFOs": (
        lambda at: [*map(_replace_by_fifo, (at / "a.docs.npy", at / "a.idx"))],
        {"documents": "a.docs.npy is no regular file", "index": "a.idx is no regular file"},
    ),
    "ends that fall": (
        lambda at: _set_ends(at / "a.docs.npy", lambda ends: ends.__setitem__(1, 2)),
        {"documents": "document 1 ends before"},
    ),
    "ends elsewhere": (
        lambda at: _set_ends(at / "a.docs.npy", lambda ends: ends.__setitem__(0, 5)),
        {"index": "a.idx is not about these documents", "bos and eos": "manifest names: 0"},
    ),
    "the last end": (
        lambda at: _set_ends(at / "a.docs.npy", lambda ends: ends.__setitem__(3, 40)),
        {"documents": "ends at token 40"},
    ),
    "no array": (lambda at: (at / "a.docs.npy").write_bytes(b"x"), {"documents": "a.docs.npy"}),
    "a byte of the index": (lambda at: _flip(at / "a.idx", 40), {"index": "is not about these"}),
    "a longer index": (lambda at: _append(at / "a.idx"), {"index": "is not about these"}),
    "a shorter index": (
        lambda at: (at / "a.idx").write_bytes((at / "a.idx").read_bytes()[:-1]),
        {"index": "is not about these"},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(tmp_path: Path, fault: str) -> None:
    spoil, wanted = FAULTS[fault]
    make_tokens(tmp_path / "a.bin", of_bytes(*TEXTS))
    spoil(tmp_path)
    found = verify(tmp_path / "a.bin")
    assert not found.ok
    told = bad(found)
    assert set(told) == set(wanted)
    for name, words in wanted.items():
        assert words in told[name]


def _index(lengths: list[int], pointers: list[int], firsts: list[int]) -> bytes:
    """Megatron-LM's form of uint16, by struct and nothing of dsmem's."""
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, len(lengths), len(firsts))
    return head + struct.pack(f"<{len(lengths)}i{len(pointers)}q{len(firsts)}q", *lengths, *pointers, *firsts)


INDICES: dict[str, tuple[list[int], list[int], list[int], str]] = {
    "right": ([10, 10, 10], [0, 20, 40], [0, 1, 2, 3], ""),
    "sentences": ([10, 0, 20], [0, 20, 20], [0, 0, 2, 3], ""),
    "a gap": (
        [10, 5, 10],
        [0, 30, 40],
        [0, 1, 2, 3],
        "sequence 1 begins at byte 30, the one in front of it ends at 20",
    ),
    "an overlap": ([10, 10, 15], [0, 20, 30], [0, 1, 2, 3], "sequence 2 begins at byte 30, .* ends at 40"),
    "not from the start": ([9, 20], [2, 20], [0, 1, 2], "sequence 0 begins at byte 2, .* ends at 0"),
    "a negative length": ([10, -7, 10], [0, 54, 40], [0, 1, 2, 3], "sequence 1 has a length of -7"),
    "the last is negative": ([10, 30, -10], [0, 20, 80], [0, 1, 2, 3], "last sequence has -10 tokens of uint16 from"),
    "a negative pointer": (
        [10, 2**31 - 1, 10],
        [0, 40 - 2 * (2**31 - 1), 40],
        [0, 1, 2, 3],
        "sequence 1 begins at byte -4294967254",
    ),
    "the last is before the file": ([20, 2**31 - 1], [0, 60 - 2 * (2**31 - 1)], [0, 1, 2], "from byte -4294967234 on"),
    "half a token": ([10, 20], [0, 21], [0, 1, 2], "20 tokens of uint16 from byte 21 on"),
    "documents that fall": ([10, 10, 10], [0, 20, 40], [0, 2, 1, 3], "document 1 ends before it begins"),
    "documents from 1": ([10, 10, 10], [0, 20, 40], [1, 2, 3], "documents are of sequences 1 to 3, and it has 0 to 3"),
    "documents up to 2": ([10, 20, 0], [0, 20, 60], [0, 1, 2], "documents are of sequences 0 to 2, and it has 0 to 3"),
    "documents beyond": ([10, 10, 10], [0, 20, 40], [0, 1, 2, 4], "sequences 0 to 4"),
    "less than the file": ([10, 10], [0, 20], [0, 1, 2], "(ends at token|a.idx says) 20"),
}


@pytest.mark.parametrize("with_manifest", [False, True])
@pytest.mark.parametrize("what", INDICES)
def test_an_index_on_its_own(what: str, with_manifest: bool, tmp_path: Path) -> None:
    """It is all that tells of documents: what is wrong with it is found by whoever asks for them, too."""
    lengths, pointers, firsts, message = INDICES[what]
    path = tmp_path / "a.bin"
    count = len(firsts) - 1
    no_markers: Manifest = make_manifest("uint16", eos="none")
    make_tokens(path, [[1] * 10] * 3, manifest=no_markers)
    (tmp_path / "a.docs.npy").unlink()
    _edit(tmp_path / "a.json", documents=count)
    if not with_manifest:
        (tmp_path / "a.json").unlink()
    (tmp_path / "a.idx").write_bytes(_index(lengths, pointers, firsts))
    found = verify(path)
    if not message:
        assert found.ok and states(found)["documents"] == states(found)["index"] == "ok"
        return
    told = bad(found)
    assert not found.ok and re.search(message, told["index"] if "index" in told else told["size"])
    with pytest.raises(BadSource, match=message):
        open_tokens(path).documents()


def test_no_bit_of_an_index_on_its_own_is_taken_as_it_comes(tmp_path: Path) -> None:
    make_tokens(tmp_path / "a.bin", of_bytes(*TEXTS))
    (tmp_path / "a.docs.npy").unlink()
    path = tmp_path / "a.idx"
    right = path.read_bytes()
    assert verify(tmp_path / "a.bin").ok
    for at in range(len(right) * 8):
        flipped = bytearray(right)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        assert bad(verify(tmp_path / "a.bin")), at
    for data in (right + b"\0", right + bytes(8), right[:-1], right[:64], right[:5], b""):
        path.write_bytes(data)
        assert bad(verify(tmp_path / "a.bin")), len(data)
    path.write_bytes(right + bytes(len(TEXTS)))  # of several modalities
    assert verify(tmp_path / "a.bin").ok


def test_ids_beyond_the_tokenizer(tmp_path: Path) -> None:
    documents = [[1, 2, EOT], [3, 300, 999, EOT]]
    make_tokens(tmp_path / "a.bin", documents)
    assert bad(verify(tmp_path / "a.bin")) == {"ids": "up to 999; the tokenizer has 256; the first at token 4"}


def test_phantoms_are_counted_and_are_no_fault(tmp_path: Path) -> None:
    documents: Documents = [[1, EOT, 2, EOT], [EOT, EOT], [EOT], [3, EOT]]
    make_tokens(tmp_path / "a.bin", documents)
    found = verify(tmp_path / "a.bin")
    assert found.ok and found.phantom_eos == 2


@pytest.mark.parametrize(
    ("bos", "eos", "documents", "phantom", "wrong"),
    [
        ("none", "none", [[1, EOT], [2]], 1, None),
        ("none", "prepend", [[EOT, 1], [EOT], [EOT, EOT]], 1, None),
        ("none", "prepend", [[EOT, 1], [2, EOT]], 1, "1"),
        ("prepend", "append", [[EOT, 1, EOT], [EOT, EOT]], 0, None),
        ("prepend", "append", [[EOT, 1, EOT], [EOT]], 0, "1"),
        ("none", "append", [[EOT], [], [1], [1, EOT], [2]], 0, "1, 2, 4"),
        ("none", "append", [[n] for n in range(9)], 0, "0, 1, 2, …"),
    ],
)
def test_markers(tmp_path: Path, bos: str, eos: str, documents: Documents, phantom: int, wrong: str | None) -> None:
    manifest: Manifest = make_manifest("uint16", bos=bos, eos=eos)  # type: ignore[arg-type]
    make_tokens(tmp_path / "a.bin", documents, manifest=manifest)
    found = verify(tmp_path / "a.bin")
    if wrong is None:
        assert found.ok and found.phantom_eos == phantom
    else:
        assert bad(found) == {"bos and eos": f"documents without those that the manifest names: {wrong}"}


def test_a_bare_file_has_nothing_to_be_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(struct.pack("<3H", 1, 2, 3))
    found = verify(tmp_path / "a.bin")
    assert found.ok and found.phantom_eos is None
    assert states(found) == {
        "manifest": "absent",
        "size": "ok",
        "documents": "absent",
        "index": "absent",
        "ids": "absent",
        "checksum": "absent",
    }


def test_nothing(tmp_path: Path) -> None:
    make_tokens(tmp_path / "a.bin", [])
    assert verify(tmp_path / "a.bin").ok
    with pytest.raises(SourceMissing):
        verify(tmp_path / "none.bin")


def test_no_bit_of_a_side_file_ends_the_search(tmp_path: Path) -> None:
    """numpy's own reading of a damaged header raises what its parser does."""
    make_tokens(tmp_path / "a.bin", of_bytes(*TEXTS))
    for name in ("a.docs.npy", "a.idx"):
        path = tmp_path / name
        right = path.read_bytes()
        for at in range(0, len(right) * 8, 3):
            flipped = bytearray(right)
            flipped[at // 8] ^= 1 << at % 8
            path.write_bytes(flipped)
            assert bad(verify(tmp_path / "a.bin")), (name, at)
        for data in (right + b"\0", right + bytes(8), right[:-1], right[:64], right[:5], b""):
            path.write_bytes(data)
            assert bad(verify(tmp_path / "a.bin")), (name, len(data))
        path.write_bytes(right)


def test_documents_that_only_the_manifest_counts(tmp_path: Path) -> None:
    make_tokens(tmp_path / "a.bin", of_bytes(*TEXTS))
    for name in ("a.docs.npy", "a.idx"):
        (tmp_path / name).unlink()
    found = verify(tmp_path / "a.bin")
    assert bad(found) == {"documents": "the manifest says 4, and nothing tells where they end any more"}
    assert inspect(tmp_path / "a.bin").documents == 4
