"""Every way in which a token file can be wrong is named, beside what is right."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenfiles import EOT, Documents, make_manifest, make_tokens, of_bytes

from dsmem.errors import SourceMissing
from dsmem.tokens import index, verifying
from dsmem.tokens.inspecting import inspect
from dsmem.tokens.layout import TokenDtype
from dsmem.tokens.manifest import Manifest
from dsmem.tokens.verifying import Verified, verify

TEXTS = ("hello", "", "world, a longer text", "é")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "BLOCK", 2)
    monkeypatch.setattr(verifying, "_BLOCK_TOKENS", 5)


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
