"""The reference as a worker has it that does not load one: in the process that started it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dsmem.tokens.engines import EngineName, Ids, Lengths
    from dsmem.tokens.seams import Seams


class Asked:
    """An engine that sends each text; the vocabulary is looked through as another does it."""

    def __init__(self, name: EngineName, ask: Callable[[str], list[int]], seams: Callable[[], Seams]) -> None:
        self.name = name
        self._ask = ask
        self._find_seams = seams

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        """As whoever is asked does."""
        found = [np.array(self._ask(text), np.uint32) for text in texts]
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        return np.concatenate(found) if found else np.empty(0, np.uint32), lengths

    def seams(self) -> Seams:
        """Of the same vocabulary."""
        return self._find_seams()
