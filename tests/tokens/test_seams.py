"""A long document in pieces has the ids that its library gives the whole of it, whatever it is made of."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokentexts
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

import dsmem
from dsmem.tokens import engines, feeding, seams, vocabularies
from dsmem.tokens.seams import Seams
from dsmem.tokens.vocabularies import Located

STUFF = [*"0=-x \n\té.", "00", "123", "the", "  ", "\r\n", "東京", "🙂", "Word", "_a", "'s"]


def some_text(rng: random.Random, size: int) -> str:
    """Words, and runs of the same that are longer than any window."""
    found: list[str] = []
    while sum(map(len, found)) < size:
        if rng.random() < 0.1:
            found.append(rng.choice(STUFF) * rng.randrange(1, 1500))
        else:
            found += rng.choices(STUFF, k=rng.randrange(1, 400))
    return "".join(found)


def runs() -> Tokenizer:
    """Merges that take runs of one character together, as real vocabularies do for - and =."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab, merges = {character: number for number, character in enumerate(alphabet)}, []
    for character in "0-=x":
        token = character
        for _ in range(6):
            merges.append((token, token))
            token += token
            vocab[token] = len(vocab)
    vocab[tokentexts.END] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def bpe(*before: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not before)]
    )
    return trained(tokenizer, trainers.BpeTrainer, pre_tokenizers.ByteLevel.alphabet())


def trained(tokenizer: Tokenizer, trainer: Any, alphabet: Any = (), **options: Any) -> Tokenizer:
    rng = random.Random(5)
    made = trainer(
        vocab_size=600,
        special_tokens=[tokentexts.END, "<unk>"],
        initial_alphabet=list(alphabet),
        show_progress=False,
        **options,
    )
    tokenizer.train_from_iterator([*tokentexts.sources()[:3], *(some_text(rng, 2000) for _ in range(20))], made)
    return tokenizer


def no_pre_tokenizer() -> Tokenizer:
    """As Gemma's: the whole document is one word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained(tokenizer, trainers.BpeTrainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return trained(tokenizer, trainers.UnigramTrainer, unk_token="<unk>")


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return trained(tokenizer, trainers.WordPieceTrainer)


THREE = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "runs": runs,
    "gpt2": bpe,
    "three digits": lambda: bpe(pre_tokenizers.Split(Regex(THREE), "isolated")),
    "superwords": lambda: bpe(pre_tokenizers.Split(Regex(r"\p{N}{1,3}|[^\p{N}]+"), "isolated")),
    "no pre-tokenizer": no_pre_tokenizer,
    "unigram": unigram,
    "wordpiece": wordpiece,
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "LONG_BYTES", 2000)
    monkeypatch.setattr(feeding, "_READ_BYTES", 600)
    monkeypatch.setattr(feeding, "_WINDOW_BYTES", 100)
    monkeypatch.setattr(feeding, "_REACHES", (300, 1000))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_pieces_have_the_ids_of_the_whole(kind: str, small: None, tmp_path: Path) -> None:
    made = TOKENIZERS[kind]()
    path = tmp_path / "tokenizer.json"
    path.write_text(made.to_str())
    reference = Tokenizer.from_file(str(path))
    found: list[Any] = [engines.load(Located("tokenizer.json", str(path)), "tokenizers", parse_special=False)]
    if kind in ("runs", "gpt2", "three digits"):
        found.append(engines.load(Located("tokenizer.json", str(path)), "fastokens", parse_special=False))
    rng = random.Random(kind)
    cuts = 0
    for _ in range(25):
        text = some_text(rng, 12_000)
        for engine in found:
            pieces = list(feeding.feed(engine, feeding.reading(text), path="x", place=""))
            assert np.concatenate(pieces).tolist() == reference.encode(text, add_special_tokens=False).ids
            cuts += len(pieces) - 1
    assert cuts > 20


def test_pieces_of_sentencepiece(small: None, tmp_path: Path) -> None:
    rng = random.Random(3)
    for kind in ("unigram", "bpe"):
        path = tmp_path / f"{kind}.model"
        with path.open("wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter("\n".join(tokentexts.sources()[:4]).splitlines()[:2000]),
                model_writer=file,
                vocab_size=400,
                model_type=kind,
                minloglevel=2,
            )
        engine = engines.load(Located("sentencepiece", str(path)), "sentencepiece", parse_special=False)
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
        cuts = 0
        # Unigram sums up scores in float32 from the beginning of a text: of two ways to take a run apart that are as
        # good as each other it chooses by the rounding.
        odd = [some_text(rng, 9000) for _ in range(15)] if kind == "bpe" else []
        for text in (*odd, "\n".join(tokentexts.sources()[5:9])):
            pieces = list(feeding.feed(engine, feeding.reading(text), path="x", place=""))
            assert np.concatenate(pieces).tolist() == theirs.encode(text)
            cuts += len(pieces) - 1
        assert cuts > 5


def test_a_run_longer_than_a_piece_is_one_word(tmp_path: Path) -> None:
    """At the real sizes: 7 MiB of zeros, which no place may cut."""
    runs().save(str(tmp_path / "tokenizer.json"))
    text = "abc" + "0" * (7 << 20) + " end"
    (tmp_path / "x.txt").write_text(text)
    done = dsmem.tokenize(tmp_path / "x.txt", tmp_path / "x.bin", tokenizer=tmp_path / "tokenizer.json", verify=0)
    ids = np.fromfile(tmp_path / "x.bin", np.uint16)
    assert done.tokens == len(ids) == 3 + (7 << 20) // 64 + 4 + 1
    assert np.unique(ids[3:-5]).size == 1


def test_a_run_that_is_too_long_is_refused_by_name(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "MOST_WHOLE_BYTES", 9000)
    runs().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "x.txt").write_text("abc" * 1000 + "0" * 20_000)
    with pytest.raises(dsmem.BadSource, match=r"x\.txt: no place to cut this document in the .* after 2\.. KiB"):
        dsmem.tokenize(tmp_path / "x.txt", tmp_path / "x.bin", tokenizer=tmp_path / "tokenizer.json")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["tokenizer.json", "x.txt"]


def test_no_token_lies_across_a_cut(tmp_path: Path) -> None:
    """Of every engine, by what its library says about its tokens."""
    text = "".join(tokentexts.sources()[:1])[:4000]
    data = text.encode()
    (tmp_path / "tokenizer.json").write_text(tokentexts.trained())
    located = Located("tokenizer.json", str(tmp_path / "tokenizer.json"))
    tokens = [tokentexts.reference().decode([one]) for one in range(1, 1000)]
    for name in ("fastokens", "tokenizers"):
        engine = engines.load(located, name, parse_special=False)
        for kind in engine.seams().cuts(data, 1, len(data)):
            assert kind
            for cut in kind:
                assert not any(data[cut - 1 : cut + 1].decode("latin-1") in token for token in tokens)
    assert vocabularies.BYTES_END == 256
    assert len(engines.load(Located("bytes"), "bytes", parse_special=False).seams().cuts(data, 1, len(data))[2]) > 2000


def test_how_vocabularies_write_what_they_hold() -> None:
    data = b"xx aB\nBc"

    def cuts(*tokens: str, is_normalized: bool = False) -> list[int]:
        found = Seams(tokens, within_words=True, is_normalized=is_normalized).cuts(data, 1, len(data))
        return sorted(found[0] + found[1] + found[2])

    assert cuts() == [2, 4, 6]
    assert cuts("xĠ") == cuts("x▁") == cuts("x ") == [4, 6]
    assert cuts("ab") == [2, 4, 6] and cuts("ab", is_normalized=True) == [2, 6]
    assert cuts("ĊB") == cuts("▁B") == [2, 4]
    assert Seams([], within_words=False).cuts(data, 1, len(data)) == [[6], [2], []]
    assert seams.Seams([], within_words=True).cuts(b"a", 1, 1) == [[], [], []]
