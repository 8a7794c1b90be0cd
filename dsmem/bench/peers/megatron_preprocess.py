"""Megatron-LM's tools/preprocess_data.py, which is not in its package: processes that encode, and its own builder.

As there, a pool of processes takes lines, 32 at a time, and this one appends what comes back to an
IndexedDatasetBuilder. Files: the .bin, with its .idx beside it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

_LINES = 32


class Encoder:
    """One line at a time; each process has a tokenizer of its own."""

    tokenizer: Any
    end: int

    @classmethod
    def start(cls, tokenizer: str, end: str) -> None:
        """In a new process, before the first line."""
        from tokenizers import Tokenizer

        cls.tokenizer = Tokenizer.from_file(tokenizer)
        cls.end = cls.tokenizer.token_to_id(end)

    @classmethod
    def encode(cls, line: str) -> list[int]:
        """The ids of a document, with its end."""
        ids: list[int] = cls.tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids
        ids.append(cls.end)
        return ids


def preprocess(text: str, tokenizer: str, end: str, place: str, processes: int) -> str:
    """The .bin."""
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_file(tokenizer).get_vocab_size()
    path = f"{place}/text_document.bin"
    with (
        Path(text).open(encoding="utf-8") as lines,
        multiprocessing.Pool(processes, Encoder.start, (tokenizer, end)) as pool,
    ):
        builder = IndexedDatasetBuilder(path, dtype=DType.optimal_dtype(vocabulary))
        for ids in pool.imap(Encoder.encode, lines, _LINES):
            builder.add_document(ids, [len(ids)])
        builder.finalize(f"{place}/text_document.idx")
    return path


def main() -> None:
    """What the package's docstring says."""
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(json.dumps({"version": version("megatron-core")}) + "\n")
        return
    text, tokenizer, end, place, processes = sys.argv[1:]
    file = preprocess(text, tokenizer, end, place, int(processes))
    for path in (file, f"{file.removesuffix('.bin')}.idx"):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    sys.stdout.write(json.dumps({"files": [file]}) + "\n")


if __name__ == "__main__":
    main()
