"""Processes that a bench tells through a pipe what to do: they end when it is closed, also by this process's death."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from dsmem import helpers

_PATIENCE_S = 10.0


@contextmanager
def started(
    module: str, *arguments: str, environ: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m MODULE ARGUMENTS`, its stdin and stdout pipes of this process; at the end of the block it ends, too.

    environ: None = that of `helpers.environment`.
    """
    with subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=helpers.environment() if environ is None else environ,
        process_group=0,  # Ctrl-C is for the parent; this ends when it does
    ) as process:  # which closes the pipes and waits
        try:
            yield process
        finally:
            assert process.stdin is not None
            try:
                process.stdin.close()
                process.wait(_PATIENCE_S)
            except (subprocess.TimeoutExpired, BrokenPipeError):
                process.kill()
