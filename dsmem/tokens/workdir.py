"""The work directory beside the output, `.OUT.bin.parts/`: locked while used, continued when it fits, removed at last.

`plan.json` says what its parts were made from and how. A run with the same plan takes the finished parts over; one with
another plan is refused, and told what differs. How much is compared with the reference may change: parts that were
compared less than is wanted now are made anew.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from dsmem import files
from dsmem.errors import OtherPlan, OutputBusy, UnsafeRoot
from dsmem.tokens.recipe import is_as_much, is_compared

PUBLISHED = "published.json"
"""What a run has given its name, or was about to, when it was killed (`dsmem.tokens.claim`)."""
DAMAGED = "damaged-"
"""Before the index of an input: parts were made knowing that some of it is damaged (`dsmem.tokens.pieces`)."""
_PLAN_BYTES = 1 << 30
_RECORD_BYTES = 64 << 20
_COMPARED = "compared"
"""Beside the plan: of how many documents every part was compared, at least."""
Plan = Mapping[str, object]


def path_of(out: str) -> str:
    """Where the parts of an output lie."""
    return os.path.join(os.path.dirname(out), f".{os.path.basename(out)}.parts")


@contextmanager
def locked(out: str) -> Iterator[str]:
    """The work directory, made if need be and held for this process; raises OutputBusy, UnsafeRoot, OSError."""
    path = path_of(out)
    while True:
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        try:
            _check_own(path)
            fd = files.open_own(f"{path}/lock", os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            if os.path.isdir(os.path.dirname(path) or "."):
                continue  # it was removed meanwhile
            raise
        if not files.try_lock(fd, exclusive=True):
            os.close(fd)
            raise OutputBusy(f"{out} is being made by another process", names=(out,))
        if files.names_inode(f"{path}/lock", os.fstat(fd)):
            break
        os.close(fd)
    try:
        yield path
    finally:
        os.close(fd)


def _check_own(path: str) -> None:
    """Raise UnsafeRoot for a link, or for a directory that others may put something into; FileNotFoundError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.ENOTDIR):
            raise UnsafeRoot(f"{path} is not a directory, where the parts would go", root=path) from exc
        raise
    status = os.fstat(fd)
    os.close(fd)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise UnsafeRoot(
            f"{path}, where the parts would go, is of uid {status.st_uid}, mode {status.st_mode & 0o777:o}: "
            "others can write to it",
            root=path,
        )


def settle(directory: str, plan: Plan, *, verify: int, restart: bool, can_resume: bool) -> bool:
    """Make the directory fit the plan; whether parts in it may be taken over. Raises OtherPlan.

    `verify`: of how many documents a part is compared with the reference; 0 where nothing is.
    """
    plan = json.loads(json.dumps(plan))
    before = _plan_in(directory)
    compared = before.pop(_COMPARED, None) if isinstance(before, dict) else None
    if before is not None and not restart:
        if can_resume and before == plan:
            _clear(directory, keep=("lock", "plan.json", PUBLISHED, "part-", "tokens.bin", "ranks-", DAMAGED))
            for spilled in glob.iglob("part-*.bin", root_dir=directory):  # ids that waited for their place
                os.unlink(f"{directory}/{spilled}")
            if compared != verify:
                if type(compared) is not int or not is_as_much(compared, verify):
                    _drop_less_compared(directory, verify)
                _write_plan(directory, plan, verify)
            return True
        differences = _differences(before, plan)
        if _has_parts(directory) and _can_go_on(before):
            raise OtherPlan(
                f"an unfinished run for the same output was another one: {'; '.join(differences)}",
                differences=differences,
            )
    _clear(directory, keep=("lock", PUBLISHED, "ranks-"))
    _write_plan(directory, plan, verify)
    return False


def _write_plan(directory: str, plan: Plan, verify: int) -> None:
    """With what every part in the directory was compared by, at least."""
    files.write_atomic(f"{directory}/plan.json", json.dumps({**plan, _COMPARED: verify}).encode())


def _drop_less_compared(directory: str, verify: int) -> None:
    """The records of parts that were compared less; what was put into the file of all ids is written there again."""
    for name in glob.glob("part-*.json", root_dir=directory):
        try:
            raw = json.loads(files.read_own(f"{directory}/{name}", _RECORD_BYTES))
            is_enough = is_compared(raw["number"], raw["documents"], raw["verified"], verify)
        except (OSError, ValueError, KeyError, TypeError):
            is_enough = False  # no record
        if not is_enough:
            os.unlink(f"{directory}/{name}")


def serves(directory: str) -> bool:
    """Whether a later run has a use for it: for finished parts, or for word of what was published."""
    if os.path.exists(f"{directory}/{PUBLISHED}"):
        return True
    return _has_parts(directory) and _can_go_on(_plan_in(directory))


def _plan_in(directory: str) -> object:
    try:
        return json.loads(files.read_own(f"{directory}/plan.json", _PLAN_BYTES))
    except (FileNotFoundError, ValueError):
        return None


def _has_parts(directory: str) -> bool:
    return any(name.startswith("part-") and name.endswith(".json") for name in os.listdir(directory))


def _can_go_on(plan: object) -> bool:
    """Whether parts made by that plan may serve a later run: not those of a stream, which is read once."""
    inputs = plan.get("inputs") if isinstance(plan, dict) else None
    if not isinstance(inputs, list):
        return True
    return all(isinstance(one, list) and bool(one) and one[-1] is not None for one in inputs)


def remove(directory: str) -> None:
    """Remove all of it, by whoever holds the lock: word of what was published late, if it is killed meanwhile."""
    _clear(directory, keep=("lock", PUBLISHED))
    _clear(directory, keep=("lock",))
    shutil.rmtree(directory)


def _clear(directory: str, keep: tuple[str, ...]) -> None:
    for entry in list(os.scandir(directory)):
        if entry.name.startswith(keep):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def _differences(before: object, after: Plan) -> tuple[str, ...]:
    if not isinstance(before, dict):
        return ("its plan can't be read",)
    found = []
    for key in sorted({*before, *after}):
        was, now = before.get(key), after.get(key)
        if was == now:
            continue
        if key == "inputs" and isinstance(was, list) and isinstance(now, list):
            found.append(_of_inputs(was, now))
        else:
            found.append(f"{key} was {was!r} and is {now!r}")
    return tuple(found)


def _of_inputs(was: list[object], now: list[object]) -> str:
    if len(was) != len(now):
        return f"there were {len(was)} inputs and are {len(now)}"
    first = next(index for index, (one, other) in enumerate(zip(was, now, strict=True)) if one != other)
    paths = [str(one[0]) if isinstance(one, list) and one else "?" for one in (was[first], now[first])]
    if paths[0] == paths[1]:
        return f"{paths[0]} has changed"
    return f"input {first + 1} was {paths[0]} and is {paths[1]}"
