"""Seams: places in a text that no token of a vocabulary reaches across, whatever comes before and behind them.

Where no token holds these two characters one after the other, no merge, no piece of a Unigram model and no added token
can join them: a model encodes what is left and what is right of them independently, also within one pre-token. That
normalizer and pre-tokenizer begin there as they would go on is for whoever cuts to compare (`dsmem.tokens.feeding`).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dsmem.tokens.vocabularies import Located

_SPACES = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n", "ĉ": "\t", "č": "\r"})
"""How vocabularies write white space: byte-level ones and SentencePiece's."""
Flags = np.ndarray[Any, np.dtype[np.bool_]]


class Seams:
    """Where text may be parted, as far as a vocabulary goes."""

    def __init__(self, tokens: Iterable[str], *, within_words: bool, is_normalized: bool = False) -> None:
        """From every token as the vocabulary writes it (bytes as latin-1).

        `within_words`: the model takes words apart by merges alone; others look at a word as a whole. `is_normalized`:
        a normalizer may change the case of letters.
        """
        pairs: set[tuple[str, str]] = set()
        spaced = False
        for token in tokens:
            spaced = spaced or token.startswith("▁")
            plain = token.translate(_SPACES)
            pairs.update(pairwise(plain))
        self.within_words = within_words
        self._parts = np.ones((256, 256), np.bool_)
        """By the byte before and the first byte behind."""
        for before, after in pairs:
            if not before.isascii():
                continue
            befores = {before, before.upper()} if is_normalized else {before}
            if before == " " and spaced:
                befores.add("\n")  # which a normalizer makes a space
            afters = {after, after.upper()[:1]} if is_normalized else {after}
            for one in befores:
                for other in afters:
                    # As a character, and as a byte that stands for itself.
                    self._parts[ord(one), [other.encode()[0], min(ord(other), 255)]] = False

    def cuts(self, data: bytes, begin: int, end: int) -> list[list[int]]:
        """Places from `begin` to `end` - 1, the best kind first: after a line end between characters that are no
        spaces; before a single space between others of ASCII; between two of ASCII."""
        begin = max(begin, 2)
        end = min(end, len(data) - 1)
        if begin >= end:
            return [[], [], []]
        held = np.frombuffer(data, np.uint8)
        second, before, after, then = (held[begin + by : end + by] for by in (-2, -1, 0, 1))
        parts = self._parts[before, after]
        line = parts & (before == ord("\n")) & _SOLID[second] & _SOLID[after]
        space = parts & (after == ord(" ")) & _PLAIN[before] & _PLAIN[then]
        word = parts & _PLAIN[before] & _PLAIN[after] if self.within_words else np.zeros(0, np.bool_)
        return [(np.flatnonzero(found) + begin).tolist() for found in (line, space, word)]


def _flags(data: Iterable[int]) -> Flags:
    found = np.zeros(256, np.bool_)
    found[list(data)] = True
    return found


_SOLID = ~_flags(b" \t\n\r\x0b\x0c")
_PLAIN = _flags(range(0x21, 0x7F))


def of_tokenizer(tokenizer: Any) -> Seams:
    """Of a Hugging Face tokenizer."""
    return Seams(
        tokenizer.get_vocab(with_added_tokens=True),
        within_words=type(tokenizer.model).__name__ == "BPE",
        is_normalized=tokenizer.normalizer is not None,
    )


def of_file(located: Located) -> Seams:
    """Of a tokenizer.json or a file of tiktoken ranks that an engine has loaded: it is what it should be."""
    data = Path(located.path).read_bytes()
    if located.kind == "tiktoken":
        ranks = (base64.b64decode(line.split()[0]).decode("latin-1") for line in data.splitlines() if line)
        return Seams([*ranks, *located.special_tokens], within_words=True)
    raw: Any = json.loads(data)
    vocab = raw["model"]["vocab"]
    tokens = vocab if isinstance(vocab, dict) else [piece for piece, _ in vocab]
    added = [token["content"] for token in raw.get("added_tokens") or ()]
    return Seams(
        [*tokens, *added],
        within_words=raw["model"].get("type", "BPE") == "BPE",
        is_normalized=raw.get("normalizer") is not None,
    )
