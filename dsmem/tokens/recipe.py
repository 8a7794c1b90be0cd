"""What a worker must know to make parts; neither numpy nor an engine is imported to say it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dsmem.tokens.layout import TokenDtype
from dsmem.tokens.vocabularies import Located

if TYPE_CHECKING:
    from dsmem.tokens.engines import EngineName

VERIFY_EVERY = 16
"""The sample is taken from every 16th part, so that few workers load the reference."""
ALL = -1


def is_compared(number: int, documents: int, compared: int, wanted: int) -> bool:
    """Whether part `number`, of so many documents, was compared as a run with `verify=wanted` compares it, or more."""
    if wanted == ALL:
        return compared >= documents
    return number % VERIFY_EVERY != 0 or compared >= min(wanted, documents)


def is_as_much(before: int, wanted: int) -> bool:
    """Whether a run with `verify=before` compares all that one with `wanted` does."""
    return before == ALL or (wanted != ALL and before >= wanted)


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that a worker must know; JSON holds all of it."""

    directory: str
    located: Located
    engine: EngineName
    parse_special: bool
    dtype: TokenDtype
    largest_id: int
    head: tuple[int, ...]
    tail: tuple[int, ...]
    text_field: str
    encoding: str
    skip_bad: bool
    with_keys: bool
    verify: int
    """Documents of every VERIFY_EVERY-th part; ALL = each of every part."""
    workers: int = 1
    """So many processes do this."""
    can_ask: bool = False
    """Whoever started the workers has loaded the reference, and encodes for those that compare."""

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def load(cls, raw: dict[str, Any]) -> Recipe:
        """From what `dump` gave."""
        located = Located(**raw["located"])
        return cls(**{**raw, "located": located, "head": tuple(raw["head"]), "tail": tuple(raw["tail"])})
