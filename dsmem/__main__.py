"""`python -m dsmem` is the same as `dsmem`: the command line, and what is quicker if it begins before all of that is
imported, and ends without looking at it again.
"""

from __future__ import annotations

import gc
import os
import sys
from contextlib import ExitStack


def main() -> None:
    """Runs the command that is typed, and exits with its code."""
    try:
        _run()
    except KeyboardInterrupt:  # before, or after, the command line could tell it
        if sys.stderr is not None:
            sys.stderr.write("interrupted\n")
        sys.exit(130)


def _run() -> None:
    if None in (sys.stdin, sys.stdout, sys.stderr):
        _open_standard()
    with ExitStack() as stack:
        if sys.argv[1:2] == ["tokenize"] and sys.platform == "linux":
            from dsmem.tokens import starting

            stack.enter_context(starting.ahead(sys.argv[2:]))
        from dsmem.cli.app import main as run

        try:
            run()
        finally:
            gc.freeze()  # the kernel takes back all at once what the interpreter would take apart for some 20 ms


def _open_standard() -> None:
    """Have descriptors 0 to 2, which were closed, lead nowhere: else files that are opened would get them."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


if __name__ == "__main__":
    main()
