"""Asking the daemon: one request, one answer, over a Unix socket that only our own uid may speak on.

Requests are JSON objects with an `op` (`daemon` says which); every wait is bounded.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dsmem import errors
from dsmem.errors import DsmemError, LoadFailed, NoServer, ServerTimeout, UnsafeRoot
from dsmem.server import frames, places
from dsmem.server.frames import Decoder
from dsmem.server.places import Places

PATIENCE_S = 5.0
_CREDENTIALS = struct.Struct("3i")
"""struct ucred of unix(7): pid, uid, gid."""
_PART_BYTES = 1 << 16
_RETRY_S = 0.01


def ask(request: Mapping[str, object], timeout_s: float = PATIENCE_S, *, where: Places | None = None) -> dict[str, Any]:
    """What the daemon of this store answers; raises what it reports, as the error that it was there.

    NoServer when nobody listens, ServerTimeout when no whole answer came in time, UnsafeRoot when another user's
    process listens. The wait for the answer is `timeout_s` as a whole.
    """
    where = where if where is not None else _usual()
    deadline = time.monotonic() + timeout_s
    with _connected(where, deadline) as connection:
        try:
            connection.sendall(frames.encode(request))
            answer = _receive(connection, deadline)
        except TimeoutError as exc:
            raise ServerTimeout(f"the server said nothing for {timeout_s:g} s", timeout_s=timeout_s) from exc
        except (OSError, frames.BadFrame) as exc:
            raise NoServer(f"the server ended while it was asked ({exc})", socket=where.socket) from exc
    if answer.get("ok") is not True:
        raise reported(answer)
    return answer


def _usual() -> Places:
    from dsmem.config.resolve import resolve  # the daemon needs none of it

    return places.find(resolve())


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end, by the kernel's word."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(credentials)
    return int(uid)


@contextmanager
def short_path(directory: str, name: str) -> Iterator[str]:
    """A path to a socket in a directory that fits into 108 bytes, however long the real one is."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


@contextmanager
def _connected(where: Places, deadline: float) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            with short_path(where.directory, places.SOCKET) as path:
                _connect(connection, path, deadline)
        except PermissionError as exc:
            raise UnsafeRoot(f"{where.socket} is not ours: {exc.strerror}", root=where.directory) from exc
        except OSError as exc:
            raise NoServer(f"no dataset server runs for {where.root}", socket=where.socket) from exc
        uid = peer_uid(connection)
        if uid != os.geteuid():
            raise UnsafeRoot(f"{where.socket} is a socket of uid {uid}, not of {os.geteuid()}", root=where.directory)
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        yield connection


def _connect(connection: socket.socket, path: str, deadline: float) -> None:
    """A backlog that is full (EAGAIN) is waited for."""
    connection.setblocking(False)
    while True:
        try:
            return connection.connect(path)
        except BlockingIOError as exc:
            if exc.errno != errno.EAGAIN or time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_S)


def _receive(connection: socket.socket, deadline: float) -> dict[str, Any]:
    decoder = Decoder(frames.ANSWER_BYTES)
    while True:
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError
        connection.settimeout(remaining_s)
        part = connection.recv(_PART_BYTES)
        if not part:
            raise frames.BadFrame("no answer")
        answer = decoder.feed(part)
        if answer is not None:
            return answer


def report(error: Exception) -> dict[str, object]:
    """An error as an answer, to be raised by who asked."""
    facts = {name: getattr(error, name, "") for name in ("dataset", "target")}
    return {"ok": False, "kind": type(error).__name__, "error": str(error), **{k: v for k, v in facts.items() if v}}


def reported(answer: Mapping[str, Any]) -> DsmemError:
    """The error that an answer tells of; only errors of dsmem itself are made."""
    message = str(answer.get("error", "the server's answer makes no sense"))
    kind = getattr(errors, str(answer.get("kind")), None)
    if kind is LoadFailed or kind is ServerTimeout:
        return LoadFailed(message, dataset=str(answer.get("dataset", ""))) if kind is LoadFailed else ServerTimeout(
            message, dataset=str(answer.get("dataset", ""))
        )  # fmt: skip
    if isinstance(kind, type) and issubclass(kind, DsmemError):
        made: DsmemError = kind(message)
        return made
    return DsmemError(message)
