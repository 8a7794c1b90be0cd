"""What the library logs, as lines on stderr, which is looked up anew each time: a bar may stand before it."""

from __future__ import annotations

import logging
import sys

from dsmem.cli.output import escape

_LOGGER = "dsmem"


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(escape(self.format(record)) + "\n")
        except OSError:
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname.lower()
        if record.levelno >= logging.WARNING:
            return f"{level}: {record.getMessage()}"
        return f"{level}: {record.name}: {record.getMessage()}"


def show(level: str) -> None:
    """Shows messages of dsmem from this level on; a second call changes the level."""
    logger = logging.getLogger(_LOGGER)
    logger.setLevel(level.upper())
    if not any(isinstance(handler, _ToStderr) for handler in logger.handlers):
        logger.addHandler(_ToStderr())
