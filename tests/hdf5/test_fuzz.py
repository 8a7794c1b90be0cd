"""Damaged HDF5 files: an error of one line, or exactly what h5py reads; no crash, hang or leftover of dsmem's own."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import secrets
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fuzzing
import h5py
import numpy as np
import pytest
from compare import assert_same_file
from fuzzing import Mutant, Outcome
from stores import refuse

import dsmem
from dsmem.cli.output import escape
from dsmem.hdf5.codecs import Filter, NotKnown, Pipeline, Undecodable
from dsmem.hdf5.filters import filters_of
from dsmem.hdf5.scan import scan
from dsmem.pinning import untrusted
from dsmem.store import space
from dsmem.store.root import Store
from dsmem.store.sweep import sweep

COUNT = int(os.environ.get("FUZZ_COUNT", "60"))
"""Mutants in the portion of one run."""
FIRST = int(os.environ.get("FUZZ_SEED", "1")) or secrets.randbelow(1 << 40)
"""The first one's number; FUZZ_SEED=0 takes a fresh one."""
_STORE_BYTES = 64 << 20
_AT_A_TIME = 200
_MOST_NODES = 2000
_ALONE_S = 3.0
_MARGIN_BYTES = 4096
_ATTEMPTS = 3
_M_PERTURB = -6
"""malloc.h: fills memory that is handed out or given back with a byte."""
ALLOWED = ("refused", "equal", "h5py refuses", "h5py wavers", "h5py crashes", "h5py hangs")


def _small_room(store: Store, beside_bytes: int = 0) -> space.Room:
    return space.Room(_STORE_BYTES, "this test")


def pinned(mutant: Mutant, *, is_untrusted: bool = False) -> Outcome:
    """Pin it: "refused", or "pinned" with the name of the object and what was left out, or how it went wrong."""
    space.room = _small_room
    try:
        found = dsmem.pin(mutant.path, skip_unsupported=mutant.seed % 2 == 0, hash_cache=False, untrusted=is_untrusted)
    except dsmem.DsmemError as exc:
        text = escape(str(exc))
        good = len(text) < 4000 and not text.startswith("unexpected")
        return Outcome("refused" if good else "raised", f"{type(exc).__name__}: {text}")
    except Exception as exc:  # noqa: BLE001 - this is what is looked for
        return Outcome("raised", f"{exc!r} at {_place(exc)}")
    return Outcome("pinned", json.dumps([found.name, [refusal.path for refusal in found.refused]]))


def _place(exc: BaseException) -> str:
    trace = traceback.extract_tb(exc.__traceback__)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(trace[-4:]))


def compared(objects: dict[int, str], mutant: Mutant) -> Outcome:
    """Compare the pinned mutant with what h5py reads."""
    name, left_out = json.loads(objects[mutant.seed])
    left_to_h5py: list[str] = []
    try:
        with dsmem.attach(name) as ours, h5py.File(mutant.path, "r") as theirs:
            items = scan(theirs, mutant.path, file_bytes=os.path.getsize(mutant.path)).items
            left_to_h5py = [f"/{item.path}[" for item in items if item.tier == "h5py"]
            assert_same_file(ours, theirs, left_out, visits=False)
    except Exception as exc:  # noqa: BLE001 - told by the test
        told = f"{exc!r:.600} at {_place(exc)}"
        if isinstance(exc, AssertionError) and str(exc).startswith(tuple(left_to_h5py)):
            return Outcome("h5py wavers", told)  # h5py read it both times: it decodes beyond the end of its buffers
        by_h5py = "h5py" in Path(traceback.extract_tb(exc.__traceback__)[-1].filename).parts
        wrong = isinstance(exc, AssertionError | dsmem.DsmemError) or not by_h5py
        return Outcome("differs" if wrong else "h5py refuses", told)
    return Outcome("equal")


def read_by_h5py(mutant: Mutant) -> Outcome:
    """All that h5py reads, as a digest; what it takes from memory that nobody has written differs each time."""
    ctypes.CDLL(None).mallopt(_M_PERTURB, secrets.randbelow(255) + 1)
    digest = hashlib.sha256()
    try:
        with h5py.File(mutant.path, "r") as file:
            todo, done = [file["/"]], 0
            while todo and done < _MOST_NODES:
                node = todo.pop()
                done += 1
                for read in (_attributes, _dataset, _parts, _chunks, _members):
                    _read(partial(read, node), digest, todo)
    except Exception as exc:  # noqa: BLE001 - an error is what it should be
        return Outcome("error", repr(exc))
    return Outcome("read", digest.hexdigest())


def _read(read: Callable[[], list[Any]], digest: Any, todo: list[Any]) -> None:
    try:
        found = read()
    except Exception as exc:  # noqa: BLE001 - the next one may crash it
        digest.update(repr(exc).encode())
        return
    for one in found:
        if isinstance(one, h5py.Dataset | h5py.Group | h5py.Datatype):
            todo.append(one)
        elif isinstance(one, np.ndarray | np.generic):
            digest.update(np.asarray(one).tobytes() if not one.dtype.hasobject else repr(one).encode())
        else:
            digest.update(repr(one).encode())


def _attributes(node: Any) -> list[Any]:
    found: list[Any] = []
    for name in node.attrs:
        with suppress(Exception):
            found += [name, node.attrs[name]]
    return found


def _dataset(node: Any) -> list[Any]:
    if not isinstance(node, h5py.Dataset) or node.shape is None or node.nbytes > _STORE_BYTES:
        return []
    found = [node.id.get_storage_size(), node.fillvalue, node[()]]
    if node.chunks is not None:
        node.id.chunk_iter(lambda info: None)
    return found


def _parts(node: Any) -> list[Any]:
    """Pieces that must be equal to the same pieces of the whole, else h5py contradicts itself."""
    if not isinstance(node, h5py.Dataset) or not node.shape or node.dtype.kind == "O" or node.nbytes > _STORE_BYTES:
        return []
    whole = node[()]
    for key in (0, (..., -1), slice(None, None, 2)):
        if np.asarray(node[key]).tobytes() != np.asarray(whole[key]).tobytes():
            return [secrets.token_bytes(8)]
    return []


def _chunks(node: Any) -> list[Any]:
    """Chunks that HDF5 lists and does not find when it reads: a damaged index, of which nobody knows what is right."""
    if not isinstance(node, h5py.Dataset) or not node.chunks or node.compression or node.nbytes > _STORE_BYTES:
        return []
    if node.id.get_create_plist().get_nfilters() or node.dtype.kind == "O":
        return []
    listed: list[Any] = []
    node.id.chunk_iter(listed.append)
    with open(node.file.filename, "rb") as file:
        for chunk in listed:
            place = tuple(
                slice(start, start + count) for start, count in zip(chunk.chunk_offset, node.chunks, strict=True)
            )
            read = node[place]
            stored = np.frombuffer(os.pread(file.fileno(), chunk.size, chunk.byte_offset), node.dtype)
            whole = stored.reshape(node.chunks)[tuple(slice(0, count) for count in read.shape)]
            if whole.tobytes() != read.tobytes():
                return [secrets.token_bytes(8)]
    return []


def _members(node: Any) -> list[Any]:
    if not isinstance(node, h5py.Group):
        return []
    found: list[Any] = []
    for name in node:
        with suppress(Exception):
            found += [name, node[name]]
    return found


def outcomes(mutants: Sequence[Mutant], root: Path, *, is_untrusted: bool = False) -> list[tuple[Mutant, Outcome]]:
    """What comes of each: a word of `ALLOWED`, or one that says what is wrong."""
    found: list[tuple[Mutant, Outcome]] = []
    objects: dict[int, str] = {}
    for mutant, outcome in fuzzing.each(mutants, partial(pinned, is_untrusted=is_untrusted)):
        if outcome.what == "pinned":
            objects[mutant.seed] = outcome.message
        elif is_untrusted:
            found.append((mutant, outcome))
        elif outcome.what in ("crashed", "hung"):
            found.append((mutant, _judged(mutant, outcome)))
        else:
            found.append((mutant, outcome))
    there = [one for one in mutants if one.seed in objects]
    for mutant, outcome in fuzzing.each(there, partial(compared, objects)):
        found.append((mutant, _judged(mutant, outcome)))
    sweep(Store(str(root)))  # what a crash left is put right by whoever comes next
    found += [(mutants[0], Outcome("leftovers", name)) for name in refuse(root)]
    return found


def _judged(mutant: Mutant, outcome: Outcome) -> Outcome:
    """A crash that h5py has without dsmem too is HDF5's, and where it contradicts itself nobody knows what is right."""
    words = {"crashed": "h5py crashes", "hung": "h5py hangs"}
    if outcome.what not in (*words, "differs"):
        return outcome
    said: set[str] = set()
    for _, alone in fuzzing.each([mutant] * _ATTEMPTS, read_by_h5py, _ALONE_S):
        said.add(alone.message)
        if alone.what in words:
            return Outcome(words[alone.what], outcome.message)
    return Outcome("h5py wavers", outcome.message) if outcome.what == "differs" and len(said) > 1 else outcome


def _check(count: int, first: int, tmp_path: Path, store_root: Path) -> None:
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for start in range(first, first + count, _AT_A_TIME):
        mutants = [fuzzing.mutant(seed, tmp_path) for seed in range(start, min(start + _AT_A_TIME, first + count))]
        for mutant, outcome in outcomes(mutants, store_root):
            counts[outcome.what] += 1
            if outcome.what not in ALLOWED:
                wrong.append(f"{mutant}: {outcome.what}: {outcome.message}")
        for mutant in mutants:
            os.unlink(mutant.path)
        for path in store_root.glob("*/*"):
            path.unlink()
    print(f"{count} mutants from FUZZ_SEED={first}: {dict(counts)}")
    assert not wrong, f"of {count} mutants from FUZZ_SEED={first}:\n" + "\n".join(wrong[:20])


def test_mutants(tmp_path: Path, store_root: Path) -> None:
    _check(COUNT, FIRST, tmp_path, store_root)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_mutants(tmp_path: Path, store_root: Path) -> None:
    _check(3 * COUNT, FIRST + COUNT, tmp_path, store_root)


@pytest.mark.slow
def test_mutants_that_are_not_trusted(tmp_path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in a child, no crash or hang is one of ours, whoever else has it."""
    monkeypatch.setattr(untrusted, "PATIENCE_S", 4.0)
    mutants = [fuzzing.mutant(seed, tmp_path) for seed in range(FIRST, FIRST + COUNT // 5)]
    found = outcomes(mutants, store_root, is_untrusted=True)
    wrong = [f"{mutant}: {outcome.what}: {outcome.message}" for mutant, outcome in found if outcome.what not in ALLOWED]
    assert not wrong, f"of {len(mutants)} mutants from FUZZ_SEED={FIRST}:\n" + "\n".join(wrong[:20])


@dataclass(frozen=True, slots=True)
class Chunk:
    """A valid chunk as it lies in a file, and how it is decoded."""

    data: bytes
    filters: tuple[Filter, ...]
    size_bytes: int


def _chunk(kind: str, directory: Path) -> Chunk:
    """The first chunk of a dataset with those filters."""
    with h5py.File(directory / "chunk.h5", "w") as file:
        values = np.cumsum(np.random.default_rng(1).integers(0, 4, (40, 50)), axis=1).astype("<i4")
        dataset = file.create_dataset("x", data=values, chunks=values.shape, **fuzzing.FILTERS[kind])
        _, data = dataset.id.read_direct_chunk((0, 0))
        return Chunk(data, filters_of(dataset.id.get_create_plist()), values.nbytes)


def decoded(chunks: dict[str, Chunk], mutant: Mutant) -> Outcome:
    """Decode the bytes of a mutant into the middle of a buffer: nothing around it may change."""
    chunk = chunks[mutant.kind]
    buffer = np.full(chunk.size_bytes + 2 * _MARGIN_BYTES, 0xA5, np.uint8)
    try:
        data = memoryview(Path(mutant.path).read_bytes())
        Pipeline(chunk.filters, chunk.size_bytes).decode(data, buffer[_MARGIN_BYTES:-_MARGIN_BYTES], 0)
        what = "decoded"
    except Undecodable as exc:
        what = f"undecodable: {exc!s:.30}"
    except Exception as exc:  # noqa: BLE001 - this is what is looked for
        return Outcome("raised", f"{exc!r} at {_place(exc)}")
    if (buffer[:_MARGIN_BYTES] != 0xA5).any() or (buffer[-_MARGIN_BYTES:] != 0xA5).any():
        return Outcome("overwrites", what)
    return Outcome("fine", what)


def test_codecs_on_damaged_chunks(tmp_path: Path) -> None:
    """Each codec by itself: exactly a chunk, or Undecodable; no crash, no byte beside it, bounded memory and time."""
    chunks = {kind: _chunk(kind, tmp_path) for kind in fuzzing.FILTERS}
    known = {kind: chunk for kind, chunk in chunks.items() if _is_known(chunk)}
    assert len(known) >= 11, known.keys()
    mutants: list[Mutant] = []
    for seed in range(FIRST, FIRST + 4 * COUNT):
        chance = random.Random(seed)
        kind = chance.choice(sorted(known))
        content = bytearray(known[kind].data)
        changes = fuzzing.damage(content, chance)
        if chance.random() < 0.1:
            content, changes = bytearray(chance.randbytes(chance.randrange(1, 3000))), "noise"
        path = tmp_path / f"{seed}.chunk"
        path.write_bytes(content)
        mutants.append(Mutant(seed, kind, str(path), changes))
    wrong = [
        f"{mutant}: {outcome.what}: {outcome.message}"
        for mutant, outcome in fuzzing.each(mutants, partial(decoded, known))
        if outcome.what != "fine"
    ]
    assert not wrong, f"from FUZZ_SEED={FIRST}:\n" + "\n".join(wrong[:20])


def _is_known(chunk: Chunk) -> bool:
    try:
        Pipeline(chunk.filters, chunk.size_bytes)
    except NotKnown:
        return False
    return True
