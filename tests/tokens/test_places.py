"""Parts find their places in the one file of ids: in order, whoever is ready first; what waits is bounded."""

from __future__ import annotations

import errno
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokentexts
import xxhash

import dsmem
from dsmem.tokens import joining, verifying
from dsmem.tokens.cutting import PART_BYTES
from dsmem.tokens.holding import Held, Room
from dsmem.tokens.places import Places

PART = 1 << 14


def test_parts_begin_where_those_before_them_end() -> None:
    sizes = [random.Random(number).randrange(50) for number in range(40)]
    order = random.Random(1).sample(range(40), 40)
    places = Places()
    told: dict[int, int] = {}
    for number in order:
        places.count(number, sizes[number])
        told.update(places.known())
        assert sorted(told) == list(range(len(told)))
    assert told == {number: sum(sizes[:number]) for number in range(40)}


def test_a_part_of_an_earlier_run_that_lies_elsewhere_is_told() -> None:
    places = Places()
    places.count(1, 10, placed_at=6)
    places.count(2, 1)
    places.count(0, 6)
    assert list(places.known()) == [(0, 0), (2, 16)]
    places.count(3, 10, placed_at=18)
    with pytest.raises(dsmem.SourceChanged, match=r"part 3 .*begins at byte 18 instead of 17"):
        list(places.known())


@pytest.mark.parametrize("room_bytes", [0, 100, 1 << 20])
def test_what_has_no_room_waits_in_a_file(room_bytes: int, tmp_path: Path) -> None:
    room = Room(room_bytes, block_bytes=50)
    blocks = [np.arange(number * 10, dtype=np.uint16) for number in range(9)]
    whole = b"".join(block.tobytes() for block in blocks)
    held = Held(str(tmp_path / "waiting"), room)
    for block in blocks:
        held.write(block)
    assert (tmp_path / "waiting").exists() == (room_bytes < len(whole))
    assert held.size_bytes == len(whole) and held.hexdigest() == xxhash.xxh3_128(whole).hexdigest()
    (tmp_path / "out").write_bytes(b"x" * 1000)
    held.write_to(str(tmp_path / "out"), 7)
    assert (tmp_path / "out").read_bytes() == b"x" * 7 + whole + b"x" * (993 - len(whole))
    assert not (tmp_path / "waiting").exists()
    taken = room.taken_bytes
    assert taken == min(room_bytes, 750) // 50 * 50  # of 720 bytes
    again = Held(str(tmp_path / "waiting"), room)
    again.write(np.frombuffer(whole[:taken], np.uint8))
    assert room.taken_bytes == taken and not (tmp_path / "waiting").exists()  # in the same blocks
    again.write(np.zeros(1, np.uint8))
    again.release()
    again.release()
    taken_again = [room.take() for _ in range(taken // 50)]
    assert None not in taken_again and len(set(map(id, taken_again))) == len(taken_again)
    assert room.taken_bytes == taken  # given back once, however often that is said


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return tokentexts.write_jsonl(tmp_path / "corpus.jsonl", tokentexts.documents(300))


def outputs(out: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(out.parent.glob(f"{out.stem}*")) if not path.name.endswith(".json")]


def test_parts_that_wait_in_files_make_the_same_output(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsmem.tokenize(corpus, tmp_path / "a.bin", part_bytes=PART)
    monkeypatch.setattr("dsmem.tokens.encoding.Room", lambda size_bytes: Room(1 << 13))
    dsmem.tokenize(corpus, tmp_path / "b.bin", part_bytes=PART)
    assert outputs(tmp_path / "a.bin") == outputs(tmp_path / "b.bin")


def test_ids_are_written_once(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order and in one file they are not copied; the digest is that of the file all the same."""
    monkeypatch.setattr(joining, "join", None)
    done = dsmem.tokenize(corpus, tmp_path / "a.bin", part_bytes=PART)
    assert done.parts > 4
    assert verifying.verify(tmp_path / "a.bin").ok


@pytest.mark.parametrize("arrangement", [{}, {"shards": 3}, {"val_fraction": 0.3}, {"shuffle_seed": 3}])
def test_many_parts_are_arranged_as_one_is(arrangement: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    for name, part_bytes in (("a", PART), ("b", PART_BYTES)):
        (tmp_path / name).mkdir()
        dsmem.tokenize(corpus, tmp_path / name / "o.bin", part_bytes=part_bytes, **arrangement)
    assert outputs(tmp_path / "a" / "o.bin") == outputs(tmp_path / "b" / "o.bin") != []


def test_the_same_output_where_files_have_one_name_only(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsmem.tokenize(corpus, tmp_path / "a.bin", part_bytes=PART)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr("os.link", refuse)
    dsmem.tokenize(corpus, tmp_path / "b.bin", part_bytes=PART)
    assert outputs(tmp_path / "a.bin") == outputs(tmp_path / "b.bin")
    assert verifying.verify(tmp_path / "b.bin").ok


@pytest.mark.parametrize("workers", [None, 1])
def test_a_last_part_of_an_earlier_run_that_lies_elsewhere_is_told(
    workers: int | None, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to encode when it is counted."""
    target = tmp_path / "a.bin"

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("dsmem.tokens.run.Run.put_together", stop)
        dsmem.tokenize(corpus, target, part_bytes=PART, workers=workers)
    last = max((tmp_path / ".a.bin.parts").glob("part-*.json"))
    record = json.loads(last.read_bytes())
    tokens = tmp_path / ".a.bin.parts" / "tokens.bin"
    ids = tokens.read_bytes()[record["start_bytes"] :]
    tokens.write_bytes(tokens.read_bytes() + ids)
    last.write_text(json.dumps({**record, "start_bytes": record["start_bytes"] + len(ids)}))
    with pytest.raises(dsmem.SourceChanged, match="of an earlier run begins at byte"):
        dsmem.tokenize(corpus, target, part_bytes=PART, workers=workers)


def test_the_end_of_the_last_file_is_cut_smaller_and_hashed_apart(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsmem.digest.SLICE_BYTES", PART)
    monkeypatch.setattr("dsmem.digest.hash_file", None)  # parts have read all but the end
    first = tokentexts.write_jsonl(tmp_path / "first.jsonl", tokentexts.documents(300))
    first.write_bytes(first.read_bytes()[::-1].replace(b"\n", b" ").replace(b"{", b" ") + b'\n{"text": ""}\n')
    done = dsmem.tokenize([first, corpus], tmp_path / "a.bin", part_bytes=PART, on_error="skip")
    sizes = [path.stat().st_size for path in (first, corpus)]
    assert done.parts == -(-sizes[0] // PART) + sizes[1] // PART - 1 + -(-(PART + sizes[1] % PART) // (PART // 4))
    inputs = json.loads((tmp_path / "a.json").read_bytes())["inputs"]
    for path, said in zip((first, corpus), inputs, strict=True):
        data = path.read_bytes()
        slices = [xxhash.xxh3_128(data[at : at + PART]).digest() for at in range(0, len(data), PART)]
        assert said["digest"] == f"xxh3-tree:{xxhash.xxh3_128(b''.join(slices)).hexdigest()}"
