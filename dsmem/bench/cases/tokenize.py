"""Text to a token file: against nanoGPT's way, and against the engine alone, which reads and writes nothing.

Peers, where there are any, are whole processes; so dsmem stands here as one, too. It and the engine get all of the
text, the recipe and peers a slice of it: what is compared are bytes a second. Other forms of input stand beside the
engine on the same documents.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

import dsmem
from dsmem import parallel, proc
from dsmem.bench import peer, recipes, sources, texts
from dsmem.bench.harness import Comparison, Contender
from dsmem.bench.peer import Peer
from dsmem.bench.recipes import Array
from dsmem.bench.sizes import Need
from dsmem.bench.workbench import Case, Effort, Workbench

_SHARE = 8
"""Of the size of the run: text."""
_LEAST_PARTS, _MOST_BYTES = 8, 64 << 20
"""Of the text: one of so many parts, and of no more bytes, is what the recipe and peers get, which do some MB/s.
A larger one would suit dsmem: they start sooner."""
_WORTH_PROCESSES_BYTES = 4 << 20
"""Less is encoded sooner than `datasets` has started processes."""
_FORM_BYTES = 256 << 20
"""Of the text, in other forms: there are very many lines."""
_BATCH_CHARACTERS = 1 << 20
"""At once, for the engine alone: it is slower on 8 MiB."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What is compared: the ids of all documents, an end of text after each, and where each ends."""

    ids: Array
    ends: Array


def compare(bench: Workbench) -> Generator[Comparison]:
    """All ways with a .jsonl, then other forms; every turn has a directory of its own, which is removed after it."""
    names = "text.jsonl", "slice.jsonl", "tokenizer.json", "parts"
    text, piece, tokenizer, parts = (bench.new_file(name) for name in names)
    documents = texts.documents(max(bench.size_bytes // _SHARE, 1))
    size_bytes = sum(len(one.encode()) for one in documents)
    part = max(_LEAST_PARTS, -(-size_bytes // _MOST_BYTES))
    first = documents[: -(-len(documents) // part)]
    first_bytes = sum(len(one.encode()) for one in first)
    texts.write_jsonl(text, documents)
    texts.write_jsonl(piece, first)
    end = texts.train_tokenizer(tokenizer, documents, size_bytes)
    processes = proc.usable_cpus() if first_bytes >= _WORTH_PROCESSES_BYTES else None
    of_slice = _slice(part)
    ours = Contender(
        "dsmem.tokenize",
        "dsmem",
        lambda place: dsmem.tokenize(str(text), place / "out.bin", tokenizer=str(tokenizer)),
        answer=lambda done: digest(read(done.outputs[0].path)),
        around=partial(directory, bench.place.files),
    )
    process = Contender(
        "dsmem tokenize, as a process",
        "dsmem",
        lambda place: as_process(text, tokenizer, place / "out.bin"),
        answer=lambda path: digest(read(str(path))),
        around=partial(directory, bench.place.files),
    )
    recipe = Contender(
        f"nanoGPT's prepare, tokenizers: {of_slice}",
        "recipe",
        lambda place: recipes.prepare(str(piece), str(tokenizer), end, place, processes),
        answer=lambda made: digest(Encoded(np.fromfile(made[0], np.uint16), np.cumsum(made[1], dtype=np.uint64))),
        around=partial(directory, bench.place.files),
        question=of_slice,
        part=part,
    )
    limits = [
        Contender(
            f"fastokens in memory, {name}",
            "limit",
            run,
            answer=lambda found: digest(with_ends(found, end)),
            around=partial(engine, str(tokenizer), documents),
        )
        for name, run in (("threads around it", encode_in_threads), ("its own threads", encode))
    ]
    peers = bench.peers_of("tokenize")
    others = [beside(one, piece, parts, tokenizer, bench.place.files, part=part) for one in peers]
    try:
        if any(one.tool.takes_parts for one in peers):
            write_parts(parts, first, proc.usable_cpus())
        with engine(str(tokenizer), first) as alone:
            right = digest(with_ends(encode(alone), end))
        title = f"{len(documents):,} documents of a .jsonl, a byte-level BPE"
        yield Comparison(title, size_bytes, [ours, process, recipe, *others, *limits], expected={of_slice: right})
        some = documents[: len(list(takewhile(lambda seen: seen <= _FORM_BYTES, accumulate(map(len, documents)))))]
        yield form(bench, "text.parquet", some, tokenizer, end)
        yield form(bench, "text.txt", [line for one in some for line in one.split("\n")], tokenizer, end)
    finally:
        for path in (text, piece, tokenizer, *(bench.new_file(name) for name in _FORMS)):
            path.unlink(missing_ok=True)
        shutil.rmtree(parts, ignore_errors=True)


def form(bench: Workbench, name: str, documents: list[str], tokenizer: Path, end: int) -> Comparison:
    """One of the other forms beside the engine: what reading it costs."""
    shown, write, options = _FORMS[name]
    path = bench.new_file(name)
    write(path, documents)
    process = Contender(
        "dsmem tokenize, as a process",
        "dsmem",
        lambda place: as_process(path, tokenizer, place / "out.bin", *options),
        answer=lambda made: digest(read(str(made))),
        around=partial(directory, bench.place.files),
    )
    limit = Contender(
        "fastokens in memory, threads around it",
        "limit",
        encode_in_threads,
        answer=lambda found: digest(with_ends(found, end)),
        around=partial(engine, str(tokenizer), documents),
    )
    size_bytes = sum(len(one.encode()) for one in documents)
    return Comparison(f"{len(documents):,} documents of {shown}", size_bytes, [process, limit])


def as_process(text: Path, tokenizer: Path, out: Path, *options: str) -> Path:
    """The same on the command line."""
    peer.run_dsmem("tokenize", str(text), "-o", str(out), "--tokenizer", str(tokenizer), *options)
    return out


def beside(other: Peer, text: Path, parts: Path, tokenizer: Path, above: Path, *, part: int) -> Contender:
    """A peer, on every core. It reads the recipe's text, in as many files as there are cores where it wants that."""
    of_slice = _slice(part)
    source = parts if other.tool.takes_parts else text
    return Contender(
        f"{other.name}: {of_slice}",
        "recipe",
        lambda place: other.tokenize(source, tokenizer, texts.END, place, proc.usable_cpus()),
        answer=lambda files: digest(Encoded(*other.tool.read(files))),
        around=partial(directory, above),
        question=of_slice,
        part=part,
    )


def _slice(part: int) -> str:
    return f"the first 1/{part}"


def write_parts(place: Path, documents: list[str], files: int) -> None:
    """The documents, in order, in at most that many files."""
    place.mkdir()
    each = -(-len(documents) // files)
    for number, first in enumerate(range(0, len(documents), each)):
        texts.write_jsonl(place / f"{number:05d}.jsonl", documents[first : first + each])


def write_parquet(path: Path, documents: list[str]) -> None:
    """As pyarrow writes it unless it is told otherwise, in row groups of a thousand, as `datasets` does."""
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": documents}), path, row_group_size=1000)


def write_lines(path: Path, documents: list[str]) -> None:
    """A document a line."""
    path.write_bytes("\n".join([*documents, ""]).encode())


_FORMS: Mapping[str, tuple[str, Callable[[Path, list[str]], None], tuple[str, ...]]] = MappingProxyType(
    {
        "text.parquet": ("a .parquet", write_parquet, ()),
        "text.txt": ("a .txt, a line each", write_lines, ("--split-on", "LINE")),
    }
)
"""How each is called, written and read."""


@contextmanager
def directory(above: Path) -> Iterator[Path]:
    """A directory of one turn."""
    made = Path(tempfile.mkdtemp(prefix="tokens-", dir=above))
    try:
        yield made
    finally:
        shutil.rmtree(made)


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine and all documents, in memory, in batches."""

    encoder: Any
    batches: Sequence[list[str]]


@contextmanager
def engine(tokenizer: str, documents: Sequence[str]) -> Iterator[Engine]:
    """A fresh one: an engine that has seen the text remembers most words of it, and is half as fast again."""
    import fastokens

    batches: list[list[str]] = [[]]
    room = _BATCH_CHARACTERS
    for one in documents:
        if room <= 0:
            batches.append([])
            room = _BATCH_CHARACTERS
        batches[-1].append(one)
        room -= len(one)
    yield Engine(fastokens.Tokenizer.from_file(tokenizer), batches)


def encode(alone: Engine) -> list[tuple[Array, Array]]:
    """Ids and offsets of all batches, one after the other, each by all threads that the engine has; nothing written."""
    return [_batch(alone, number) for number in range(len(alone.batches))]


def encode_in_threads(alone: Engine) -> list[tuple[Array, Array]]:
    """The same, several batches at once."""
    found: list[tuple[Array, Array]] = [(np.empty(0), np.empty(0))] * len(alone.batches)

    def work(number: int) -> None:
        found[number] = _batch(alone, number)

    parallel.run((partial(work, number) for number in range(len(found))), proc.usable_cpus())
    return found


def _batch(alone: Engine, number: int) -> tuple[Array, Array]:
    ids, offsets = alone.encoder.encode_batch_flat(alone.batches[number], split_special_tokens=True)
    return np.frombuffer(ids, "<u4"), np.frombuffer(offsets, "<u8")


def with_ends(found: list[tuple[Array, Array]], end: int) -> Encoded:
    """What the engine gave, with an end of text after every document."""
    lengths = np.concatenate([np.diff(offsets.astype(np.int64)) for _, offsets in found])
    ids = np.concatenate([ids for ids, _ in found])
    after = np.cumsum(lengths)
    return Encoded(np.insert(ids, after, end), (after + np.arange(1, len(after) + 1)).astype(np.uint64))


def read(path: str) -> Encoded:
    """A token file and the ends beside it."""
    return Encoded(np.fromfile(path, np.uint16), np.load(f"{path.removesuffix('.bin')}.docs.npy"))


def digest(encoded: Encoded) -> str:
    """Equal for equal ids in equal documents."""
    return sources.content_digest({"ids": encoded.ids.astype(np.uint32), "ends": encoded.ends})


CASE = Case(
    "tokenize",
    "text becomes tokens as fast as the engine encodes",
    compare,
    need=Need(memory=1.0, shared=0.01, files=0.6),
    effort=Effort(md5=9, fill=0, copy=0.5, fixed_s=14.0),
    takes_file=False,
    takes_peers=True,
)
