"""Whether a checkpoint is whole: every fault is named, none stops the search for others.

Bytes are read once, in threads, and only where checksums were saved: safetensors has none. Memory stays small.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dsmem import proc
from dsmem.checkpoint import formats, safetensors_files, torch_files, verifying_dcp, zips
from dsmem.checkpoint import workers as choosing
from dsmem.checkpoint.findings import Check, Findings, Verified, few
from dsmem.checkpoint.formats import Found
from dsmem.checkpoint.opened import Directory
from dsmem.checkpoint.parts import TensorEntry
from dsmem.checkpoint.pool import Pool
from dsmem.checkpoint.scratch import Scratch
from dsmem.checkpoint.torch_files import NeedsTorch
from dsmem.checkpoint.workers import Workers
from dsmem.checkpoint.zips import InFile, Record
from dsmem.errors import BadSource, DsmemError, SourceMissing
from dsmem.progress import Progress, ignore

__all__ = ["Check", "Verified", "verify"]

Names = Mapping[str, list[str] | None]
"""File → the tensors in it; None where that can't be told."""
Task = Callable[[], None]
_REFUSED = re.compile(r"unsupported (global|class)|unrecognized function", re.IGNORECASE)
"""How torch's unpickler of weights says that a pickle wants more, which is no damage."""


def verify(
    path: str | os.PathLike[str],
    *,
    workers: Workers = "auto",
    progress: Progress = ignore,
    _extension_registry: Any = None,
) -> Verified:
    """Structure, files, index, tensors and checksums of a checkpoint of any format; no pickle is run.

    `_extension_registry`: that of torch, for what was saved through extensions of one's own.

    Raises SourceMissing, Ambiguous, BadSource for what is no checkpoint or has no readable index, UntrustedPickle for
    an index that leads out of its directory, OSError.
    """
    choosing.check(workers)
    began = time.perf_counter()
    found = formats.detect(path)
    findings = Findings(progress)
    with Directory(found.directory, io="pread") as directory:
        if found.format == "dcp":
            tasks = verifying_dcp.look(found, directory, findings, _extension_registry)
        elif found.format == "safetensors":
            tasks = _safetensors(found, directory, findings)
        else:
            tasks = _torch(found, directory, findings)
        pool = Pool[None](proc.usable_cpus() if workers == "auto" else workers)
        findings.stopped = lambda: pool.stopping
        pool.run([partial(_done, task) for task in tasks], lambda outcome: ())
    if findings.unverifiable:
        findings.note("checksums", f"{findings.unverifiable} items were saved without: what changed can't be told")
    if findings.verified:
        findings.fine("checksums", f"{findings.verified} compared")
    checks = findings.checks()
    return Verified(
        path=os.fspath(path),
        format=found.format,
        ok=all(check.state != "bad" for check in checks),
        tensors=findings.tensors,
        size_bytes=findings.size_bytes,
        verified=findings.verified,
        unverifiable=findings.unverifiable,
        elapsed_s=time.perf_counter() - began,
        checks=checks,
    )


def _done(task: Task, scratch: Scratch) -> None:
    task()


def _safetensors(found: Found, directory: Directory, findings: Findings) -> list[Task]:
    names: dict[str, list[str] | None] = {}
    for file in found.files:
        entries = _entries(found.directory, file, directory, findings)
        names[file] = None if entries is None else [entry.name for entry in entries]
    _index(found, names, findings)
    _sum_up(found, findings)
    findings.note("checksums", "safetensors has none: bytes that changed can't be told")
    return []


def _entries(where: str, file: str, directory: Directory, findings: Findings) -> list[TensorEntry] | None:
    """The tensors of a file that are described rightly; the format wants them to fill it without gaps."""
    try:
        findings.size_bytes += directory.open(file).size_bytes
        parsed, text = safetensors_files.header_of(where, file)
    except SourceMissing:
        findings.bad("files", "missing", file=file)
        return None
    except BadSource as exc:
        findings.bad("structure", str(exc), file=file)
        return None
    for name in _twice_in(text):
        findings.bad("tensors", "described twice in one header", file=file, tensor=name)
    entries = []
    for name in parsed.names():
        try:
            entries.append(safetensors_files.entry(file, name, parsed.raw[name], parsed))
        except DsmemError as exc:
            findings.bad("tensors", str(exc), file=file, tensor=name)
    end, before = parsed.data_start, "the header"
    whole = len(entries) == len(parsed.names())
    for one in sorted(entries, key=lambda entry: (entry.parts[0].offset, entry.size_bytes)):
        (part,) = one.parts
        if part.offset < end:
            findings.bad("tensors", f"lies over {before}", file=file, tensor=one.name)
        elif part.offset > end and whole:
            findings.bad("structure", f"{part.offset - end} bytes after {before} belong to nothing", file=file)
        if part.offset + part.size_bytes >= end:
            end, before = part.offset + part.size_bytes, one.name
    left = parsed.data_start + parsed.data_bytes - end
    if left > 0 and whole:
        findings.bad("structure", f"{left} bytes after {before} belong to nothing", file=file)
    findings.tensors += len(entries)
    return entries


def _torch(found: Found, directory: Directory, findings: Findings) -> list[Task]:
    names: dict[str, list[str] | None] = {}
    tasks: list[Task] = []
    for file in found.files:
        names[file] = None
        try:
            opened = directory.open(file)
            findings.size_bytes += opened.size_bytes
            window = InFile(opened, 0, opened.size_bytes)
            if window.read(0, 4) != b"PK\x03\x04":
                _older(found.directory, file, findings)
                continue
            records = zips.records(window)
        except SourceMissing:
            findings.bad("files", "missing", file=file)
            continue
        except BadSource as exc:
            findings.bad("structure", str(exc), file=file)
            continue
        users = _users(found.directory, file, records, findings, names)
        findings.expect(sum(record.size_bytes for record in records))
        for record in records:
            who = few(users.get(record.inner.removeprefix("data/"), [])) or record.inner
            tasks.append(partial(_compare, window, record, file, who, findings))
    _index(found, names, findings)
    _sum_up(found, findings)
    return tasks


def _users(
    where: str, file: str, records: list[Record], findings: Findings, names: dict[str, list[str] | None]
) -> dict[str, list[str]]:
    """Storage → the tensors in it."""
    users: dict[str, list[str]] = {}
    try:
        looked = torch_files.look_at(where, file)
    except NeedsTorch as exc:
        findings.note("tensors", f"only loading it would tell them: {exc}", file=file)
        return users
    except BadSource as exc:
        findings.bad("tensors", str(exc), file=file)
        return users
    names[file] = list(looked.tensors)
    findings.tensors += len(looked.tensors)
    for name, stored in looked.tensors.items():
        users.setdefault(stored.storage, []).append(name)
    keys = [record.inner[5:] for record in records if record.inner.startswith("data/")]
    unused = [f"data/{key}" for key in keys if key not in users]
    if unused:
        findings.note("structure", f"no tensor uses {few(unused)}", file=file)
    twice = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) != len(keys) else []
    if twice:
        findings.bad("structure", f"the records {few(f'data/{key}' for key in twice)} are there twice", file=file)
    return users


def _older(where: str, file: str, findings: Findings) -> None:
    """The format of torch before 1.6 is a row of pickles without checksums: torch itself must read it to its end."""
    import torch

    findings.note("checksums", "the format of torch before 1.6 has none", file=file)
    try:
        loaded = torch.load(os.path.join(where, file), map_location="cpu", weights_only=True)
    except Exception as exc:  # noqa: BLE001 - torch raises whatever its pickles make it raise
        told = str(exc).split("\n", 1)[0]
        if _REFUSED.search(str(exc)):
            findings.note("structure", f"a pickle of more than weights, not looked at: {told}", file=file)
        else:
            findings.bad("structure", f"torch can't load it: {type(exc).__name__}: {told}", file=file)
        return
    findings.tensors += sum(isinstance(value, torch.Tensor) for _, value in torch_files.leaves(loaded))


def _compare(window: InFile, record: Record, file: str, who: str, findings: Findings) -> None:
    try:
        actual = zips.crc(window, record.offset, record.size_bytes, findings.advance)
    except (OSError, DsmemError) as exc:
        findings.bad("files", str(exc), file=file, tensor=who)
        return
    if actual == record.crc or not record.crc:
        if record.inner.startswith("data/"):
            findings.count(verified=actual == record.crc)
    else:
        findings.bad("checksums", f"bytes changed: {zips.told(actual, record.crc)}", file=file, tensor=who)


def _index(found: Found, names: Names, findings: Findings) -> None:
    """What the index says against what the files hold; a name in two files is a fault."""
    homes: dict[str, list[str]] = {}
    for file, inside in names.items():
        for name in inside or ():
            homes.setdefault(name, []).append(file)
    for name, files in homes.items():
        if len(files) > 1:
            findings.bad("tensors", f"in several files: {', '.join(files)}", tensor=name)
    if found.index is None or found.weight_map is None:
        return
    for name, file in found.weight_map.items():
        if names.get(file) is None or file in homes.get(name, ()):
            continue
        if name in homes:
            findings.bad("index", f"the index says {file}; it is in {', '.join(homes[name])}", tensor=name)
        else:
            findings.bad("tensors", "missing: the index names it, the file does not have it", file=file, tensor=name)
    for name, files in homes.items():
        if name not in found.weight_map:
            findings.bad("tensors", "extra: the index does not name it", file=files[0], tensor=name)
    for name in _twice_in(Path(found.directory, found.index).read_bytes()):
        findings.bad("index", "the index names it twice", file=found.index, tensor=name)
    ending = os.path.splitext(found.files[0])[1] if found.files else ""
    extra = [one for one in sorted(os.listdir(found.directory)) if one.endswith(ending or "\0") and one not in names]
    if extra:
        findings.note("files", f"the index does not name {few(extra)}")
    findings.fine("index", f"{len(found.weight_map)} names in {len(names)} files")


def _twice_in(text: bytes) -> list[str]:
    """Names that an object in JSON has twice, of which parsers keep the last."""
    twice: list[str] = []

    def pairs(items: Iterable[tuple[str, object]]) -> dict[str, object]:
        seen: dict[str, object] = {}
        for name, value in items:
            if name in seen:
                twice.append(name)
            seen[name] = value
        return seen

    json.loads(text, object_pairs_hook=pairs)
    return twice


def _sum_up(found: Found, findings: Findings) -> None:
    findings.fine("structure", found.format)
    findings.fine("files", f"{len(found.files)} there")
    findings.fine("tensors", f"{findings.tensors} as described")
