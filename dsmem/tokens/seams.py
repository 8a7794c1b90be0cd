"""Seams: places in a text that no token of a vocabulary reaches across, whatever comes before and behind them.

Where no token holds these two characters one after the other, no merge, no piece of a Unigram model and no added token
can join them: a model encodes what is left and what is right of them independently, also within one pre-token. That
normalizer and pre-tokenizer go on there as they would is for whoever cuts to compare (`dsmem.tokens.feeding`).
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dsmem import files
from dsmem.tokens.steps import described, steps

if TYPE_CHECKING:
    from dsmem.tokens.vocabularies import Located

_SPACES = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n", "ĉ": "\t", "č": "\r"})
"""How vocabularies write white space: byte-level ones and SentencePiece's."""
Flags = np.ndarray[Any, np.dtype[np.bool_]]


class Seams(Protocol):
    """Where text may be parted, as far as a vocabulary goes."""

    def cuts(self, data: bytes, begin: int, end: int) -> list[list[int]]:
        """Places from `begin` to `end` - 1 where characters begin, the best kind first: at line ends, before spaces,
        elsewhere."""
        ...

    def arrays(self) -> dict[str, Any]:
        """What `kept` makes the same of."""
        ...


class ByteSeams:
    """Of any vocabulary; characters that are not of ASCII are known by their first byte only."""

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

    @classmethod
    def of_arrays(cls, arrays: Any) -> ByteSeams:
        """From what `arrays` gave."""
        found = cls((), within_words=bool(arrays["within_words"]))
        found._parts = arrays["parts"]
        return found

    def arrays(self) -> dict[str, Any]:
        """As numpy keeps them."""
        return {"parts": self._parts, "within_words": np.bool_(self.within_words)}

    def cuts(self, data: bytes, begin: int, end: int) -> list[list[int]]:
        """After a line end between characters that are no spaces; before a single space between others of ASCII;
        between two of ASCII."""
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


class TextSeams:
    """Of merges over the characters of a text as it is, but for spaces: these are written as "▁"."""

    def __init__(self, tokens: Iterable[str]) -> None:
        codes = _codes("\0".join(tokens))
        """Tokens are parted by NUL, beside which nothing is cut."""
        self._joined = np.unique(_pairs(codes))

    @classmethod
    def of_arrays(cls, arrays: Any) -> TextSeams:
        """From what `arrays` gave."""
        found = cls(())
        found._joined = arrays["joined"]
        return found

    def arrays(self) -> dict[str, Any]:
        """As numpy keeps them."""
        return {"joined": self._joined}

    def cuts(self, data: bytes, begin: int, end: int) -> list[list[int]]:
        """After a line end, before a space, between others; the character on the other side is never white space."""
        begin = max(begin, 1)
        end = min(end, len(data))
        first, last = _at_character(data, begin - 1), _at_character(data, end)
        try:
            text = data[first:last].decode()
        except UnicodeDecodeError:
            return [[], [], []]  # which is told when it is encoded
        if len(text) < 2:
            return [[], [], []]
        places = np.flatnonzero(np.frombuffer(data, np.uint8)[first:last] & 0xC0 != 0x80)[1:] + first
        codes = _codes(text)
        solid = ~np.isin(codes, _WHITE)
        pairs = _pairs(codes)
        found = np.minimum(np.searchsorted(self._joined, pairs), len(self._joined) - 1)
        parts = (self._joined[found] != pairs) if len(self._joined) else np.ones(len(pairs), np.bool_)
        parts &= places >= begin
        before, after = codes[:-1], codes[1:]
        line = parts & (before == ord("\n")) & solid[1:]
        space = parts & solid[:-1] & (after == _SPACE)
        other = parts & solid[:-1] & solid[1:]
        return [places[kind].tolist() for kind in (line, space, other)]


class Anywhere:
    """Of bytes, each a token of its own, but for these texts, which stay whole."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._whole = [text.encode() for text in texts]

    def arrays(self) -> dict[str, Any]:
        """None: it is made at once."""
        return {}

    def cuts(self, data: bytes, begin: int, end: int) -> list[list[int]]:
        """Where characters begin: every place is of one kind."""
        begin, end = max(begin, 0), min(end, len(data))
        if begin >= end:
            return [[]]
        parts = np.frombuffer(data, np.uint8)[begin:end] & 0xC0 != 0x80
        for text in self._whole:
            at = data.find(text, max(begin - len(text) + 1, 0), end + len(text) - 1)
            while at >= 0:
                parts[max(at + 1 - begin, 0) : at + len(text) - begin] = False
                at = data.find(text, at + len(text), end + len(text) - 1)
        return [(np.flatnonzero(parts) + begin).tolist()]


def _codes(text: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Of all characters, spaces as vocabularies write them."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    codes[codes == ord(" ")] = _SPACE
    return codes


def _pairs(codes: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Each character with the next, as one number."""
    joined: np.ndarray[Any, np.dtype[np.int64]] = codes[:-1] << 32 | codes[1:]
    return joined


def _at_character(data: bytes, at: int) -> int:
    """The nearest place, there or before, where a character begins or the data ends."""
    while 0 < at < len(data) and data[at] & 0xC0 == 0x80:
        at -= 1
    return at


def _flags(data: Iterable[int]) -> Flags:
    found = np.zeros(256, np.bool_)
    found[list(data)] = True
    return found


_SOLID = ~_flags(b" \t\n\r\x0b\x0c")
_PLAIN = _flags(range(0x21, 0x7F))
_SPACE = ord("▁")
_WHITE = np.array([0, _SPACE, *(code for code in range(0x3001) if chr(code).isspace())], np.int64)


def kept(path: str, find: Callable[[], Seams]) -> Seams:
    """Those that somebody has put there, or what `find` gives, put there: for one at a time."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return TextSeams.of_arrays(arrays) if "joined" in arrays else ByteSeams.of_arrays(arrays)
    except FileNotFoundError:
        found = find()
    if arrays := found.arrays():
        held = io.BytesIO()
        np.savez(held, **arrays)
        files.write_atomic(path, held.getvalue())
    return found


def of_tokenizer(tokenizer: Any) -> Seams:
    """Of a Hugging Face tokenizer."""
    tokens = tokenizer.get_vocab(with_added_tokens=True)
    model = tokenizer.model
    merges = type(model).__name__ == "BPE"
    has_affixes = merges and bool(model.continuing_subword_prefix or model.end_of_word_suffix)
    parts = map(described, (tokenizer.normalizer, tokenizer.pre_tokenizer))
    return _of_parts(tokens, *parts, merges=merges, has_affixes=has_affixes)


def of_file(located: Located) -> Seams:
    """Of a tokenizer.json or a file of tiktoken ranks that an engine has loaded: it is what it should be."""
    data = Path(located.path).read_bytes()
    if located.kind == "tiktoken":
        ranks = (base64.b64decode(line.split()[0]).decode("latin-1") for line in data.splitlines() if line)
        return ByteSeams([*ranks, *located.special_tokens], within_words=True)
    raw: Any = json.loads(data)
    model = raw["model"]
    vocab = model["vocab"]
    tokens = [*(vocab if isinstance(vocab, dict) else (piece for piece, _ in vocab))]
    tokens += [token["content"] for token in raw.get("added_tokens") or ()]
    merges = model.get("type", "BPE") == "BPE"
    has_affixes = bool(model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
    parts = raw.get("normalizer"), raw.get("pre_tokenizer")
    return _of_parts(tokens, *parts, merges=merges, has_affixes=has_affixes)


def _of_parts(tokens: Iterable[str], normalizer: Any, pre_tokenizer: Any, *, merges: bool, has_affixes: bool) -> Seams:
    if merges and not has_affixes and all(map(_keeps, (*steps(normalizer), *steps(pre_tokenizer)))):
        return TextSeams(tokens)
    return ByteSeams(tokens, within_words=merges, is_normalized=normalizer is not None)


def of_sentencepiece(model: Any) -> Seams:
    """Of a SentencePiece processor."""
    tokens = [model.id_to_piece(number) for number in range(model.get_piece_size())]
    specs = {_TRAINER: b"", _NORMALIZER: b""}
    for number, value in _fields(model.serialized_model_proto()):
        if number in specs:
            specs[number] += value  # one that comes twice says more of the same
    trainer, normalizer = (dict(_fields(spec)) for spec in specs.values())
    is_plain = not normalizer.get(_CHARSMAP) and normalizer.get(_ESCAPE_SPACES, 1)
    if trainer.get(_MODEL_TYPE) == _BPE and is_plain:
        return TextSeams(tokens)
    return ByteSeams(tokens, within_words=False, is_normalized=True)


_TRAINER, _NORMALIZER = 2, 3
_MODEL_TYPE, _BPE = 3, 2
_CHARSMAP, _ESCAPE_SPACES = 2, 5
"""Numbers of sentencepiece_model.proto, the schema of its files."""


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Fields of a protobuf message that its library has read: numbers, and bytes undecoded."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = number()
        if key & 7 == 0:
            yield key >> 3, number()
            continue
        size = number() if key & 7 == 2 else 8 if key & 7 == 1 else 4
        yield key >> 3, message[at : at + size]
        at += size


def _keeps(step: dict[str, Any]) -> bool:
    """Whether a step leaves the model every character of a text as it is, but spaces as "▁"."""
    if step["type"] == "Replace":
        return bool(step["pattern"] == {"String": " "} and step["content"] == "▁")
    if step["type"] == "Metaspace":
        return bool(step["replacement"] == "▁")
    return step["type"] in ("Prepend", "Split")
