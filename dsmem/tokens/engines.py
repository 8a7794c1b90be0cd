"""Engines: text to ids, whole batches at once, as one flat array and the lengths of its documents.

An engine never adds tokens of its own, never truncates and never pads; special tokens that stand in the text are text
unless `parse_special`. Hugging Face `tokenizers` is the reference for tokenizer.json, tiktoken and SentencePiece are
their own. Engines load beside numpy, which is imported when they encode.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from dsmem.errors import UsageError
from dsmem.tokens import contractions
from dsmem.tokens.vocabularies import (
    BYTES_END,
    END_OF_TEXT,
    Located,
    Vocabulary,
    load_reference,
    load_sentencepiece,
    need,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dsmem.tokens.seams import Seams

    Ids = NDArray[np.uint32]
    Lengths = NDArray[np.int64]

EngineName = Literal["fastokens", "tokenizers", "tiktoken", "sentencepiece", "bytes"]
_BY_KIND: dict[str, tuple[EngineName, ...]] = {
    "tokenizer.json": ("fastokens", "tokenizers"),
    "tiktoken": ("fastokens", "tiktoken"),
    "sentencepiece": ("sentencepiece",),
    "bytes": ("bytes",),
}
"""Fastest first, the reference last."""
_ADDED = re.compile(r'"added_tokens"\s*:\s*')
_log = logging.getLogger(__name__)


class Unfit(Exception):
    """An engine that can't do what a tokenizer wants, with the reason."""


class Engine(Protocol):
    """What encodes."""

    name: EngineName

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        """The ids of all texts, one after the other, and how many each has."""
        ...

    def seams(self) -> Seams:
        """Where no token of the vocabulary reaches across."""
        ...


def reference_of(located: Located) -> EngineName:
    """The engine that others are compared with."""
    return _BY_KIND[located.kind][-1]


def likely(located: Located, wanted: str) -> EngineName:
    """The engine that `choose` will most often give."""
    fitting = _BY_KIND[located.kind]
    return next((name for name in fitting if name == wanted), fitting[0])


def choose(vocabulary: Vocabulary, wanted: str, *, parse_special: bool) -> Engine:
    """The fastest engine that is exact for this tokenizer (`auto`), or the one asked for; raises UsageError."""
    if wanted not in ("auto", *get_args(EngineName)):
        raise UsageError(f"no engine {wanted!r}; there are auto, {', '.join(get_args(EngineName))}")
    located = vocabulary.located
    fitting = _BY_KIND[located.kind]
    if wanted != "auto" and wanted not in fitting:
        raise UsageError(f"a tokenizer of kind {located.kind} is encoded by {' or '.join(fitting)}, not by {wanted}")
    for name in fitting:
        if wanted not in ("auto", name):
            continue
        try:
            engine = load(located, name, parse_special=parse_special)
            check_added(engine, vocabulary.added)
            if name == "fastokens" and (reason := obstacle(vocabulary, parse_special=parse_special)):
                raise Unfit(reason)
            return engine
        except Unfit as exc:
            if wanted == name or name == fitting[-1]:
                raise UsageError(f"{name} can't encode by {located.path}: {exc}") from exc
            _log.info("not %s: %s", name, exc)
    raise AssertionError(fitting)


def check_added(engine: Engine, added: Mapping[str, int]) -> None:
    """Ids in `added_tokens` that the model contradicts are read otherwise by Hugging Face; raises Unfit."""
    if not isinstance(engine, _Fastokens):
        return
    for token, token_id in added.items():
        if engine.token_to_id(token) != token_id:
            raise Unfit(f"it gives the added token {token!r} another id than Hugging Face")


def obstacle(vocabulary: Vocabulary, *, parse_special: bool) -> str | None:
    """Why the fast engine isn't exact for this tokenizer; None where nothing is known against it."""
    if vocabulary.reference is None:
        return None
    from dsmem.tokens import exactness

    return exactness.obstacle(vocabulary.reference, parse_special=parse_special)


def reference_in(vocabulary: Vocabulary, *, parse_special: bool) -> Engine | None:
    """The reference, if it was loaded to describe the tokenizer."""
    return None if vocabulary.reference is None else _Tokenizers(vocabulary.reference, parse_special)


def load(located: Located, name: EngineName, *, parse_special: bool) -> Engine:
    """That engine; raises Unfit, BadSource, UsageError (a package that is not installed)."""
    if name == "bytes":
        return _Bytes(parse_special)
    if name == "fastokens":
        return _Fastokens(located, parse_special)
    if name == "tokenizers":
        return _Tokenizers(load_reference(located.path), parse_special)
    if name == "tiktoken":
        return _Tiktoken(located, parse_special)
    return _SentencePiece(located.path, parse_special)


def _flat(parts: Sequence[Sequence[int]]) -> tuple[Ids, Lengths]:
    import numpy as np

    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    return np.fromiter(chain.from_iterable(parts), np.uint32, int(lengths.sum())), lengths


class _Fastokens:
    name: EngineName = "fastokens"

    def __init__(self, located: Located, parse_special: bool, *, by_regex: bool = False) -> None:
        """`by_regex`: whatever pattern it has code of its own for."""
        import fastokens

        self._split_special = not parse_special
        self._located = located
        self._seams: Seams | None = None
        self._left_out: Mapping[str, int] = {}
        self._by_regex: Engine | None = None
        self._mending: contractions.Mending | None = None
        try:
            if located.kind == "tiktoken":
                splitting = located.pattern
                self._tokenizer = fastokens.Tokenizer.from_tiktoken(
                    located.path,
                    pattern=contractions.unknown(splitting) if by_regex else splitting,
                    special_tokens=located.special_tokens,
                )
            else:
                splitting, self._left_out = _read(located.path, parse_special=parse_special)
                self._tokenizer = fastokens.Tokenizer.from_json_str(
                    contractions.file_unknown(splitting) if by_regex else splitting
                )
                self._tokenizer.no_truncation()
                self._tokenizer.no_padding()
        except (ValueError, RuntimeError, NotImplementedError, TypeError) as exc:
            raise Unfit(str(exc)) from exc
        if not by_regex and contractions.may_pass_by(splitting):
            has_seams = contractions.has_seams(splitting, is_file=located.kind != "tiktoken")
            at_seams = has_seams and all(map(_has_no_spaces, self._tokenizer.added_tokens()))
            self._mending = contractions.Mending(self._encode, self._encode_by_regex, at_seams=at_seams)

    def token_to_id(self, token: str) -> int | None:
        """The id that it gives an added token."""
        found: int | None = self._tokenizer.token_to_id(token)
        return self._left_out.get(token) if found is None else found

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        batch = texts if isinstance(texts, list) else list(texts)
        if self._mending is not None and any(contractions.LONG_S in text for text in batch):
            return self._mending.encode(batch)
        return self._encode(batch)

    def _encode(self, batch: list[str]) -> tuple[Ids, Lengths]:
        import numpy as np

        ids, offsets = self._tokenizer.encode_batch_flat(batch, split_special_tokens=self._split_special)
        ends = np.frombuffer(offsets, np.int64)  # it says uint64: the same below 2**63
        return np.frombuffer(ids, np.uint32), ends[1:] - ends[:-1]

    def _encode_by_regex(self, text: str) -> Ids:
        self._by_regex = self._by_regex or by_regex(self._located, parse_special=not self._split_special)
        return self._by_regex.encode([text])[0]

    def mend_by(self, exact: Callable[[str], Ids]) -> None:
        """See the function of that name."""
        if self._mending is not None:
            self._mending = self._mending.by(exact)

    def seams(self) -> Seams:
        from dsmem.tokens import seams

        self._seams = self._seams or seams.of_file(self._located)
        return self._seams


def by_regex(located: Located, *, parse_special: bool) -> Engine:
    """fastokens without code of its own for the patterns that it knows: exact, several times slower, loaded anew."""
    return _Fastokens(located, parse_special, by_regex=True)


def mend_by(engine: Engine, exact: Callable[[str], Ids]) -> None:
    """Let what the engine may split wrongly be encoded by `exact`, where it would load the tokenizer a second time."""
    if isinstance(engine, _Fastokens):
        engine.mend_by(exact)


def _has_no_spaces(added: Mapping[str, Any]) -> bool:
    """Whether an added token holds no white space, nor takes any along."""
    return not (added["lstrip"] or added["rstrip"] or any(map(str.isspace, added["content"])))


def _read(path: str, *, parse_special: bool) -> tuple[str, Mapping[str, int]]:
    """A tokenizer.json as an engine gets it, and the added tokens that were left out."""
    plain = None if parse_special else _without_special(path)
    return (Path(path).read_text("utf-8"), {}) if plain is None else plain


def _without_special(path: str) -> tuple[str, dict[str, int]] | None:
    """A tokenizer.json without its added tokens, and their ids, if all are special; None where any is not.

    Special ones are text to us, and fastokens looks for them in each text only to leave them there: some percent of
    its time. The rest of the file, which may be large, is not parsed.
    """
    try:
        text = Path(path).read_text("utf-8")
        key = _ADDED.search(text)
        if key is None or _ADDED.search(text, key.end()):
            return None
        json.loads(text[: key.start()].rstrip().removesuffix(",") + "}")  # else the key is one inside of another
        listed, end = json.JSONDecoder().raw_decode(text, key.end())
        added = {one["content"]: one["id"] for one in listed if one["special"] is True}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None  # it is no such file, which whoever loads it finds out
    return (f"{text[: key.end()]}[]{text[end:]}", added) if added and len(added) == len(listed) else None


class _Tokenizers:
    name: EngineName = "tokenizers"

    def __init__(self, tokenizer: Any, parse_special: bool) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = not parse_special
        self._seams: Seams | None = None

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        if len(texts) == 1:  # without the threads that a batch starts, and leaves
            return _flat([self._tokenizer.encode(texts[0], add_special_tokens=False).ids])
        return _flat([one.ids for one in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)])

    def seams(self) -> Seams:
        from dsmem.tokens import seams

        self._seams = self._seams or seams.of_tokenizer(self._tokenizer)
        return self._seams


class _Tiktoken:
    name: EngineName = "tiktoken"

    def __init__(self, located: Located, parse_special: bool) -> None:
        tiktoken = need("tiktoken")
        from tiktoken.load import load_tiktoken_bpe

        self._located = located
        self._seams: Seams | None = None
        self._allowed: Literal["all"] | set[str] = "all" if parse_special else set()
        self._encoding = tiktoken.Encoding(
            "dsmem",
            pat_str=located.pattern,
            mergeable_ranks=load_tiktoken_bpe(located.path),
            special_tokens=located.special_tokens,
        )

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        import numpy as np

        parts = [
            self._encoding.encode_to_numpy(text, allowed_special=self._allowed, disallowed_special=()) for text in texts
        ]
        ids = np.concatenate(parts).astype(np.uint32, copy=False) if parts else np.empty(0, np.uint32)
        return ids, np.fromiter(map(len, parts), np.int64, len(parts))

    def seams(self) -> Seams:
        from dsmem.tokens import seams

        self._seams = self._seams or seams.of_file(self._located)
        return self._seams


class _SentencePiece:
    name: EngineName = "sentencepiece"

    def __init__(self, path: str, parse_special: bool) -> None:
        if parse_special:
            raise UsageError("--parse-special: SentencePiece never reads its control symbols from text")
        self._model = load_sentencepiece(path)
        self._seams: Seams | None = None

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        return _flat(self._model.encode(list(texts), out_type=int, add_bos=False, add_eos=False, num_threads=1))

    def seams(self) -> Seams:
        from dsmem.tokens import seams

        self._seams = self._seams or seams.of_sentencepiece(self._model)
        return self._seams


class _Bytes:
    """A byte is its value, the end of text 256."""

    name: EngineName = "bytes"

    def __init__(self, parse_special: bool) -> None:
        self._parse_special = parse_special
        self._seams: Seams | None = None

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        import numpy as np

        if self._parse_special and any(END_OF_TEXT in text for text in texts):
            parts = [self._one(text) for text in texts]
            ids = np.concatenate(parts).astype(np.uint32)
            return ids, np.fromiter(map(len, parts), np.int64, len(parts))
        joined = "".join(texts)
        each = texts if joined.isascii() else [text.encode() for text in texts]
        lengths = np.fromiter(map(len, each), np.int64, len(each))
        return np.frombuffer(joined.encode(), np.uint8).astype(np.uint32), lengths

    def _one(self, text: str) -> NDArray[Any]:
        import numpy as np

        end = np.array([BYTES_END], np.uint16)
        pieces: list[NDArray[Any]] = []
        for piece in text.split(END_OF_TEXT):
            pieces += [np.frombuffer(piece.encode(), np.uint8), end]
        return np.concatenate(pieces[:-1])

    def seams(self) -> Seams:
        from dsmem.tokens import seams

        self._seams = self._seams or seams.Anywhere([END_OF_TEXT] if self._parse_special else [])
        return self._seams
