"""`dsmem hash`: digests of files, in the lines that md5sum prints and `md5sum -c` reads."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from dsmem.cli import progress
from dsmem.cli.commands import Algo, Json
from dsmem.cli.errors import Failures
from dsmem.cli.output import Output, escape

if TYPE_CHECKING:
    from dsmem.digest import FileDigest

EXAMPLES = (
    "dsmem hash train.h5",
    "dsmem hash --algo md5 *.h5 > MD5SUMS",
    "dsmem hash --no-cache --json train.h5",
)


def hash_(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Files to read.")],
    algo: Algo = "xxh3-tree",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Compute the digest even where it is known.")] = False,
    json: Json = False,
) -> None:
    """Print digests of files, in the lines of md5sum.

    The default is the digest that `dsmem pin` shows; `--algo md5` prints what md5sum prints.
    """
    from dsmem.digest import hash_file

    out = Output(as_json=json)
    digests: list[FileDigest] = []
    failures = Failures()
    with progress.bar("hashing", files) as bar:
        for path in files:
            work = partial(hash_file, path, algo, cache=not no_cache, progress=bar.follow(path))
            digest = failures.attempt(path, work)
            if digest is None:
                continue
            digests.append(digest)
            if not json:
                with bar.aside():
                    out.raw(_line(digest, for_terminal=out.terminal))
    if json:
        out.json({"digests": digests, "failed": failures.as_rows()})
    failures.end()


def _line(digest: FileDigest, *, for_terminal: bool) -> bytes:
    """`<hex>  <name>`; a name with \\, newline or return is escaped as md5sum does: \\ begins the line."""
    name = digest.path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    mark = "" if name == digest.path else "\\"
    return os.fsencode(f"{mark}{digest.hex}  {escape(name) if for_terminal else name}\n")
