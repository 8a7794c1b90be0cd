"""Flags for training scripts, and what they open. Importing this imports neither torch, numpy nor h5py."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from dsmem.errors import NotPinned, UsageError

if TYPE_CHECKING:
    from dsmem.pinning.arrayfile import ArrayFile

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser, *, h5: str | None = None) -> argparse.ArgumentParser:
    """Add --h5, --shared-memory, --preload, --cleanup-shm, --num-workers, and their older forms with underscores.

    `h5`: the default of --h5, which must be given without one. The values are `args.h5`, `shared_memory` (False),
    `preload` (True), `cleanup_shm` (False), `num_workers` (4). Returns the parser.
    """
    group = parser.add_argument_group("data")
    group.add_argument("--h5", metavar="FILE", default=h5, required=h5 is None, help="the HDF5 file")
    _switch(group, "shared-memory", False, "one copy of the data for all processes of this machine")
    _switch(group, "preload", True, "all of it in memory; shared memory needs it")
    group.add_argument(
        "--cleanup-shm",
        "--cleanup_shm",
        action="store_true",
        help="remove the file's copy from shared memory, and exit",
    )
    group.add_argument(
        "--num-workers", "--num_workers", type=_workers, default=4, metavar="N", help="of the DataLoader (4)"
    )
    return parser


def open_from_args(args: argparse.Namespace) -> ArrayFile:
    """The file as the flags say: shared, a private copy, or (--no-preload) read where it lies; reads like h5py.File.

    With --cleanup-shm it removes the file's objects and raises SystemExit(0); InUse when a process holds them.
    Raises UsageError for --shared-memory with --no-preload, and whatever `dsmem.File` raises.
    """
    if args.cleanup_shm:
        _clean(args.h5)
        raise SystemExit(0)
    if args.shared_memory and not args.preload:
        raise UsageError("--shared-memory needs --preload: what is shared lies in memory")
    from dsmem.pinning.opening import File

    if args.shared_memory:
        return File(args.h5, pin="auto")
    return File(args.h5, pin="never", preload=args.preload)


def _clean(path: str) -> None:
    from dsmem.errors import InUse
    from dsmem.shm import cleaning

    try:
        done = cleaning.clean(cleaning.plan(h5=[path]))
    except NotPinned as exc:
        _log.info("nothing to clean: %s", exc)
        return
    held = [one for one in done.kept if one.in_use]
    if held:
        names = [one.entry.name for one in held]
        raise InUse(f"{path}: {', '.join(f'{one.entry.name} {one.reason}' for one in held)}", names=names)
    _log.info("removed %s", ", ".join(done.removed) or "nothing")


def _switch(group: argparse._ArgumentGroup, name: str, default: bool, text: str) -> None:
    """--name and --no-name, with underscores too."""
    names = dict.fromkeys((f"--{name}", f"--{name.replace('-', '_')}"))
    said = " (default)" if default else ""
    group.add_argument(*names, action=argparse.BooleanOptionalAction, default=default, help=f"{text}{said}")


def _workers(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of workers")
    return int(text)
