"""Tokenizers of every kind: the ids of their own library, bos and eos found, engines that differ refused."""

from __future__ import annotations

import base64
import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import sentencepiece
import tiktoken
import tokentexts
from hypothesis import given, settings
from hypothesis import strategies as st

import dsmem
from dsmem.tokens import engines, feeding, vocabularies
from dsmem.tokens.seams import ByteSeams, Seams
from dsmem.tokens.vocabularies import Vocabulary, describe


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_text(tokentexts.trained())
    return path


def known(spec: object, tmp_path: Path, *, bos_token: str | None = None, eos_token: str | None = None) -> Vocabulary:
    return describe(str(spec), scratch=lambda: str(tmp_path), bos_token=bos_token, eos_token=eos_token)


def encoded(vocabulary: Vocabulary, texts: Sequence[str], *, engine: str = "auto", special: bool = False) -> Any:
    ids, lengths = engines.choose(vocabulary, engine, parse_special=special).encode(texts)
    assert ids.dtype == np.uint32 and lengths.sum() == len(ids)
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


def test_tokenizer_json(trained: Path, tmp_path: Path) -> None:
    vocabulary = known(trained, tmp_path)
    assert (vocabulary.largest_id, vocabulary.eos_id, vocabulary.bos_id) == (999, 0, None)
    texts = tokentexts.documents(40)
    assert engines.choose(vocabulary, "auto", parse_special=False).name == "fastokens"
    for engine in ("fastokens", "tokenizers"):
        assert encoded(vocabulary, texts, engine=engine) == tokentexts.expected(texts, eos=False)
        assert encoded(vocabulary, [tokentexts.END], engine=engine, special=True) == [[0]]
        assert len(encoded(vocabulary, [tokentexts.END], engine=engine)[0]) > 3


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> engines.Engine:
    path = tmp_path_factory.mktemp("fast") / "tokenizer.json"
    path.write_text(tokentexts.trained())
    return engines.load(vocabularies.Located("tokenizer.json", str(path)), "fastokens", parse_special=False)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_fastokens_equals_the_reference(fast: engines.Engine, texts: list[str]) -> None:
    ids, lengths = fast.encode(texts)
    parts = [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]
    assert parts == tokentexts.expected(texts, eos=False)


def test_truncation_padding_and_post_processors_are_ignored(tmp_path: Path) -> None:
    raw = json.loads(tokentexts.trained())
    raw["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    raw["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": tokentexts.END,
    }  # fmt: skip
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": tokentexts.END, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {tokentexts.END: {"id": tokentexts.END, "ids": [0], "tokens": [tokentexts.END]}},
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(raw))
    texts = tokentexts.documents(12)
    for engine in ("fastokens", "tokenizers"):
        assert encoded(known(path, tmp_path), texts, engine=engine) == tokentexts.expected(texts, eos=False)


def test_added_tokens_count_for_the_dtype_and_wrong_ids_rule_an_engine_out(tmp_path: Path) -> None:
    raw = json.loads(tokentexts.trained())
    added = {**raw["added_tokens"][0], "content": "<|later|>", "id": 1000}
    raw["added_tokens"].append(added)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(raw))
    assert known(path, tmp_path).largest_id == 1000
    raw["added_tokens"][1] = {**added, "content": "the", "id": 70_000, "special": False}
    path.write_text(json.dumps(raw))
    vocabulary = known(path, tmp_path)
    assert engines.choose(vocabulary, "auto", parse_special=False).name == "tokenizers"
    with pytest.raises(dsmem.UsageError, match="another id than Hugging Face"):
        engines.choose(vocabulary, "fastokens", parse_special=False)


def test_bos_and_eos_from_the_configuration_beside_it(trained: Path, tmp_path: Path) -> None:
    words = {"bos_token": {"content": "!"}, "eos_token": '"'}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(words))
    ids = tokentexts.reference().get_vocab()
    assert (known(trained, tmp_path).bos_id, known(trained, tmp_path).eos_id) == (ids["!"], ids['"'])
    assert known(trained, tmp_path, eos_token="#").eos_id == ids["#"]
    with pytest.raises(dsmem.UsageError, match="--eos-token '</s>' is not in the vocabulary"):
        known(trained, tmp_path, eos_token="</s>")


def test_a_model_of_the_hub(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(name: str, filename: str) -> str:
        asked.append(filename)
        if filename != "tokenizer.json":
            raise huggingface_hub.errors.EntryNotFoundError("no such file")
        return str(trained)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    tokentexts.answering_hub(monkeypatch)
    assert known("someone/model", tmp_path).located.path == str(trained)
    assert asked == ["tokenizer.json", "tokenizer_config.json"]

    def offline(name: str, filename: str) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(dsmem.SourceMissing, match="someone/model is neither a file nor a tokenizer that the hub gives"):
        known("someone/model", tmp_path)

    asked.clear()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    tokentexts.silent_hub(monkeypatch)
    with pytest.raises(dsmem.SourceMissing, match=r"the hub can't be asked: .* does not answer: no route"):
        known("someone/model", tmp_path)
    assert asked == []  # its client would try again and again
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(trained))
    assert known("someone/model", tmp_path).located.path == str(trained)


def ranks() -> dict[bytes, int]:
    """Bytes, and some pairs that the pattern lets merge."""
    found = {bytes([byte]): byte for byte in range(256)}
    for pair in (b"th", b"he", b" t", b"in", b"er", b" th", b"the", b" the"):
        found[pair] = len(found)
    return found


@pytest.mark.parametrize("engine", ["fastokens", "tiktoken"])
@pytest.mark.parametrize("name", ["r50k_base", "cl100k_base", "o200k_base"])
def test_tiktoken_files(name: str, engine: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.tiktoken"
    lines = [base64.b64encode(token) + b" %d" % rank for token, rank in ranks().items()]
    path.write_bytes(b"\n".join(lines) + b"\n")
    vocabulary = known(path, tmp_path)
    special = vocabulary.located.special_tokens
    assert vocabulary.eos_id == special[tokentexts.END] > 50_000
    assert vocabulary.largest_id == max(special.values())
    theirs = tiktoken.Encoding(
        "x",
        pat_str=vocabulary.located.pattern,
        mergeable_ranks=ranks(),
        special_tokens=special,
    )
    texts = tokentexts.documents(40)
    assert encoded(vocabulary, texts, engine=engine) == [theirs.encode_ordinary(text) for text in texts]
    assert encoded(vocabulary, [*special], engine=engine, special=True) == [[one] for one in special.values()]


@pytest.mark.parametrize("name", ["r50k_base", "p50k_base", "cl100k_base", "o200k_base"])
def test_tiktoken_files_are_what_tiktoken_knows_by_their_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openai_public = importlib.import_module("tiktoken_ext.openai_public")
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *args, **options: {})
    theirs = openai_public.ENCODING_CONSTRUCTORS[name]()
    path = tmp_path / f"{name}.tiktoken"
    path.write_bytes(base64.b64encode(b"a") + b" 0\n")
    located = vocabularies.locate(str(path), lambda: str(tmp_path))
    assert (located.pattern, located.special_tokens) == (theirs["pat_str"], theirs["special_tokens"])


def test_tiktoken_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        try:
            raise OSError(-2, "Name or service not known")
        except OSError as exc:
            raise ConnectionError("HTTPSConnectionPool(…): Max retries exceeded") from exc

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    with pytest.raises(dsmem.SourceMissing) as caught:
        known("tiktoken:mine", tmp_path)
    assert str(caught.value) == (
        "tiktoken:mine is not at hand and can't be fetched (Name or service not known); "
        "a file of it can be given: --tokenizer mine.tiktoken"
    )


def test_tiktoken_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name's ranks come from a network elsewhere; here from memory."""
    special = {tokentexts.END: 300, "<|other|>": 302}
    theirs = tiktoken.Encoding("mine", pat_str=r"\S+|\s+", mergeable_ranks=ranks(), special_tokens=special)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: theirs)
    vocabulary = known("tiktoken:mine", tmp_path)
    assert (vocabulary.largest_id, vocabulary.eos_id) == (302, 300)
    texts = tokentexts.documents(20)
    for engine in ("fastokens", "tiktoken"):
        assert encoded(vocabulary, texts, engine=engine) == [theirs.encode_ordinary(text) for text in texts]
    monkeypatch.undo()
    with pytest.raises(dsmem.UsageError, match=r"tiktoken knows no 'nothing'; it knows .*cl100k_base"):
        known("tiktoken:nothing", tmp_path)


def test_sentencepiece(tmp_path: Path) -> None:
    with (tmp_path / "x.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter("\n".join(tokentexts.sources()[:4]).splitlines()[:2000]),
            model_writer=file,
            vocab_size=400,
            minloglevel=2,
        )
    vocabulary = known(tmp_path / "x.model", tmp_path)
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.largest_id) == (1, 2, 399)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "x.model"))
    texts = tokentexts.documents(20)
    assert encoded(vocabulary, texts) == [theirs.encode(text) for text in texts]
    with pytest.raises(dsmem.UsageError, match="--parse-special"):
        engines.choose(vocabulary, "auto", parse_special=True)


def test_bytes(tmp_path: Path) -> None:
    vocabulary = known("bytes", tmp_path)
    assert (vocabulary.largest_id, vocabulary.eos_id) == (256, 256)
    assert encoded(vocabulary, ["é", ""]) == [[0xC3, 0xA9], []]
    text = f"a{tokentexts.END}{tokentexts.END}b"
    assert encoded(vocabulary, [text], special=True) == [[97, 256, 256, 98]]
    assert encoded(vocabulary, [text]) == [list(text.encode())]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.json", "{", "is not a tokenizer.json"),
        ("x.json", '{"model": {"type": "Nothing"}}', "is not a tokenizer.json"),
        ("x.model", "no", "is not a SentencePiece model"),
        ("cl100k_base.tiktoken", "no ranks here", "is not a file of tiktoken ranks"),
        ("mine.tiktoken", "", "is known for r50k_base"),
    ],
)
def test_damaged_tokenizers(name: str, data: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(data)
    with pytest.raises((dsmem.BadSource, dsmem.UsageError), match=words):
        known(tmp_path / name, tmp_path)


def test_missing_tokenizers_and_engines(trained: Path, tmp_path: Path) -> None:
    for spec in (tmp_path / "none.json", "./none", "a/b/c", tmp_path):
        with pytest.raises(dsmem.SourceMissing):
            known(tmp_path / "empty" if spec == tmp_path else spec, tmp_path)
    with pytest.raises(dsmem.UsageError, match="not by tiktoken"):
        engines.choose(known(trained, tmp_path), "tiktoken", parse_special=False)


class Wrong:
    """An engine that is right until a document of some words."""

    name: engines.EngineName = "fastokens"
    version = "0"

    def __init__(self, right: engines.Engine) -> None:
        self._right = right

    def encode(self, texts: Sequence[str]) -> tuple[engines.Ids, engines.Lengths]:
        ids, lengths = self._right.encode([text.replace("wrong", "WRONG") for text in texts])
        return ids, lengths

    def seams(self) -> Seams:
        return self._right.seams()


@pytest.mark.parametrize(("verify", "found"), [("all", True), (0, False), (8, False)])
def test_the_first_difference_is_refused_by_name(
    verify: Any, found: bool, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"right {number}" for number in range(400)]
    texts[101] = "this is wrong"
    path = tokentexts.write_jsonl(tmp_path / "x.jsonl", texts)
    choose = engines.choose
    monkeypatch.setattr(engines, "choose", lambda *args, **options: Wrong(choose(*args, **options)))

    def run() -> dsmem.Tokenized:
        return dsmem.tokenize(path, tmp_path / "out.bin", tokenizer=trained, verify=verify)

    if not found:
        assert run().verified == verify
        return
    with pytest.raises(dsmem.EngineDiffers, match=r"x\.jsonl:102: .*tokenizers, the reference, differ from token") as e:
        run()
    assert e.value.place == "102"
    assert not (tmp_path / "out.bin").exists()


def test_a_long_document_is_fed_in_pieces_that_change_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "LONG_BYTES", 5000)
    monkeypatch.setattr(feeding, "_READ_BYTES", 1000)
    text = "\n".join(tokentexts.sources()[:10]) + "Größe 東京 🙂" * 900
    vocabulary = known(trained, tmp_path)
    engine = engines.choose(vocabulary, "auto", parse_special=False)
    data = memoryview(text.encode())
    pieces = list(feeding.feed(engine, feeding.reading(text), path="x", place=""))
    assert len(pieces) > 20
    assert np.concatenate(pieces).tolist() == tokentexts.expected([text], eos=False)[0]
    for name, content in (("x.txt", bytes(data)), ("x.jsonl", json.dumps({"text": text}).encode() + b'\n{"text":"b"}')):
        (tmp_path / name).write_bytes(content)
        dsmem.tokenize(tmp_path / name, tmp_path / "out.bin", tokenizer=trained, overwrite=True, val_fraction=0.0)
        texts = [text] if name == "x.txt" else [text, "b"]
        assert tokentexts.written(tmp_path / "out.bin") == tokentexts.expected(texts)
    (tmp_path / "x.txt").write_bytes(bytes(data)[:9000] + b"\n\xff" + bytes(data)[9000:])
    line = bytes(data)[:9000].count(b"\n") + 2
    with pytest.raises(dsmem.BadDocument, match=rf"x\.txt:{line}: not UTF-8"):
        dsmem.tokenize(tmp_path / "x.txt", tmp_path / "no.bin", tokenizer=trained)
    (tmp_path / "y.txt").write_text("fine")
    done = dsmem.tokenize(
        [tmp_path / "x.txt", tmp_path / "y.txt"],
        tmp_path / "out.bin",
        tokenizer=trained,
        overwrite=True,
        on_error="skip",
    )
    assert (done.skipped, done.documents) == (1, 1)
    assert f"x.txt:{line}: not UTF-8" in done.skipped_places[0]


PLACES = ("start", "first cut", "end")


@pytest.mark.parametrize(
    ("verify", "at", "encoded", "found"),
    [
        *(("all", at, encoded, True) for at in PLACES for encoded in ("in pieces", "whole", "compared whole")),
        *((16, at, "in pieces", at != "start") for at in PLACES),
        *((16, at, "whole", True) for at in PLACES),
        (16, "start", "compared whole", True),
        (0, "end", "compared whole", False),
    ],
)
def test_a_long_document_is_compared(
    verify: Any, at: str, encoded: str, found: bool, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it where it fits, else its first piece and its end, or around the cuts; or all of it in other pieces.
    Which is told."""
    if encoded == "in pieces":
        monkeypatch.setattr(feeding, "LONG_BYTES", 20_000)
    monkeypatch.setattr(feeding, "_READ_BYTES", 10_000)
    monkeypatch.setattr(feeding, "_COMPARED_BYTES", 7_000 if encoded == "in pieces" else 30_000)
    monkeypatch.setattr(feeding, "_WINDOW_BYTES", 100)
    monkeypatch.setattr(feeding, "_REACHES", (500, 1000))
    whole = encoded == "compared whole"
    if not whole:
        monkeypatch.setattr(feeding, "MOST_COMPARED_BYTES", 50_000)
    choose = engines.choose
    monkeypatch.setattr(engines, "choose", lambda *args, **options: Wrong(choose(*args, **options)))
    text = "right words\n" * 6000
    place = {"start": 1000, "first cut": 19_880, "end": len(text) - 20}[at]
    path = tmp_path / "x.txt"

    def run() -> dsmem.Tokenized:
        return dsmem.tokenize(path, tmp_path / "out.bin", tokenizer=trained, verify=verify, overwrite=True)

    path.write_text(text)
    done = run()
    assert (done.verified, done.verified_in_pieces) == (bool(verify), bool(verify) and not whole)
    path.write_text(f"{text[:place]} wrong {text[place:]}")
    if not found:
        assert run().verified == bool(verify)
        return
    (tmp_path / "out.bin").unlink()
    with pytest.raises(dsmem.EngineDiffers, match=r"x\.txt: .* the reference, differ (from token|around)"):
        run()
    assert not (tmp_path / "out.bin").exists()


def test_a_document_that_can_not_be_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Uncuttable:
        """Counts characters: no cut leaves the ids as they are."""

        name: engines.EngineName = "tokenizers"
        version = "0"

        def encode(self, texts: Sequence[str]) -> tuple[engines.Ids, engines.Lengths]:
            return np.array([len(text) for text in texts], np.uint32), np.ones(len(texts), np.int64)

        def seams(self) -> Seams:
            return ByteSeams([], within_words=True)

    monkeypatch.setattr(feeding, "LONG_BYTES", 5000)
    monkeypatch.setattr(feeding, "_READ_BYTES", 1000)
    text = "some words " * 3000
    fed = list(feeding.feed(Uncuttable(), feeding.reading(text), path="x", place="7"))
    assert [ids.tolist() for ids in fed] == [[len(text)]]
    monkeypatch.setattr(feeding, "MOST_WHOLE_BYTES", 20_000)
    with pytest.raises(dsmem.BadSource, match=r"x:7: no place to cut this document in the 20\.\d KiB after 0 B"):
        list(feeding.feed(Uncuttable(), feeding.reading(text), path="x", place="7"))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "r50k_base.tiktoken"])
def test_what_is_no_regular_file_is_not_waited_for(name: str, trained: Path, tmp_path: Path) -> None:
    if name != "tokenizer_config.json":
        trained.unlink()
    os.mkfifo(tmp_path / name)
    spec = tmp_path / name if name.endswith("tiktoken") else tmp_path
    with pytest.raises(dsmem.BadSource, match=rf"{name} is no regular file"):
        known(spec, tmp_path)


def test_a_configuration_of_any_size_is_not_read(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    os.truncate(tmp_path / "tokenizer_config.json", 1 << 40)
    with pytest.raises(dsmem.BadSource, match=r"tokenizer_config\.json is larger than"):
        known(trained, tmp_path)
