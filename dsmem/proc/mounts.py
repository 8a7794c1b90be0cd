"""Mounted file systems as this process sees them; a mount that another one covers is never taken for it.

Source: proc_pid_mountinfo(5), tmpfs(5), Documentation/admin-guide/mm/transhuge.rst of the kernel.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsmem.errors import NoProc

HugePages = Literal["never", "always", "within_size", "advise"]

_PROC = Path("/proc")
_SYS = Path("/sys")
_OCTAL = re.compile(r"\\([0-7]{3})")
_NETWORK = re.compile(
    "9p|afs|beegfs|ceph|cifs|coda|cvmfs|davfs|dvs|fhgfs|gfs2?|glusterfs|gpfs|lustre|ncpfs|nfs.*|ocfs2|orangefs"
    "|panfs|prl_fs|pvfs2|quobyte|smb.*|vboxsf|virtiofs|vmhgfs|wekafs"
)
_LOCAL_FUSE = re.compile(
    r"fuseblk|fuse\.(bindfs|exfat|fuse-overlayfs|gocryptfs|lxcfs|mergerfs|ntfs|ntfs-3g|squashfuse|unionfs)"
)


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount: options of the mount and of its file system together, `ro` in either makes it read-only."""

    point: str
    fstype: str
    source: str
    options: Mapping[str, str]
    """Name → value, '' for a flag: {'rw': '', 'size': '65536k', 'huge': 'within_size'}."""
    device: tuple[int, int] = (0, 0)
    """Major and minor number of the file system; equals st_dev except on btrfs and some overlays."""
    root: str = "/"
    """The directory of the file system that is mounted here: not '/' for bind mounts and in containers."""
    id: int = 0
    parent: int = 0

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written here, by anyone."""
        return "ro" in self.options


def mounts(*, fstypes: Sequence[str] | None = None, proc: Path = _PROC) -> tuple[Mount, ...]:
    """Every mount in this process's namespace, or those of some types, in the kernel's order."""
    wanted = None if fstypes is None else tuple(f"{fstype} " for fstype in fstypes)
    return tuple(_parse(line) for line in _lines(proc) if wanted is None or line.partition(" - ")[2].startswith(wanted))


def mount_of(path: str | os.PathLike[str], *, proc: Path = _PROC) -> Mount:
    """The mount that holds `path` (links resolved; its last parts need not exist).

    In a chroot whose root is no mount the type is 'unknown'.
    """
    real = os.path.realpath(path)
    lines = _lines(proc)
    ids = {int(line.partition(" ")[0]) for line in lines}
    # Machines with containers have hundreds of mounts: only those on the way are parsed.
    return _visible([_parse(line) for line in lines if _holds(_plain(line.split(" ", 5)[4]), real)], ids)


def is_network_fs(fstype: str) -> bool:
    """Whether other machines can change what lies there, so that flock and maps mean something else.

    FUSE counts as network but for the local ones known by name.
    """
    if fstype.startswith("fuse"):
        return not _LOCAL_FUSE.fullmatch(fstype)
    return bool(_NETWORK.fullmatch(fstype))


def huge_pages(mount: Mount, *, sys: Path = _SYS) -> HugePages:
    """What a tmpfs mount does about huge pages, the kernel's override (deny, force) included."""
    if mount.fstype != "tmpfs":
        return "never"
    switch = shmem_enabled(sys=sys)
    if switch in (None, "deny"):
        return "never"
    if switch == "force":
        return "always"
    match mount.options.get("huge", "never"):
        case "always":
            return "always"
        case "within_size":
            return "within_size"
        case "advise":
            return "advise"
        case _:
            return "never"


def shmem_enabled(*, sys: Path = _SYS) -> str | None:
    """The chosen word of transparent_hugepage/shmem_enabled; None where the kernel has no such pages."""
    try:
        text = (sys / "kernel/mm/transparent_hugepage/shmem_enabled").read_text()
    except OSError:  # not there, or kept from us
        return None
    chosen = re.search(r"\[(\w+)\]", text)
    return chosen[1] if chosen else None


def huge_page_bytes(*, sys: Path = _SYS) -> int | None:
    """The size of a huge page; None where the kernel has none."""
    try:
        return int((sys / "kernel/mm/transparent_hugepage/hpage_pmd_size").read_text())
    except OSError:  # not there, or kept from us
        return None


def require_proc(*, proc: Path = _PROC) -> None:
    """Raise NoProc where it is not mounted."""
    if not os.path.exists(proc / "self"):
        raise NoProc(f"{proc} is not mounted")


def _lines(proc: Path) -> list[str]:
    try:
        text = (proc / "self" / "mountinfo").read_text(errors="surrogateescape")
    except FileNotFoundError:
        require_proc(proc=proc)
        raise
    return [line for line in text.splitlines() if " - " in line]


def _parse(line: str) -> Mount:
    """A line is: id parent major:minor root point options [tag...] - type source super-options."""
    left, _, right = line.partition(" - ")
    number, parent, device, root, point, options = left.split(" ")[:6]
    fstype, source, *rest = right.split(" ")
    major, minor = device.split(":")
    merged = _options(" ".join(rest)) | _options(options)
    if "ro" in merged:
        merged.pop("rw", None)
    return Mount(
        point=_plain(point),
        fstype=fstype,
        source=_plain(source),
        options=merged,
        device=(int(major), int(minor)),
        root=_plain(root),
        id=int(number),
        parent=int(parent),
    )


def _options(text: str) -> dict[str, str]:
    pairs = (item.partition("=") for item in text.split(",") if item)
    return {name: _plain(value) for name, _, value in pairs}


def _plain(text: str) -> str:
    r"""Space, tab, newline and backslash are written as \040, \011, \012 and \134."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _visible(way: Sequence[Mount], ids: Set[int]) -> Mount:
    """Walk down as the kernel does: from a mount to the child mount met first, of those on the way to a path.

    `ids`: of all mounts there are.
    """
    children: dict[int, list[Mount]] = {}
    tops: list[Mount] = []
    for mount in way:
        if mount.parent not in ids or mount.parent == mount.id:
            tops.append(mount)
        else:
            children.setdefault(mount.parent, []).append(mount)
    if not tops:
        return Mount("/", "unknown", "none", {})
    here = max(tops, key=lambda mount: len(mount.point))
    while below := children.pop(here.id, None):
        here = min(below, key=lambda mount: len(mount.point))
    return here


def _holds(point: str, path: str) -> bool:
    return point == "/" or path == point or path.startswith(point + "/")
