"""An apostrophe and a long s: what fastokens splits otherwise than the patterns of o200k and Kimi do.

`(?i:'s)` matches `'ſ`, too. fastokens splits by code of its own where it knows the pattern, and that of the words of
o200k and Kimi (which tell letters by their case) passes it by. What lies around one, up to where either pattern ends a
match whatever comes before and behind, is encoded by what is exact; all else stays fastokens'.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dsmem.tokens.steps import steps
from dsmem.tokens.vocabularies import O200K

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ids = NDArray[np.uint32]
    Lengths = NDArray[np.int64]

LONG_S = "'\u017f"
_BY_CASE = (r"\p{Lu}", "(?i:")
_HAN = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_KIMI = "|".join(
    (
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_HAN[0]}*{_HAN[1]}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_HAN[0]}+{_HAN[1]}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_SEAM = re.compile(r"(?<=\S) |(?<=\n)[^\s/]")
"""Where both patterns end a match and begin another: before white space that begins with a space, and after a line end
that neither white space nor "/" follows. A text that ends there is split as it is with more behind it. (Before the last
space of white space, too, but not where an added token follows: the text in front of it is split by itself.)"""
ODD = "\u180e"
"""White space to fastokens where it goes by a regular expression, and to nobody else."""
_LOOK = 64
"""Characters before a long s that are looked through at first."""
_KEPT, _KEPT_CHARACTERS = 4096, 64
"""Of what was encoded: how many, and how long."""
_SPLITTING = re.compile(r'"pre_tokenizer"\s*:\s*')


def may_pass_by(splitting: str) -> bool:
    """Whether a pattern, or a tokenizer.json, has what fastokens may split so; more than the two that it knows may."""
    return all(part in splitting or json.dumps(part)[1:-1] in splitting for part in _BY_CASE)


def has_seams(splitting: str, *, is_file: bool) -> bool:
    """Whether texts that are split so may be parted at `_SEAM`: by one of two patterns, in a file by nothing else."""
    if not is_file:
        return splitting in (O200K, _KIMI)
    found = [*_SPLITTING.finditer(splitting)]
    if len(found) != 1:
        return False
    all_steps = steps(json.JSONDecoder().raw_decode(splitting, found[0].end())[0])
    if [step["type"] for step in all_steps] != ["Split", "ByteLevel"]:
        return False
    split, level = all_steps
    is_known = split["pattern"].get("Regex") in (O200K, _KIMI)
    return is_known and split["behavior"] == "Isolated" and not split["invert"] and not level["use_regex"]


def unknown(pattern: str) -> str:
    """The same pattern in brackets: fastokens does not know it then and goes by the regular expression, which is exact
    but for `ODD`, and takes several times as long."""
    return f"(?:{pattern})"


def file_unknown(text: str) -> str:
    """A tokenizer.json with its patterns in brackets. The rest of it, which may be large, is not parsed."""
    found = [*_SPLITTING.finditer(text)]
    if len(found) != 1:  # an entry of the vocabulary may have the name of the key
        raw = json.loads(text)
        _bracket(raw["pre_tokenizer"])
        return json.dumps(raw, ensure_ascii=False)
    told, end = json.JSONDecoder().raw_decode(text, found[0].end())
    _bracket(told)
    return text[: found[0].end()] + json.dumps(told) + text[end:]


def _bracket(splitting: Any) -> None:
    for step in steps(splitting):
        if "Regex" in step.get("pattern", ()):
            step["pattern"]["Regex"] = unknown(step["pattern"]["Regex"])


def around(text: str) -> Iterator[tuple[int, int]]:
    """Where what lies around each of them begins and ends, from seam to seam, in order and apart."""
    end = 0
    at = text.find(LONG_S)
    while at >= 0:
        begin = _seam_before(text, end, at)
        seam = _SEAM.search(text, at + len(LONG_S))
        end = seam.start() if seam else len(text)
        yield begin, end
        at = text.find(LONG_S, end)


def _seam_before(text: str, first: int, at: int) -> int:
    """The last seam from `first` on, which is one, up to there."""
    reach = _LOOK
    while at - reach > first:
        found = [seam.start() for seam in _SEAM.finditer(text, at - reach, at + 1)]
        if found:
            return found[-1]
        reach *= 2
    return max((seam.start() for seam in _SEAM.finditer(text, first, at + 1)), default=first)


class Mending:
    """Encodes texts that hold one: what lies around each as `exact` does, the rest as `plain`."""

    def __init__(
        self,
        plain: Callable[[list[str]], tuple[Ids, Lengths]],
        exact: Callable[[str], Ids],
        *,
        at_seams: bool,
    ) -> None:
        """`at_seams`: a text may be parted; else one is given to `exact` as a whole."""
        self._plain = plain
        self._exact = exact
        self._remembered = lru_cache(_KEPT)(exact)
        self._at_seams = at_seams

    def by(self, exact: Callable[[str], Ids]) -> Mending:
        """The same by another."""
        return Mending(self._plain, exact, at_seams=self._at_seams)

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        """The ids of all texts, and how many each has."""
        import numpy as np

        rest: list[str] = []
        mended: list[list[Ids | None]] = []
        """Of each text, in order; None: the next of the rest."""
        for text in texts:
            parts: list[Ids | None] = []
            done = 0
            for begin, end in self._around(text):
                if begin > done:
                    rest.append(text[done:begin])
                    parts.append(None)
                parts.append((self._remembered if end - begin <= _KEPT_CHARACTERS else self._exact)(text[begin:end]))
                done = end
            if done < len(text):
                rest.append(text[done:])
                parts.append(None)
            mended.append(parts)
        ids, lengths = self._plain(rest)
        others = iter(np.split(ids, np.cumsum(lengths)[:-1]))
        found = [[next(others) if part is None else part for part in parts] for parts in mended]
        counts = np.fromiter((sum(map(len, parts)) for parts in found), np.int64, len(found))
        return np.concatenate([ids[:0], *(part for parts in found for part in parts)]), counts

    def _around(self, text: str) -> Iterator[tuple[int, int]]:
        if self._at_seams:
            yield from around(text)
        elif LONG_S in text:
            yield 0, len(text)
