"""Ids back to text by every kind of tokenizer, and a tokenizer that is not the one that encoded."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokentexts

import dsmem
from dsmem.errors import BadSource, SourceMissing
from dsmem.tokens import manifest
from dsmem.tokens.decoding import decoder
from dsmem.tokens.manifest import Tokenizer
from dsmem.tokens.vocabularies import describe

TEXT = "Hello, wörld: 12345 tokens\n  and more."


def _texts() -> Iterator[str]:
    return iter([TEXT] * 50)


def made_by(spec: str, tmp_path: Path) -> Tokenizer:
    found = describe(spec, scratch=lambda: str(tmp_path))
    return Tokenizer(
        spec=spec,
        kind=found.located.kind,
        sha256=found.sha256,
        vocab_size=found.vocab_size,
        largest_id=found.largest_id,
        bos_id=found.bos_id,
        eos_id=found.eos_id,
        engine="",
        engine_version="",
        reference="",
        verified_documents=0,
        parse_special=False,
    )


@pytest.fixture
def json_file(tmp_path: Path) -> tuple[str, Any]:
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers, trainers

    fast = Fast(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(_texts(), trainer)
    path = tmp_path / "tokenizer.json"
    fast.save(str(path))
    return str(path), fast


def test_bytes(tmp_path: Path) -> None:
    decode = decoder(made_by("bytes", tmp_path))
    assert decode([*TEXT.encode(), 256]) == f"{TEXT}<|endoftext|>"
    assert decode("é".encode()[:1]) == "\ufffd"


def test_tokenizer_json(json_file: tuple[str, Any], tmp_path: Path) -> None:
    path, fast = json_file
    decode = decoder(made_by(path, tmp_path))
    ids = fast.encode(TEXT).ids
    assert decode([*ids, fast.token_to_id("<|endoftext|>")]) == f"{TEXT}<|endoftext|>"


def test_tiktoken(tmp_path: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([one]): one for one in range(256)} | {b"Hel": 256, b"lo": 257}
    path = tmp_path / "r50k_base.tiktoken"
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items()))
    tokenizer = made_by(str(path), tmp_path)
    encoding = tiktoken.Encoding("t", pat_str=r"\w+|\W+", mergeable_ranks=ranks, special_tokens={})
    decode = decoder(tokenizer)
    assert decode(encoding.encode_ordinary(TEXT)) == TEXT
    assert tokenizer.eos_id is not None
    assert decode([tokenizer.eos_id]) == "<|endoftext|>"


def test_sentencepiece(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    stem = tmp_path / "m"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in TEXT.splitlines() for _ in range(50)]),
        model_prefix=str(stem),
        vocab_size=40,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=f"{stem}.model")
    assert decoder(made_by(f"{stem}.model", tmp_path))(model.encode("Hello, tokens")) == "Hello, tokens"


def test_another_tokenizer_of_that_name_is_refused(json_file: tuple[str, Any], tmp_path: Path) -> None:
    path, _ = json_file
    tokenizer = made_by(path, tmp_path)
    text = Path(path).read_text()
    Path(path).write_text(f"{text} ")
    with pytest.raises(BadSource, match="its content has changed"):
        decoder(tokenizer)
    with pytest.raises(SourceMissing):
        decoder(replace(tokenizer, spec=f"{path}.gone.json"))


def test_ids_that_a_tokenizer_does_not_have(json_file: tuple[str, Any], tmp_path: Path) -> None:
    """Damaged files hold such; a library raises whatever it likes, or leaves them out in silence."""
    path = tmp_path / "cl100k_base.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256)))
    for spec, largest in ((json_file[0], None), ("bytes", 256), (str(path), 100_276)):
        tokenizer = made_by(spec, tmp_path)
        largest = largest or tokenizer.largest_id
        with pytest.raises(BadSource, match=rf"id {largest + 1} is beyond {largest}, the largest of"):
            decoder(tokenizer)([97, largest + 1])
    with pytest.raises(BadSource, match="lacks an id that stands there"):
        decoder(made_by(str(path), tmp_path))([97, 300])


def test_a_tokenizer_by_a_relative_path_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tokenizer.json").write_text(tokentexts.trained())
    Path("in.txt").write_text("some text")
    dsmem.tokenize("in.txt", "out.bin", tokenizer="tokenizer.json")
    monkeypatch.chdir("/")
    tokenizer = manifest.load((tmp_path / "out.json").read_bytes()).tokenizer
    assert decoder(tokenizer)(np.fromfile(tmp_path / "out.bin", np.uint16).tolist()) == f"some text{tokentexts.END}"
