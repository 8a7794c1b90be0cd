"""Texts, tokenizers and what is expected of them, for the tests of `dsmem tokenize`, without any code of dsmem."""

from __future__ import annotations

import json
import os
import random
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"
ODD = [
    "",
    " ",
    "\n",
    "a\nb",
    f"text with {END} in it",
    "tabs\tand  spaces   ",
    "Größe, 東京, 🙂🙃, e\u0301",
    "\u2028 line separator \x85 next line \x0b",
    '{"text": "not JSON here"}',
    "nul \x00 and bell \x07",
]
"""Documents that careless code strips, splits or drops."""


@cache
def sources() -> list[str]:
    """Some texts: modules of the standard library."""
    directory = Path(sysconfig.get_paths()["stdlib"])
    return [path.read_text(encoding="utf-8") for path in sorted(directory.glob("[a-d]*.py"))]


@cache
def trained() -> str:
    """A small byte-level BPE, as the JSON of a tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sources()[:12], trainer)
    return str(tokenizer.to_str())


@cache
def reference() -> Any:
    """Hugging Face's tokenizer, for which special tokens in a text are text."""
    tokenizer = Tokenizer.from_str(trained())
    tokenizer.encode_special_tokens = True
    return tokenizer


def documents(count: int, *, seed: int = 0) -> list[str]:
    """Odd ones first, then pieces of sources."""
    rng = random.Random(seed)
    found = list(ODD)
    texts = sources()
    while len(found) < count:
        text = rng.choice(texts)
        at = rng.randrange(max(len(text), 1))
        found.append(text[at : at + rng.randrange(1, 3000)])
    return found[:count]


def expected(texts: list[str], *, eos: bool = True) -> list[list[int]]:
    """What the reference gives, with an end after each document."""
    tokenizer = reference()
    end = [tokenizer.token_to_id(END)] if eos else []
    return [one.ids + end for one in tokenizer.encode_batch(texts, add_special_tokens=False)]


def written(out: str | os.PathLike[str]) -> list[list[int]]:
    """The documents of a token file, by its stored ends."""
    stem = os.fspath(out).removesuffix(".bin")
    manifest = json.loads(Path(f"{stem}.json").read_bytes())
    ids: NDArray[Any] = np.fromfile(out, np.dtype(manifest["dtype"]).newbyteorder("<"))
    ends = np.load(f"{stem}.docs.npy").tolist()
    return [ids[begin:end].tolist() for begin, end in zip([0, *ends], ends, strict=False)]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    """One document a line, between other fields."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"id": number, "text": text, "n": [1]}, ensure_ascii=number % 2 == 0) + "\n")
    return path


class _Session:
    """What `huggingface_hub.get_session` gives, with nothing behind it."""

    def __init__(self, answers: bool) -> None:
        self._answers = answers

    def head(self, url: str, *, timeout: float) -> int:
        assert 0 < timeout <= 10
        if not self._answers:
            raise RuntimeError("no route")
        return 200


def answering_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that answers who asks whether it is there."""
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: _Session(answers=True))


def silent_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that is out of reach."""
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: _Session(answers=False))
