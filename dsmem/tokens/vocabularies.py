"""Which tokenizer is meant and what it holds: its file, the largest id it can give, what begins and ends documents.

A tokenizer is always brought down to a file (or to nothing, for `bytes`), so that workers need neither a network nor
what the caller had in memory.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dsmem import files
from dsmem.errors import BadSource, SourceMissing, UsageError
from dsmem.tokens import hub

Kind = Literal["tokenizer.json", "tiktoken", "sentencepiece", "bytes"]
END_OF_TEXT = "<|endoftext|>"
BYTES_END = 256
_CONFIG_BYTES = 64 << 20
EOS_NAMES = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "[EOS]", "<｜end▁of▁sentence｜>")
BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "<|bos|>", "[BOS]", "<|startoftext|>", "<｜begin▁of▁sentence｜>")

_R50K = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
O200K = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_TIKTOKEN_FILES: dict[str, tuple[str, dict[str, int]]] = {
    "r50k_base": (_R50K, {END_OF_TEXT: 50256}),
    "p50k_base": (_R50K, {END_OF_TEXT: 50256}),
    "cl100k_base": (
        _CL100K,
        {
            END_OF_TEXT: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": (O200K, {END_OF_TEXT: 199999, "<|endofprompt|>": 200018}),
}
"""A .tiktoken file holds ranks only: how text is split and special tokens go by its name (tiktoken_ext)."""


@dataclass(frozen=True, slots=True)
class Located:
    """A tokenizer as a worker can load it; JSON holds all of it."""

    kind: Kind
    path: str = ""
    """'' for bytes."""
    pattern: str = ""
    """How tiktoken splits text."""
    special_tokens: dict[str, int] = field(default_factory=dict)
    """Those of tiktoken."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What is known about a tokenizer."""

    spec: str
    located: Located
    sha256: str
    vocab_size: int
    largest_id: int
    bos_id: int | None
    eos_id: int | None
    added: dict[str, int] = field(default_factory=dict)
    """The ids that the reference gives to the added tokens of a tokenizer.json."""
    reference: Any = field(default=None, repr=False, compare=False)
    """What `load_reference` gave for a tokenizer.json: it holds what is said here."""


def describe(
    spec: str,
    *,
    scratch: Callable[[], str],
    bos_token: str | None = None,
    eos_token: str | None = None,
    located: Located | None = None,
) -> Vocabulary:
    """The tokenizer that `spec` means; `scratch()` is a directory for ranks that lie in no file.

    `located` is what `locate` found, where somebody has asked already. `bos_id` and `eos_id` are None where none is
    known by a common name and none was given.
    Raises SourceMissing, BadSource, UsageError (a name that means nothing, a token that is not in the vocabulary).
    """
    located = located or locate(spec, scratch)
    if spec == "bytes":
        ids = {END_OF_TEXT: BYTES_END}
        return Vocabulary(
            spec,
            located,
            "",
            BYTES_END + 1,
            BYTES_END,
            None if bos_token is None else _named(ids, bos_token, "--bos-token", spec),
            BYTES_END if eos_token is None else _named(ids, eos_token, "--eos-token", spec),
        )
    import hashlib  # takes longer than most, and workers need it not

    reference = load_reference(located.path) if located.kind == "tokenizer.json" else None
    ids, (bos, eos), added = _ids(located, reference)
    return Vocabulary(
        spec,
        located,
        hashlib.sha256(Path(located.path).read_bytes()).hexdigest(),
        len(ids),
        max(ids.values(), default=0),
        bos if bos_token is None else _named(ids, bos_token, "--bos-token", spec),
        eos if eos_token is None else _named(ids, eos_token, "--eos-token", spec),
        added,
        reference,
    )


def _named(ids: dict[str, int], token: str, option: str, spec: str) -> int:
    if token not in ids:
        raise UsageError(f"{option} {token!r} is not in the vocabulary of {spec}")
    return ids[token]


def locate(spec: str, scratch: Callable[[], str]) -> Located:
    """Where that tokenizer lies; nothing of it is read. Raises SourceMissing, UsageError."""
    if spec == "bytes":
        return Located("bytes")
    if spec.startswith("tiktoken:"):
        return _from_tiktoken(spec.removeprefix("tiktoken:"), scratch)
    if os.path.isdir(spec):
        inside = [os.path.join(spec, name) for name in ("tokenizer.json", "tokenizer.model")]
        found = next((path for path in inside if os.path.exists(path)), None)
        if found is None:
            raise SourceMissing(f"{spec} holds neither tokenizer.json nor tokenizer.model")
        return _from_file(found)
    if os.path.exists(spec):
        return _from_file(spec)
    if spec.endswith((".json", ".model", ".tiktoken")) or spec.startswith((".", "/")) or spec.count("/") > 1:
        raise SourceMissing(f"{spec}: no such file")
    return _from_file(_from_hub(spec))


def meant_from_here(spec: str) -> str:
    """The same for whoever stands in another directory."""
    is_name = spec == "bytes" or spec.startswith("tiktoken:")
    return os.path.abspath(spec) if not is_name and os.path.exists(spec) else spec


def _from_file(path: str) -> Located:
    path = os.path.abspath(path)
    if not os.path.isfile(path):
        raise BadSource(f"{path} is no regular file, which a tokenizer is: it is read more than once")
    if path.endswith(".tiktoken"):
        name = os.path.basename(path).removesuffix(".tiktoken")
        if name not in _TIKTOKEN_FILES:
            raise UsageError(f"{path}: how it splits text is known for {', '.join(_TIKTOKEN_FILES)} only, by its name")
        pattern, special_tokens = _TIKTOKEN_FILES[name]
        return Located("tiktoken", path, pattern, special_tokens)
    return Located("sentencepiece" if path.endswith(".model") else "tokenizer.json", path)


def _from_hub(name: str) -> str:
    """tokenizer.json of a model on the hub (or in its cache), tokenizer.model where there is no other."""
    import huggingface_hub
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        hub.require_answer(name, "tokenizer.json", "model")
        try:
            path = huggingface_hub.hf_hub_download(name, "tokenizer.json")
        except LocalEntryNotFoundError:
            raise  # the hub can't be reached: there is no second question to ask
        except EntryNotFoundError:
            return huggingface_hub.hf_hub_download(name, "tokenizer.model")
        with suppress(EntryNotFoundError):
            huggingface_hub.hf_hub_download(name, "tokenizer_config.json")  # it names bos and eos
        return path
    except SourceMissing:
        raise
    except (HfHubHTTPError, HFValidationError, EntryNotFoundError, OSError) as exc:
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise SourceMissing(f"{name} is neither a file nor a tokenizer that the hub gives: {reason}") from exc


def _innermost(error: BaseException) -> str:
    """What went wrong in the first place, in a few words: of a request that is below three others."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _from_tiktoken(name: str, scratch: Callable[[], str]) -> Located:
    """The ranks of an encoding by name, written to a file: workers then need no network."""
    tiktoken = need("tiktoken")
    try:
        encoding = tiktoken.get_encoding(name)
    except ValueError as exc:
        known = ", ".join(tiktoken.list_encoding_names())
        raise UsageError(f"tiktoken knows no {name!r}; it knows {known}") from exc
    except OSError as exc:
        raise SourceMissing(
            f"tiktoken:{name} is not at hand and can't be fetched ({_innermost(exc)}); a file of it can be given: "
            f"--tokenizer {name}.tiktoken"
        ) from exc
    special = {token: encoding.encode_single_token(token) for token in sorted(encoding.special_tokens_set)}
    ranks: dict[bytes, int] = {}
    for rank in range(encoding.n_vocab):
        try:
            ranks[encoding.decode_single_token_bytes(rank)] = rank
        except KeyError:
            continue  # ids that no token has lie between ranks and special tokens
    for token in special:
        ranks.pop(token.encode(), None)
    path = os.path.join(scratch(), f"ranks-{name}")
    Path(path).write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    # The one thing of an encoding that has no public name.
    return Located("tiktoken", path, encoding._pat_str, special)


def need(package: str) -> Any:
    """An optional package; raises UsageError with the command that installs it."""
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError as exc:
        raise UsageError(f"this needs {package}: pip install 'dsmem[{package}]'") from exc


def load_reference(path: str) -> Any:
    """A tokenizer.json as Hugging Face's `tokenizers` loads it, which neither truncates nor pads; raises BadSource."""
    from tokenizers import Tokenizer

    data = Path(path).read_bytes()
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as exc:
        raise BadSource(f"{path} is not a tokenizer.json: {exc}") from exc
    dropout = getattr(tokenizer.model, "dropout", None)  # of BPE
    if dropout:
        raise BadSource(f"{path}: a model with dropout ({dropout}) encodes the same text differently every time")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def load_sentencepiece(path: str) -> Any:
    """A SentencePiece model; raises BadSource, UsageError."""
    sentencepiece = need("sentencepiece")
    data = Path(path).read_bytes()
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=data)
    except (RuntimeError, ValueError, TypeError) as exc:
        raise BadSource(f"{path} is not a SentencePiece model: {exc}") from exc


def _ids(located: Located, reference: Any) -> tuple[dict[str, int], tuple[int | None, int | None], dict[str, int]]:
    """Every token by its text, the ids of bos and eos, and those of added tokens."""
    if located.kind == "sentencepiece":
        return *_sentencepiece_ids(located.path), {}
    if located.kind == "tiktoken":
        ids = _tiktoken_ids(located)
        return ids, (_first(ids, BOS_NAMES), _first(ids, EOS_NAMES)), {}
    ids = dict(reference.get_vocab(with_added_tokens=True))
    added = {token.content: ids[token.content] for token in reference.get_added_tokens_decoder().values()}
    bos, eos = _configured(located.path)
    return ids, (_first(ids, (*bos, *BOS_NAMES)), _first(ids, (*eos, *EOS_NAMES))), added


def _first(ids: dict[str, int], names: Iterable[str]) -> int | None:
    return next((ids[name] for name in names if name in ids), None)


def _configured(path: str) -> tuple[list[str], list[str]]:
    """What tokenizer_config.json, where one lies beside the tokenizer, says about bos and eos."""
    beside = os.path.join(os.path.dirname(path), "tokenizer_config.json")
    try:
        data = files.read_regular(beside, _CONFIG_BYTES)
    except SourceMissing:
        return [], []
    try:
        config = json.loads(data)
    except ValueError as exc:
        raise BadSource(f"{beside} is not JSON: {exc}") from exc
    names: list[list[str]] = []
    for key in ("bos_token", "eos_token"):
        said = config.get(key) if isinstance(config, dict) else None
        text = said.get("content") if isinstance(said, dict) else said
        names.append([text] if isinstance(text, str) else [])
    return names[0], names[1]


def _tiktoken_ids(located: Located) -> dict[str, int]:
    ids = {}
    try:
        for line in Path(located.path).read_bytes().splitlines():
            if line:
                token, rank = line.split()
                ids[base64.b64decode(token, validate=True).decode("utf-8", "backslashreplace")] = int(rank)
    except ValueError as exc:
        raise BadSource(f"{located.path} is not a file of tiktoken ranks: {exc}") from exc
    return {**ids, **located.special_tokens}


def _sentencepiece_ids(path: str) -> tuple[dict[str, int], tuple[int | None, int | None]]:
    model = load_sentencepiece(path)
    ids = {model.id_to_piece(number): number for number in range(model.get_piece_size())}
    bos, eos = model.bos_id(), model.eos_id()
    return ids, (None if bos < 0 else bos, None if eos < 0 else eos)
