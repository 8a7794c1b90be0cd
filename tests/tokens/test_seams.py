"""A long document in pieces has the ids that its library gives the whole of it, whatever it is made of."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sentencepiece
import tokentexts
from pyarrow import parquet
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

import dsmem
from dsmem.tokens import encoding, engines, feeding, vocabularies
from dsmem.tokens.seams import Anywhere, ByteSeams, Seams, TextSeams, of_file, of_sentencepiece, of_tokenizer
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


def sentences(*, unknown: bool = False, pre_tokenizer: Any = None, normalizer: Any = None) -> Tokenizer:
    """As Llama 2's and Mistral's: the whole document is one word, or what is between spaces; `unknown`: some characters
    have no token, and there are no bytes to fall back to."""
    names = ["<unk>", *(() if unknown else (f"<0x{byte:02X}>" for byte in range(256)))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=not unknown))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    rng = random.Random(6)
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=names, show_progress=False, limit_alphabet=90)
    tokenizer.train_from_iterator([*tokentexts.sources()[:3], *(some_text(rng, 2000) for _ in range(9))], trainer)
    made = json.loads(tokenizer.to_str())
    made["added_tokens"] = made["added_tokens"][:1]
    made["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(made))
    llama = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizer or normalizers.Sequence(llama if pre_tokenizer is None else [])
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


def with_added(tokenizer: Tokenizer) -> Tokenizer:
    both = AddedToken("_a", lstrip=True, rstrip=True)
    ends = AddedToken("東京", rstrip=True, normalized=False)
    begins = AddedToken("123", lstrip=True, normalized=True)
    tokenizer.add_tokens([both, ends, begins, AddedToken("Word", single_word=True), AddedToken("the 'd")])
    tokenizer.add_special_tokens(["\r\n"])
    return tokenizer


def metaspace(scheme: str, split: bool) -> Any:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)


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
    "llama": sentences,
    "llama, unknown": lambda: sentences(unknown=True),
    "llama, added": lambda: with_added(sentences()),
    "llama, composed": lambda: sentences(
        normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ),
    "metaspace first": lambda: with_added(sentences(pre_tokenizer=metaspace("first", True))),
    "metaspace always": lambda: sentences(unknown=True, pre_tokenizer=metaspace("always", False)),
    "metaspace never": lambda: with_added(sentences(unknown=True, pre_tokenizer=metaspace("never", True))),
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
    reference.encode_special_tokens = True  # what looks so in a text is text
    found: list[Any] = [engines.load(Located("tokenizer.json", str(path)), "tokenizers", parse_special=False)]
    if kind in ("runs", "gpt2", "three digits", "llama"):
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
    plain = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    options: dict[str, dict[str, Any]] = {
        "unigram": {},
        "bpe": {},
        "plain": plain,
        "bytes": {**plain, "byte_fallback": True, "vocab_size": 600, "user_defined_symbols": ["\n", "the", "東京"]},
        "suffix": {**plain, "treat_whitespace_as_suffix": True},
        "collapsed": {**plain, "remove_extra_whitespaces": True},
        "whole": {**plain, "add_dummy_prefix": False},
    }
    for kind, chosen in options.items():
        path = tmp_path / f"{kind}.model"
        with path.open("wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter("\n".join(tokentexts.sources()[:4]).splitlines()[:2000]),
                model_writer=file,
                model_type="unigram" if kind == "unigram" else "bpe",
                minloglevel=2,
                **{"vocab_size": 400, **chosen},
            )
        engine = engines.load(Located("sentencepiece", str(path)), "sentencepiece", parse_special=False)
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
        cuts = 0
        # Unigram sums up scores in float32 from the beginning of a text: of two ways to take a run apart that are as
        # good as each other it chooses by the rounding.
        odd = [] if kind == "unigram" else [some_text(rng, 9000) for _ in range(15)]
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


@pytest.mark.parametrize(("stuff", "special"), [("東京", False), ("endoft", True), (f"{tokentexts.END}🙂", True)])
def test_bytes_are_cut_anywhere(stuff: str, special: bool, tmp_path: Path) -> None:
    """At the real sizes: more than is encoded whole, without a line end or a space."""
    text = stuff * ((9 << 20) // len(stuff.encode()))
    (tmp_path / "x.txt").write_text(text)
    done = dsmem.tokenize(tmp_path / "x.txt", tmp_path / "x.bin", eos="none", parse_special=special)
    ids = np.fromfile(tmp_path / "x.bin", np.uint16)
    expected = [*stuff.encode()] if tokentexts.END not in stuff else [256, *"🙂".encode()]
    assert done.documents == 1
    assert np.array_equal(ids, np.tile(np.array(expected, np.uint16), len(text) // len(stuff)))


def test_seams_of_bytes() -> None:
    data = f"aé{tokentexts.END}b".encode()
    assert Anywhere([]).cuts(data, 0, len(data)) == [[0, 1, *range(3, len(data))]]
    assert Anywhere([tokentexts.END]).cuts(data, 1, 99) == [[1, 3, 16]]
    assert Anywhere([tokentexts.END]).cuts(data, 5, 9) == Anywhere([]).cuts(data, 2, 3) == [[]]
    assert Anywhere([]).cuts(data, 3, 3) == [[]]


def test_a_run_that_is_too_long_is_refused_by_name(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "MOST_WHOLE_BYTES", 9000)
    runs().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "x.txt").write_text("abc" * 1000 + "0" * 20_000)
    with pytest.raises(dsmem.BadSource, match=r"x\.txt: no place to cut this document in the .* after 2\.. KiB"):
        dsmem.tokenize(tmp_path / "x.txt", tmp_path / "x.bin", tokenizer=tmp_path / "tokenizer.json")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["tokenizer.json", "x.txt"]


@pytest.mark.parametrize("kind", ["jsonl", "line", "files", "parquet"])
@pytest.mark.parametrize("room_bytes", [0, 1 << 20])
def test_a_run_that_is_too_long_is_left_out(
    room_bytes: int, kind: str, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what was written of it before nothing stays."""
    monkeypatch.setattr(feeding, "MOST_WHOLE_BYTES", 9000)
    monkeypatch.setattr(encoding, "share_bytes", lambda _: room_bytes)
    places = feeding.places
    uncut = b"0" * 2000
    monkeypatch.setattr(
        feeding, "places", lambda engine, held, first=0: () if uncut in held else places(engine, held, first)
    )
    runs().save(str(tmp_path / "tokenizer.json"))
    long = "abc" * 1000
    bad = long + "0" * 20_000
    texts = ["abc abc", bad, "c", long, bad + "c", bad + long, "0"]

    def made(name: str, texts: list[str]) -> tuple[dsmem.Tokenized, list[bytes]]:
        directory = tmp_path / name
        directory.mkdir()
        rows = [json.dumps({"text": text}) for text in texts] if kind == "jsonl" else texts
        if kind == "files":
            for number, text in enumerate(texts):
                (directory / f"{number}.txt").write_text(text)
        elif kind == "parquet":
            parquet.write_table(pa.table({"text": texts}), directory / "x.parquet")
        else:
            (directory / f"x.{'jsonl' if kind == 'jsonl' else 'txt'}").write_text("\n".join(rows))
        options: dict[str, Any] = {"tokenizer": tmp_path / "tokenizer.json", "on_error": "skip"}
        options["split_on"] = "line" if kind == "line" else None
        done = dsmem.tokenize(directory, directory / "x.bin", val_fraction=0.4, **options)
        return done, [one.read_bytes() for one in sorted(directory.glob("*.npy")) + sorted(directory.glob("*.bin"))]

    done, found = made("all", texts)
    others, expected = made("others", [texts[number] for number in (0, 2, 3, 6)])
    assert found == expected
    assert (done.skipped, done.verified, done.verified_in_pieces) == (3, others.verified, others.verified_in_pieces)
    for place, number in zip(done.skipped_places, (1, 4, 5), strict=True):
        name = f"{number}.txt" if kind == "files" else rf"x\.\w+:(row )?{number + 1}"
        assert re.search(f"{name}: no place to cut this document", place)


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
    assert len(engines.load(Located("bytes"), "bytes", parse_special=False).seams().cuts(data, 1, len(data))[0]) > 2000


@pytest.mark.parametrize(
    "stuff", ["Съешь же ещё этих мягких французских булок\n", "天地玄黄、宇宙洪荒。", "no  one space "]
)
def test_text_of_any_script_is_cut(stuff: str, small: None, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(sentences().to_str())
    text = stuff * 500
    for name in ("fastokens", "tokenizers"):
        engine = engines.load(Located("tokenizer.json", str(path)), name, parse_special=False)
        pieces = list(feeding.feed(engine, feeding.reading(text), path="x", place=""))
        assert len(pieces) > len(text.encode()) // 4000
        assert np.concatenate(pieces).tolist() == engine.encode([text])[0].tolist()


class Counting:
    """A reference that tells how often it was asked, and differs from some time on."""

    name: engines.EngineName = "tokenizers"

    def __init__(self, engine: engines.Engine, right: int = 1 << 40) -> None:
        self._engine = engine
        self._right = right
        self.asked = 0

    def encode(self, texts: Sequence[str]) -> tuple[engines.Ids, engines.Lengths]:
        self.asked += 1
        ids, lengths = self._engine.encode(texts)
        return (ids if self.asked <= self._right else ids[::-1]), lengths

    def seams(self) -> Seams:
        return self._engine.seams()


def test_cuts_are_compared_by_bytes_of_text(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first, then one after so much more, and the end."""
    path = tmp_path / "tokenizer.json"
    path.write_text(tokentexts.trained())
    engine, reference = (
        engines.load(Located("tokenizer.json", str(path)), name, parse_special=False)
        for name in ("fastokens", "tokenizers")
    )
    text = "some words, and more\n" * 5000

    def asked(between_bytes: int, right: int = 1 << 40) -> tuple[int, int]:
        monkeypatch.setattr(feeding, "_BETWEEN_BYTES", between_bytes)
        counting = Counting(reference, right)
        comparing = feeding.Comparing(counting, all=False)
        pieces = list(feeding.feed(engine, feeding.reading(text), path="x", place="", comparing=comparing))
        assert np.concatenate(pieces).tolist() == engine.encode([text])[0].tolist()
        return counting.asked, len(pieces)

    every, pieces = asked(0)
    assert every == pieces > 20
    assert 4 <= asked(len(text) // 4)[0] <= 6
    assert asked(1 << 40)[0] == 2
    for right in (0, 2):
        with pytest.raises(dsmem.EngineDiffers, match=r"x: .* differ around a place where it was cut"):
            asked(len(text) // 4, right)


def test_what_is_not_utf8_is_said_where_nothing_can_be_cut(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "MOST_WHOLE_BYTES", 9000)
    path = tmp_path / "tokenizer.json"
    path.write_text(sentences().to_str())
    engine = engines.load(Located("tokenizer.json", str(path)), "fastokens", parse_special=False)
    data = memoryview(("Съешь же ещё\n" * 3000).encode("koi8-r"))
    with pytest.raises(dsmem.BadDocument, match=r"x:1: not UTF-8: byte 0xf3"):
        list(feeding.feed(engine, feeding.reading_bytes(data), path="x", place=""))


AS_IT_IS = [
    sentences,
    lambda: with_added(sentences()),
    lambda: sentences(normalizer=normalizers.Replace(" ", "▁")),
    lambda: sentences(pre_tokenizer=metaspace("first", True)),
    lambda: sentences(pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous")),
]
OTHERWISE = [
    runs,
    unigram,
    wordpiece,
    lambda: sentences(normalizer=normalizers.NFC()),
    lambda: sentences(normalizer=normalizers.Sequence([normalizers.Replace(" ", "▁"), normalizers.Lowercase()])),
    lambda: sentences(normalizer=normalizers.Replace(Regex(" "), "▁")),
    lambda: sentences(normalizer=normalizers.Replace("x", "▁")),
    lambda: sentences(normalizer=normalizers.Replace(" ", "_")),
    lambda: sentences(pre_tokenizer=pre_tokenizers.Metaspace(replacement="_")),
    lambda: sentences(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(), metaspace("never", True)])),
    lambda: Tokenizer(models.BPE(end_of_word_suffix="</w>")),
    lambda: Tokenizer(models.BPE(continuing_subword_prefix="##")),
]


@pytest.mark.parametrize("make", [*AS_IT_IS, *OTHERWISE])
def test_whose_seams_go_by_characters(make: Callable[[], Tokenizer], tmp_path: Path) -> None:
    made = make()
    path = tmp_path / "tokenizer.json"
    path.write_text(made.to_str())
    expected = TextSeams if make in AS_IT_IS else ByteSeams
    assert type(of_tokenizer(made)) is type(of_file(Located("tokenizer.json", str(path)))) is expected


@pytest.mark.parametrize(
    ("expected", "options"),
    [
        (TextSeams, {"normalization_rule_name": "identity"}),
        (ByteSeams, {"normalization_rule_name": "nmt_nfkc"}),
        (ByteSeams, {"normalization_rule_name": "identity", "model_type": "unigram"}),
    ],
)
def test_whose_seams_go_by_characters_of_sentencepiece(expected: type, options: dict[str, Any]) -> None:
    held = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tokentexts.sources()[0].splitlines()),
        model_writer=held,
        minloglevel=2,
        **{"vocab_size": 150, "model_type": "bpe", **options},
    )
    model = held.getvalue()
    assert type(of_sentencepiece(sentencepiece.SentencePieceProcessor(model_proto=model))) is expected
    spaced = model + b"\x1a\x02\x28\x00"  # normalizer_spec: escape_whitespaces is false
    assert type(of_sentencepiece(sentencepiece.SentencePieceProcessor(model_proto=spaced))) is ByteSeams


def test_seams_of_text() -> None:
    data = "aé é\n東京  x▁y\0z".encode()

    def cuts(*tokens: str) -> list[list[str]]:
        return [[data[:cut].decode() for cut in kind] for kind in TextSeams(tokens).cuts(data, 1, len(data))]

    spaces = ["aé", "aé é\n東京", "aé é\n東京  x"]
    everywhere = [["aé é\n"], spaces, ["a", "aé é\n東"]]
    assert cuts() == cuts("é", "xy", "\0z") == everywhere
    assert cuts("aé")[2] == ["aé é\n東"] and cuts("aé", "x東京")[2] == []
    assert cuts("é▁") == cuts("é ") == [everywhere[0], spaces[1:], everywhere[2]]
    assert cuts("\n東")[0] == []
    assert TextSeams(["é▁"]).cuts(data, 4, 5) == [[], [], []]
    assert TextSeams([]).cuts(data, 2, 3) == [[], [], []]  # inside a character
    assert TextSeams([]).cuts(data, 3, 4) == [[], [3], []]
    assert TextSeams([]).cuts(b"a\xff b", 1, 4) == TextSeams([]).cuts(b"a", 1, 1) == [[], [], []]


def test_how_vocabularies_write_what_they_hold() -> None:
    data = b"xx aB\nBc"

    def cuts(*tokens: str, is_normalized: bool = False) -> list[int]:
        found = ByteSeams(tokens, within_words=True, is_normalized=is_normalized).cuts(data, 1, len(data))
        return sorted(found[0] + found[1] + found[2])

    assert cuts() == [2, 4, 6]
    assert cuts("xĠ") == cuts("x▁") == cuts("x ") == [4, 6]
    assert cuts("ab") == [2, 4, 6] and cuts("ab", is_normalized=True) == [2, 6]
    assert cuts("ĊB") == cuts("▁B") == [2, 4]
    assert ByteSeams([], within_words=False).cuts(data, 1, len(data)) == [[6], [2], []]
    assert ByteSeams([], within_words=True).cuts(b"a", 1, 1) == [[], [], []]
