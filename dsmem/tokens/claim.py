"""What lies under the names of an output, and what of it a run may replace.

Never what it reads; without being told nothing that anybody else made; and once it is told the whole of what an earlier
run left of the same output, so that no shard of another count, and no validation file, stays beside the new ones. What
belongs to the output is told by manifests alone: a file without one is refused or left, never removed.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from dsmem import files
from dsmem.errors import BadSource, OutputExists, UsageError
from dsmem.tokens import manifest as manifests
from dsmem.tokens import workdir
from dsmem.tokens.layout import Beside, val_path
from dsmem.tokens.options import Arrangement

_log = logging.getLogger(__name__)

STDIN = 0
_RECORD_BYTES = 256 << 20
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?:\.bin|\.idx|\.docs\.npy|\.json)")


@dataclass(frozen=True, slots=True)
class _Unit:
    """The files of one `.bin`, those that are there and those that are not."""

    files: Beside
    is_val: bool
    shard: tuple[int, int] | None
    """Its number and their count; None for the one that is whole."""

    def there(self) -> Iterator[str]:
        """The paths at which something lies."""
        return filter(os.path.lexists, self.files.paths())

    def is_ours(self) -> bool:
        """Whether its manifest says that a run wrote it as this part of this output."""
        try:
            found = manifests.read(self.files.manifest)
        except BadSource:
            return False
        if found is None:
            return False
        number, count = self.shard or (0, 1)
        return (found.split == "val", found.shard, found.shards) == (self.is_val, number, count)


class Claim:
    """The names of one output, of its splits and shards."""

    def __init__(self, out: str, arrangement: Arrangement, *, overwrite: bool) -> None:
        self._out = out
        self._arrangement = arrangement
        self._overwrite = overwrite
        self._directory = workdir.path_of(out)

    def refuse_reading(self, read: Iterable[tuple[str, tuple[int, int] | None]]) -> None:
        """Raise UsageError where a file that is read (its path; device and inode) would be replaced or removed."""
        own = {}
        for unit in self._units():
            if self._is_target(unit) or unit.is_ours():
                for path in unit.there():
                    with suppress(OSError):  # a link to nowhere
                        own[_inode(os.stat(path))] = path
        work = os.path.realpath(self._directory) + os.sep
        for path, inode in read:
            if inode in own:
                same = "" if own[inode] == os.path.abspath(path) else f", which is {path},"
                raise UsageError(f"{own[inode]}{same} is read, and the output would replace it: name another output")
            if inode is not None and os.path.realpath(path).startswith(work):
                raise UsageError(f"{path} lies in the work directory of the output: name another output")

    def refuse_taken(self) -> None:
        """Raise OutputExists for what the run would replace and was not told to, UsageError for a directory there."""
        parent = os.path.dirname(self._out)
        if not os.path.isdir(parent):
            raise UsageError(f"there is no directory {parent}")
        published = self._published()
        for unit in self._units():
            is_target = self._is_target(unit)
            for path in unit.there():
                if is_target and os.path.isdir(path):
                    raise UsageError(f"{path} is a directory")
                if path in published and published[path] == _identity(path):
                    continue
                if is_target and not self._overwrite:
                    raise OutputExists(f"{path} is there already", path=path)
                if not is_target and path == unit.files.bin:
                    self._refuse_stale(unit)

    def _refuse_stale(self, unit: _Unit) -> None:
        """Of another form of the output, which would lie beside the new one."""
        path = unit.files.bin
        is_ours = unit.is_ours()
        if is_ours and not self._overwrite:
            raise OutputExists(f"{path} is there already, of the same output", path=path)
        used = not unit.is_val or self._arrangement.val_fraction > 0
        if not is_ours and used and self._is_sharded(unit.is_val):
            told = ", and no manifest says that it is of this output: take it away first" if self._overwrite else ""
            raise OutputExists(f"{path} is there already{told}", path=path)

    def publish(self, pairs: Sequence[tuple[Beside, Beside]]) -> None:
        """What comes before complete files (the first of a pair) get their names: leave word of them in the work
        directory, for a run that goes on, and remove what an earlier run left of the same output in another form.
        """
        self.refuse_taken()
        named = self._published()
        for here, there in pairs:
            for path, name in zip(here.paths(), there.paths(), strict=True):
                if os.path.exists(path):
                    named[name] = _identity(path)
        record = {"arrangement": asdict(self._arrangement), "files": named}
        files.write_atomic(f"{self._directory}/{workdir.PUBLISHED}", json.dumps(record).encode())
        kept = {there.bin for _, there in pairs}
        stale = [unit for unit in self._units() if unit.files.bin not in kept and unit.is_ours()]
        for unit in stale:
            for path in unit.there():
                os.unlink(path)
        if stale:
            _log.warning(
                "%d files of the output that is replaced had other names, and are gone: %s%s",
                len(stale), stale[0].files.bin, ", …" if len(stale) > 1 else "",
            )  # fmt: skip

    def _published(self) -> dict[str, list[int]]:
        """What a run that was killed had published of this same output when it was: it is not taken by others."""
        try:
            raw = json.loads(files.read_own(f"{self._directory}/{workdir.PUBLISHED}", _RECORD_BYTES))
            if raw["arrangement"] != asdict(self._arrangement):
                return {}
            return dict(raw["files"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}  # not there, or none that a run wrote

    def _is_sharded(self, is_val: bool) -> bool:
        how = self._arrangement
        return how.shard_tokens is not None or (how.shards is not None and not is_val)

    def _is_target(self, unit: _Unit) -> bool:
        """Whether the run writes it, or may."""
        how = self._arrangement
        if unit.is_val and not how.val_fraction:
            return False
        if unit.shard is None or not self._is_sharded(unit.is_val):
            return (unit.shard is None) != self._is_sharded(unit.is_val)
        return how.shard_tokens is not None or (unit.shard[1] == how.shards and unit.shard[0] < unit.shard[1])

    def _units(self) -> Iterator[_Unit]:
        """Whole ones, and every shard of which a file is there."""
        for is_val, path in ((False, self._out), (True, val_path(self._out))):
            yield _Unit(Beside.of(path), is_val, None)
            parent, name = os.path.split(path.removesuffix(".bin"))
            seen: Mapping[tuple[int, int], None] = {}
            with suppress(FileNotFoundError):
                rest = (one[len(name) :] for one in os.listdir(parent) if one.startswith(name))
                matches = filter(None, map(_SHARD.fullmatch, rest))
                seen = dict.fromkeys((int(match[1]), int(match[2])) for match in matches)
            for shard in sorted(seen):
                yield _Unit(
                    Beside.of(f"{os.path.join(parent, name)}-{shard[0]:05d}-of-{shard[1]:05d}.bin"), is_val, shard
                )


def inode_of(path: str) -> tuple[str, tuple[int, int] | None]:
    """The path, and device and inode of what lies there; None where nothing does."""
    try:
        return path, _inode(os.stat(path))
    except (OSError, ValueError):
        return path, None


def inode_of_stdin() -> tuple[str, tuple[int, int] | None]:
    """The same for what standard input is redirected from."""
    try:
        return "standard input", _inode(os.fstat(STDIN))
    except OSError:
        return "standard input", None


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _identity(path: str) -> list[int]:
    status = os.lstat(path)
    return [status.st_dev, status.st_ino, status.st_size]  # not its times: what goes on syncs the file of all ids
