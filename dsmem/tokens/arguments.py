"""Arguments of another kind than is meant are a UsageError that names them, before any work."""

from __future__ import annotations

import operator
import os
from numbers import Real

from dsmem.errors import UsageError


def need_whole(**numbers: object) -> None:
    """Raise UsageError for what is neither None nor an integer (numpy's are, booleans are not)."""
    for name, number in numbers.items():
        if number is None:
            continue
        try:
            if isinstance(number, bool):
                raise TypeError
            operator.index(number)  # type: ignore[arg-type]  # which is asked here
        except TypeError:
            raise UsageError(f"{name}={number!r}: it is a whole number") from None


def need_number(**numbers: object) -> None:
    """Raise UsageError for what is no number."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Real):
            raise UsageError(f"{name}={number!r}: it is a number")


def need_text(**texts: object) -> None:
    """Raise UsageError for what is no string."""
    for name, text in texts.items():
        if not isinstance(text, str):
            raise UsageError(f"{name}={text!r}: it is a string")


def need_flag(**flags: object) -> None:
    """Raise UsageError for what is neither True nor False."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise UsageError(f"{name}={flag!r}: it is True or False")


def need_callable(**functions: object) -> None:
    """Raise UsageError for what can't be called."""
    for name, function in functions.items():
        if not callable(function):
            raise UsageError(f"{name}={function!r}: it is a function")


def path_of(name: str, path: object) -> str:
    """A path as a string; raises UsageError for what is none."""
    found = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(found, str):
        raise UsageError(f"{name}={path!r}: it is a path")
    if "\0" in found:
        raise UsageError(f"{name}={path!r}: a path has no zero byte")
    return found


def paths_of(name: str, paths: object) -> list[str]:
    """One path or several; raises UsageError for what are none."""
    if isinstance(paths, str | os.PathLike):
        return [path_of(name, paths)]
    if isinstance(paths, bytes) or not hasattr(paths, "__iter__"):
        raise UsageError(f"{name}={paths!r}: it is a path or several")
    return [path_of(name, one) for one in paths]
