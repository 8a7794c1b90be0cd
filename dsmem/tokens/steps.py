"""The steps of a normalizer or pre-tokenizer, as tokenizer.json has them."""

from __future__ import annotations

import json
from typing import Any


def described(part: Any) -> Any:
    """A normalizer or pre-tokenizer that `tokenizers` has loaded as tokenizer.json has it."""
    return None if part is None else json.loads(part.__getstate__())


def steps(part: Any) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer of a tokenizer.json, or those of its sequence."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [step for inner in part.get("normalizers", part.get("pretokenizers")) for step in steps(inner)]
