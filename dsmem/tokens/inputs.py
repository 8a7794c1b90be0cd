"""What a user names as input, as an ordered list of files with their formats.

Files, directories, globs, `-`, datasets that Hugging Face `datasets` saved, names of datasets on the hub. The order is
that of the arguments, and of names inside a directory or glob: it is the order of the documents.

Of a directory all files below it are taken that have a known suffix (or all, where the format is said), but for what is
hidden, files and directories whose names begin with a dot, for what runs have written there, and for what lies behind
links to directories, which are named in a warning.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from dsmem import files
from dsmem.errors import BadSource, DsmemError, SourceMissing, UsageError
from dsmem.files import FileIdentity
from dsmem.tokens import compressed, hub
from dsmem.tokens.compressed import Compression
from dsmem.tokens.layout import IDX_MAGIC, Beside

_log = logging.getLogger(__name__)

Format = Literal["txt", "jsonl", "json", "parquet", "arrow"]
_SUFFIXES: dict[str, Format] = {
    ".txt": "txt",
    ".text": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
BINARY = ("parquet", "arrow")
"""Formats of tables."""
STDIN = "-"
_JSON_BYTES = 64 << 20
_NO_WAIT = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""A pipe without a writer must not stop us."""
_WRITTEN: dict[str, bytes] = {".json": b'{\n "dsmem_tokens": ', ".idx": IDX_MAGIC, ".docs.npy": b"\x93NUMPY"}
"""How side files of token files begin, by their suffixes."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file to read."""

    path: str
    format: Format
    compression: Compression | None
    size_bytes: int
    """As it lies; 0 for a stream."""
    identity: FileIdentity | None
    """None for a stream (stdin, a pipe), which can be read once only."""

    @property
    def shown(self) -> str:
        """What messages call it."""
        return "standard input" if self.path == STDIN else self.path


@dataclass(frozen=True, slots=True)
class Wanted:
    """How inputs are meant, beyond their names."""

    format: Format | None = None
    """Of every file, whatever its name; a stream is jsonl unless it is said."""
    split: str | None = None
    subset: str | None = None


_AS_NAMED = Wanted()


def gather(inputs: Sequence[str], wanted: Wanted = _AS_NAMED) -> tuple[Source, ...]:
    """Every file in order. Raises SourceMissing, BadSource, UsageError (a file twice, a split that is not there)."""
    if wanted.format is not None and wanted.format not in get_args(Format):
        raise UsageError(f"no format {wanted.format!r}; there are {', '.join(get_args(Format))}")
    if not inputs:
        raise UsageError("no input")
    found = [source for name in inputs for source in _expand(name, wanted)]
    seen: dict[tuple[int, int] | str, str] = {}
    for source in found:
        key = source.path if source.identity is None else (source.identity.dev, source.identity.ino)
        if key in seen:
            raise UsageError(f"{source.path} is there twice (as {seen[key]}): its documents would be, too")
        seen[key] = source.path
    return tuple(found)


def _expand(name: str, wanted: Wanted) -> Iterator[Source]:
    if name == STDIN:
        yield Source(STDIN, _of_stream(wanted, "stdin"), None, 0, None)
    elif os.path.isdir(name):
        yield from _directory(name, wanted)
    elif os.path.lexists(name):
        yield _file(name, wanted)
    elif matches := sorted(glob.glob(name, recursive=True)):
        found = [one for one in matches if os.path.isdir(one) or not _is_written(one)]
        if not found:
            raise BadSource(f"{name}: all that matches was written by dsmem tokenize")
        for match in found:
            yield from _directory(match, wanted) if os.path.isdir(match) else [_file(match, wanted)]
    elif glob.has_magic(name) or name.startswith(("/", ".")) or format_of(name) is not None or name.count("/") > 1:
        raise SourceMissing(f"{name}: no such file")
    else:
        yield from _from_hub(name, wanted)


def format_of(name: str) -> Format | None:
    """By the suffix, before that of a compression."""
    lowered = name.lower()
    for suffix in compressed.SUFFIXES:
        lowered = lowered.removesuffix(suffix)
    return _SUFFIXES.get(os.path.splitext(lowered)[1])


def _of_stream(wanted: Wanted, path: str) -> Format:
    if wanted.format in BINARY:
        raise UsageError(f"{path}: a {wanted.format} file can't be read from a stream")
    return wanted.format or "jsonl"


def _file(path: str, wanted: Wanted) -> Source:
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):
            # Who writes to it would be cut off if it were opened here and then again.
            return Source(path, _of_stream(wanted, path), None, 0, None)
        with os.fdopen(os.open(path, _NO_WAIT), "rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISCHR(status.st_mode):
                return Source(path, _of_stream(wanted, path), None, 0, None)
            if not stat.S_ISREG(status.st_mode):
                raise BadSource(f"{path} is not a regular file")
            head = file.read(compressed.HEAD_BYTES)
    except FileNotFoundError as exc:
        raise SourceMissing(f"{path}: no such file") from exc
    form = wanted.format or format_of(path)
    if form is None:
        raise UsageError(f"{path}: its name does not say what it is; say it with --format {'|'.join(get_args(Format))}")
    compression = None if form in BINARY else compressed.detect(head)
    return Source(path, form, compression, status.st_size, FileIdentity.of(status))


def _directory(path: str, wanted: Wanted) -> Iterator[Source]:
    """A saved dataset, or the files below that have a known suffix."""
    if os.path.exists(f"{path}/dataset_dict.json"):
        splits = _read_json(f"{path}/dataset_dict.json").get("splits")
        yield from _saved(f"{path}/{_chosen(path, splits, wanted)}")
        return
    if os.path.exists(f"{path}/state.json"):
        if wanted.split is not None:
            raise UsageError(f"{path} is a saved dataset without splits; it has no {wanted.split!r}")
        yield from _saved(path)
        return
    inside = [
        one
        for one in _files_below(path)
        if (format_of(one) is not None or wanted.format is not None) and not _is_written(one)
    ]
    if not inside:
        raise BadSource(f"{path} is a directory without files to tokenize ({', '.join(_SUFFIXES)})")
    for name in inside:
        yield _file(name, wanted)


def _files_below(path: str) -> Iterator[str]:
    """All files that are not hidden, nor below a hidden directory, in order; raises OSError for one that is closed."""

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for directory, below, names in os.walk(path, onerror=refuse):
        below[:] = [one for one in below if not one.startswith(".")]
        for one in sorted(below):
            if os.path.islink(link := os.path.join(directory, one)):
                _log.warning("%s is a link to a directory, which is not followed: name it to have it read", link)
        found.append((directory, names))
    for directory, names in sorted(found):
        yield from (os.path.join(directory, name) for name in sorted(names) if not name.startswith("."))


def _is_written(path: str) -> bool:
    """Whether a file is one of those that make up a token file: none of them is text, whatever its name."""
    stem = path.removesuffix(".bin")
    if stem != path:
        return _is_written(Beside.of(path).manifest)
    for suffix, head in _WRITTEN.items():
        if path.endswith(suffix):
            try:
                with os.fdopen(os.open(path, _NO_WAIT), "rb") as file:
                    return stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.read(len(head)) == head
            except OSError:
                return False  # nor is it there, for whoever reads it will tell
    return False


def _chosen(path: str, splits: object, wanted: Wanted) -> str:
    names = [one for one in splits if isinstance(one, str)] if isinstance(splits, list) else []
    if wanted.split is None and len(names) == 1:
        return names[0]
    if wanted.split not in names:
        said = "say which with --split" if wanted.split is None else f"none is {wanted.split!r}"
        raise UsageError(f"{path} has the splits {', '.join(names)}; {said}")
    return wanted.split


def _saved(path: str) -> Iterator[Source]:
    """The Arrow files of a dataset that `Dataset.save_to_disk` wrote, in the order of its rows."""
    state = _read_json(f"{path}/state.json")
    try:
        names = [one["filename"] for one in cast("list[dict[str, str]]", state["_data_files"])]
    except (KeyError, TypeError) as exc:
        raise BadSource(f"{path}/state.json does not name the files of the dataset") from exc
    for name in names:
        if os.path.basename(name) != name:
            raise BadSource(f"{path}/state.json names a file elsewhere: {name}")
        yield _file(os.path.join(path, name), Wanted("arrow"))


def _read_json(path: str) -> dict[str, object]:
    data = files.read_regular(path, _JSON_BYTES)
    try:
        value = json.loads(data)
    except ValueError as exc:
        raise BadSource(f"{path} is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise BadSource(f"{path} is not what `datasets` writes")
    return value


def _first_line(error: Exception) -> str:
    """What it says, or else its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _from_hub(name: str, wanted: Wanted) -> Iterable[Source]:
    """The Arrow files in which `datasets` keeps a dataset of the hub (it downloads what is not in its cache)."""
    if wanted.split is not None and not wanted.split.isidentifier():
        raise UsageError(f"--split {wanted.split}: only whole splits are read, such as train")
    import datasets

    try:
        hub.require_answer(name, "README.md", "dataset")
        loaded = datasets.load_dataset(name, wanted.subset, split=wanted.split)
    except DsmemError:
        raise
    except (OSError, ValueError) as exc:
        raise SourceMissing(f"{name} is neither a file nor a dataset that can be loaded: {_first_line(exc)}") from exc
    except Exception as exc:
        # `datasets` has errors of its own, and raises RuntimeError for what it supports no longer.
        raise BadSource(f"{name} can't be loaded: {type(exc).__name__}: {_first_line(exc)}") from exc
    if isinstance(loaded, dict):
        loaded = loaded[_chosen(name, list(loaded), wanted)]
    if loaded._indices is not None:
        raise BadSource(f"{name} is a selection of rows, whose files hold others too: save it with save_to_disk")
    return [_file(one["filename"], Wanted("arrow")) for one in loaded.cache_files]
