"""Errors as the user sees them: the one table from an error's type to exit code and hint.

0 ok, 1 error, 2 usage, 3 not found, 4 no space, 5 in use, 130 interrupted. `error: …` says what happened,
`hint: …` ends with a command that can be pasted. A traceback is shown with DSMEM_DEBUG=1 only.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import typer

from dsmem import settings, units
from dsmem.cli.output import NoAnswer, escape, note, paint, quote
from dsmem.errors import (
    Ambiguous,
    BadDocument,
    BadSource,
    BrokenEpisodes,
    CheckpointReadError,
    DamagedObject,
    DsmemError,
    EngineDiffers,
    InUse,
    LoadFailed,
    NoDocuments,
    NoEndToken,
    NoServer,
    NoSpace,
    NotPinned,
    OtherPlan,
    OutputBusy,
    OutputExists,
    OutputFull,
    ReadFailure,
    Refusal,
    ServerTimeout,
    SourceBusy,
    SourceChanged,
    SourceMissing,
    UnsafeRoot,
    Unsupported,
    UntrustedPickle,
    UsageError,
    WorkerLost,
    WrongIds,
)

T = TypeVar("T")

_MIB = 1 << 20
ERROR, USAGE, NOT_FOUND, NO_SPACE, IN_USE, INTERRUPTED = 1, 2, 3, 4, 5, 130


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


@dataclass(frozen=True, slots=True)
class Rule:
    """The exit code of a type of error and, from the error, the hint."""

    exit_code: int
    hint: Callable[[Any, Typed], str | None] = lambda error, typed: None


@dataclass(frozen=True, slots=True)
class Explanation:
    """An error in words: the first line says what happened, others list particulars."""

    exit_code: int
    message: str
    particulars: tuple[str, ...]
    hint: str | None


def _hint_not_pinned(error: NotPinned, typed: Typed) -> str:
    if error.target and os.path.exists(error.target):
        return f"pin it first: dsmem pin {quote(error.target)}"
    return "see what is pinned: dsmem shm ls"


def _hint_busy(error: SourceBusy, typed: Typed) -> str | None:
    if not error.path:
        return None
    if error.is_marked:
        return f"if lsof shows no process that writes it: h5clear -s {quote(error.path)}"
    return f"see who writes it: lsof -- {quote(error.path)}"


def because(refusal: Refusal) -> str:
    """Why something is refused, and the flag that lets it through, if one does."""
    return f"{refusal.reason} (--allow {refusal.allow})" if refusal.allow else refusal.reason


def _hint_no_space(error: NoSpace, typed: Typed) -> str:
    if typed.command == "dsmem ckpt read":
        return f"read a part, the tensors of these names: {typed.again('--only', 'GLOB')}"
    if error.loading_bytes:
        return f"when the others are loaded, try again: {typed.again()}"
    if error.budget_bytes is not None and error.need_bytes > error.budget_bytes:
        return f"give it as much: {typed.instead('--budget', f'{-(-error.need_bytes // _MIB)}MiB')}"
    if error.budget_bytes is not None:
        return "see what is in use, and what is kept: dsmem shm ls"
    if error.reclaimable_bytes > 0 and error.free_bytes + error.reclaimable_bytes >= error.need_bytes:
        return f"frees {units.format_bytes(error.reclaimable_bytes)}: dsmem shm clean --unused"
    return "see what limits it and how to raise it: dsmem shm doctor"


def _hint_in_use(error: InUse, typed: Typed) -> str:
    names = " ".join(quote(name) for name in error.names)
    if not names:
        return "see who holds what: dsmem shm ls"
    return f"remove all the same; memory comes back when the holders end: dsmem shm clean --force {names}"


def _hint_damaged(error: DamagedObject, typed: Typed) -> str:
    return f"remove it: dsmem shm clean {quote(error.name)}" if error.name else "dsmem shm ls"


def _hint_unsafe_root(error: UnsafeRoot, typed: Typed) -> str:
    if typed.command == "dsmem tokenize":
        return f"see what it is, before you take it away: ls -ld {shlex.quote(error.root)}"
    return "use a directory of your own: export DSMEM_ROOT=$(mktemp -d /dev/shm/dsmem-$(id -u)-XXXXXX)"


def _hint_unsupported(error: Unsupported, typed: Typed) -> str | None:
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


def _hint_bad_document(error: BadDocument, typed: Typed) -> str | None:
    if error.fields:
        skips = error.place and not any(word.startswith("--on-error") for word in typed.arguments)
        skip = ", or leave such documents out with --on-error skip" if skips else ""
        return f"name the field that holds text{skip}: {typed.instead('--text-field', error.fields[0])}"
    if "--on-error=skip" in typed.arguments or ("--on-error", "skip") in pairwise(typed.arguments):
        return None  # they are left out already: this is more than one of them
    return f"leave such documents out: {typed.instead('--on-error', 'skip')}"


def _hint_exists(error: OutputExists, typed: Typed) -> str:
    if "--force" in typed.arguments:  # it took the name meanwhile
        return f"look at what is there: ls -la {quote(error.path)}"
    return f"replace it: {typed.again('--force')}"


def _hint_changed(error: SourceChanged, typed: Typed) -> str:
    anew = typed.command == "dsmem tokenize" and "--restart" not in typed.arguments  # its parts are of the older file
    return f"once the file is at rest: {typed.again(*(['--restart'] if anew else []))}"


def _hint_no_end(error: NoEndToken, typed: Typed) -> str:
    without = error.option.removesuffix("-token")
    return f"name it with {error.option} TOKEN, or leave it away: {typed.instead(without, 'none')}"


def _hint_checkpoint(error: CheckpointReadError, typed: Typed) -> str | None:
    if any(failure.kind == UntrustedPickle.__name__ for failure in error.failures):
        return f"only if you trust who made it: {typed.again('--trusted')}"
    return f"shows the tracebacks: DSMEM_DEBUG=1 {typed.again()}"


def _hint_untrusted(error: UntrustedPickle, typed: Typed) -> str | None:
    if typed.command in _NEVER_UNPICKLE:
        return None
    return f"only if you trust who made it: {typed.again('--trusted')}"


def _hint_episodes(error: BrokenEpisodes, typed: Typed) -> str | None:
    first = next((failure.path for failure in error.failures), None)
    return None if first is None else f"see what a file holds: dsmem pin --explain {quote(first)}"


def _hint_ambiguous(error: Ambiguous, typed: Typed) -> str | None:
    if error.candidates and all(os.path.exists(one) for one in error.candidates):  # files, none of them a name
        return f"see what one holds: dsmem ckpt ls {quote(error.candidates[0])}"
    return "see every name and its files: dsmem shm ls"


def _hint_os(error: OSError, typed: Typed) -> str | None:
    return "see what is full: dsmem shm doctor" if error.errno in _FULL else None


_NEVER_UNPICKLE = ("dsmem ckpt ls", "dsmem ckpt verify")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)

TABLE: Mapping[type[BaseException], Rule] = {
    NoAnswer: Rule(USAGE, lambda error, typed: f"say yes in advance: {typed.again('-y')}"),
    UsageError: Rule(USAGE, lambda error, typed: f"{typed.command} --help"),
    NotPinned: Rule(NOT_FOUND, _hint_not_pinned),
    Ambiguous: Rule(USAGE, _hint_ambiguous),
    SourceMissing: Rule(NOT_FOUND),
    BadSource: Rule(ERROR),
    NoDocuments: Rule(ERROR),
    BrokenEpisodes: Rule(ERROR, _hint_episodes),
    SourceChanged: Rule(ERROR, _hint_changed),
    SourceBusy: Rule(IN_USE, _hint_busy),
    UntrustedPickle: Rule(ERROR, _hint_untrusted),
    CheckpointReadError: Rule(ERROR, _hint_checkpoint),
    Unsupported: Rule(ERROR, _hint_unsupported),
    NoSpace: Rule(NO_SPACE, _hint_no_space),
    InUse: Rule(IN_USE, _hint_in_use),
    DamagedObject: Rule(ERROR, _hint_damaged),
    UnsafeRoot: Rule(ERROR, _hint_unsafe_root),
    NoServer: Rule(ERROR, lambda error, typed: "start it: dsmem server start"),
    ServerTimeout: Rule(ERROR, lambda error, typed: "see what it does: dsmem server status"),
    LoadFailed: Rule(ERROR, lambda error, typed: "what it said meanwhile: dsmem server logs"),
    BadDocument: Rule(ERROR, _hint_bad_document),
    EngineDiffers: Rule(ERROR, lambda error, typed: f"use the reference: {typed.instead('--engine', 'tokenizers')}"),
    WrongIds: Rule(ERROR, lambda error, typed: f"use the reference: {typed.instead('--engine', 'tokenizers')}"),
    WorkerLost: Rule(ERROR, lambda error, typed: f"go on, with less memory in use: {typed.instead('--workers', '1')}"),
    OutputExists: Rule(ERROR, _hint_exists),
    OutputFull: Rule(NO_SPACE, lambda error, typed: f"make room, then go on: {typed.again()}"),
    OutputBusy: Rule(IN_USE),
    OtherPlan: Rule(ERROR, lambda error, typed: f"begin anew, or run what was begun: {typed.again('--restart')}"),
    NoEndToken: Rule(USAGE, _hint_no_end),
    DsmemError: Rule(ERROR),
    FileNotFoundError: Rule(NOT_FOUND),
    MemoryError: Rule(NO_SPACE, lambda error, typed: "see what limits it: dsmem shm doctor"),
    OSError: Rule(ERROR, _hint_os),
    Exception: Rule(ERROR, lambda error, typed: f"shows the traceback: DSMEM_DEBUG=1 {typed.again()}"),
}


def _told(failure: ReadFailure) -> str:
    names = ", ".join(failure.tensors[:3]) + (", …" if len(failure.tensors) > 3 else "")
    return f"{failure.file} at byte {failure.offset}, {names}: {failure.kind}: {failure.message}"


def explain(error: BaseException, typed: Typed) -> Explanation:
    """The error by the table. A note (PEP 678) names the file it is about, where the message does not."""
    rule = next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)
    exit_code = rule.exit_code
    particulars: Sequence[str] = ()
    if isinstance(error, DsmemError):
        message = str(error)
        if isinstance(error, Unsupported):
            particulars = [f"{refusal.path}: {because(refusal)}" for refusal in error.refusals]
        elif isinstance(error, Ambiguous):
            particulars = error.candidates
        elif isinstance(error, NoDocuments):
            particulars = error.places
        elif isinstance(error, CheckpointReadError):
            particulars = [_told(failure) for failure in error.failures]
        elif isinstance(error, BrokenEpisodes):
            message, *lines = message.splitlines()
            particulars = [line.strip() for line in lines]
    elif isinstance(error, OSError):
        if error.errno in _FULL:
            exit_code = NO_SPACE
        message = error.strerror or str(error) or type(error).__name__
        if error.filename is not None:
            message = f"{os.fsdecode(error.filename)}: {message}"
    elif isinstance(error, MemoryError):
        message = "out of memory"
    else:
        message = f"unexpected {type(error).__name__}: {error}"
    for about in getattr(error, "__notes__", ()):
        if about not in message:
            message = f"{about}: {message}"
    return Explanation(exit_code, message, tuple(particulars), rule.hint(error, typed))


class Failures:
    """Failures of a command over many files: one does not hide the others, and all are told at the end."""

    def __init__(self) -> None:
        self._failed: list[tuple[str, Exception]] = []

    def attempt(self, path: str, work: Callable[[], T]) -> T | None:
        """What the work returns; None if it fails, which is kept as this file's failure."""
        try:
            return work()
        except Exception as exc:  # noqa: BLE001 - kept, and raised by `end`
            exc.add_note(path)
            self._failed.append((path, exc))
            return None

    def as_rows(self) -> list[dict[str, object]]:
        """For JSON: path, error, exit_code."""
        explained = [(path, explain(exc, Typed("dsmem", ()))) for path, exc in self._failed]
        return [{"path": path, "error": one.message, "exit_code": one.exit_code} for path, one in explained]

    def end(self) -> None:
        """Raises what was kept."""
        if self._failed:
            raise ExceptionGroup("some files failed", [exc for _, exc in self._failed])


def report(error: Exception, typed: Typed) -> int:
    """Shows the error, or each of a group, on stderr; returns the exit code (the highest of a group)."""
    if _debugging():
        for line in "".join(traceback.format_exception(error)).splitlines():
            note(escape(line))
    causes = error.exceptions if isinstance(error, ExceptionGroup) else (error,)
    explained = [explain(cause, typed) for cause in causes]
    for one in explained:
        _show_error(one.message)
        for line in one.particulars:
            note(f"  {escape(line)}")
    for hint in dict.fromkeys(one.hint for one in explained if one.hint):
        _show_hint(hint)
    return max(one.exit_code for one in explained)


def report_misuse(error: typer.TyperException) -> int:
    """A command line that typer could not read: one line, and the help to look at."""
    _show_error(error.format_message().strip())
    context = getattr(error, "ctx", None)
    _show_hint(f"{context.command_path if context is not None else 'dsmem'} --help")
    return error.exit_code


@contextmanager
def caught(command: str, arguments: Sequence[str] | None) -> Iterator[None]:
    """Ends the command with the exit code of the table for whatever is raised inside; typer's own pass."""
    try:
        yield
    except (typer.Exit, typer.Abort, typer.TyperException):
        raise
    except KeyboardInterrupt:
        note("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as exc:
        # The edge: whatever comes here is shown, none is swallowed.
        raise typer.Exit(report(exc, Typed(command, tuple(arguments or ())))) from exc
    except BaseException as exc:
        ranks = _of_ranks(exc)
        if ranks is None:
            raise
        if not ranks:
            note("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        group = ExceptionGroup("some ranks failed", ranks)
        raise typer.Exit(report(group, Typed(command, tuple(arguments or ())))) from exc


def _of_ranks(error: BaseException) -> list[Exception] | None:
    """The errors inside a CheckpointException of torch, a BaseException; torch is not imported to know it.

    None for anything else, and an empty list where a rank was interrupted.
    """
    if type(error).__name__ != "CheckpointException":
        return None
    failures: Mapping[int, tuple[BaseException, object]] = getattr(error, "failures", {})
    found = []
    for rank, (inside, _) in failures.items():
        if not isinstance(inside, Exception):
            return []
        if len(failures) > 1:
            inside.add_note(f"rank {rank}")
        found.append(inside)
    return found


def _show_error(text: str) -> None:
    note(f"{paint('error:', 'red', sys.stderr)} {escape(text)}")


def _show_hint(text: str) -> None:
    note(f"{paint('hint:', 'bold', sys.stderr)} {escape(text)}")


def _debugging() -> bool:
    try:
        return settings.read().debug
    except UsageError:
        return False  # the environment is what the error to be shown is about
