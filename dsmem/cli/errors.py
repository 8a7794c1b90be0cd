"""Errors as the user sees them: the one table from an error's type to exit code and hint.

0 ok, 1 error, 2 usage, 3 not found, 4 no space, 5 in use, 130 interrupted. `error: …` says what happened,
`hint: …` ends with a command that can be pasted. A traceback is shown with DSMEM_DEBUG=1 only.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import typer

from dsmem import settings
from dsmem.cli import hints
from dsmem.cli.hints import Typed
from dsmem.cli.output import NoAnswer, escape, note, paint
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
    NoProc,
    NoServer,
    NoSpace,
    NotPinned,
    OtherPlan,
    OutputBusy,
    OutputExists,
    OutputFull,
    OutputGone,
    ReadFailure,
    Refusal,
    ServerTimeout,
    SourceBusy,
    SourceChanged,
    SourceMissing,
    TableTooLarge,
    UnsafeRoot,
    Unsupported,
    UntrustedPickle,
    UsageError,
    WorkerLost,
    WrongIds,
)

T = TypeVar("T")

ERROR, USAGE, NOT_FOUND, NO_SPACE, IN_USE, INTERRUPTED = 1, 2, 3, 4, 5, 130


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


def because(refusal: Refusal) -> str:
    """Why something is refused, and the flag that lets it through, if one does."""
    return f"{refusal.reason} (--allow {refusal.allow})" if refusal.allow else refusal.reason


TABLE: Mapping[type[BaseException], Rule] = {
    NoAnswer: Rule(USAGE, lambda error, typed: f"say yes in advance: {typed.again('-y')}"),
    UsageError: Rule(USAGE, hints.usage),
    NotPinned: Rule(NOT_FOUND, hints.not_pinned),
    Ambiguous: Rule(USAGE, hints.ambiguous),
    SourceMissing: Rule(NOT_FOUND),
    BadSource: Rule(ERROR),
    NoDocuments: Rule(ERROR),
    BrokenEpisodes: Rule(ERROR, hints.episodes),
    SourceChanged: Rule(ERROR, hints.changed),
    SourceBusy: Rule(IN_USE, hints.busy),
    UntrustedPickle: Rule(ERROR, hints.untrusted),
    CheckpointReadError: Rule(ERROR, hints.checkpoint),
    Unsupported: Rule(ERROR, hints.unsupported),
    NoSpace: Rule(NO_SPACE, hints.no_space),
    InUse: Rule(IN_USE, hints.in_use),
    DamagedObject: Rule(ERROR, hints.damaged),
    UnsafeRoot: Rule(ERROR, hints.unsafe_root),
    NoProc: Rule(ERROR, lambda error, typed: "mount it: mount -t proc proc /proc"),
    NoServer: Rule(ERROR, lambda error, typed: "start it: dsmem server start"),
    ServerTimeout: Rule(ERROR, lambda error, typed: "see what it does: dsmem server status"),
    LoadFailed: Rule(ERROR, lambda error, typed: "what it said meanwhile: dsmem server logs"),
    BadDocument: Rule(ERROR, hints.bad_document),
    TableTooLarge: Rule(ERROR, hints.table),
    EngineDiffers: Rule(ERROR, lambda error, typed: f"use the reference: {typed.instead('--engine', 'tokenizers')}"),
    WrongIds: Rule(ERROR, lambda error, typed: f"use the reference: {typed.instead('--engine', 'tokenizers')}"),
    WorkerLost: Rule(ERROR, hints.worker_lost),
    OutputExists: Rule(ERROR, hints.exists),
    OutputFull: Rule(NO_SPACE, lambda error, typed: f"make room, then go on: {typed.again()}"),
    OutputGone: Rule(NOT_FOUND, hints.gone),
    OutputBusy: Rule(IN_USE),
    OtherPlan: Rule(ERROR, lambda error, typed: f"begin anew, or run what was begun: {typed.again('--restart')}"),
    NoEndToken: Rule(USAGE, hints.no_end),
    DsmemError: Rule(ERROR),
    FileNotFoundError: Rule(NOT_FOUND),
    MemoryError: Rule(NO_SPACE, hints.memory),
    OSError: Rule(ERROR, hints.of_system),
    Exception: Rule(ERROR, lambda error, typed: f"shows the traceback: DSMEM_DEBUG=1 {typed.again()}"),
}


_NOT_MAPPED = ("failed to map segment", "annot allocate memory")
"""What the dynamic linker says where it gets no memory for a library."""


def _told(failure: ReadFailure) -> str:
    names = ", ".join(failure.tensors[:3]) + (", …" if len(failure.tensors) > 3 else "")
    return f"{failure.file} at byte {failure.offset}, {names}: {failure.kind}: {failure.message}"


def explain(error: BaseException, typed: Typed) -> Explanation:
    """The error by the table. A note (PEP 678) names the file it is about, where the message does not."""
    kinds = type(error).__mro__
    if isinstance(error, ImportError) and any(words in str(error) for words in _NOT_MAPPED):
        kinds = MemoryError.__mro__
    rule = next(TABLE[kind] for kind in kinds if kind in TABLE)
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
        if error.errno in hints.FULL:
            exit_code = NO_SPACE
        message = error.strerror or str(error) or type(error).__name__
        if error.filename is not None:
            message = f"{os.fsdecode(error.filename)}: {message}"
    elif MemoryError in kinds:
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
