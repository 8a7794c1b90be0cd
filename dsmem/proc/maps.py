"""Who holds a file: every process that maps it or has it locked; the unseen is never taken for nobody.

/proc/*/maps shows the maps (also of a child after a fork), the `lock:` lines of /proc/*/fdinfo a lock before
the map. Not /proc/locks: after a fork it names the dead, and in a pid namespace it is empty.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from dsmem.proc.mounts import Mount, mounts

File = tuple[int, int]
"""st_dev and st_ino."""

_PROC = Path("/proc")
_COMMAND_LENGTH = 60
_READ_BYTES = 1 << 16
_INIT = 1
"""In a container it can belong to the runtime and be closed even to root; it holds no data then."""
_THREADS = 4
"""A process with 700 maps takes the kernel 1 ms to write down, without the GIL; more gained nothing."""
_FOREIGN_DEVICE_FS = frozenset({"bcachefs", "btrfs", "overlay"})
"""Their files have an st_dev of a subvolume or layer that neither maps nor mountinfo know."""
_NEVER_HELD = ("/dev/null", "/dev/nvidia", "/dev/pts/", "/dev/tty", "/dev/urandom", "/proc/", "/sys/")
_MAP = re.compile(rb"^[0-9a-f]+-[0-9a-f]+ \S+ [0-9a-f]+ ([0-9a-f]+:[0-9a-f]+) (\d+)", re.MULTILINE)
_LOCK = re.compile(rb"^lock:\s.* ([0-9a-f]+:[0-9a-f]+):(\d+) \d+ (?:\d+|EOF)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Search:
    """What to look for, in the words of /proc."""

    files: Mapping[tuple[bytes, bytes], File]
    """Device and inode as /proc writes them → the file that was asked for."""
    devices: tuple[bytes, ...]
    namespace: str
    """The mount namespace in which `below` holds."""
    below: tuple[str, ...]
    """Where the devices are mounted: no other path leads to the files."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that keeps a file's memory alive."""

    pid: int
    command: str
    """Its command line, at most 60 characters, safe on a terminal."""


@dataclass(frozen=True, slots=True)
class Holders:
    """Who holds what, ordered by pid; processes in other pid namespaces (containers) can't be seen at all."""

    by_file: Mapping[File, tuple[Holder, ...]]
    """Every file that was asked for."""
    unreadable: tuple[int, ...] = ()
    """Processes whose /proc entries were refused."""
    hidden: bool = False
    """/proc is mounted so that processes of other users don't even appear (hidepid)."""
    complete: bool = True
    """Every process of this user could be read: who is missing can't open a private store (but root)."""


def holders(files: Collection[File], *, proc: Path = _PROC) -> Holders:
    """Who maps or locks each of `files`, this process included. Those that vanish meanwhile are left out."""
    if not files:
        return Holders({})
    table = mounts(proc=proc)
    pids = sorted(int(name) for name in os.listdir(proc) if name.isdigit())
    seen = _scan_all(pids, _search(files, table, proc), proc)
    by_file: dict[File, list[Holder]] = {file: [] for file in files}
    for pid in pids:
        if held := seen.get(pid):
            holder = Holder(pid, _command(pid, proc))
            for file in held:
                by_file[file].append(holder)
    unreadable = tuple(pid for pid in pids if pid in seen and seen[pid] is None)
    user = os.geteuid()
    return Holders(
        by_file={file: tuple(found) for file, found in by_file.items()},
        unreadable=unreadable,
        hidden=user != 0 and _hides(table, proc),
        complete=not any(_user_of(pid, proc) == user for pid in unreadable if pid != _INIT),
    )


def _scan_all(pids: list[int], search: _Search, proc: Path) -> dict[int, set[File] | None]:
    """A stripe of the processes for each thread: handing them out one by one costs more than it evens out."""
    from concurrent.futures import ThreadPoolExecutor

    def scan_stripe(first: int) -> dict[int, set[File] | None]:
        return {pid: _scan(f"{proc}/{pid}", search) for pid in pids[first::_THREADS]}

    with ThreadPoolExecutor(_THREADS) as pool:
        stripes = list(pool.map(scan_stripe, range(_THREADS)))
    return {pid: held for stripe in stripes for pid, held in stripe.items()}


def _scan(directory: str, search: _Search) -> set[File] | None:
    """What one process holds; None when it may not be read."""
    held: set[File] = set()
    try:
        maps = _read(f"{directory}/maps")
        if not maps:  # a kernel thread or a zombie
            return held
        if any(device in maps for device in search.devices):  # few do, and the pattern is slow
            held.update(search.files[key] for key in _MAP.findall(maps) if key in search.files)
        ours = os.readlink(f"{directory}/ns/mnt") == search.namespace
        below = search.below if ours else ("/",)
        for fd in os.listdir(f"{directory}/fd"):
            held.update(_locked(directory, fd, search, below))
    except PermissionError:
        return None
    except (FileNotFoundError, ProcessLookupError):  # it ended
        return set()
    return held


def _locked(directory: str, fd: str, search: _Search, below: tuple[str, ...]) -> list[File]:
    """A link is read and not followed: to stat a file on a dead server would hang."""
    try:
        target = os.readlink(f"{directory}/fd/{fd}")
        if not target.startswith(below) or target.startswith(_NEVER_HELD):
            return []
        info = _read(f"{directory}/fdinfo/{fd}")
    except FileNotFoundError:  # closed meanwhile
        return []
    if b"\nlock:" not in info:
        return []
    return [search.files[key] for key in _LOCK.findall(info) if key in search.files]


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, _READ_BYTES):
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts)


def _search(files: Collection[File], table: tuple[Mount, ...], proc: Path) -> _Search:
    """Where st_dev is no mounted device, mounts that hide their devices count: rather a holder too many."""
    known = {mount.device for mount in table}
    vague = {mount.device for mount in table if mount.fstype in _FOREIGN_DEVICE_FS}
    written: dict[tuple[bytes, bytes], File] = {}
    devices: set[tuple[int, int]] = set()
    for file in files:
        device = (os.major(file[0]), os.minor(file[0]))
        meant = {device} if device in known else {device, *vague}
        devices |= meant
        for major, minor in meant:
            written[b"%02x:%02x" % (major, minor), b"%d" % file[1]] = file
    points = {mount.point.rstrip("/") + "/" for mount in table if mount.device in devices}
    return _Search(
        files=written,
        devices=tuple({b" %s " % device for device, _ in written}),
        namespace=os.readlink(f"{proc}/self/ns/mnt"),
        below=tuple(points) if devices <= known else ("/",),
    )


def _command(pid: int, proc: Path) -> str:
    try:
        words = (proc / str(pid) / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        if words == [b""]:
            words = [(proc / str(pid) / "comm").read_bytes().rstrip(b"\n")]
    except (FileNotFoundError, ProcessLookupError):
        return "(ended)"
    words[0] = words[0].rpartition(b"/")[2] or words[0]
    text = b" ".join(words).decode(errors="backslashreplace")
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return safe if len(safe) <= _COMMAND_LENGTH else safe[: _COMMAND_LENGTH - 1] + "…"


def _user_of(pid: int, proc: Path) -> int | None:
    """The effective user of a process, from `status`: /proc/PID is root's when it may not dump core."""
    try:
        text = (proc / str(pid) / "status").read_text(errors="replace")
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return None
    match = re.search(r"^Uid:\s+\d+\s+(\d+)", text, re.MULTILINE)
    return int(match[1]) if match else None


def _hides(table: tuple[Mount, ...], proc: Path) -> bool:
    return any(
        mount.fstype == "proc"
        and mount.point == str(proc)
        and mount.options.get("hidepid") in ("2", "invisible", "4", "ptraceable")
        for mount in table
    )
