"""How text becomes tokens (`Options`), in which files they lie (`Arrangement`), and what came of it (`Tokenized`)."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import Literal, get_args

from dsmem.errors import NoEndToken, UsageError
from dsmem.tokens.arguments import need_text
from dsmem.tokens.cutting import Separator
from dsmem.tokens.layout import ITEM_BYTES, LARGEST_ID, TokenDtype
from dsmem.tokens.manifest import Place
from dsmem.tokens.vocabularies import Vocabulary

OnError = Literal["raise", "skip"]
_NO_ENCODINGS_OF_FILES = ("punycode", "idna")
VERIFY_DOCUMENTS = 16
"""Of every 16th part (512 MiB of input): what the reference needs for them is a few percent of the time."""

MOST_SHARDS = 99_999
"""Five digits in a name."""


class TooFewDocuments(UsageError):
    """More shards are wanted than there are documents."""


@dataclass(frozen=True, slots=True)
class Output:
    """One finished token file."""

    path: str
    split: str
    tokens: int
    documents: int


@dataclass(frozen=True, slots=True)
class Tokenized:
    """What `tokenize` did."""

    outputs: tuple[Output, ...]
    tokens: int
    documents: int
    text_bytes: int
    input_bytes: int
    """As the files lie; 0 for streams."""
    dtype: TokenDtype
    tokenizer: str
    engine: str
    verified: int
    """Documents compared with the reference."""
    verified_in_pieces: int
    """Of them, those too long to be compared whole: with `verify="all"` in pieces, else around their cuts only."""
    skipped: int
    skipped_places: tuple[str, ...]
    """The first of them, with file, place and reason."""
    parts: int
    resumed_parts: int
    workers: int
    """Processes; 0 = this one."""
    why_fewer_workers: str
    """Than were asked for; "" if there are as many."""
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Options:
    """How text becomes tokens: all that decides about the ids and where documents end."""

    tokenizer: str = "bytes"
    engine: str = "auto"
    text_field: str = "text"
    split_on: Separator | None = None
    encoding: str = "utf-8"
    bos: Place = "none"
    eos: Place = "append"
    bos_token: str | None = None
    eos_token: str | None = None
    parse_special: bool = False
    dtype: TokenDtype | None = None
    verify: int | Literal["all"] = VERIFY_DOCUMENTS
    on_error: OnError = "raise"

    def check(self) -> None:
        """Raise UsageError for what can't be meant."""
        if self.split_on not in (None, "line", "blank"):
            raise UsageError(f"documents are split on line or blank, not on {self.split_on!r}")
        for name, place in (("bos", self.bos), ("eos", self.eos)):
            if place not in get_args(Place):
                raise UsageError(f"{name} is append, prepend or none, not {place!r}")
        if self.on_error not in get_args(OnError):
            raise UsageError(f"on_error is raise or skip, not {self.on_error!r}")
        if self.dtype is not None and (not isinstance(self.dtype, str) or self.dtype not in ITEM_BYTES):
            raise UsageError(f"ids are uint16 or uint32, not {self.dtype!r}")
        if self.verify != "all" and (type(self.verify) is not int or self.verify < 0):
            raise UsageError(f"verify is a number of documents or all, not {self.verify!r}")
        need_text(encoding=self.encoding, text_field=self.text_field, engine=self.engine)
        try:
            name = codecs.lookup(self.encoding).name
        except (LookupError, ValueError) as exc:
            raise UsageError(f"no encoding {self.encoding!r}") from exc
        try:
            b"a".decode(name, "ignore")  # of nothing any codec makes nothing
        except (LookupError, UnicodeError) as exc:
            raise UsageError(f"{self.encoding!r} is no encoding of text") from exc
        if name in _NO_ENCODINGS_OF_FILES:
            raise UsageError(f"{self.encoding!r} encodes names, not files")


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How documents are spread over files and in which order they lie."""

    shards: int | None = None
    """So many files, as even in tokens as whole documents allow; the validation documents lie in one all the same."""
    shard_tokens: int | None = None
    """Files of at most so many tokens, as few as there can be in this order; the validation documents' files too."""
    val_fraction: float = 0.0
    """A document whose key is below this fraction of 2**64 is for validation: its content decides, not its place."""
    shuffle_seed: int | None = None

    def check(self) -> None:
        """Raise UsageError for what can't be meant; what depends on the documents is told when they are arranged."""
        if self.shards is not None and self.shard_tokens is not None:
            raise UsageError("either a number of shards or their size in tokens, not both")
        if self.shards is not None and not 1 <= self.shards <= MOST_SHARDS:
            raise UsageError(f"{self.shards} shards can't be; 1 to {MOST_SHARDS}")
        if self.shard_tokens is not None and self.shard_tokens < 1:
            raise UsageError(f"shards of {self.shard_tokens} tokens can't be; at least 1")
        if not 0 <= self.val_fraction < 1:
            raise UsageError(f"a fraction of {self.val_fraction:g} can't be set aside; from 0 to less than 1")


def frame_of(vocabulary: Vocabulary, options: Options) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and after each document; raises NoEndToken."""
    head: list[int] = []
    tail: list[int] = []
    for name, place, token in (("bos", options.bos, vocabulary.bos_id), ("eos", options.eos, vocabulary.eos_id)):
        if place == "none":
            continue
        if token is None:
            raise NoEndToken(
                f"{vocabulary.spec} has no {name} token that is known by a common name", option=f"--{name}-token"
            )
        (head if place == "prepend" else tail).append(token)
    return tuple(head), tuple(tail)


def dtype_of(vocabulary: Vocabulary, wanted: TokenDtype | None) -> TokenDtype:
    """The narrowest dtype that holds every id, or the one that is wanted; raises UsageError if ids do not fit it."""
    largest = vocabulary.largest_id
    if wanted is None:
        return "uint16" if largest <= LARGEST_ID["uint16"] else "uint32"
    if largest > LARGEST_ID[wanted]:
        raise UsageError(
            f"{wanted} holds ids up to {LARGEST_ID[wanted]}; {vocabulary.spec} has {vocabulary.vocab_size}, "
            f"up to {largest}: use uint32",
            option="--dtype",
            value="uint32",
        )
    return wanted
