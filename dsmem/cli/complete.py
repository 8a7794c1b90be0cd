"""What the shell completes beyond commands and options; it only looks at directories and never fails."""

from __future__ import annotations

import os

from dsmem.cli import logs
from dsmem.errors import UsageError


def names(incomplete: str) -> list[str]:
    """Names of objects in the store that begin so, sorted; none where the store can't be read."""
    from dsmem.store.root import default_root

    logs.show("error")  # a warning would land in the line that is being typed
    try:
        with os.scandir(f"{default_root()}/objects") as entries:
            found = [entry.name for entry in entries if entry.name.startswith(incomplete)]
    except (OSError, UsageError):
        return []  # there is nobody to tell while a line is being typed
    return sorted(name for name in found if not name.startswith(".") and name.isprintable())
