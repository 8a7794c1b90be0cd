"""What is written beside its place: it takes the place whole, and nothing that has the name meanwhile is lost."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import children
import pytest

from dsmem.checkpoint import staging
from dsmem.errors import OutputExists

Kind = str
OLD, NEW, OTHER = "old", "new", "other"


def write(path: Path | str, kind: Kind, told: str) -> None:
    """A file, or a directory with one file; one in the place that is given out is there already."""
    path = Path(path)
    if kind == "directory":
        path.mkdir(exist_ok=True)
        (path / "text").write_text(told)
    else:
        path.write_text(told)


def said(path: Path) -> str | None:
    told = path / "text" if path.is_dir() else path
    return told.read_text() if told.exists() else None


def hidden(directory: Path) -> list[str]:
    return sorted(one.name for one in directory.iterdir() if one.name.startswith("."))


def replaced(there: str) -> bool:
    """All but what others wrote."""
    return said(Path(there)) != OTHER


def put(path: Path, kind: Kind, told: str = NEW, *, force: bool = True) -> None:
    with staging.staged(str(path), directory=kind == "directory", replaces=replaced if force else None) as place:
        write(place, kind, told)


def without(monkeypatch: pytest.MonkeyPatch, *lacking: int) -> None:
    """A file system without some of the flags of renameat2(2)."""
    rename2 = staging._rename2
    monkeypatch.setattr(staging, "_rename2", lambda path, to, how: False if how in lacking else rename2(path, to, how))


FLAGS = [(), (staging._RENAME_EXCHANGE,), (staging._RENAME_EXCHANGE, staging._RENAME_NOREPLACE)]
KINDS = ["file", "directory"]
PAIRS = [("directory", "directory"), ("directory", "file"), ("file", "file")]


@pytest.mark.parametrize("lacking", FLAGS)
@pytest.mark.parametrize(("kind", "before"), PAIRS)
def test_the_longest_names(
    kind: Kind, before: Kind, lacking: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, *lacking)
    path = tmp_path / ("n" * 255)
    put(path, before, OLD, force=False)
    with pytest.raises(OutputExists):
        put(path, kind, force=False)
    assert said(path) == OLD
    put(path, kind)
    assert said(path) == NEW and hidden(tmp_path) == []


@pytest.mark.parametrize("error", [errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR])
@pytest.mark.parametrize("kind", KINDS)
def test_what_fails_in_the_writing_is_told_as_it_is(kind: Kind, error: int, tmp_path: Path) -> None:
    raised = OSError(error, os.strerror(error), "elsewhere")
    with (
        pytest.raises(OSError, match="elsewhere") as told,
        staging.staged(str(tmp_path / "out"), directory=kind == "directory", replaces=None),
    ):
        raise raised
    assert told.value is raised and not isinstance(told.value, OutputExists)
    assert list(tmp_path.iterdir()) == []


def just_before(monkeypatch: pytest.MonkeyPatch, taken: Path, do: Callable[[], None]) -> None:
    """Once, when a rename to that name is due, whichever call does it."""
    rename, link, rename2 = os.rename, os.link, staging._rename2
    waiting = [do]

    def come(to: str) -> None:
        if to == str(taken) and waiting:
            waiting.pop()()

    def renamed(path: str, to: str) -> None:
        come(to)
        rename(path, to)

    def linked(path: str, to: str, *, follow_symlinks: bool = True) -> None:
        come(to)
        link(path, to, follow_symlinks=follow_symlinks)

    def renamed2(path: str, to: str, how: int) -> bool:
        if how == staging._RENAME_NOREPLACE:
            come(to)
        return rename2(path, to, how)

    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "link", linked)
    monkeypatch.setattr(staging, "_rename2", renamed2)


@pytest.mark.parametrize("lacking", FLAGS[1:])
@pytest.mark.parametrize("comes", KINDS)
@pytest.mark.parametrize("before", [*KINDS, None])
def test_what_takes_the_name_meanwhile_stays(
    before: Kind | None, comes: Kind, lacking: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the rename; what had the name before is kept beside it."""
    path = tmp_path / "out"
    if before is not None:
        write(path, before, OLD)
    without(monkeypatch, *lacking)
    just_before(monkeypatch, path, lambda: write(path, comes, OTHER))
    with pytest.raises(OutputExists):
        put(path, "directory", force=before is not None)
    assert said(path) == OTHER and hidden(tmp_path) == []
    staging.sweep(str(tmp_path))
    assert [said(one) for one in tmp_path.glob("dsmem-*.kept/out")] == ([] if before is None else [OLD])


@pytest.mark.parametrize("lacking", FLAGS)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_may_not_be_replaced_and_comes_meanwhile_stays(
    kind: Kind, last: bool, lacking: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is written, or at the last moment, after the look at what is there."""
    path = tmp_path / "out"
    path.mkdir()
    without(monkeypatch, *lacking)
    asked = []

    def replaces(there: str) -> bool:
        found = replaced(there)
        asked.append(there)
        if last and len(asked) == 1:
            write(path, "directory", OTHER)
        return found

    with (
        pytest.raises(OutputExists, match="meanwhile"),
        staging.staged(str(path), directory=kind == "directory", replaces=replaces) as place,
    ):
        write(place, kind, NEW)
        if not last:
            write(path, "directory", OTHER)
    assert len(asked) == 1 + last
    assert said(path) == OTHER and os.listdir(tmp_path) == ["out"]


def test_what_cannot_get_its_name_back_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody removed what had it meanwhile."""
    path = tmp_path / "out"
    path.mkdir()

    def replaces(there: str) -> bool:
        if there != str(path):
            (path / "text").unlink()
            path.rmdir()
            return False
        write(path, "directory", OTHER)
        return True

    with pytest.raises(OutputExists), staging.staged(str(path), directory=True, replaces=replaces) as place:
        write(place, "directory", NEW)
    staging.sweep(str(tmp_path))
    assert [said(one) for one in tmp_path.iterdir()] == [OTHER]


def killed(path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch, *, renames: int) -> None:
    """Replace it, without an exchange, and be killed after so many renames of what is there and what is new."""

    def child() -> None:
        without(monkeypatch, staging._RENAME_EXCHANGE)
        left, rename, rename2 = [None] * renames, os.rename, staging._rename2

        def one_less() -> None:
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left.pop()

        def renamed(path: str, to: str) -> None:
            one_less()
            rename(path, to)

        def renamed2(path: str, to: str, how: int) -> bool:
            if how == staging._RENAME_NOREPLACE:
                one_less()
            return rename2(path, to, how)

        monkeypatch.setattr(os, "rename", renamed)
        monkeypatch.setattr(staging, "_rename2", renamed2)
        monkeypatch.setattr(staging, "_remove", lambda path: os.kill(os.getpid(), signal.SIGKILL))
        put(path, kind)

    with pytest.raises(children.ChildDied):
        children.call(child)


@pytest.mark.parametrize("renames", [0, 1, 2])
@pytest.mark.parametrize("before", KINDS)
def test_killed_at_any_rename(before: Kind, renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out"
    write(path, before, OLD)
    killed(path, "directory", monkeypatch, renames=renames)
    assert said(path) == [OLD, None, NEW][renames]
    staging.sweep(str(tmp_path))
    assert said(path) == (NEW if renames == 2 else OLD)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("lacking", FLAGS[::2])
@pytest.mark.parametrize("comes", KINDS)
@pytest.mark.parametrize("before", KINDS)
def test_a_sweep_takes_no_name_that_is_taken(
    before: Kind, comes: Kind, lacking: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    write(path, before, OLD)
    with monkeypatch.context() as patched:
        killed(path, "directory", patched, renames=1)
    without(monkeypatch, *lacking)
    just_before(monkeypatch, path, lambda: write(path, comes, OTHER))
    staging.sweep(str(tmp_path))
    staging.sweep(str(tmp_path))
    assert said(path) == OTHER and hidden(tmp_path) == []
    assert [said(one) for one in tmp_path.glob("dsmem-*.kept/out")] == [OLD]


@pytest.mark.parametrize("lacking", FLAGS[::2])
def test_a_sweep_takes_no_name_of_an_empty_directory(
    lacking: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    write(path, "directory", OLD)
    with monkeypatch.context() as patched:
        killed(path, "directory", patched, renames=1)
    without(monkeypatch, *lacking)
    path.mkdir()
    staging.sweep(str(tmp_path))
    assert os.listdir(path) == [] and hidden(tmp_path) == []
    assert [said(one) for one in tmp_path.glob("dsmem-*.kept/out")] == [OLD]


def test_a_second_sweep_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out"
    write(path, "directory", OLD)
    with monkeypatch.context() as patched:
        killed(path, "directory", patched, renames=1)
    just_before(monkeypatch, path, lambda: staging.sweep(str(tmp_path)))
    staging.sweep(str(tmp_path))
    assert said(path) == OLD and os.listdir(tmp_path) == ["out"]


def test_what_cannot_be_given_back_yet_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out"
    write(path, "directory", OLD)
    with monkeypatch.context() as patched:
        killed(path, "directory", patched, renames=1)

    def fails(path: str, to: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), to)

    with monkeypatch.context() as patched:
        patched.setattr(staging, "_rename_to_free", fails)
        for _ in range(2):
            staging.sweep(str(tmp_path))
            assert len(hidden(tmp_path)) == 2 and said(path) is None
    staging.sweep(str(tmp_path))
    assert said(path) == OLD and hidden(tmp_path) == []


@pytest.mark.parametrize("raised", [OSError(errno.EIO, os.strerror(errno.EIO)), KeyboardInterrupt()])
@pytest.mark.parametrize("before", KINDS)
def test_what_its_own_writer_cannot_give_back_is_not_forgotten(
    before: Kind, raised: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    write(path, before, OLD)

    def fails(path: str, to: str) -> None:
        raise raised

    with monkeypatch.context() as patched:
        without(patched, staging._RENAME_EXCHANGE)
        patched.setattr(staging, "_rename_to_free", fails)
        with pytest.raises(type(raised)):
            put(path, "directory")
    assert len(hidden(tmp_path)) == 2 and said(path) is None
    staging.sweep(str(tmp_path))
    assert said(path) == OLD and hidden(tmp_path) == []


def test_a_sweep_takes_nothing_else(tmp_path: Path) -> None:
    others = [".dsmem-0123.part", "dsmem-0123456789abcdef.part", ".dsmem-0123456789abcdef.part.old"]
    others += [".dsmem-0123456789abcdef.older", ".dsmem-0123456789abcdef.old-", "dsmem-0123456789abcdef.kept"]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / "precious").touch()
    (tmp_path / ".dsmem-0123456789abcdef.part").symlink_to("precious")
    staging.sweep(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "precious", ".dsmem-0123456789abcdef.part"])
