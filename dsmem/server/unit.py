"""A systemd user unit for the server, as text."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

_KEPT = ("DSMEM_", "SHARED_DATASET_", "HF_", "XDG_STATE_HOME")
"""Variables of this environment that the server needs as well."""
_SECRET = ("TOKEN", "SECRET", "PASSWORD", "KEY")


def unit(arguments: Sequence[str], *, environ: Mapping[str, str] = os.environ) -> str:
    """The unit that runs `dsmem server run` with these arguments; it holds no secrets of the environment."""
    kept = {
        name: value
        for name, value in sorted(environ.items())
        if name.startswith(_KEPT) and not any(part in name.upper() for part in _SECRET)
    }
    variables = "".join(f"Environment={_quoted(f'{name}={value}')}\n" for name, value in kept.items())
    # Of a command line, unlike of Environment=, `$` would be a variable's.
    command = " ".join(
        _quoted(word).replace("$", "$$") for word in (sys.executable, "-m", "dsmem", "server", "run", *arguments)
    )
    return f"""\
# ~/.config/systemd/user/dsmem.service
[Unit]
Description=dsmem: datasets in shared memory

[Service]
Type=notify
ExecStart={command}
{variables}Restart=on-failure
TimeoutStopSec=20

[Install]
WantedBy=default.target
"""


def _quoted(word: str) -> str:
    """As systemd.syntax(7) reads it: quotes, backslashes and `%` specifiers are taken literally."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("\n", "\\n")
    return f'"{escaped}"' if escaped != word or " " in word or not word else word
