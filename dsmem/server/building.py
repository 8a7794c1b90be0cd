"""Publish a table: load it by `datasets`, write it into a directory of the store, name it when it is whole.

Whatever fails, what was published before stays as it is. Shards whose source files are unchanged are linked.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dsmem import settings
from dsmem.arrow import batches, writing
from dsmem.arrow.writing import Shard, Table
from dsmem.errors import SourceChanged
from dsmem.files import FileIdentity
from dsmem.progress import Progress, ignore
from dsmem.server import gathering, generations, scratch
from dsmem.server.gathering import Fact, Group
from dsmem.server.generations import Older
from dsmem.server.records import Published
from dsmem.server.spec import Spec
from dsmem.store import directories, refs
from dsmem.store.obtain import Filled, Request, obtain_as
from dsmem.store.root import Store
from dsmem.store.staging import DirectoryDraft

if TYPE_CHECKING:
    from datasets import Dataset

KIND = "dataset"
_DIGEST = "xxh3-128"
_SPARE = 1.02
"""Arrow files over Arrow tables: metadata and padding."""
_SMALL_FILES_BYTES = 64 << 10
_SHARD_BYTES, _MOST_SHARDS = 1 << 30, 8
_GRAIN_S = 0.05
"""Two edits within a tick of the kernel's clock have the same mtime (`dsmem.files`)."""
_log = logging.getLogger(__name__)


def publish(store: Store, spec: Spec, *, progress: Progress = ignore) -> str:
    """Load a table into the store, or find it there unchanged; the name of its object.

    Raises SourceMissing, BadSource, SourceChanged, NoSpace, and what `datasets` raises.
    """
    return published(store, spec, progress=progress).object


def published(store: Store, spec: Spec, *, progress: Progress = ignore) -> Published:
    """The same, with what is to be told of it."""
    revision = gathering.hub_revision(spec)
    identity = _settled_identity(spec, revision)
    older = refs.find_source(store, spec.source, spec.selection)
    if older is not None and not spec.local_paths() and not revision:
        identity = older.provenance.identity  # the hub can't be asked: what is there stays
    request = Request(spec.source, identity, spec.selection, spec.stem)

    def build(draft: DirectoryDraft, report: Progress) -> Filled:
        with generations.older(store, spec) as before, scratch.directory() as cache_dir:
            work = _Work(draft, spec, cache_dir, before, report)
            tables = work.write()
            if spec.local_paths() and spec.identity() != identity:
                raise SourceChanged(f"{spec.label} changed while it was read; nothing was published")
        facts = generations.Facts(revision, spec, tables, work.files, before.generation + 1).as_dict()
        content = f"{_DIGEST}:{_content(tables)}"
        return Filled(content, content, lambda made: draft.seal(made, kind=KIND, facts=facts))

    obtained = obtain_as(DirectoryDraft, store, request, build, progress)
    name = obtained.ref.object
    anchor = directories.read_anchor(store.object_path(name))
    obtained.lease.map.close()
    facts = generations.Facts.from_dict(anchor.facts)
    return Published(name, facts.rows, sum(anchor.sizes.values()), identity, facts.generation)


class _Work:
    """One build. A table has the key '' when it is the only one: its shards lie in the object itself."""

    def __init__(self, draft: DirectoryDraft, spec: Spec, cache_dir: str, older: Older, progress: Progress) -> None:
        self._draft, self._spec, self._cache_dir, self._older = draft, spec, cache_dir, older
        self._progress = progress
        self._written = self._total = 0
        self.files: dict[str, list[list[Fact]]] = {}
        """Key → the source files of each shard, where a shard is of whole files."""

    def write(self) -> dict[str, Table]:
        """Write all splits; what was written, by key."""
        files = gathering.files_of(self._spec)
        tables = None
        if files is not None and sum(map(len, files.values())) > 1:
            tables = self._write_groups(files)
        if tables is None:
            tables = self._write_whole()
        if "" not in tables:
            writing.finish_splits(self._draft.path, list(tables))
        return tables

    def _write_whole(self) -> dict[str, Table]:
        found = gathering.whole(self._spec, self._cache_dir if self._spec.local_paths() else None)
        self._total = sum(map(batches.size_of, found.values()))
        self._make_room(self._total)
        tables = {}
        for key, dataset in found.items():
            count = min(_MOST_SHARDS, max(1, batches.size_of(dataset) // _SHARD_BYTES), max(1, len(dataset)))
            shards = []
            for number in range(count):
                part = dataset if count == 1 else dataset.shard(count, number, contiguous=True)
                shards.append(self._shard(key, number, part))
            split = str(dataset.split) if dataset.split is not None else key or None
            tables[key] = writing.finish_split(self._directory(key), writing.info_record(dataset.info), split, shards)
        return tables

    def _write_groups(self, files: dict[str, list[Fact]]) -> dict[str, Table] | None:
        """A shard for each group of files; None, and nothing written, when their columns are not the same."""
        tables: dict[str, Table] = {}
        for split, facts in files.items():
            key = split if self._spec.split is None else ""
            groups = gathering.grouped(facts, self._older.files(key))
            table = self._write_split(key, split, groups)
            if table is None:
                self._start_over()
                return None
            tables[key] = table
            self.files[key] = [list(group.files) for group in groups]
        return tables

    def _write_split(self, key: str, split: str, groups: list[Group]) -> Table | None:
        source_bytes = sum(fact[3] for group in groups for fact in group.files)
        info = None
        shards: list[Shard] = []
        for number, group in enumerate(groups):
            if group.known is not None:
                table = self._older.table(key)
                shards.append(self._link(key, number, group.known))
                found = dict(table.info)
            else:
                with tempfile.TemporaryDirectory(dir=self._cache_dir) as cache_dir:
                    dataset = gathering.load_group(self._spec, split, group, cache_dir)
                    found = writing.info_record(dataset.info)
                    if info is None or _columns(found) == _columns(info):
                        self._total = max(source_bytes, self._written + batches.size_of(dataset))
                        self._make_room(self._written + batches.size_of(dataset))
                        shards.append(self._shard(key, number, dataset))
            if info is not None and _columns(found) != _columns(info):
                _log.info("%s: its files do not have the same columns; loaded as one", self._spec.label)
                return None
            info = found
        assert info is not None
        return writing.finish_split(self._directory(key), info, split, shards)

    def _link(self, key: str, number: int, known: int) -> Shard:
        path = f"{self._directory(key)}/{writing.shard_name(number)}"
        writing.link_shard(self._older.shard_path(key, known), path)
        shard = self._older.table(key).shards[known]
        self._written += shard.size_bytes
        return shard

    def _directory(self, key: str) -> str:
        path = f"{self._draft.path}/{key}" if key else self._draft.path
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path

    def _shard(self, key: str, number: int, dataset: Dataset) -> Shard:
        schema = writing.schema_of(dataset)
        before = self._written

        def report(size_bytes: int) -> None:
            self._progress(before + size_bytes, max(self._total, before + size_bytes))

        path = f"{self._directory(key)}/{writing.shard_name(number)}"
        try:
            shard = writing.write_shard(path, batches.of_dataset(dataset, schema), schema, report)
        except OSError as exc:
            raise self._draft.translated(exc, batches.size_of(dataset)) from exc
        self._written += shard.size_bytes
        return shard

    def _make_room(self, need_bytes: int) -> None:
        self._draft.make_room(int(need_bytes * _SPARE) + _SMALL_FILES_BYTES, settings.read().budget_bytes)

    def _start_over(self) -> None:
        with os.scandir(self._draft.path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                elif entry.name != directories.ANCHOR:
                    os.unlink(entry.path)
        self.files.clear()
        self._written = 0


def _columns(info: Mapping[str, object]) -> str:
    return json.dumps(info["features"])


def _content(tables: Mapping[str, Table]) -> str:
    """One digest of all splits, in their order."""
    facts = json.dumps([[key, table.fingerprint] for key, table in tables.items()])
    return hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()


def _settled_identity(spec: Spec, revision: str) -> FileIdentity:
    """Of the source once its times are old enough to betray every later edit (≤ 50 ms)."""
    while True:
        found = spec.identity(revision=revision)
        age_s = time.time() - found.mtime_ns / 1e9
        if not 0 <= age_s < _GRAIN_S:
            return found
        time.sleep(_GRAIN_S - age_s)
