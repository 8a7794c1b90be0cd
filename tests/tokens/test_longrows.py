"""Long documents among others are read piece by piece, and are what they would be as a whole."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokentexts import written

import dsmem
from dsmem.tokens import cutting, documents, encoding, longrows, turns

TEXTS = st.text(st.sampled_from('a"\\\n\tü東🙂/\x7f'), max_size=60)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.booleans(), st.integers(1, 20))
def test_strings_of_json_in_pieces(text: str, ascii_only: bool, size: int) -> None:
    raw = json.dumps(text, ensure_ascii=ascii_only).encode()[1:-1]
    read = longrows.unescaped(memoryview(raw), path="x", place=lambda: "1")
    found = b""
    while data := read(size):
        found += data
    assert found == text.encode()


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(documents, "LONG_BYTES", 50)
    monkeypatch.setattr(longrows, "_LONG_STRING_BYTES", 20)
    yield


def tokenized(path: Path, tmp_path: Path, **options: Any) -> tuple[dsmem.Tokenized, list[str]]:
    done = dsmem.tokenize(path, tmp_path / "out.bin", overwrite=True, **options)
    return done, [bytes(ids[:-1]).decode() for ids in written(tmp_path / "out.bin")]


@pytest.mark.usefixtures("_small")
def test_rows_of_all_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def plain(data: memoryview) -> longrows.Read:
        seen.append(len(data))
        return before(data)

    before = longrows.plain
    monkeypatch.setattr(longrows, "plain", plain)
    monkeypatch.setattr(cutting, "BLOCK_BYTES", 64)
    path = tmp_path / "x.jsonl"
    texts = ["a", "long 🙂" * 40, "b\n", 'with "quotes" \\ and dsmem 0' * 9, "c", "x" * 100]
    rows = [{"html": "y" * number * 60, "text": text, "z": ["dsmem 0"]} for number, text in enumerate(texts)]
    for ascii_only in (True, False):
        path.write_text("\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows) + "\n\n")
        done, found = tokenized(path, tmp_path)
        assert found == texts and done.text_bytes == sum(len(text.encode()) for text in texts)
    for gap, split_on in (("\n", "line"), ("\r\n", "line"), ("\n\n", "blank"), ("\r\n\r\n\n", "blank")):
        lines = [text.replace("\n", "") for text in texts]
        seen.clear()
        (tmp_path / "x.txt").write_text(gap.join(lines), newline="")
        assert tokenized(tmp_path / "x.txt", tmp_path, split_on=split_on)[1] == lines
        (tmp_path / "x.txt").write_text(gap.join(lines) + gap, newline="")
        assert tokenized(tmp_path / "x.txt", tmp_path, split_on=split_on)[1] == lines
        assert seen  # or else nothing was read by pieces


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"text": "' + b"x" * 90 + b'\xff"}', "not UTF-8: byte 0xff at position 91 of the string"),
        (b'{"text": "' + b"x" * 90 + b'\\ud800"}', "'text' holds half of a surrogate pair"),
        (b'{"text": "' + b"x" * 90 + b"\\udc00" + b"x" * 90 + b'"}', "'text' holds half of a surrogate pair"),
        (b'{"text": "' + b"x" * 90 + b'\\ud80"}', "no JSON string: it holds .* half of an escape"),
        (b'{"text": "' + b"x" * 90 + b'\xed\xa0\x80"}', "not UTF-8: byte 0xed at position 91 of the string"),
        (b'{"text": "' + b"x" * 90 + b'\t"}', "no JSON string: it holds a control character"),
        (b'{"text": "' + b"x" * 90 + b'", 5}', "not JSON"),
        (b'{"body": "' + b"x" * 90 + b'"}', "no field 'text'; there are: 'body'"),
    ],
)
def test_what_is_bad_in_a_long_row(row: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + row + b'\n{"text": "b"}\n')
    with pytest.raises(dsmem.BadDocument, match=rf"x\.jsonl:2: {reason}"):
        dsmem.tokenize(path, tmp_path / "out.bin")
    done, found = tokenized(path, tmp_path, on_error="skip")
    assert found == ["a", "b"] and done.skipped == 1


@pytest.mark.parametrize("half", ["\\ud800", "\\uDFFF", "\\ud83d\\ud83d\\ude00", "\\ud800\\n", "\\ude00\\ud83d"])
@pytest.mark.parametrize("before", range(14))
def test_half_of_a_surrogate_pair_elsewhere_does_no_harm_in_a_row_of_any_length(
    before: int, half: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(longrows, "_LONG_STRING_BYTES", 20)
    monkeypatch.setattr(documents, "BLOCK_BYTES", 12)  # of the other field, at once
    other = "x" * (20 + before) + half + "\\u00fc\\ud83d\\ude00" * 3 + half
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"text": "a", "other": "{other}"}}\n{{"text": "{other}", "b": 1}}\n{{"text": "c"}}\n')
    told = []
    for long_bytes in (50, 1 << 20):
        monkeypatch.setattr(documents, "LONG_BYTES", long_bytes)
        done, found = tokenized(path, tmp_path, on_error="skip")
        assert found == ["a", "c"]
        told.append(done.skipped_places)
    assert told == [(f"{path}:2: 'text' holds half of a surrogate pair, which is no text",)] * 2


def test_turns(tmp_path: Path) -> None:
    """Who is alone waits for all others, and they for it; who encodes little waits for nobody else."""

    def is_free(take: Callable[[turns.Turns], object]) -> bool:
        """Whether another process gets it at once."""
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(1)
            take(turns.Turns(str(tmp_path)))
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def beside(theirs: turns.Turns) -> None:
        with theirs.beside():
            pass

    mine = turns.Turns(str(tmp_path))
    turn = turns.Turn(mine, alone_bytes=10)
    turn.need(10)
    assert is_free(turns.Turns.take_alone)
    turn.need(11)
    assert not is_free(beside) and not is_free(turns.Turns.take_alone)
    with mine.alone(), mine.beside():  # inside of it both are free
        turn.need(12)
    assert not is_free(beside)
    turn.need(10)
    with mine.beside():
        assert is_free(beside) and not is_free(turns.Turns.take_alone)
    assert is_free(turns.Turns.take_alone)


def test_rows_of_too_many_values_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is within strings are none."""
    monkeypatch.setattr(documents, "LONG_BYTES", 50)
    monkeypatch.setattr(longrows, "MOST_VALUES", 20)
    many = json.dumps({"n": [{"a": "b"}, [1, "c,d"]] * 6, "text": "many"})
    few = json.dumps({"n": ["x", 2] * 3, "text": "f,e[w{" * 20})
    (tmp_path / "x.jsonl").write_text(f"{few}\n{many}\n{few}\n")
    words = r"x\.jsonl:2: a row of more than 20 values, which would take too much memory"
    with pytest.raises(dsmem.BadDocument, match=words):
        tokenized(tmp_path / "x.jsonl", tmp_path)
    done, texts = tokenized(tmp_path / "x.jsonl", tmp_path, on_error="skip")
    assert (done.skipped, texts) == (1, ["f,e[w{" * 20] * 2)


class Asked(turns.Turn):
    """A turn of nobody else, and what it was asked for."""

    def __init__(self) -> None:
        super().__init__(turns.Turns(None), alone_bytes=100)
        self.most_bytes = 0

    def need(self, size_bytes: int) -> None:
        """Remember the most."""
        super().need(size_bytes)
        self.most_bytes = max(self.most_bytes, size_bytes)


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("last", [50, 500, 990, 1010, 1050, 1100, 3000])
def test_who_has_read_to_the_end_is_not_alone_any_longer(
    last: int, is_open: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the last document is too long, by a little or by much, or goes on behind its range."""
    monkeypatch.setattr(cutting, "BLOCK_BYTES", 64)
    monkeypatch.setattr(cutting, "MOST_DOCUMENT_BYTES", 1000)
    path, turn, left_out = tmp_path / "x", Asked(), list[int]()
    path.write_bytes(b"a\n" * 40 + b"x" * last)
    with path.open("rb") as file:
        found = cutting.blocks(
            file.fileno(), 0, path.stat().st_size, "line", left_out.append, is_open=is_open, turn=turn
        )
        read = b"".join(bytes(block) for _, block in found)
    assert read == b"a\n" * 40 + b"x" * (0 if left_out else last)
    assert left_out == ([80] if is_open or last > 1000 else [])
    assert (turn.most_bytes > 100) == (last > 100)
    assert not turn._is_alone


def test_a_turn_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a document that is read alone, in a worker that goes on to live: all others wait for it."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "' + b"x" * 3000 + b'\xff"}\n')
    monkeypatch.setattr(encoding, "_LEAST_ALONE_BYTES", 100)
    monkeypatch.setattr(encoding, "_ALONE_BYTES", 100)
    monkeypatch.setattr(cutting, "BLOCK_BYTES", 64)
    turn: list[turns.Turn] = []

    def need(self: turns.Turn, size_bytes: int) -> None:
        turn.append(self)
        before(self, size_bytes)

    before = turns.Turn.need
    monkeypatch.setattr(turns.Turn, "need", need)
    with pytest.raises(dsmem.BadDocument, match="not UTF-8"):
        tokenized(path, tmp_path)
    assert turn and not turn[-1]._is_alone


def test_a_lock_that_fails_leaves_none_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, others = turns.Turns(str(tmp_path)), turns.Turns(str(tmp_path))
    held: list[int] = []

    def flock(fd: int, how: int) -> None:
        if how & fcntl.LOCK_UN:
            held.remove(fd)
        elif held:
            raise OSError(errno.ENOLCK, "No locks available")
        else:
            held.append(fd)
        before(fd, how)

    before = fcntl.flock
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        for take in (mine.alone, mine.beside):
            with pytest.raises(OSError, match="No locks"), take():
                pass
            assert held == []
    for one in (others, mine):
        with one.alone():
            pass


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("bad", [b"\xff", b"\\q", b"\x01"], ids=repr)
def test_a_long_string_beside_the_text_is_looked_at_too(bad: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    long = b'{"html": "' + b"x" * 60 + bad + b'", "text": "second"}\n'
    path.write_bytes(b'{"text": "first"}\n' + long + b'{"html": "' + b"y" * 60 + b'", "text": "third"}\n')
    with pytest.raises(dsmem.BadDocument, match=r"x\.jsonl:2: (not UTF-8|no JSON string)"):
        tokenized(path, tmp_path)
    done, texts = tokenized(path, tmp_path, on_error="skip")
    assert (done.skipped, texts) == (1, ["first", "third"])


@pytest.mark.usefixtures("_small")
def test_what_stands_in_for_a_string_is_nothing_that_can_be_written(tmp_path: Path) -> None:
    row = b'{"html": "' + b"x" * 60 + b'", "text": "dsm\\u0065m 0"}\n'
    (tmp_path / "x.jsonl").write_bytes(row)
    assert tokenized(tmp_path / "x.jsonl", tmp_path)[1] == ["dsmem 0"]
