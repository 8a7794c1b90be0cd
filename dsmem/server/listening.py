"""The daemon's end of the control socket: many clients, none of whom can hold it up.

Each connection carries one request and its answer. A request must be whole after 5 s; bytes that are no frame, and
other users, are shown the door. Nothing here blocks. `GET /metrics` of HTTP is a request, too: what gathers metrics
speaks nothing else (curl --unix-socket, Telegraf).
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from dsmem import files
from dsmem.server import control, frames, places
from dsmem.server.frames import BadFrame, Decoder
from dsmem.server.places import Places

CONNECTIONS = 200
"""More than that at once: who has not yet said a whole request gives way."""
REQUEST_S = 5.0
ANSWER_S = 5.0
_BACKLOG = 128
_PART_BYTES = 1 << 16
_HTTP, _HTTP_BYTES = b"GET ", 16 << 10
_METRICS = b"GET /metrics "
_log = logging.getLogger(__name__)

Handle = Callable[[dict[str, Any], "Connection"], None]


class Connection:
    """One client. `answer` may be called at once or later; the client may be gone by then, and nobody minds."""

    def __init__(self, listener: Listener, peer: socket.socket) -> None:
        self._listener = listener
        self.peer = peer
        self.asked = False
        self.deadline = time.monotonic() + REQUEST_S
        self._decoder = Decoder(frames.REQUEST_BYTES)
        self._outgoing = b""
        self._http = b""
        """What has come of a request that is one of HTTP."""

    @property
    def gone(self) -> bool:
        """Whether the client has left."""
        return self.peer.fileno() < 0

    def answer(self, message: Mapping[str, object]) -> None:
        """Send the answer and end."""
        if self.gone:
            return
        self._outgoing = _http_answer(message) if self._http else frames.encode(message)
        self.deadline = time.monotonic() + ANSWER_S
        self._listener.selector.modify(self.peer, selectors.EVENT_WRITE, self.ready)
        self._write()

    def ready(self, events: int) -> None:
        """What the selector calls."""
        if events & selectors.EVENT_READ:
            self._read()
        elif events & selectors.EVENT_WRITE:
            self._write()

    def _read(self) -> None:
        try:
            part = self.peer.recv(_PART_BYTES)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        if not part or self.asked:  # gone, or it talks on after its request
            self._listener.drop(self)
            return
        try:
            message = self._http_request(part) if self._is_http(part) else self._decoder.feed(part)
        except BadFrame as exc:
            _log.warning("a client sent no request: %s", exc)
            self.answer({"ok": False, "kind": "UsageError", "error": f"not a request: {exc}"})
            return
        if message is not None:
            self.asked = True
            self._listener.handle(message, self)

    def _is_http(self, part: bytes) -> bool:
        """As a frame it would be a GiB."""
        return bool(self._http) or (self._decoder.empty and part.startswith(_HTTP))

    def _http_request(self, part: bytes) -> dict[str, Any] | None:
        self._http += part
        if b"\r\n\r\n" in self._http:
            if self._http.startswith(_METRICS):
                return {"op": "metrics"}
            raise BadFrame("only /metrics is there")
        if len(self._http) > _HTTP_BYTES:
            raise BadFrame(f"more than {_HTTP_BYTES} bytes of HTTP")
        return None

    def _write(self) -> None:
        try:
            sent = self.peer.send(self._outgoing)
        except BlockingIOError:
            return
        except OSError:
            self._listener.drop(self)
            return
        self._outgoing = self._outgoing[sent:]
        if not self._outgoing:
            self._listener.drop(self)


class Listener:
    """The socket and all who are connected."""

    def __init__(self, where: Places, selector: selectors.BaseSelector, handle: Handle) -> None:
        """Bind the socket, in place of one that a killed daemon has left; the caller holds the daemon's lock."""
        self.selector = selector
        self.handle = handle
        self._where = where
        self._connections: dict[Connection, None] = {}
        files.unlink_if_there(where.socket)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        mask = os.umask(0o177)
        try:
            with control.short_path(where.directory, places.SOCKET) as path:
                self._socket.bind(path)
        finally:
            os.umask(mask)
        self._status = os.lstat(where.socket)
        self._socket.listen(_BACKLOG)
        selector.register(self._socket, selectors.EVENT_READ, self._accept)

    def drop(self, connection: Connection) -> None:
        """Forget a client."""
        if self._connections.pop(connection, connection) is None:
            self.selector.unregister(connection.peer)
            connection.peer.close()

    def expire(self) -> None:
        """Drop the clients whose time is up; who waits for an answer is not among them."""
        now = time.monotonic()
        for connection in [one for one in self._connections if one.deadline < now]:
            if not connection.asked:
                _log.warning("a client did not say its request within %g s", REQUEST_S)
            self.drop(connection)

    def next_deadline(self) -> float:
        """When `expire` is due, by the monotonic clock."""
        return min((one.deadline for one in self._connections), default=float("inf"))

    def close(self) -> None:
        """No more clients; the socket's name goes if it is still ours."""
        for connection in list(self._connections):
            self.drop(connection)
        self.selector.unregister(self._socket)
        self._socket.close()
        if files.names_inode(self._where.socket, self._status):
            files.unlink_if_there(self._where.socket)

    def _accept(self, events: int) -> None:
        try:
            peer, _ = self._socket.accept()
        except OSError as exc:  # it has given up already, or there are no descriptors left: then others end first
            _log.warning("a client could not be let in: %s", exc)
            self._give_way()
            return
        peer.setblocking(False)
        uid = control.peer_uid(peer)
        if uid != os.geteuid():
            _log.warning("a process of uid %d was turned away", uid)
            peer.close()
            return
        if len(self._connections) >= CONNECTIONS and not self._give_way():
            peer.close()
            return
        connection = Connection(self, peer)
        self._connections[connection] = None
        self.selector.register(peer, selectors.EVENT_READ, connection.ready)

    def _give_way(self) -> bool:
        """Drop who has been silent longest; False when everybody has asked something."""
        silent = next((one for one in self._connections if not one.asked), None)
        if silent is not None:
            self.drop(silent)
        return silent is not None


def _http_answer(message: Mapping[str, object]) -> bytes:
    good = message.get("ok") is True
    body = str(message["text"] if good else message.get("error")).encode()
    kind = "text/plain; version=0.0.4; charset=utf-8"
    head = f"HTTP/1.1 {'200 OK' if good else '404 Not Found'}\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
