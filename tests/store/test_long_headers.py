"""Long headers are not taken into memory to list objects or to compare them: what is found is the same."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from samples import settle, write_sample

import dsmem
from dsmem.arrays import header, jsontext
from dsmem.arrays.header import Tensor
from dsmem.store import objects
from dsmem.store.root import make_store


@pytest.fixture
def pinned(tmp_path: Path) -> Path:
    path = settle(write_sample(tmp_path / "data.h5", 1))
    return Path(make_store().object_path(dsmem.pin(path).name))


def rewrite(object_path: Path, data: bytes) -> None:
    object_path.unlink()
    object_path.write_bytes(data)
    object_path.chmod(0o400)


def changed(whole: bytes, change: Callable[[Any], Any]) -> bytes:
    """The object with its header changed, and room behind it."""
    (length,) = struct.unpack_from("<Q", whole)
    text = json.dumps(change(json.loads(whole[8 : 8 + length]))).encode()
    return struct.pack("<Q", len(text) + 9) + text.ljust(len(text) + 9) + whole[8 + length :]


def told(patch: pytest.MonkeyPatch, long_bytes: int) -> tuple[bool, Any, str, int]:
    patch.setattr(objects, "_LONG_BYTES", long_bytes)
    (found,) = objects.scan(make_store())
    return found.damaged is None, found.provenance, found.kind, found.size_bytes


def test_the_same_is_told(pinned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pinned.read_bytes()
    end = 8 + len(whole[8:4096].rstrip())
    cases = [whole, whole[:5], whole[:100], whole[:-1], whole + b"x", changed(whole, dict)]
    cases.append(changed(whole, lambda raw: dict(reversed(raw.items()))))
    cases.append(changed(whole, lambda raw: raw | {"__metadata__": raw["__metadata__"] | {"dsmem.kind": "checkpoint"}}))
    cases.append(changed(whole, lambda raw: raw | {"__metadata__": raw["__metadata__"] | {"x": 1}}))
    random_ = random.Random(0)
    for _ in range(150):
        at = random_.randrange(end)
        cases.append(whole[:at] + bytes([random_.choice(b'"{}[]:,\\x 0\xff')]) + whole[at + 1 :])
    for case in cases:
        rewrite(pinned, case)
        monkeypatch.setattr(jsontext, "PIECE_BYTES", random_.choice([7, 100, 1 << 17]))
        assert told(monkeypatch, -1) == told(monkeypatch, 10**9)


def test_whether_two_are_the_same(pinned: Path, tmp_path: Path) -> None:
    whole = pinned.read_bytes()

    def is_same(other: bytes) -> bool:
        (tmp_path / "other").write_bytes(other)
        with open(pinned, "rb") as one, open(tmp_path / "other", "rb") as two:
            assert objects.same(one.fileno(), two.fileno()) == objects.same(two.fileno(), one.fileno())
            return objects.same(one.fileno(), two.fileno())

    def with_metadata(**texts: str) -> bytes:
        return changed(whole, lambda raw: raw | {"__metadata__": raw["__metadata__"] | texts})

    assert is_same(whole)
    assert is_same(changed(whole, lambda raw: raw))
    assert is_same(changed(whole, lambda raw: dict(reversed(raw.items()))))
    assert is_same(with_metadata(**{objects.PROVENANCE_KEY: "another"}))
    assert is_same(whole.replace(b"data.h5", b"dat2.h5", 1))
    assert not is_same(with_metadata(another="x"))
    assert not is_same(with_metadata(**{"dsmem.tree": "{}"}))
    assert not is_same(changed(whole, lambda raw: raw | {"y": list(raw.values())[-1]}))
    assert not is_same(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert not is_same(whole[:-1]) and not is_same(b"") and not is_same(whole[:50])


def test_little_is_taken(tmp_path: Path, pinned: Path) -> None:
    tensors = {f"sample_{number:06}": Tensor("U8", (), number, number + 1) for number in range(30_000)}
    made = header.parse(memoryview(pinned.read_bytes()), pinned.stat().st_size).metadata
    metadata = {objects.PROVENANCE_KEY: made[objects.PROVENANCE_KEY], header.DATA_BYTES_KEY: "30000"}
    long = bytes(header.encode(tensors, metadata, size_bytes=4 << 20)) + bytes(30_000)
    rewrite(pinned, long)
    (tmp_path / "other").write_bytes(long)
    with open(pinned, "rb") as one, open(tmp_path / "other", "rb") as two:
        tracemalloc.start()
        try:
            (found,) = objects.scan(make_store())
            assert found.damaged is None and found.provenance is not None
            assert objects.same(one.fileno(), two.fileno())
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 5 << 20  # a window of entries, and two to compare: as a whole they take 20
