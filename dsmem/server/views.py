"""Where a shared table seems to lie for its readers: a directory of symlinks of their own, outside the store.

`datasets` puts what `.map`, `.filter` and `.shuffle` compute beside the table's files. The directory is named by the
table's content, so that a later generation of the same rows finds what an earlier one has cached.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence

from dsmem import settings
from dsmem.errors import UnsafeRoot


def directory(fingerprint: str) -> str:
    """Of the view of a content; not made yet."""
    return str(settings.cache_directory() / "views" / fingerprint)


def make(fingerprint: str, files: Sequence[str]) -> tuple[str, ...]:
    """Paths that lead to these files, by their names; made, or led anew, where they are not so already.

    Where the cache directory can't be written to, they lie in the directory for temporary files.
    """
    try:
        return _made(directory(fingerprint), files)
    except OSError:
        above = f"{tempfile.gettempdir()}/dsmem-views-{os.geteuid()}"
        _make_own(above)
        return _made(f"{above}/{fingerprint}", files)


def _made(path: str, files: Sequence[str]) -> tuple[str, ...]:
    found = []
    for file in files:
        link = f"{path}/{os.path.basename(file)}"
        found.append(link)
        if _leads_to(link, file):
            continue
        os.makedirs(path, mode=0o700, exist_ok=True)
        fresh = tempfile.mktemp(prefix=".link-", dir=path)
        os.symlink(file, fresh)
        os.replace(fresh, link)
    return tuple(found)


def _leads_to(link: str, file: str) -> bool:
    try:
        return os.readlink(link) == file
    except OSError:
        return False


def _make_own(path: str) -> None:
    os.makedirs(path, mode=0o700, exist_ok=True)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise UnsafeRoot(f"{path} is not a directory of uid {os.geteuid()} that only it can write to", root=path)
