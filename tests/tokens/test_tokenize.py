"""`dsmem.tokenize` as a whole: the same bytes for any number of workers, bos and eos, dtypes, refusals, full disks."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from base64 import b64encode
from importlib.metadata import version
from pathlib import Path
from typing import Any

import children
import numpy as np
import psutil
import pytest
import tokentexts
from stores import InTmpfs
from tokenizers import Tokenizer

import dsmem
from dsmem.digest import hash_file
from dsmem.tokens import engines, failures, parts, workdir
from dsmem.tokens.verifying import verify

PART = 1 << 16


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_text(tokentexts.trained())
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Path, list[str]]:
    texts = tokentexts.documents(400)
    return tokentexts.write_jsonl(tmp_path / "corpus.jsonl", texts), texts


def sums(out: Path) -> dict[str, str]:
    """The digest of each file beside the output that holds data."""
    names = (out, out.with_suffix(".idx"), out.with_suffix(".docs.npy"))
    return {path.suffix: hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


def workers() -> list[int]:
    """Those that encode: what the process that loads an engine has forked."""
    children = psutil.Process().children()
    nurseries = [child for child in children if "dsmem.tokens.nursery" in child.cmdline()]
    return [child.pid for nursery in nurseries for child in nursery.children()]


def test_equal_to_the_reference_and_for_any_number_of_workers(
    corpus: tuple[Path, list[str]], trained: Path, tmp_path: Path
) -> None:
    path, texts = corpus
    found = {}
    for count in (None, 1, 3):
        out = tmp_path / f"out{count}.bin"
        seen: list[tuple[int, int]] = []
        seen_tokens: list[int] = []
        done = dsmem.tokenize(
            path,
            out,
            tokenizer=trained,
            part_bytes=PART,
            workers=count,
            val_fraction=0.0,
            tokens_progress=seen_tokens.append,
            progress=lambda done_bytes, total_bytes, seen=seen: seen.append((done_bytes, total_bytes)),
        )
        assert done.parts > 4 and done.workers == (count or 0)
        assert tokentexts.written(out) == tokentexts.expected(texts)
        assert len(seen_tokens) == done.parts and seen_tokens == sorted(seen_tokens) and seen_tokens[-1] == done.tokens
        found[count] = sums(out)
        assert all(total == path.stat().st_size for _, total in seen) and seen[-1][0] == path.stat().st_size
    assert found[None] == found[1] == found[3]
    assert workers() == []


def test_the_engine_that_workers_have_loaded_is_used_if_it_fits(
    corpus: tuple[Path, list[str]], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, texts = corpus
    raw = json.loads(trained.read_bytes())
    raw["added_tokens"].append({**raw["added_tokens"][0], "content": "the", "id": 70_000, "special": False})
    contradicting = tmp_path / "contradicting.json"
    contradicting.write_text(json.dumps(raw))
    done = dsmem.tokenize(path, tmp_path / "a.bin", tokenizer=contradicting, part_bytes=PART, workers=1)
    assert done.engine == "tokenizers"
    with pytest.raises(dsmem.UsageError, match="another id than Hugging Face"):
        dsmem.tokenize(path, tmp_path / "b.bin", tokenizer=contradicting, engine="fastokens", workers=1)
    done = dsmem.tokenize(path, tmp_path / "b.bin", tokenizer=trained, engine="tokenizers", workers=1)
    assert done.engine == "tokenizers"

    def choose(*_: object, **__: object) -> None:
        raise AssertionError("an engine was loaded here")

    monkeypatch.setattr("dsmem.tokens.engines.choose", choose)
    done = dsmem.tokenize(path, tmp_path / "c.bin", tokenizer=trained, part_bytes=PART, workers=2)
    said = json.loads((tmp_path / "c.json").read_bytes())["tokenizer"]
    assert done.engine == said["engine"] == "fastokens" and said["engine_version"] == version("fastokens")
    assert tokentexts.written(tmp_path / "c.bin") == tokentexts.expected(texts)


def test_the_manifest_says_what_was_done(corpus: tuple[Path, list[str]], trained: Path, tmp_path: Path) -> None:
    path, texts = corpus
    done = dsmem.tokenize(path, tmp_path / "out.bin", tokenizer=trained, part_bytes=32 << 20)
    said = json.loads((tmp_path / "out.json").read_bytes())
    assert said["inputs"] == [
        {"path": str(path), "size_bytes": path.stat().st_size, "digest": f"xxh3-tree:{hash_file(path).hex}"}
    ]
    assert said["digest"] == f"xxh3-tree:{hash_file(tmp_path / 'out.bin').hex}"
    assert (
        (said["tokens"], said["documents"])
        == (done.tokens, done.documents)
        == (
            (tmp_path / "out.bin").stat().st_size // 2,
            len(texts),
        )
    )
    about = said["tokenizer"]
    assert about["sha256"] == hashlib.sha256(trained.read_bytes()).hexdigest()
    assert (about["engine"], about["reference"], about["eos_id"]) == ("fastokens", "tokenizers", 0)
    assert about["verified_documents"] == done.verified == 16


@pytest.mark.parametrize("bos", ["none", "prepend", "append"])
@pytest.mark.parametrize("eos", ["append", "prepend", "none"])
@pytest.mark.parametrize("long", [False, True])
def test_bos_and_eos(bos: Any, eos: Any, long: bool, tmp_path: Path) -> None:
    texts = ["", "a", "x" * 500, ""] if long else ["", "ab", "", "c"] * 5
    tokentexts.write_jsonl(tmp_path / "x.jsonl", texts)
    dsmem.tokenize(tmp_path / "x.jsonl", tmp_path / "out.bin", bos=bos, eos=eos, bos_token=tokentexts.END)
    head = [256] * (bos == "prepend") + [256] * (eos == "prepend")
    tail = [256] * (bos == "append") + [256] * (eos == "append")
    assert tokentexts.written(tmp_path / "out.bin") == [head + list(text.encode()) + tail for text in texts]
    assert verify(tmp_path / "out.bin").ok


def test_special_tokens_in_documents_are_text(trained: Path, tmp_path: Path) -> None:
    text = f"a{tokentexts.END}b"
    tokentexts.write_jsonl(tmp_path / "x.jsonl", [text])
    for special in (False, True):
        dsmem.tokenize(
            tmp_path / "x.jsonl", tmp_path / "out.bin", tokenizer=trained, parse_special=special, overwrite=True
        )
        (ids,) = tokentexts.written(tmp_path / "out.bin")
        assert ids.count(0) == 1 + special
        assert tokentexts.reference().decode(ids[:-1], skip_special_tokens=False) == text


def test_dtypes(trained: Path, tmp_path: Path) -> None:
    tokentexts.write_jsonl(tmp_path / "x.jsonl", ["some text"])
    done = dsmem.tokenize(tmp_path / "x.jsonl", tmp_path / "out.bin", tokenizer=trained, dtype="uint32")
    assert np.fromfile(tmp_path / "out.bin", "<u4").tolist() == tokentexts.expected(["some text"])[0]
    assert done.dtype == "uint32"
    raw = json.loads(trained.read_text())
    raw["added_tokens"].append({**raw["added_tokens"][0], "id": 70_000, "content": "<|far|>"})
    trained.write_text(json.dumps(raw))
    if Tokenizer.from_file(str(trained)).token_to_id("<|far|>") != 70_000:
        raw["model"]["vocab"]["far"] = 70_000
        trained.write_text(json.dumps(raw))
    with pytest.raises(dsmem.UsageError, match=r"uint16 holds ids up to 65535; .* up to 70000: use uint32"):
        dsmem.tokenize(tmp_path / "x.jsonl", tmp_path / "no.bin", tokenizer=trained, dtype="uint16")
    assert dsmem.tokenize(tmp_path / "x.jsonl", tmp_path / "far.bin", tokenizer=trained).dtype == "uint32"
    assert not list(tmp_path.glob(".*"))


def test_validation_documents_and_shards(corpus: tuple[Path, list[str]], tmp_path: Path) -> None:
    path, texts = corpus
    done = dsmem.tokenize(path, tmp_path / "out.bin", part_bytes=PART, val_fraction=0.2, shards=2, shuffle_seed=3)
    assert [one.split for one in done.outputs] == ["train", "train", "val"]
    together = [document for one in done.outputs for document in tokentexts.written(one.path)]
    assert sorted(together) == sorted([*text.encode(), 256] for text in texts)


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no eos": ({"tokenizer": "bare", "eos": "append"}, dsmem.NoEndToken, "no eos token"),
    "workers": ({"workers": 0}, dsmem.UsageError, "0 workers"),
    "encoding": ({"encoding": "klingon"}, dsmem.UsageError, "no encoding 'klingon'"),
    "eos": ({"eos": "both"}, dsmem.UsageError, "eos is append, prepend or none"),
    "bos": ({"bos": "behind"}, dsmem.UsageError, "bos is append, prepend or none"),
    "engine": ({"engine": "fast"}, dsmem.UsageError, "no engine 'fast'"),
    "verify": ({"verify": -2}, dsmem.UsageError, "verify is"),
    "format": ({"format": "pdf"}, dsmem.UsageError, "no format 'pdf'"),
    "split_on": ({"split_on": "word"}, dsmem.UsageError, "line or blank"),
    "shards": ({"shards": 2, "shard_tokens": 5}, dsmem.UsageError, "not both"),
    "bos token": ({"bos": "prepend"}, dsmem.NoEndToken, "no bos token"),
    "tokenizer": ({"tokenizer": "no/such/file"}, dsmem.SourceMissing, "no such file"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals_leave_nothing(kind: str, tmp_path: Path) -> None:
    options, error, words = REFUSED[kind]
    raw = json.loads(tokentexts.trained())
    raw["added_tokens"] = []
    raw["model"]["vocab"]["nothing"] = raw["model"]["vocab"].pop(tokentexts.END)
    (tmp_path / "bare.json").write_text(json.dumps(raw))
    tokentexts.write_jsonl(tmp_path / "x.jsonl", ["a"])
    if options.get("tokenizer") == "bare":
        options = {**options, "tokenizer": tmp_path / "bare.json"}
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=words):
        dsmem.tokenize(tmp_path / "x.jsonl", tmp_path / "out.bin", **options)
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_there_is_not_replaced_unless_it_is_said(tmp_path: Path) -> None:
    tokentexts.write_jsonl(tmp_path / "x.jsonl", ["a"])
    (tmp_path / "out.bin").write_bytes(b"precious")
    with pytest.raises(dsmem.OutputExists) as caught:
        dsmem.tokenize(tmp_path / "x.jsonl", tmp_path / "out.bin")
    assert caught.value.path == str(tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == b"precious"
    dsmem.tokenize(tmp_path / "x.jsonl", tmp_path / "out.bin", overwrite=True)
    assert (tmp_path / "out.bin").stat().st_size == 4


def test_two_at_once(tmp_path: Path) -> None:
    tokentexts.write_jsonl(tmp_path / "x.jsonl", ["a"])
    with workdir.locked(str(tmp_path / "out.bin")), pytest.raises(dsmem.OutputBusy, match="by another process"):
        dsmem.tokenize(tmp_path / "x.jsonl", tmp_path / "out.bin")
    dsmem.tokenize(tmp_path / "x.jsonl", tmp_path / "out.bin", restart=True)


def test_an_input_that_changes_meanwhile(corpus: tuple[Path, list[str]], tmp_path: Path) -> None:
    path, _ = corpus

    def touch(done_bytes: int, total_bytes: int) -> None:
        os.utime(path, ns=(1, 1))

    with pytest.raises(dsmem.SourceChanged, match="changed while it was tokenized"):
        dsmem.tokenize(path, tmp_path / "out.bin", part_bytes=PART, progress=touch)
    assert not (tmp_path / "out.bin").exists()


@pytest.mark.parametrize("count", [None, 2])
def test_a_full_disk(count: int | None, tiny_tmpfs: InTmpfs) -> None:
    """What is finished stays; with room it goes on."""

    def run(point: Path) -> tuple[str, int, bool]:
        path = point / "x.txt"
        path.write_bytes(b"some line of text\n" * 60_000)
        try:
            dsmem.tokenize(path, point / "out.bin", split_on="line", part_bytes=PART, workers=count)
        except dsmem.OutputFull as exc:
            return str(exc), exc.errno or 0, (point / "out.bin").exists()
        return "", 0, True

    message, _, there = tiny_tmpfs(run, size="3m")
    assert "no space left" in message or "needs" in message
    assert not there


@pytest.mark.parametrize("count", [None, 2])
@pytest.mark.parametrize("gone", ["out", "out/.out.bin.parts"])
def test_a_directory_that_is_removed_meanwhile(
    gone: str, count: int | None, corpus: tuple[Path, list[str]], tmp_path: Path
) -> None:
    path, _ = corpus
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    (tmp_path / "out").mkdir()

    def remove(done_bytes: int, total_bytes: int) -> None:
        shutil.rmtree(tmp_path / gone, ignore_errors=True)

    with pytest.raises(dsmem.OutputGone, match=rf"{gone} was removed while .*/out/out\.bin was made"):
        out = tmp_path / "out/out.bin"
        dsmem.tokenize(tmp_path / "x.jsonl.gz", out, part_bytes=PART, progress=remove, workers=count)
    assert not workers()


def test_a_worker_that_is_killed(
    corpus: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, texts = corpus
    told: list[int] = []

    def kill(done_bytes: int, total_bytes: int) -> None:
        if not told and list((tmp_path / ".out.bin.parts").glob("part-*.json")):
            told.extend(workers())
            psutil.Process(told[0]).kill()

    with pytest.raises(dsmem.WorkerLost, match=r"a worker ended \(signal 9\)"):
        dsmem.tokenize(path, tmp_path / "out.bin", part_bytes=PART // 8, workers=2, progress=kill)
    assert workers() == []
    done = dsmem.tokenize(path, tmp_path / "out.bin", part_bytes=PART // 8, workers=2)
    assert done.resumed_parts > 0 and done.documents == len(texts)


def test_of_several_errors_the_first_in_the_input_is_raised(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "x" * 80}).encode() for _ in range(3000)]
    for bad in (700, 1400, 2999):
        lines[bad] = b"{"
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    for count in (1, 3):
        with pytest.raises(dsmem.BadDocument, match=r"x\.jsonl:701: not JSON"):
            dsmem.tokenize(tmp_path / "x.jsonl", tmp_path / "out.bin", part_bytes=4096, workers=count, restart=True)
        assert not (tmp_path / "out.bin").exists()


def test_ids_that_can_not_be_are_not_written(tmp_path: Path) -> None:
    with (
        parts.PartWriter(str(tmp_path), 0, "uint16", largest_id=9, head=(), tail=(), with_keys=False) as writer,
        pytest.raises(dsmem.DsmemError, match="gave the id 10; the largest there can be is 9"),
    ):
        writer.add(["a"], np.array([1, 10], np.uint32), np.array([2]))


def test_errors_of_workers_are_the_errors_of_this_process() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/x")
    document = dsmem.BadDocument("m", path="p", place="3", fields=("a", "b"))
    for error in (
        full,
        document,
        dsmem.EngineDiffers("m", path="p", place="3"),
        dsmem.UsageError("m"),
        MemoryError("m"),
    ):
        again = failures.again(json.loads(json.dumps(failures.described(error))))
        assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)
    assert str(failures.again(failures.described(KeyError(1)))) == "KeyError: 1"


WRONG_KINDS: list[tuple[dict[str, Any], str]] = [
    ({"workers": "2"}, "workers='2': it is a whole number"),
    ({"workers": 1.5}, "workers=1.5: it is a whole number"),
    ({"shards": 1.5}, "shards=1.5: it is a whole number"),
    ({"shards": True}, "shards=True: it is a whole number"),
    ({"shard_tokens": "9"}, "shard_tokens='9': it is a whole number"),
    ({"shuffle_seed": "1"}, "shuffle_seed='1': it is a whole number"),
    ({"part_bytes": 5.5}, "part_bytes=5.5: it is a whole number"),
    ({"val_fraction": "0.1"}, "val_fraction='0.1': it is a number"),
    ({"text_field": 5}, "text_field=5: it is a string"),
    ({"encoding": None}, "encoding=None: it is a string"),
    ({"engine": [1]}, r"engine=\[1\]: it is a string"),
    ({"eos_token": 5}, "eos_token=5: it is a string"),
    ({"parse_special": "no"}, "parse_special='no': it is True or False"),
    ({"tokenizer": 5}, "tokenizer=5: it is a path"),
    ({"inputs": 5}, "inputs=5: it is a path or several"),
    ({"inputs": b"x"}, "inputs=b'x': it is a path or several"),
    ({"inputs": [None]}, "inputs=None: it is a path"),
    ({"out": b"x.bin"}, "out=b'x.bin': it is a path"),
    ({"out": "x\0.bin"}, r"out='x\\x00.bin': a path has no zero byte"),
    ({"progress": None}, "progress=None: it is a function"),
    ({"tokens_progress": 3}, "tokens_progress=3: it is a function"),
    ({"verify": 1.5}, "verify=1.5: it is a whole number"),
    ({"dtype": np.dtype("uint16")}, r"ids are uint16 or uint32, not dtype\('uint16'\)"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG_KINDS)
def test_arguments_of_another_kind_are_named(wrong: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(dsmem.UsageError, match=f"^{words}$"):
        dsmem.tokenize(**{"inputs": tmp_path / "x.txt", "out": tmp_path / "x.bin", **wrong})
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


@pytest.mark.parametrize("kind", ["txt", "json", "long"])
def test_errors_are_the_same_for_any_number_of_workers(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"x.{'json' if kind == 'json' else 'txt'}"
    tokenizer: str | Path = "bytes"
    more: dict[str, Any] = {"verify": 0, "eos": "none", "restart": True}
    if kind == "long":
        tokenizer = tmp_path / "tokenizer.json"
        tokenizer.write_text(json.dumps({"model": {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "x"}}))
        path.write_text("x" * (9 << 20))
    else:
        path.write_bytes(gzip.compress(b'[{"text": "a"}]')[:-12])
    found = set()
    for count in (None, 1, 2):
        with pytest.raises(dsmem.BadSource) as caught:
            dsmem.tokenize(path, tmp_path / "out.bin", tokenizer=tokenizer, workers=count, **more)
        found.add((type(caught.value), str(caught.value), str(vars(caught.value))))
    assert [kind for kind, *_ in found] == [dsmem.BadDocument]


def test_integers_of_numpy_are_integers(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    numbers: dict[str, Any] = {
        "workers": np.int64(1), "shards": np.int32(1), "val_fraction": np.float32(0), "part_bytes": np.int64(4096),
        "verify": np.int64(1),
    }  # fmt: skip
    assert dsmem.tokenize(tmp_path / "x.txt", tmp_path / "x.bin", **numbers).tokens == 2


def test_a_library_that_panics_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As libraries of Rust do, by pyo3: what they raise is no Exception."""
    panic: Any = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})

    def encode(self: Any, texts: list[str]) -> Any:
        if any("bad" in text for text in texts):
            raise panic("called `Option::unwrap()` on a `None` value\nand\nmore")
        return encode_of_bytes(self, texts)

    encode_of_bytes = engines._Bytes.encode
    monkeypatch.setattr(engines._Bytes, "encode", encode)
    tokentexts.write_jsonl(tmp_path / "x.jsonl", ["a", "b", "bad", "bad"])
    for name, text in (("y.txt", "bad"), ("d/1.txt", "a"), ("d/2.txt", "bad"), ("d/3.txt", "bad")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    told = r" can't be encoded: PanicException: called `Option::unwrap\(\)` on a `None` value$"
    for name, place in (("x.jsonl", r"x\.jsonl:3"), ("y.txt", r"y\.txt"), ("d", r"d/2\.txt")):
        with pytest.raises(dsmem.BadSource, match=f"^{tmp_path}/{place}{told}"):
            dsmem.tokenize(tmp_path / name, tmp_path / "out.bin")
    with pytest.raises(KeyboardInterrupt), failures.translated("x"):
        raise KeyboardInterrupt


def test_frames() -> None:
    """Both ways of framing give the same."""
    rng = np.random.default_rng(0)
    for mean in (1, 10, 500, 2000):
        lengths = rng.integers(0, mean * 2, 50)
        ids = rng.integers(0, 99, int(lengths.sum())).astype(np.uint32)
        for head, tail in (((), ()), ((7,), ()), ((), (8,)), ((7, 9), (8,))):
            framed = parts.frame(ids, lengths, head, tail, "<u2").tolist()
            pieces = np.split(ids, np.cumsum(lengths)[:-1])
            assert framed == [token for piece in pieces for token in [*head, *piece.tolist(), *tail]]


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """A document of 48 MiB and as much in lines: fed in pieces and blocks."""
    line = b"All work and no play makes a long document, and another one. " * 16 + b"\n"
    for name in ("one.txt", "lines.txt"):
        with (tmp_path / name).open("wb") as file:
            for _ in range(48):
                file.write(line * ((1 << 20) // len(line)))
    code = (
        "import re, resource, sys, dsmem\n"
        "from pathlib import Path\n"
        "for name, split in (('one', None), ('lines', 'line')):\n"
        "    dsmem.tokenize(f'{sys.argv[1]}/{name}.txt', f'{sys.argv[1]}/{name}.bin', split_on=split, workers=1)\n"
        # Not ru_maxrss of this process itself: it begins with what the process that started it took.
        "own = re.search('VmHWM:\\\\s+(\\\\d+)', Path('/proc/self/status').read_text())[1]\n"
        "print(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    for kib in ran.stdout.split():
        assert int(kib) < 400 << 10
    assert (tmp_path / "one.bin").stat().st_size == 2 * ((tmp_path / "one.txt").stat().st_size + 1)


def test_workers_that_can_not_be_forked_are_fresh_processes(
    corpus: tuple[Path, list[str]], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys, threading; threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "from dsmem.tokens import nursery\n"
        "nursery.main(sys.argv[2:])"
    )
    started: set[str] = set()

    def command(module: str, *arguments: int) -> list[str]:
        return [sys.executable, "-P", "-c", code, module, str(os.getpid()), *map(str, arguments)]

    def look(done_bytes: int, total_bytes: int) -> None:
        if done_bytes < total_bytes:  # they work
            (nursery,) = (child for child in psutil.Process().children() if "dsmem.tokens.nursery" in child.cmdline())
            started.update(child.cmdline()[3] for child in nursery.children())

    path, texts = corpus
    monkeypatch.setattr("dsmem.helpers.command", command)
    done = dsmem.tokenize(path, tmp_path / "a.bin", tokenizer=trained, part_bytes=PART, workers=2, progress=look)
    assert "dsmem.tokens.worker" in started
    assert done.verified and tokentexts.written(tmp_path / "a.bin") == tokentexts.expected(texts)


def test_workers_compare_with_what_the_parent_has_loaded(
    corpus: tuple[Path, list[str]], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, texts = corpus
    asked: list[str] = []

    def wrong(_: object, text: str) -> list[int]:
        asked.append(text)
        return [7]

    monkeypatch.setattr("dsmem.tokens.run.Run._compare", wrong)
    with pytest.raises(dsmem.EngineDiffers, match=r"corpus\.jsonl:1: .*tokenizers, the reference, differ from token 0"):
        dsmem.tokenize(path, tmp_path / "a.bin", tokenizer=trained, part_bytes=PART, workers=2)
    assert asked == texts[:1]


@pytest.mark.parametrize("workers", [None, 1])
def test_an_engine_that_fails_in_its_own_way_is_told(tmp_path: Path, workers: int | None) -> None:
    """tiktoken raises ValueError where its regular expression takes too much of the stack."""
    ranks = tmp_path / "o200k_base.tiktoken"
    ranks.write_bytes(b"".join(b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256)))
    path = tokentexts.write_jsonl(tmp_path / "deep.jsonl", ["fine", "x" + " " * 10**6 + "y"])
    with pytest.raises(dsmem.BadSource, match=r"deep\.jsonl:2 can't be encoded: ValueError: Regex error"):
        dsmem.tokenize(path, tmp_path / "a.bin", tokenizer=ranks, engine="tiktoken", workers=workers)
    assert not (tmp_path / "a.bin").exists()


def test_a_fork_of_the_process_that_asked_delays_nothing(
    corpus: tuple[Path, list[str]], trained: Path, tmp_path: Path
) -> None:
    """It holds the ends of pipes that the workers listen to, for as long as it lives."""
    forked: list[int] = []

    def fork(done_bytes: int, total_bytes: int) -> None:
        if not forked:
            forked.append(children.fork())
            if forked == [0]:
                signal.pause()

    path, texts = corpus
    try:
        dsmem.tokenize(path, tmp_path / "a.bin", tokenizer=trained, part_bytes=PART, workers=2, progress=fork)
    finally:
        for pid in forked:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert tokentexts.written(tmp_path / "a.bin") == tokentexts.expected(texts)


def test_closed_standard_descriptors_and_few_of_others(
    corpus: tuple[Path, list[str]], trained: Path, tmp_path: Path
) -> None:
    path, texts = corpus
    code = (
        "import os, resource, sys, dsmem\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (56, 56))\n"
        "for descriptor in range(3): os.close(descriptor)\n"
        f"dsmem.tokenize(sys.argv[1], sys.argv[2], tokenizer=sys.argv[3], part_bytes={PART}, workers=40)"
    )
    out = tmp_path / "a.bin"
    subprocess.run([sys.executable, "-c", code, str(path), str(out), str(trained)], check=True, timeout=60)
    assert tokentexts.written(out) == tokentexts.expected(texts)


@pytest.mark.parametrize("name", ["out.txt", "out", "out.bin.npy"])
def test_a_token_file_is_known_by_its_name(name: str, tmp_path: Path) -> None:
    """Under another it would be an input of the next run."""
    (tmp_path / "in.txt").write_text("text")
    with pytest.raises(dsmem.UsageError, match=r"the name of a token file ends in \.bin"):
        dsmem.tokenize(tmp_path / "in.txt", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]
