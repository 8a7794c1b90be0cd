"""The table of errors: every type in it, each with its exit code, one line, and a hint that can be pasted."""

from __future__ import annotations

import errno
import resource
import sys
from collections.abc import Callable

import pytest
import typer

import dsmem.errors
from dsmem.cli import errors
from dsmem.cli.errors import TABLE, explain
from dsmem.cli.hints import Typed
from dsmem.errors import (
    Ambiguous,
    BadSource,
    CheckpointReadError,
    DamagedObject,
    DsmemError,
    InUse,
    NoProc,
    NoSpace,
    NotPinned,
    OutputExists,
    ReadFailure,
    Refusal,
    SourceBusy,
    SourceChanged,
    SourceMissing,
    UnsafeRoot,
    Unsupported,
    UntrustedPickle,
    UsageError,
)

from .conftest import Dsmem, Fake

TYPED = Typed("dsmem pin", ("pin", "my file.h5"))


def test_what_took_the_name_in_spite_of_force_is_looked_at() -> None:
    error = OutputExists("taken", path="my out")
    hints = [explain(error, Typed("dsmem", ("convert", "a", "my out", *more))).hint for more in ((), ("--force",))]
    assert hints == ["replace it: dsmem convert a 'my out' --force", "look at what is there: ls -la 'my out'"]


def test_every_error_of_dsmem_is_in_the_table() -> None:
    kinds = [kind for kind in vars(dsmem.errors).values() if isinstance(kind, type)]
    mine = {kind for kind in kinds if issubclass(kind, DsmemError)}
    assert len(mine) > 10
    assert mine <= set(TABLE)


@pytest.mark.parametrize(
    ("error", "exit_code", "message", "hint"),
    [
        (UsageError("what?"), 2, "what?", "dsmem pin --help"),
        (NotPinned("no a", target="a"), 3, "no a", "dsmem shm ls"),
        (NotPinned("no /dev/null", target="/dev/null"), 3, "no /dev/null", "dsmem pin /dev/null"),
        (Ambiguous("which", candidates=["a", "b"]), 2, "which", "dsmem shm ls"),
        (SourceMissing("gone"), 3, "gone", None),
        (BadSource("not HDF5"), 1, "not HDF5", None),
        (SourceChanged("changed"), 1, "changed", "dsmem pin 'my file.h5'"),
        (SourceBusy("busy", path="a b"), 5, "busy", "lsof -- 'a b'"),
        (SourceBusy("busy", path="a b", is_marked=True), 5, "busy", "h5clear -s 'a b'"),
        (Unsupported("2 things"), 1, "2 things", "dsmem pin 'my file.h5' --skip-unsupported"),
        (NoSpace("full"), 4, "full", "dsmem shm doctor"),
        (NoSpace("full", reclaimable_bytes=1 << 30), 4, "full", "frees 1.0 GiB: dsmem shm clean --unused"),
        (NoSpace("full", need_bytes=9, free_bytes=1, reclaimable_bytes=5), 4, "full", "dsmem shm doctor"),
        (NoSpace("full", need_bytes=9, budget_bytes=20), 4, "full", "dsmem shm ls"),
        (
            NoSpace("too small", need_bytes=(5 << 20) + 1, budget_bytes=1 << 20),
            4,
            "too small",
            "give it as much: dsmem pin 'my file.h5' --budget 6MiB",
        ),
        (
            NoSpace("later", need_bytes=9, budget_bytes=20, loading_bytes=15),
            4,
            "later",
            "when the others are loaded, try again: dsmem pin 'my file.h5'",
        ),
        (InUse("held", names=["a", "b"]), 5, "held", "dsmem shm clean --force a b"),
        (UntrustedPickle("wants os.system"), 1, "wants os.system", "dsmem pin 'my file.h5' --trusted"),
        (CheckpointReadError("2 of 3"), 1, "2 of 3", "DSMEM_DEBUG=1 dsmem pin 'my file.h5'"),
        (
            CheckpointReadError("1 of 3", failures=[ReadFailure("a", ("w",), 0, "UntrustedPickle", "no")]),
            1,
            "1 of 3",
            "dsmem pin 'my file.h5' --trusted",
        ),
        (DamagedObject("bad", name="a"), 1, "bad", "dsmem shm clean a"),
        (
            UnsafeRoot("no", root="/x"),
            1,
            "no",
            "export DSMEM_ROOT=$(mktemp -d /dev/shm/dsmem-$(id -u)-XXXXXX)",
        ),
        (NoProc("/proc is not mounted"), 1, "/proc is not mounted", "mount -t proc proc /proc"),
        (DsmemError("odd"), 1, "odd", None),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a"), 3, "/a: No such file", None),
        (PermissionError(errno.EACCES, "Permission denied", b"/a"), 1, "/a: Permission denied", None),
        (OSError(errno.ENOSPC, "No space left", "/a"), 4, "/a: No space left", "dsmem shm doctor"),
        (MemoryError(), 4, "out of memory", "dsmem shm doctor"),
        (ImportError("libx.so: failed to map segment from shared object"), 4, "out of memory", "dsmem shm doctor"),
        (
            NoSpace("too large", need_bytes=9, free_bytes=1, limit=dsmem.errors.FILE_SIZE),
            4,
            "too large",
            "ulimit -f unlimited; dsmem pin 'my file.h5'",
        ),
        (KeyError("x"), 1, "unexpected KeyError: 'x'", "DSMEM_DEBUG=1 dsmem pin 'my file.h5'"),
    ],
)
def test_exit_code_message_and_hint(error: Exception, exit_code: int, message: str, hint: str | None) -> None:
    explained = explain(error, TYPED)
    assert (explained.exit_code, explained.message) == (exit_code, message)
    assert explained.hint is None if hint is None else (explained.hint or "").endswith(hint)


def test_where_addresses_are_limited_the_hint_lifts_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 30, 1 << 30))
    hint = explain(MemoryError(), TYPED).hint
    assert hint is not None and hint.endswith("ulimit -v unlimited; dsmem pin 'my file.h5'")


def test_what_torch_wraps_is_shown_by_rank(capsys: pytest.CaptureFixture[str]) -> None:
    """CheckpointException is a BaseException and holds one error a rank."""
    from torch.distributed.checkpoint.api import CheckpointException, _wrap_exception

    error = CheckpointReadError("w in f: cut", failures=[ReadFailure("f", ("w",), 7, "BadSource", "cut")])
    wrapped = CheckpointException("read", {0: _wrap_exception(error), 1: _wrap_exception(BadSource("gone"))})
    with pytest.raises(typer.Exit) as ended, errors.caught("dsmem ckpt read", ["ckpt", "read", "x"]):
        raise wrapped
    assert ended.value.exit_code == 1
    shown = capsys.readouterr().err
    assert "rank 0: w in f: cut" in shown and "rank 1: gone" in shown
    assert "f at byte 7, w: BadSource: cut" in shown


def test_a_note_names_the_file_unless_the_message_does() -> None:
    error = BadSource("is empty")
    error.add_note("/a.h5")
    assert explain(error, TYPED).message == "/a.h5: is empty"
    error = BadSource("/a.h5 is empty")
    error.add_note("/a.h5")
    assert explain(error, TYPED).message == "/a.h5 is empty"


def _raising(error: BaseException) -> Callable[..., object]:
    def fail(*arguments: object, **options: object) -> object:
        raise error

    return fail


def test_shown_on_stderr_in_two_lines(dsmem: Dsmem, fake: Fake) -> None:
    fake("dsmem.shm.listing", list_objects=_raising(NoSpace("need 2 GiB, 1 GiB free", reclaimable_bytes=5)))
    ran = dsmem("shm", "ls")
    assert (ran.exit_code, ran.out) == (4, "")
    assert ran.err == "error: need 2 GiB, 1 GiB free\nhint: frees 5 B: dsmem shm clean --unused\n"


def test_particulars_a_line_each_and_escaped(dsmem: Dsmem, fake: Fake) -> None:
    refusals = [Refusal("/a\x1b[2J", "is a reference"), Refusal("/b", "is opaque")]
    fake(
        "dsmem.shm.listing",
        list_objects=_raising(Unsupported("2 datasets can't be pinned", refusals=refusals)),
    )
    ran = dsmem("shm", "ls", terminal=True, colour=True)
    assert ran.exit_code == 1
    assert "\x1b[2J" not in ran.err
    assert "  /a\\x1b[2J: is a reference\n  /b: is opaque\n" in ran.err


def test_usage_error_hints_at_the_help_of_its_command(dsmem: Dsmem, fake: Fake) -> None:
    fake("dsmem.shm.doctor", examine=_raising(UsageError("no")))
    assert dsmem("shm", "doctor").err == "error: no\nhint: dsmem shm doctor --help\n"


def test_traceback_only_when_debugging(dsmem: Dsmem, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("dsmem.shm.listing", list_objects=_raising(ZeroDivisionError("1/0")))
    monkeypatch.delenv("DSMEM_DEBUG", raising=False)
    ran = dsmem("shm", "ls", "--all")
    assert ran.exit_code == 1
    assert ran.err == (
        "error: unexpected ZeroDivisionError: 1/0\nhint: shows the traceback: DSMEM_DEBUG=1 dsmem shm ls --all\n"
    )
    monkeypatch.setenv("DSMEM_DEBUG", "1")
    ran = dsmem("shm", "ls")
    assert ran.exit_code == 1
    assert ran.err.startswith("Traceback (most recent call last):") and "in fail" in ran.err


def test_interrupt(dsmem: Dsmem, fake: Fake) -> None:
    fake("dsmem.shm.listing", list_objects=_raising(KeyboardInterrupt()))
    ran = dsmem("shm", "ls")
    assert (ran.exit_code, ran.out, ran.err) == (130, "", "interrupted\n")


def test_broken_pipe_in_the_library_is_an_error(dsmem: Dsmem, fake: Fake) -> None:
    fake("dsmem.shm.listing", list_objects=_raising(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    ran = dsmem("shm", "ls")
    assert (ran.exit_code, ran.err) == (1, "error: Broken pipe\n")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["hsah"], "No such command 'hsah'. Did you mean 'hash'?", "dsmem --help"),
        (["pin"], "Missing argument 'PATH...'.", "dsmem pin --help"),
        (["shm", "ls", "--wat"], "No such option: --wat", "dsmem shm ls --help"),
        (["hash", "a", "--algo", "crc"], "Invalid value for '--algo'", "dsmem hash --help"),
        (["shm", "clean", "--older-than", "soon"], "'soon' is not a duration", "dsmem shm clean --help"),
    ],
)
def test_misuse_is_two_lines_and_exit_2(dsmem: Dsmem, arguments: list[str], message: str, hint: str) -> None:
    ran = dsmem(*arguments)
    assert (ran.exit_code, ran.out) == (2, "")
    first, second = ran.err.splitlines()
    assert first.startswith(f"error: {message}")
    assert second == f"hint: {hint}"


@pytest.mark.parametrize("variable", ["DSMEM_LOG", "DSMEM_PIN"])
def test_misuse_of_the_environment(dsmem: Dsmem, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "loud")
    ran = dsmem("shm", "ls")
    assert ran.exit_code == 2
    assert ran.err.startswith(f"error: {variable}='loud' means nothing") and ran.err.count("\n") == 2


def test_exit_codes_are_those_of_the_documentation() -> None:
    assert errors.__doc__ is not None
    for word in ("1 error", "2 usage", "3 not found", "4 no space", "5 in use", "130 interrupted"):
        code, _, name = word.partition(" ")
        assert word in errors.__doc__
        assert getattr(errors, name.upper().replace(" ", "_")) == int(code)


def test_elsewhere_than_linux(dsmem: Dsmem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    ran = dsmem("shm", "ls")
    assert (ran.exit_code, ran.out) == (1, "")
    assert ran.err == "error: dsmem needs Linux's shared memory; this is darwin\n"
