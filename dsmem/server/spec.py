"""A `Spec` is a request for a table, normalised: what means the same is equal, however it was spelt.

It holds the arguments of `datasets.load_dataset` that decide which rows come out, and no secret: tokens are left out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

from dsmem.errors import UsageError
from dsmem.files import FileIdentity
from dsmem.store import names, sources

BUILDERS = {
    ".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".parquet": "parquet",
    ".arrow": "arrow", ".txt": "text", ".text": "text",
}  # fmt: skip
"""Suffix → the builder of `datasets` that reads such files."""
_PACKAGED = frozenset({*BUILDERS.values(), "pandas", "xml", "hdf5", "webdataset", "imagefolder", "audiofolder"})
_NO_ROWS = frozenset({
    "cache_dir", "download_config", "download_mode", "keep_in_memory", "num_proc", "save_infos", "storage_options",
    "streaming", "token", "trust_remote_code", "use_auth_token", "verification_mode",
})  # fmt: skip
"""Arguments that say how data is fetched, not which rows come out."""
_HUB = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_SOURCE = re.compile(r"(?P<path>[^:@]+)(?::(?P<name>[^/@]*)(?:/(?P<split>[^@]+))?)?(?:@(?P<revision>.+))?", re.DOTALL)
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Spec:
    """What is asked of `datasets.load_dataset`, and what is done with the rows; made by `of` and `parse`."""

    path: str
    """A builder's name, a hub id, or the real path of a directory."""
    name: str | None = None
    """The subset, `name` of load_dataset."""
    data_dir: str | None = None
    data_files: str = ""
    """Canonical JSON {split: [path, …]}; '' = those that the path means."""
    split: str | None = None
    """None = every split."""
    revision: str | None = None
    """None = the newest."""
    options: str = ""
    """Canonical JSON of the other arguments that decide about rows; '' = none."""
    sample_limit: int | None = None
    """The first N rows of each split; None = all."""
    shuffle_seed: int | None = None
    """Rows in the order of `Dataset.shuffle(seed)`, written in that order."""
    flatten: bool = False
    """Nested columns as columns of their own (`Dataset.flatten`)."""

    @classmethod
    def of(
        cls,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        data_files: object = None,
        split: object = None,
        revision: object = None,
        sample_limit: int | None = None,
        shuffle_seed: int | None = None,
        flatten: bool = False,
        **options: object,
    ) -> Spec:
        """From the arguments of load_dataset; raises UsageError for what can't be written down, or means nothing."""
        if sample_limit is not None and sample_limit < 1:
            raise UsageError(f"a sample limit of {sample_limit} rows means nothing; it is 1 or more")
        text = os.fspath(path)
        local = text.startswith(("/", "./", "../", "~")) or os.path.isdir(text)
        if os.path.isfile(os.path.expanduser(text)):
            if data_files is not None:
                raise UsageError(f"{text} is a file: data_files can't be given as well")
            text, data_files, local = _builder(text), text, False
        if local:
            text = os.path.realpath(os.path.expanduser(text))
        base = text if local else ("." if text in _PACKAGED else None)
        folder = None if data_dir is None else os.fspath(data_dir)
        if folder is not None and base is not None:
            folder = _absolute(folder, base, {})
        hub = base is None
        return cls(
            path=text,
            name=name,
            data_dir=folder,
            data_files="" if data_files is None else _canonical(_files(data_files, folder or base)),
            split=None if split is None else _split(split),
            revision=str(revision) if hub and revision is not None and str(revision) != "main" else None,
            options=_options(options),
            sample_limit=sample_limit,
            shuffle_seed=shuffle_seed,
            flatten=flatten,
        )

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        sample_limit: int | None = None,
        shuffle_seed: int | None = None,
        flatten: bool = False,
    ) -> Spec:
        """From one word of the command line; raises UsageError.

        A path that exists: a saved dataset, a directory, or a file of json, jsonl, csv, parquet, arrow or text; a
        pattern of such files; else a hub id. All may end with `:subset/split@revision`, each part left out at will.
        """
        path, name, split, revision = text, None, None, None
        if not os.path.exists(os.path.expanduser(text)):
            match = _SOURCE.fullmatch(text)
            if match is None:
                raise UsageError(f"{text!r} is no source: write a path, or HUB_ID:subset/split@revision")
            path, split, revision = match["path"], match["split"], match["revision"]
            name = match["name"] or None
        known = os.path.expanduser(path)
        files: object = None
        if os.path.isfile(known) or _GLOB.search(path) is not None:
            path, files = _builder(path), known
        elif not os.path.isdir(known):
            if path.startswith(("/", "./", "../", "~")) or os.path.splitext(path)[1] in BUILDERS:
                raise UsageError(f"{path}: no such file or directory")
            if _HUB.fullmatch(path) is None:
                raise UsageError(f"{path!r} is neither a path nor the name of a dataset on a hub")
        else:
            path = os.path.realpath(known)
        return cls.of(
            path,
            name,
            data_files=files,
            split=split,
            revision=revision,
            sample_limit=sample_limit,
            shuffle_seed=shuffle_seed,
            flatten=flatten,
        )

    @property
    def source(self) -> str:
        """The canonical text by which the store knows it (`dsmem.store.sources`); equal for equal requests."""
        return _source(self)

    @property
    def selection(self) -> str:
        """Canonical JSON of what is left out of the source; '' = nothing."""
        return _canonical({"sample_limit": self.sample_limit}) if self.sample_limit is not None else ""

    @property
    def label(self) -> str:
        """Short, for people."""
        return sources.label(self.source)

    @property
    def stem(self) -> str:
        """Of the object's name."""
        paths = self.local_paths()
        place = paths[0] if paths else self.path
        stem = names.stem_of(os.path.dirname(_GLOB.split(place)[0]) if _GLOB.search(place) else place)
        return f"{stem}-{names.stem_of(self.split + '.x')}" if self.split else stem

    def local_paths(self) -> tuple[str, ...]:
        """Local files, directories and patterns that it names; () for data on a hub."""
        return sources.local_paths(self.source)

    def identity(self, *, revision: str = "") -> FileIdentity:
        """Of the local files as they are now; for a hub's data fixed by the revision that was found there.

        Raises SourceMissing.
        """
        return sources.identity(self.source, revision=revision)

    def with_split(self, split: str | None) -> Spec:
        """The same of another split."""
        return replace(self, split=split)

    def arguments(self) -> dict[str, object]:
        """Keyword arguments for `datasets.load_dataset`, `path` among them."""
        given: dict[str, object] = dict(json.loads(self.options)) if self.options else {}
        for key in ("path", "name", "data_dir", "split", "revision"):
            if getattr(self, key) is not None:
                given[key] = getattr(self, key)
        if self.data_files:
            given["data_files"] = json.loads(self.data_files)
        return given

    def as_dict(self) -> dict[str, object]:
        """The fields that are set, for JSON."""
        pairs = ((field.name, getattr(self, field.name), field.default) for field in fields(self))
        return {name: value for name, value, unset in pairs if value != unset}

    @classmethod
    def from_dict(cls, record: object) -> Spec:
        """The inverse of `as_dict`; raises ValueError."""
        if not isinstance(record, dict) or not isinstance(record.get("path"), str):
            raise ValueError(f"not a request for a table: {record!r}")
        texts = ("path", "name", "data_dir", "data_files", "split", "revision", "options")
        wrong = [key for key in texts if key in record and not isinstance(record[key], str)]
        wrong += [key for key in ("sample_limit", "shuffle_seed") if key in record and type(record[key]) is not int]
        wrong += ["flatten"] if not isinstance(record.get("flatten", False), bool) else []
        unknown = sorted(record.keys() - {field.name for field in fields(cls)})
        wrong += [key for key in texts if not wrong and not _is_path_like(record.get(key, ""))]
        wrong += [key for key in ("options", "data_files") if not wrong and not _is_json_object(record.get(key, ""))]
        wrong += ["sample_limit"] if not wrong and record.get("sample_limit", 1) < 1 else []
        if wrong or unknown:
            raise ValueError(f"not a request for a table: {', '.join(wrong + unknown)}")
        return cls(**record)


def _is_path_like(text: str) -> bool:
    """Whether the file system and JSON take it; what comes through the socket may be anything."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _is_json_object(text: str) -> bool:
    try:
        return not text or isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


@lru_cache(maxsize=256)
def _source(spec: Spec) -> str:
    record = spec.as_dict()
    for key in ("data_files", "options"):
        if key in record:
            record[key] = json.loads(str(record[key]))
    return sources.PREFIX + _canonical(record)


def _builder(path: str) -> str:
    suffix = os.path.splitext(path.rstrip("]*?"))[1].lower()
    if suffix not in BUILDERS:
        raise UsageError(f"{path} is none of {', '.join(sorted(BUILDERS))}; give load_dataset's path and data_files")
    return BUILDERS[suffix]


def _files(given: object, base: str | None) -> dict[str, list[str]]:
    """{split: [path, …]}, as load_dataset understands one path, a list of them, or a mapping."""
    if not isinstance(given, Mapping):
        given = {"train": given}
    found: dict[str, list[str]] = {}
    directories: dict[str, str] = {}
    for split, listed in given.items():
        several = [listed] if isinstance(listed, str | os.PathLike) else listed
        if not isinstance(several, Sequence) or not all(isinstance(one, str | os.PathLike) for one in several):
            raise UsageError(f"data_files={listed!r} means nothing; it is a path, or a list of paths")
        paths = [os.fspath(one) for one in several]
        found[str(split)] = [_absolute(path, base, directories) if base is not None else path for path in paths]
    return found


def _absolute(path: str, base: str, directories: dict[str, str]) -> str:
    """Absolute and free of links; an address on a network stays as it is. Directories are resolved once."""
    if "://" in path:
        return path
    full = os.path.join(base, os.path.expanduser(path))
    directory, name = os.path.split(full)
    if name in ("", ".", "..") or os.path.islink(full):
        return os.path.realpath(full)
    if directory not in directories:
        directories[directory] = os.path.realpath(directory)
    return os.path.join(directories[directory], name)


def _split(split: object) -> str:
    if isinstance(split, list | tuple):
        raise UsageError("a list of splits is several requests")
    to_spec = getattr(split, "to_spec", None)  # datasets.ReadInstruction
    return str(to_spec()) if callable(to_spec) else str(split)


def _options(options: Mapping[str, object]) -> str:
    chosen = {key: value for key, value in options.items() if value is not None and key not in _NO_ROWS}
    features = getattr(chosen.get("features"), "to_dict", None)
    if callable(features):
        chosen["features"] = features()
    return _canonical(chosen) if chosen else ""


def _canonical(value: object) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise UsageError(f"an argument can't be written down: {exc}") from exc
