"""Text to measure with: the sources of Python's library and of what is installed, some 200 MB; nothing is fetched."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

END = "<|endoftext|>"
_DOCUMENT_CHARACTERS = 4000
"""About what a page of the web holds, so that documents are as many as they would be."""
_SMALL_BYTES = 16 << 20
_TRAINING_BYTES = 8 << 20


def documents(size_bytes: int) -> list[str]:
    """Documents of about 4,000 characters, of that size together as UTF-8; where sources end it begins again."""
    found: list[str] = []
    room = size_bytes
    while room > 0:
        for text in _pieces():
            found.append(text)
            room -= len(text.encode())
            if room <= 0:
                break
    return found


def write_jsonl(path: Path, texts: Iterable[str]) -> None:
    """One object with `text` a line."""
    with path.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def train_tokenizer(path: Path, texts: list[str], size_bytes: int) -> int:
    """A byte-level BPE of 32,768 tokens (4,096 for less than 16 MiB of text) as a tokenizer.json; returns its end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_768 if size_bytes >= _SMALL_BYTES else 4_096,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(texts, _TRAINING_BYTES // _DOCUMENT_CHARACTERS), trainer)
    tokenizer.save(str(path))
    number = tokenizer.token_to_id(END)
    assert number is not None
    return number


def _pieces() -> Iterator[str]:
    """All sources, cut at ends of lines."""
    for path in _sources():
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # the library's own tests hold files that are no UTF-8
        start = 0
        while start < len(text):
            end = text.find("\n", start + _DOCUMENT_CHARACTERS) + 1 or len(text)
            yield text[start:end]
            start = end


def _sources() -> Iterator[Path]:
    """The library's files, then those of packages, which are looked for only when they are wanted."""
    library, packages = (Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib"))
    yield from (path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts)
    yield from sorted(packages.rglob("*.py"))
