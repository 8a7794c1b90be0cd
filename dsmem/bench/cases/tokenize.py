"""Text to a token file: against nanoGPT's way, and against the engine alone, which reads and writes nothing.

Peers, where there are any, are whole processes; so dsmem stands here as one, too.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

import dsmem
from dsmem import parallel, proc
from dsmem.bench import peer, recipes, sources, texts
from dsmem.bench.harness import Comparison, Contender
from dsmem.bench.peer import Peer
from dsmem.bench.recipes import Array
from dsmem.bench.sizes import Need
from dsmem.bench.workbench import Case, Effort, Workbench

_SHARE = 64
"""Of the size of the run: the recipe does some 2 MB/s."""
_WORTH_PROCESSES_BYTES = 4 << 20
"""Less is encoded sooner than `datasets` has started processes."""
_BATCH_CHARACTERS = 8 << 20


@dataclass(frozen=True, slots=True)
class Encoded:
    """What is compared: the ids of all documents, an end of text after each, and where each ends."""

    ids: Array
    ends: Array


def compare(bench: Workbench) -> Generator[Comparison]:
    """One comparison; every turn has a directory of its own, which is removed after it."""
    text, tokenizer, parts = (bench.new_file(name) for name in ("text.jsonl", "tokenizer.json", "parts"))
    documents = texts.documents(max(bench.size_bytes // _SHARE, 1))
    size_bytes = sum(len(one.encode()) for one in documents)
    texts.write_jsonl(text, documents)
    end = texts.train_tokenizer(tokenizer, documents, size_bytes)
    processes = proc.usable_cpus() if size_bytes >= _WORTH_PROCESSES_BYTES else None
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
        "nanoGPT's prepare, tokenizers",
        "recipe",
        lambda place: recipes.prepare(str(text), str(tokenizer), end, place, processes),
        answer=lambda made: digest(Encoded(np.fromfile(made[0], np.uint16), np.cumsum(made[1], dtype=np.uint64))),
        around=partial(directory, bench.place.files),
    )
    limit = Contender(
        "fastokens in memory, threads",
        "limit",
        engine(str(tokenizer), documents),
        answer=lambda found: digest(with_ends(found, end)),
    )
    others = [beside(one, text, parts, tokenizer, bench.place.files) for one in bench.peers]
    left_out = peer.without(bench.peers)
    if left_out is not None:
        bench.note(f"tokenize: {left_out}")
    try:
        if any(one.tool.takes_parts for one in bench.peers):
            write_parts(parts, documents, proc.usable_cpus())
        title = f"{len(documents):,} documents of a .jsonl, a byte-level BPE"
        yield Comparison(title, size_bytes, [ours, process, recipe, *others, limit])
    finally:
        text.unlink()
        tokenizer.unlink()
        shutil.rmtree(parts, ignore_errors=True)


def as_process(text: Path, tokenizer: Path, out: Path) -> Path:
    """The same on the command line."""
    peer.run_dsmem("tokenize", str(text), "-o", str(out), "--tokenizer", str(tokenizer))
    return out


def beside(other: Peer, text: Path, parts: Path, tokenizer: Path, above: Path) -> Contender:
    """A peer, on every core. It reads the same text, in as many files as there are cores where it wants that."""
    source = parts if other.tool.takes_parts else text
    return Contender(
        other.name,
        "recipe",
        lambda place: other.tokenize(source, tokenizer, texts.END, place, proc.usable_cpus()),
        answer=lambda files: digest(Encoded(*other.tool.read(files))),
        around=partial(directory, above),
    )


def write_parts(place: Path, documents: list[str], files: int) -> None:
    """The documents, in order, in at most that many files."""
    place.mkdir()
    each = -(-len(documents) // files)
    for number, first in enumerate(range(0, len(documents), each)):
        texts.write_jsonl(place / f"{number:05d}.jsonl", documents[first : first + each])


@contextmanager
def directory(above: Path) -> Iterator[Path]:
    """A directory of one turn."""
    made = Path(tempfile.mkdtemp(prefix="tokens-", dir=above))
    try:
        yield made
    finally:
        shutil.rmtree(made)


def engine(tokenizer: str, documents: list[str]) -> Callable[[None], list[tuple[Array, Array]]]:
    """A function that encodes all documents, which lie in memory, on every core, and writes nothing."""
    import fastokens

    encoder = fastokens.Tokenizer.from_file(tokenizer)
    batches: list[list[str]] = [[]]
    room = _BATCH_CHARACTERS
    for one in documents:
        if room <= 0:
            batches.append([])
            room = _BATCH_CHARACTERS
        batches[-1].append(one)
        room -= len(one)

    def encode(_: None) -> list[tuple[Array, Array]]:
        found: list[tuple[Array, Array]] = [(np.empty(0), np.empty(0))] * len(batches)

        def work(number: int) -> None:
            ids, offsets = encoder.encode_batch_flat(batches[number], split_special_tokens=True)
            found[number] = np.frombuffer(ids, "<u4"), np.frombuffer(offsets, "<u8")

        parallel.run((partial(work, number) for number in range(len(batches))), proc.usable_cpus())
        return found

    return encode


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
    need=Need(memory=0.6, shared=0.01, files=0.5),
    effort=Effort(md5=5, fill=0, copy=0.5, fixed_s=12.0),
    takes_file=False,
    takes_peers=True,
)
