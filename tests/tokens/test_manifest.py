"""A manifest is what it should be in every field, or none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenfiles import make_manifest

from dsmem.tokens import manifest
from dsmem.tokens.manifest import BadManifest


def test_there_and_back() -> None:
    made = make_manifest("uint16")
    assert manifest.load(made.dump()) == made


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("shards",), "x"),
        (("shards",), 0),
        (("shard",), 1),
        (("val_fraction",), None),
        (("val_fraction",), float("nan")),
        (("split",), "half"),
        (("dtype",), []),
        (("digest",), 5),
        (("tokens",), True),
        (("tokens",), -1),
        (("shuffle_seed",), "1"),
        (("created",), 7),
        (("tokenizer", "vocab_size"), None),
        (("tokenizer", "eos_id"), "end"),
        (("tokenizer", "spec"), ["bytes"]),
        (("tokenizer", "parse_special"), 1),
        (("inputs", 0, "size_bytes"), "x"),
        (("inputs", 0, "path"), None),
    ],
)
def test_values_that_can_not_be(path: tuple[Any, ...], value: object) -> None:
    raw = json.loads(make_manifest("uint16").dump())
    raw["inputs"] = [{"path": "x", "size_bytes": 1, "digest": ""}]
    manifest.load(json.dumps(raw).encode())
    at = raw
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    with pytest.raises(BadManifest, match="can't be: "):
        manifest.load(json.dumps(raw).encode())
