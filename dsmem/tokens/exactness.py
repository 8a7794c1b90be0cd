"""Whether fastokens gives the ids of Hugging Face for a tokenizer.json: what it is known to read otherwise.

Found by comparing both on random small tokenizers (tests/tokens/test_exactness.py does so again); whatever might differ
on some text counts, however rare the text. Nothing is encoded: what costs most is one look at a vocabulary that is not
byte-level.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dsmem.tokens.steps import described, steps

_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
ALPHABET = [chr(byte) for byte in _BYTES] + [chr(0x100 + number) for number in range(256 - len(_BYTES))]
"""How byte-level tokenizers write the 256 bytes (`bytes_to_unicode` of GPT-2)."""
_NEVER_EMPTY = re.compile(r"(\\[sd]|[\w ])(\+|\{[1-9]\d*,\d*\})?")
"""Regular expressions that match one character or more: a character or class, and how often."""


def obstacle(tokenizer: Any, *, parse_special: bool) -> str | None:
    """Why fastokens can't be trusted with this tokenizer, as `tokenizers` has loaded it; None where it can."""
    if type(tokenizer.model).__name__ != "BPE":
        return None  # which it refuses itself
    return (
        _of_replacing(tokenizer)
        or _of_case(tokenizer)
        or _of_vocabulary(tokenizer)
        or _of_added(tokenizer, parse_special=parse_special)
    )


def _of_replacing(tokenizer: Any) -> str | None:
    """Empty matches and texts go wrong in Hugging Face's own way."""
    for step in steps(described(tokenizer.normalizer)):
        if step["type"] == "Prepend" and not step["prepend"]:
            return "it does not prepend the empty text as Hugging Face does"
        if step["type"] == "Replace":
            ((kind, pattern),) = step["pattern"].items()
            if not pattern or (kind == "Regex" and not _NEVER_EMPTY.fullmatch(pattern)):
                return f"it may replace what {pattern!r} matches otherwise than Hugging Face"
    return None


def _of_case(tokenizer: Any) -> str | None:
    """The engine looks for a long s in the text (`engines`), not in what a normalizer makes of it; NFC makes none."""
    if all(step["type"] == "NFC" for step in steps(described(tokenizer.normalizer))):
        return None
    patterns = (step.get("pattern", {}).get("Regex", "") for step in steps(described(tokenizer.pre_tokenizer)))
    if any(r"\p{Lu}" in pattern and "(?i:" in pattern for pattern in patterns):
        return "it may split what is normalized otherwise than Hugging Face"
    return None


def _of_vocabulary(tokenizer: Any) -> str | None:
    model = tokenizer.model
    is_bytes = any(step["type"] == "ByteLevel" for step in steps(described(tokenizer.pre_tokenizer)))
    if is_bytes and all(model.token_to_id(char) is not None for char in ALPHABET):
        return None
    tokens = tokenizer.get_vocab(with_added_tokens=False)
    lacking = set().union(*tokens) - tokens.keys()
    if lacking:
        # No merge leads there: Hugging Face never gives it for a text, fastokens does.
        entry = min(token for token in tokens if not lacking.isdisjoint(token))
        return f"it reads {entry!r} in a text as that entry of the vocabulary, which Hugging Face never does"
    if model.byte_fallback:
        has_all = all(f"<0x{byte:02X}>" in tokens for byte in range(256))
        return None if has_all else "its vocabulary has not all 256 bytes to fall back to"
    if model.unk_token is None or model.unk_token not in tokens:
        return "its vocabulary has no token for unknown characters, which Hugging Face leaves out before it merges"
    return None


def _of_added(tokenizer: Any, *, parse_special: bool) -> str | None:
    """Hugging Face looks for those of before normalization first, fastokens for all at once; and what takes white space
    along may meet one that is white space. Special ones that are text are not given, but keep others from being found.
    """
    added = [one for one in tokenizer.get_added_tokens_decoder().values() if one.content]
    given = [one for one in added if parse_special or not one.special]
    before, after = ([one for one in added if one.normalized is kind] for kind in (False, True))
    clash = None
    if before and after:
        clash = next((one.content for one in given if one.single_word or one.lstrip or one.rstrip), None)
    if any(one.content != one.content.strip() for one in given):
        clash = clash or next((one.content for one in given if one.lstrip or one.rstrip), None)
    if given:
        clash = clash or _overlapping([one.content for one in before], [one.content for one in after])
    if tokenizer.normalizer is not None and any(one.normalized for one in given):
        changed = (one.content for one in after if _normal(tokenizer, one.content) != one.content)
        clash = clash or next(changed, None)
    return None if clash is None else f"it looks for added tokens, as {clash!r}, in another order than Hugging Face"


def _normal(tokenizer: Any, text: str) -> str:
    found: str = tokenizer.normalizer.normalize_str(text)
    return found


def _overlapping(some: Sequence[str], others: Sequence[str]) -> str | None:
    """One of `some` that a text can hold with characters in common with one of `others`."""
    for ones, rest in ((some, others), (others, some)):
        together = "\0".join(rest)
        begins = {one[:size] for one in rest for size in range(1, len(one))}
        for one in ones:
            if one in together or any(one[at:] in begins for at in range(1, len(one))):
                return one
    return None
