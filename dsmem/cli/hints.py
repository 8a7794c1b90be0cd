"""The hints that follow errors: what helps, ending with a command that can be pasted, made from what was typed."""

from __future__ import annotations

import errno
import os
import resource
import shlex
import sys
from dataclasses import dataclass
from itertools import pairwise

from dsmem import units
from dsmem.cli.output import quote
from dsmem.errors import (
    FILE_SIZE,
    Ambiguous,
    BadDocument,
    BrokenEpisodes,
    CheckpointReadError,
    DamagedObject,
    InUse,
    NoEndToken,
    NoSpace,
    NotPinned,
    OutputExists,
    OutputGone,
    SourceBusy,
    SourceChanged,
    TableTooLarge,
    UnsafeRoot,
    Unsupported,
    UntrustedPickle,
    UsageError,
)

_MIB = 1 << 20
_NEVER_UNPICKLE = ("dsmem ckpt ls", "dsmem ckpt verify")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
"""What the system says where there is no room."""


@dataclass(frozen=True, slots=True)
class Typed:
    """What the user typed, for hints that repeat it."""

    command: str
    """'dsmem shm clean'."""
    arguments: tuple[str, ...]
    """All that follows 'dsmem'."""

    def again(self, *more: str) -> str:
        """The same command line, with more."""
        return " ".join(["dsmem", *(quote(word) for word in (*self.arguments, *more))])

    def instead(self, option: str, value: str) -> str:
        """The same command line with that option, in the place of what it was given."""
        words = iter(self.arguments)
        kept: list[str] = []
        for word in words:
            if word == option:
                next(words, None)
            elif not word.startswith(f"{option}="):
                kept.append(word)
        return Typed(self.command, tuple(kept)).again(option, value)


def usage(error: UsageError, typed: Typed) -> str:
    return typed.instead(error.option, error.value) if error.option else f"{typed.command} --help"


def not_pinned(error: NotPinned, typed: Typed) -> str:
    if error.target and os.path.exists(error.target):
        return f"pin it first: dsmem pin {quote(error.target)}"
    return "see what is pinned: dsmem shm ls"


def busy(error: SourceBusy, typed: Typed) -> str | None:
    if not error.path:
        return None
    if error.is_marked:
        return f"if lsof shows no process that writes it: h5clear -s {quote(error.path)}"
    return f"see who writes it: lsof -- {quote(error.path)}"


def no_space(error: NoSpace, typed: Typed) -> str:
    if typed.command == "dsmem ckpt read":
        return f"read a part, the tensors of these names: {typed.again('--only', 'GLOB')}"
    if error.loading_bytes:
        return f"when the others are loaded, try again: {typed.again()}"
    if error.budget_bytes is not None and error.need_bytes > error.budget_bytes:
        return f"give it as much: {typed.instead('--budget', f'{-(-error.need_bytes // _MIB)}MiB')}"
    if error.budget_bytes is not None:
        return "see what is in use, and what is kept: dsmem shm ls"
    if error.limit == FILE_SIZE:
        return f"lift that limit, then again: ulimit -f unlimited; {typed.again()}"
    if error.reclaimable_bytes > 0 and error.free_bytes + error.reclaimable_bytes >= error.need_bytes:
        return f"frees {units.format_bytes(error.reclaimable_bytes)}: dsmem shm clean --unused"
    return "see what limits it and how to raise it: dsmem shm doctor"


def memory(error: Exception, typed: Typed) -> str:
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return f"lift the limit of its address space, then again: ulimit -v unlimited; {typed.again()}"
    return "see what limits it: dsmem shm doctor"


def worker_lost(error: Exception, typed: Typed) -> str:
    if typed.command == "dsmem tokenize":
        return f"go on, with less memory in use: {typed.instead('--workers', '1')}"
    return "see what limits memory: dsmem shm doctor"


def in_use(error: InUse, typed: Typed) -> str:
    names = " ".join(quote(name) for name in error.names)
    if not names:
        return "see who holds what: dsmem shm ls"
    return f"remove all the same; memory comes back when the holders end: dsmem shm clean --force {names}"


def damaged(error: DamagedObject, typed: Typed) -> str:
    return f"remove it: dsmem shm clean {quote(error.name)}" if error.name else "dsmem shm ls"


def unsafe_root(error: UnsafeRoot, typed: Typed) -> str:
    if typed.command == "dsmem tokenize":
        return f"see what it is, before you take it away: ls -ld {shlex.quote(error.root)}"
    return "use a directory of your own: export DSMEM_ROOT=$(mktemp -d /dev/shm/dsmem-$(id -u)-XXXXXX)"


def unsupported(error: Unsupported, typed: Typed) -> str | None:
    if typed.command == "dsmem tune":
        return None
    if typed.command == "dsmem ckpt convert":
        return f"write the rest: {typed.again('--skip-unsupported')}"
    flags = sorted({f"--allow {refusal.allow}" for refusal in error.refusals if refusal.allow})
    if flags and all(refusal.allow for refusal in error.refusals):
        them = "them" if len(error.refusals) > 1 else "it"
        allowing = typed.again(*(word for flag in flags for word in flag.split()))
        return f"if you trust the file (--skip-unsupported leaves {them} out): {allowing}"
    trusting = f"; if you trust the file also {' '.join(flags)}" if flags else ""
    return f"pin the rest (or choose with --only GLOB{trusting}): {typed.again('--skip-unsupported')}"


def bad_document(error: BadDocument, typed: Typed) -> str | None:
    if error.fields:
        skips = error.place and not any(word.startswith("--on-error") for word in typed.arguments)
        skip = ", or leave such documents out with --on-error skip" if skips else ""
        return f"name the field that holds text{skip}: {typed.instead('--text-field', error.fields[0])}"
    if "--on-error=skip" in typed.arguments or ("--on-error", "skip") in pairwise(typed.arguments):
        return None  # they are left out already: this is more than one of them
    return f"leave such documents out: {typed.instead('--on-error', 'skip')}"


_SMALL_PAGES = (
    "import pyarrow as a, pyarrow.parquet as p; f = p.ParquetFile({path!r}); "
    "s = a.schema([f.schema_arrow.field({field!r})]); "
    "w = p.ParquetWriter({out!r}, s, compression='zstd', use_dictionary=False, write_batch_size=1); "
    "[w.write_table(a.Table.from_batches([b])) for b in f.iter_batches(64, columns=s.names)]; w.close()"
)
_NOT_COMPRESSED = (
    "import pyarrow as a; f = a.memory_map({path!r}); h = f.read(6) == b'ARROW1'; f.seek(0); "
    "r = a.ipc.open_file(f) if h else a.ipc.open_stream(f); w = a.ipc.new_stream({out!r}, r.schema); "
    "[w.write_batch(b) for b in (map(r.get_batch, range(r.num_record_batches)) if h else r)]; w.close()"
)


def table(error: TableTooLarge, typed: Typed) -> str:
    stem, suffix = os.path.splitext(error.path)
    code = _SMALL_PAGES if error.is_parquet else _NOT_COMPRESSED
    what = "with pages of 1 MiB" if error.is_parquet else "without compression"
    out = f"{stem}.small{suffix}"
    code = code.format(path=error.path, field=error.text_field, out=out)
    command = f"{quote(sys.executable)} -c {shlex.quote(code)}"
    return f"write it {what}, in whatever memory that takes, and tokenize {quote(out)} instead: {command}"


def exists(error: OutputExists, typed: Typed) -> str:
    if "--force" in typed.arguments:  # it took the name meanwhile
        return f"look at what is there: ls -la {quote(error.path)}"
    return f"replace it: {typed.again('--force')}"


def gone(error: OutputGone, typed: Typed) -> str:
    made = "" if os.path.isdir(os.path.dirname(error.path)) else f"mkdir -p {quote(os.path.dirname(error.path))}; "
    return f"begin anew: {made}{typed.again()}"


def changed(error: SourceChanged, typed: Typed) -> str:
    anew = typed.command == "dsmem tokenize" and "--restart" not in typed.arguments  # its parts are of the older file
    return f"once the file is at rest: {typed.again(*(['--restart'] if anew else []))}"


def no_end(error: NoEndToken, typed: Typed) -> str:
    without = error.option.removesuffix("-token")
    return f"name it with {error.option} TOKEN, or leave it away: {typed.instead(without, 'none')}"


def checkpoint(error: CheckpointReadError, typed: Typed) -> str | None:
    if any(failure.kind == UntrustedPickle.__name__ for failure in error.failures):
        return f"only if you trust who made it: {typed.again('--trusted')}"
    return f"shows the tracebacks: DSMEM_DEBUG=1 {typed.again()}"


def untrusted(error: UntrustedPickle, typed: Typed) -> str | None:
    if typed.command in _NEVER_UNPICKLE:
        return None
    return f"only if you trust who made it: {typed.again('--trusted')}"


def episodes(error: BrokenEpisodes, typed: Typed) -> str | None:
    first = next((failure.path for failure in error.failures), None)
    return None if first is None else f"see what a file holds: dsmem pin --explain {quote(first)}"


def ambiguous(error: Ambiguous, typed: Typed) -> str | None:
    if error.candidates and all(os.path.exists(one) for one in error.candidates):  # files, none of them a name
        return f"see what one holds: dsmem ckpt ls {quote(error.candidates[0])}"
    return "see every name and its files: dsmem shm ls"


def of_system(error: OSError, typed: Typed) -> str | None:
    return "see what is full: dsmem shm doctor" if error.errno in FULL else None
