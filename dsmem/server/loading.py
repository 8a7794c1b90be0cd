"""A dataset loaded by a child process: the daemon hears of progress and of the end, however the child ends.

The request goes by a file without a name, messages come back as frames through a pipe. A child that is killed, or that
says nothing that makes sense, has failed; it can't take the daemon with it, and it ends with the daemon.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from dsmem import helpers
from dsmem.server import frames
from dsmem.server.frames import BadFrame, Decoder
from dsmem.server.spec import Spec

CHILD = "dsmem.server.loader"
_PART_BYTES = 1 << 16
_QUIET = {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""What the child says goes into a log, where a bar is noise."""


class Loading:
    """One child at work. `told` is called with each message, `ended` once, with '' or with how it died."""

    def __init__(
        self,
        spec: Spec,
        root: str,
        overflow: str | None,
        selector: selectors.BaseSelector,
        *,
        told: Callable[[dict[str, Any]], None],
        ended: Callable[[str], None],
        module: str = CHILD,
        stderr: int | None = None,
    ) -> None:
        self._selector = selector
        self._told, self._ended = told, ended
        self._decoder = Decoder(frames.ANSWER_BYTES)
        self._pipe, theirs = os.pipe()
        os.set_blocking(self._pipe, False)
        request = os.memfd_create("dsmem-request")
        try:
            os.write(request, json.dumps({"spec": spec.as_dict(), "root": root, "overflow": overflow}).encode())
            os.lseek(request, 0, os.SEEK_SET)
            self.process = helpers.start(
                module,
                fds=(request, theirs),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if stderr is None else stderr,
                stderr=stderr,
                env={**helpers.environment(), **_QUIET},
                start_new_session=True,
            )
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(request)
            os.close(theirs)
        self._pidfd = os.pidfd_open(self.process.pid)
        selector.register(self._pipe, selectors.EVENT_READ, self._readable)
        selector.register(self._pidfd, selectors.EVENT_READ, self._died)

    def kill(self) -> None:
        """End the child now, and say nothing of it."""
        self._stop_listening()
        self._end()

    def _readable(self, events: int) -> None:
        self._read()

    def _read(self) -> bool:
        """Hear what the child says; False when there is nothing more now."""
        try:
            part = os.read(self._pipe, _PART_BYTES)
        except BlockingIOError:
            return False
        if not part:
            self._selector.unregister(self._pipe)  # its end is told by the pidfd
            return False
        try:
            while (message := self._decoder.feed(part)) is not None:
                part = b""
                self._told(message)
        except BadFrame as exc:
            self.kill()
            self._ended(f"the process that loaded it made no sense ({exc})")
        return self._pipe >= 0

    def _died(self, events: int) -> None:
        while self._pipe in self._selector.get_map() and self._read():  # its last words
            pass
        if self._pipe < 0:  # they made no sense
            return
        self._stop_listening()
        code = self._end()
        self._ended("" if code == 0 else f"the process that loaded it ended ({helpers.ending(code)})")

    def _stop_listening(self) -> None:
        for fd in (self._pipe, self._pidfd):
            if fd in self._selector.get_map():
                self._selector.unregister(fd)
            os.close(fd)
        self._pipe = self._pidfd = -1

    def _end(self) -> int:
        """The child and what it started are gone after this; the exit code."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()
