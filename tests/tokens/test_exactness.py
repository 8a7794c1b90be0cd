"""Which tokenizers fastokens is exact for: what differs is told beforehand, and what is fit does not differ."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

import fastokens
import numpy as np
import pytest
import tiktoken
import tokentexts
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

import dsmem
from dsmem.tokens import contractions, engines, exactness, vocabularies
from dsmem.tokens.vocabularies import describe

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


LETTERS = [chr(code) for code in range(32, 127)]


def written(path: Path, tokens: list[str], **changes: Any) -> Path:
    """A BPE of those tokens; `changes` of the tokenizer, and within `model`."""
    model: dict[str, Any] = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": {token: number for number, token in enumerate(tokens)}, "merges": [], **changes.pop("model", {}),
    }  # fmt: skip
    raw: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
    }
    raw |= {"pre_tokenizer": None, "post_processor": None, "decoder": None, **changes, "model": model}
    path.write_text(json.dumps(raw))
    return path


def token(content: str, number: int, **flags: bool) -> dict[str, Any]:
    """One of `added_tokens`."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": number, "content": content, **plain, **flags}


def theirs(path: Path, texts: list[str], *, special: bool = False) -> list[list[int]]:
    """What Hugging Face gives."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = not special
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def fast(path: Path, texts: list[str], *, special: bool = False) -> list[list[int]]:
    """What fastokens gives."""
    tokenizer = fastokens.Tokenizer.from_file(str(path))
    ids, ends = tokenizer.encode_batch_flat(texts, split_special_tokens=not special)
    bounds = np.frombuffer(ends, np.uint64).astype(int)
    return [part.tolist() for part in np.split(np.frombuffer(ids, np.uint32), bounds[1:-1])]


LEVEL = list(exactness.ALPHABET)
BY_BYTE = {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}}
UNKNOWN = {"unk_token": "?"}
FALLBACK = {"byte_fallback": True}
CASES: dict[str, tuple[list[str], dict[str, Any], str, str]] = {
    "bytes": ([*BYTES, "x", "y"], {"model": FALLBACK}, "x<0x0A>y", "it reads '<0x00>' in a text"),
    "an entry without merges": (["?", "a", "b", "a-b"], {"model": UNKNOWN}, "a-b", "it reads 'a-b' in a text"),
    "unknown characters": (["a", "b", "ab"], {"model": {"merges": [["a", "b"]]}}, "a-b", "no token for unknown"),
    "some bytes": ([*BYTES[:128], *LETTERS], {"model": UNKNOWN | FALLBACK}, "\xe9\t", "not all 256 bytes"),
    "replaced emptiness": (
        LEVEL,
        {**BY_BYTE, "normalizer": {"type": "Replace", "pattern": {"Regex": "a*"}, "content": "x"}},
        "0",
        r"replace what 'a\*' matches",
    ),
    "prepended emptiness": (
        LEVEL, {**BY_BYTE, "normalizer": {"type": "Prepend", "prepend": ""}}, "<", "prepend the empty text"
    ),
    "added tokens in another order": (
        ["?", "a", "b", " "],
        {"model": UNKNOWN, "added_tokens": [token("a b", 4, normalized=True), token("b", 2)]},
        "a b",
        "looks for added tokens, as 'b'",
    ),
    "white space twice": (
        LEVEL,
        {**BY_BYTE, "added_tokens": [token("\u20ac", 256, rstrip=True), token(" ", 257, lstrip=True)]},
        "\u20ac a",
        "added tokens, as '\u20ac'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_differs_is_told(case: str, tmp_path: Path) -> None:
    tokens, changes, text, reason = CASES[case]
    path = written(tmp_path / "tokenizer.json", tokens, **changes)
    assert fast(path, [text]) != theirs(path, [text])  # else this case has nothing to show any more
    vocabulary = describe(str(path), scratch=lambda: str(tmp_path))
    assert engines.choose(vocabulary, "auto", parse_special=False).name == "tokenizers"
    with pytest.raises(dsmem.UsageError, match=f"fastokens can't encode by .*{reason}"):
        engines.choose(vocabulary, "fastokens", parse_special=False)


def test_added_tokens_that_are_the_same_once_normalized(tmp_path: Path) -> None:
    """Which is found goes by chance in each engine."""
    added = [token("\xc9", 256, normalized=True, special=True), token("\xe9", 257, normalized=True)]
    path = written(tmp_path / "x.json", LEVEL, **BY_BYTE, normalizer={"type": "Lowercase"}, added_tokens=added)
    vocabulary = describe(str(path), scratch=lambda: str(tmp_path))
    assert engines.choose(vocabulary, "auto", parse_special=False).name == "tokenizers"


@pytest.mark.parametrize("workers", [None, 2])
def test_literal_bytes_are_text(workers: int | None, tmp_path: Path) -> None:
    """Here, and where workers have loaded the fast engine ahead."""
    letters = [letter for letter in LETTERS if letter not in "<0x>"]
    path = written(tmp_path / "tokenizer.json", ["<unk>", *BYTES, *letters], model={**FALLBACK, "unk_token": "<unk>"})
    texts = ["plain text"] * 20 + ["x<0x0A>y"]
    tokentexts.write_jsonl(tmp_path / "x.jsonl", texts)
    out = tmp_path / "x.bin"
    done = dsmem.tokenize(tmp_path / "x.jsonl", out, tokenizer=path, eos="none", workers=workers)
    assert done.engine == "tokenizers"
    assert tokentexts.written(out) == theirs(path, texts)


O200K = vocabularies.O200K
LONG_S = ["it'\u017fs", "a'\u017fab b", "\u65e5'\u017f", "1'\u017fs", "it's", "\u017f's \u017ft"]
PAIRS = [b"t'", b"\xc5\xbf", b"\xbfs", b"'\xc5", b"st", b"ab"]


def split(pattern: str) -> dict[str, Any]:
    """Bytes after that pattern, as GPT-OSS has them."""
    how = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {**BY_BYTE["pre_tokenizer"], "use_regex": False}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [how, level]}}


def by_engine(vocabulary: vocabularies.Vocabulary, texts: list[str]) -> list[list[int]]:
    """What the engine of that tokenizer gives, text by text and together."""
    engine = engines.choose(vocabulary, "auto", parse_special=False)
    assert engine.name == "fastokens"
    ids, lengths = engine.encode(texts)
    found = [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]
    assert found == [engine.encode([text])[0].tolist() for text in texts]
    return found


@pytest.mark.parametrize("added", [[], [token("<s>", 262, special=True)], [token("pre_tokenizer", 262)]])
def test_a_long_s_after_an_apostrophe(added: list[dict[str, Any]], tmp_path: Path) -> None:
    """It is an s where case is not told apart, but not to what splits by o200k in place of its pattern."""
    names = [bytes_written(pair) for pair in PAIRS]
    model = {"merges": [[name[0], name[1]] for name in names]}
    if added and not added[0]["special"]:
        names = [*names, added[0]["content"]]  # as the key that is looked for
    path = written(tmp_path / "tokenizer.json", [*LEVEL, *names], model=model, added_tokens=added, **split(O200K))
    right = theirs(path, LONG_S)
    assert fast(path, LONG_S) != right  # else there is nothing to mend any more
    assert by_engine(describe(str(path), scratch=lambda: str(tmp_path)), LONG_S) == right
    large = ["x" * 300 + " \u65e5 's\n", "it'\u017fs "]
    texts = [large[0] * 500, "".join(large) * 500, "".join(large)]
    assert by_engine(describe(str(path), scratch=lambda: str(tmp_path)), texts) == theirs(path, texts)


def test_a_long_s_of_tiktoken(tmp_path: Path) -> None:
    ranks = {token: rank for rank, token in enumerate([*(bytes([byte]) for byte in range(256)), *PAIRS])}
    path = tmp_path / "o200k_base.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    right = tiktoken.Encoding("x", pat_str=O200K, mergeable_ranks=ranks, special_tokens={})
    vocabulary = describe(str(path), scratch=lambda: str(tmp_path))
    assert by_engine(vocabulary, LONG_S) == [right.encode_ordinary(text) for text in LONG_S]


def test_a_long_s_that_a_normalizer_makes(tmp_path: Path) -> None:
    changes = {"normalizer": {"type": "Replace", "pattern": {"String": "\u1e9e"}, "content": "\u017f"}}
    path = written(tmp_path / "tokenizer.json", LEVEL, **changes, **split(O200K))
    vocabulary = describe(str(path), scratch=lambda: str(tmp_path))
    assert engines.choose(vocabulary, "auto", parse_special=False).name == "tokenizers"
    with pytest.raises(dsmem.UsageError, match="may split what is normalized"):
        engines.choose(vocabulary, "fastokens", parse_special=False)


def bytes_written(data: bytes) -> str:
    """As byte-level tokenizers write them."""
    order = exactness._BYTES + [byte for byte in range(256) if byte not in exactness._BYTES]
    return "".join(exactness.ALPHABET[order.index(byte)] for byte in data)


def test_real_forms_stay_fast(tmp_path: Path) -> None:
    """Byte-level; and bytes to fall back to where every character of their names is an entry, as in Llama 2."""
    (tmp_path / "bytes.json").write_text(tokentexts.trained())
    llama = written(
        tmp_path / "llama.json",
        ["<unk>", "<s>", "</s>", *BYTES, *LETTERS, "\u2581"],
        model={**FALLBACK, "unk_token": "<unk>", "fuse_unk": True},
        normalizer={
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        added_tokens=[token(name, number, special=True) for number, name in enumerate(("<unk>", "<s>", "</s>"))],
    )
    texts = ["x<0x0A>y", "<s> \xe9 </s><unk>", "<0xE9>"]
    for path in (tmp_path / "bytes.json", llama):
        vocabulary = describe(str(path), scratch=lambda: str(tmp_path))
        for special in (False, True):
            assert engines.choose(vocabulary, "auto", parse_special=special).name == "fastokens"
            assert fast(path, texts, special=special) == theirs(path, texts, special=special)


PIECES = [
    *"ab\xe9\u65e51 \u2581<0xA>\n",
    "ab",
    "a b",
    "<0x0A>",
    "<0x41>",
    "<unk>",
    "<s>",
    "\U0001f600",
    "aa",
    "  ",
    "'s",
    "B",
]
ALPHABET = [*"ab\xe9\u65e51 \u2581<0xA>\n"]


def random_tokenizer(rng: random.Random, path: Path) -> Path:
    """Anything that a tokenizer.json may say of what fastokens loads."""
    is_bytes = rng.random() < 0.3
    alphabet = list(exactness.ALPHABET) if is_bytes else ALPHABET + list("BCDEF23456789unk/s'" * (rng.random() < 0.7))
    base = [one for one in [*ALPHABET, "\u0120"] if one in alphabet]
    tokens, merges = dict.fromkeys(alphabet), []
    for _ in range(rng.choice((0, 3, 20))):
        pair = [rng.choice(base), rng.choice(base)]
        if len("".join(pair)) < 8 and pair not in merges:
            merges.append(pair)
            base.append("".join(pair))
            tokens.setdefault(base[-1])
    if rng.random() < 0.5:
        rng.shuffle(merges)
    model: dict[str, Any] = {"merges": merges, "fuse_unk": rng.random() < 0.5, "ignore_merges": rng.random() < 0.3}
    if rng.random() < 0.2:
        tokens.setdefault("".join(rng.choices(ALPHABET, k=3)))
    if rng.random() < 0.5:
        model["byte_fallback"] = True
        tokens = dict.fromkeys([*BYTES[: rng.choice((256, 256, 200))], *tokens])
    if rng.random() < 0.7:
        model["unk_token"] = "<unk>"
        tokens.setdefault("<unk>")
    names = list(tokens)
    if rng.random() < 0.5:
        rng.shuffle(names)
    added: list[dict[str, Any]] = []
    for name in rng.sample(
        ("<s>", "ab", "b", " a", "a b", "\xe9", "\u65e5", "<unk>", " ", "bb"), rng.choice((0, 0, 1, 3))
    ):
        number = names.index(name) if name in tokens else len(names) + sum(one["id"] >= len(names) for one in added)
        flags = {flag: rng.random() < 0.2 for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        added.append(token(name, number, **flags))
    replace = {"type": "Replace", "content": "\u2581"}
    normalizers = [
        None, None, {"type": "NFC"}, {"type": "Lowercase"}, {"type": "Prepend", "prepend": "\u2581"},
        replace | {"pattern": {"String": " "}}, replace | {"pattern": {"Regex": r"\s+"}},
    ]  # fmt: skip
    patterns = [{"String": " "}, {"Regex": r"\s+"}, {"Regex": r" ?[a-z]+|\d+"}, {"Regex": "(?=b)"}, {"String": "ab"}]
    ways = ["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
    split = {
        "type": "Split",
        "pattern": rng.choice(patterns),
        "behavior": rng.choice(ways),
        "invert": rng.random() < 0.2,
    }
    level = {"type": "ByteLevel", "trim_offsets": True}
    level |= {"add_prefix_space": rng.random() < 0.3, "use_regex": rng.random() < 0.6}
    pre: Any = rng.choice((None, None, split))
    if is_bytes:
        pre = rng.choice((level, {"type": "Sequence", "pretokenizers": [split, level]}))
    return written(path, names, model=model, normalizer=rng.choice(normalizers), pre_tokenizer=pre, added_tokens=added)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_fit_does_not_differ(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    compared, told = 0, 0
    for _ in range(60):
        path = random_tokenizer(rng, tmp_path / "tokenizer.json")
        tokenizer = Tokenizer.from_file(str(path))
        for special in (False, True):
            if exactness.obstacle(tokenizer, parse_special=special) is not None:
                told += 1
                continue
            texts = ["".join(rng.choices(PIECES, k=rng.choice((1, 3, 8, 30)))) for _ in range(60)]
            ours, right = fast(path, texts, special=special), theirs(path, texts, special=special)
            assert ours == right
            compared += 1
    assert min(compared, told) > 20


@pytest.mark.parametrize("seed", range(6))
def test_special_tokens_that_are_text_are_not_looked_for(seed: int, tmp_path: Path) -> None:
    """A tokenizer all of whose added tokens are special is loaded without them: the ids are Hugging Face's."""
    rng = random.Random(seed)
    flags = [{flag: rng.random() < 0.5 for flag in ("single_word", "lstrip", "rstrip", "normalized")} for _ in range(4)]
    names = ["<s>", "a", " b ", "<|end|>"]
    added = [token(name, 257 + at, special=True, **flags[at]) for at, name in enumerate(names)]
    merges = {"merges": [["a", "b"]]}
    path = written(tmp_path / "x.json", [*LEVEL, "ab"], added_tokens=added, model=merges, **BY_BYTE)
    texts = ["".join(rng.choice([*names, "ab", " ", "x"]) for _ in range(30)) for _ in range(50)]
    vocabulary = describe(str(path), scratch=lambda: str(tmp_path))
    engine = engines.load(vocabulary.located, "fastokens", parse_special=False)
    ids, lengths = engine.encode(texts)
    found = [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]
    assert found == theirs(path, texts)
    kept = engines.load(vocabulary.located, "fastokens", parse_special=True)
    assert 260 in kept.encode(["x <|end|> x"])[0].tolist()


def test_added_tokens_are_left_out_of_a_file_that_is_plain(tmp_path: Path) -> None:
    """All special, and told once, at the top: else the file is loaded as it is."""
    special, other = token("<s>", 256, special=True), token("<t>", 257)
    path = tmp_path / "x.json"
    for added, left_out in (
        ([special], {"<s>": 256}),
        ([special, other], None),
        ([special, special], None),
        ([], None),
    ):
        written(path, LEVEL, added_tokens=added, **BY_BYTE)
        found = engines._without_special(str(path))
        assert (found and found[1]) == left_out
        if found is not None:
            assert json.loads(found[0]) == {**json.loads(path.read_bytes()), "added_tokens": []}
    inside = json.dumps({"x": {"added_tokens": [special]}, "model": {}})
    twice = json.dumps({"added_tokens": [special]})[:-1] + ', "added_tokens": []}'
    for text in ("", "[", '{"added_tokens": 5}', '{"added_tokens": [{}]}', '{"added_tokens": ["x"]}', inside, twice):
        path.write_text(text)
        assert engines._without_special(str(path)) is None, text
    path.write_bytes(b'{"added_tokens": [], "\xff": 1}')
    assert engines._without_special(str(path)) is None
    assert engines._without_special(str(tmp_path / "none.json")) is None


AROUND = [
    *(
        "'\u017f",
        "'\u017f",
        "'\u017f",
        "'",
        "\u017f",
        "s",
        "t",
        "a",
        "B",
        "\u65e5",
        "\u0301",
        "1",
        "'s",
        "\0",
        "/",
        "!",
        "<a>",
        "<a>",
    ),
    *(" ", " ", " ", "\n", "\n", "\r", "\t", "\x0b", "\x1c", "\x85", "\xa0", "\u2028", "\u3000", "\u01c5", "\u0378"),
]


@pytest.mark.parametrize("pattern", [O200K, contractions._KIMI])
@pytest.mark.parametrize("added", [(), ("<a>",)], ids=["alone", "added"])
def test_a_long_s_among_others(
    pattern: str, added: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what lies around one is encoded elsewhere, and the ids are those of the whole; nothing is loaded again.

    Added tokens part a text before it is split.
    """
    rng = random.Random(9)
    texts = ["".join(rng.choices(AROUND, k=rng.choice((1, 3, 9, 30, 300)))) for _ in range(600)]
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split_by = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split_by, level])
    every = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1200, initial_alphabet=every, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(list(added))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = describe(str(tmp_path / "tokenizer.json"), scratch=lambda: str(tmp_path))
    engine = engines.choose(vocabulary, "fastokens", parse_special=False)
    reference = engines.reference_in(vocabulary, parse_special=False)
    assert reference is not None
    monkeypatch.setattr(engines, "by_regex", None)
    asked: list[str] = []

    def exact(text: str) -> engines.Ids:
        asked.append(text)
        return reference.encode([text])[0]

    engines.mend_by(engine, exact)
    ids, lengths = engine.encode(texts)
    expected, their_lengths = reference.encode(texts)
    assert lengths.tolist() == their_lengths.tolist() and ids.tolist() == expected.tolist()
    assert all(contractions.LONG_S in text for text in asked)
    asked.clear()
    engine.encode(["All is\n    well'\u017ft, \n\nthou'\u017f\n", " that  'tis"])
    assert asked == [" is\n    well'\u017ft,", "thou'\u017f\n"]


def test_texts_that_may_be_parted_nowhere_are_asked_whole(tmp_path: Path) -> None:
    """What splits further, and added tokens with spaces, might reach across."""
    names = [bytes_written(pair) for pair in PAIRS]
    model = {"merges": [[name[0], name[1]] for name in names]}
    further = split(O200K)
    further["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Digits", "individual_digits": True})
    spaced = {"added_tokens": [token("a b", 262)], **split(O200K)}
    text = "a b it'\u017fs 12 \u65e5'\u017f a b"
    for number, changes in enumerate((further, spaced)):
        path = written(tmp_path / f"{number}.json", [*LEVEL, *names], model=model, **changes)
        engine = engines.load(vocabularies.locate(str(path), lambda: ""), "fastokens", parse_special=False)
        asked: list[str] = []

        def exact(text: str, asked: list[str] = asked) -> engines.Ids:
            asked.append(text)
            return np.array([7], np.uint32)

        engines.mend_by(engine, exact)
        assert engine.encode([text])[0].tolist() == [7]
        assert asked == [text]


@pytest.mark.parametrize("kind", ["tokenizer.json", "o200k_base.tiktoken"])
def test_workers_ask_for_what_lies_around_a_long_s(kind: str, tmp_path: Path) -> None:
    """Whatever the kind, and of a stream; a text that is too long to be sent is encoded by one at a time."""
    names = [bytes_written(pair) for pair in PAIRS]
    path = tmp_path / kind
    if kind == "tokenizer.json":
        written(path, [*LEVEL, *names], model={"merges": [[name[0], name[1]] for name in names]}, **split(O200K))
    else:
        ranks = [*(bytes([byte]) for byte in range(256)), *PAIRS]
        path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks)))
    texts = [*LONG_S * 3, "x'\u017fs" * 140_000, *LONG_S]
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    out = tmp_path / "out.bin"
    dsmem.tokenize(source, out, tokenizer=path, workers=2, part_bytes=100, eos="none", engine="fastokens", verify=0)
    engine = engines.by_regex(vocabularies.locate(str(path), lambda: ""), parse_special=False)
    assert tokentexts.written(out) == [engine.encode([text])[0].tolist() for text in texts]
