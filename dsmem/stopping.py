"""Being told to end, as an exception: who has set something up removes it then, in peace. Handlers are as before after
it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def raised() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise SystemExit(128 + n); outside of the main thread it does nothing.

    What is ignored stays ignored: who started us with nohup wants that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    heeded = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _raise_exit) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


class Held:
    """What the handlers of signals raise, kept back until it can do no harm."""

    def __init__(self, at_first: Callable[[], object] = lambda: None) -> None:
        """`at_first`: called when there is something to keep back."""
        self._at_first = at_first
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._holds, self._is_over, self._was_raised = True, False, False
        self._first: BaseException | None = None

    def hold(self) -> None:
        """Keep back whatever comes from now on. One that was raised holds those after it by itself."""
        self._holds = True

    def release(self) -> None:
        """Let the next one be raised wherever it comes; raises what was kept back until now."""
        self._holds = False
        self._raise_first()

    def _raise_first(self) -> None:
        if self._first is not None and not self._was_raised:
            self._holds = self._was_raised = True
            raise self._first

    def _hear(self, number: int, frame: FrameType | None) -> None:
        try:
            self._handlers[number](number, frame)
        except BaseException as exc:
            if self._is_over:
                raise
            if not self._holds:
                self._holds = self._was_raised = True
                raise
            if self._first is None:
                self._first = exc
                self._at_first()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        try:
            with ExitStack() as stack:
                for number in range(1, signal.SIGRTMIN):
                    handler = signal.getsignal(number)
                    if callable(handler):
                        self._handlers[number] = handler
                        stack.callback(signal.signal, number, handler)
                        signal.signal(number, self._hear)
                try:
                    yield
                finally:
                    self._is_over = True
        finally:
            self._raise_first()


@contextmanager
def held(at_first: Callable[[], object] = lambda: None) -> Iterator[Held]:
    """Within the block no signal raises, however many come, until it is released; the first is raised behind the block.

    For what has to come to its end first, such as threads that write to memory which is given back next. A handler of
    the caller's is called when its signal comes. Outside of the main thread, where none is, it does nothing.
    """
    found = Held(at_first)
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    with found._listening():
        yield found
