"""What a process that reads an untrusted file and the one that asked for it tell each other: lines of JSON on a socket.

The reader may have been taken over by the file: what it says is bounded in size and checked before it is used.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import asdict
from typing import Any, get_args

from dsmem.errors import BadSource, DsmemError, NoSpace, Refusal, SourceBusy, SourceChanged
from dsmem.pinning.explaining import ExplainedDataset, Explanation, Tier
from dsmem.pinning.filling import ReadDifferently

_MOST_BYTES = 64 << 20
"""Of a message: hundreds of thousands of refusals."""
LARGEST_COUNT = (1 << 63) - 1
"""Of bytes that a message can tell of."""
_MOST_TEXT = 4000
_PIECE_BYTES = 1 << 16
_KINDS: dict[str, type[DsmemError]] = {kind.__name__: kind for kind in (BadSource, ReadDifferently, SourceChanged)}
_NUMBERS = ("need_bytes", "free_bytes", "reclaimable_bytes")


class Nonsense(ValueError):
    """A message that the other side can't have meant."""


class Silence(Exception):
    """Nothing was said for too long."""


class Channel:
    """One end of the socket; `send` may be called from many threads."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._sending = threading.Lock()
        self._rest = b""
        self._fds: list[int] = []

    def send(self, kind: str, value: object, fd: int | None = None) -> None:
        """Send a message, a descriptor with it; raises OSError (BrokenPipeError) when the other side is gone."""
        line = json.dumps({kind: value}, separators=(",", ":")).encode() + b"\n"
        with self._sending:
            if fd is not None:
                done = socket.send_fds(self._socket, [line], [fd])
                line = line[done:]
            if line:
                self._socket.sendall(line)

    def receive(self, timeout_s: float | None = None) -> tuple[str, Any] | None:
        """The next message, None at the end; raises Silence, Nonsense."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        parts = [self._rest]
        size_bytes = len(self._rest)
        while b"\n" not in parts[-1]:
            if size_bytes > _MOST_BYTES:
                raise Nonsense("a message without an end")
            self._socket.settimeout(None if deadline is None else max(deadline - time.monotonic(), 0.001))
            try:
                part, fds, _, _ = socket.recv_fds(self._socket, _PIECE_BYTES, 1)
            except TimeoutError as exc:
                raise Silence(f"nothing for {timeout_s:.0f} s") from exc
            except ConnectionResetError:
                return None
            self._fds += fds
            if not part:
                return None
            parts.append(part)
            size_bytes += len(part)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        try:
            ((kind, value),) = json.loads(line).items()
        except (ValueError, AttributeError, RecursionError) as exc:
            raise Nonsense("not a message") from exc
        return kind, value

    def take_fd(self) -> int:
        """The descriptor that came with a message."""
        return self._fds.pop(0)


def error_to_json(error: BaseException) -> dict[str, object]:
    """Any error as JSON."""
    text = str(error)[:_MOST_TEXT]
    if not isinstance(error, DsmemError):
        is_said = isinstance(error, OSError) and text  # of others the kind says more than the text
        return {"kind": "", "message": text if is_said else ": ".join(filter(None, (type(error).__name__, text)))}
    facts = {name: getattr(error, name) for name in (*_NUMBERS, "limit")} if isinstance(error, NoSpace) else {}
    return {"kind": type(error).__name__, "message": text, **facts}


def error_from_json(value: Any, path: str) -> DsmemError:
    """The error that a reader of `path` told of; BadSource for those that it should not have met. Raises Nonsense."""
    try:
        kind, message = value["kind"], value["message"]
        if type(message) is not str or len(message) > 2 * _MOST_TEXT:
            raise TypeError("a text is not a text")
        if kind == NoSpace.__name__:
            need_bytes, free_bytes, reclaimable_bytes = (_count(value[name]) for name in _NUMBERS)
            return NoSpace(
                message,
                need_bytes=need_bytes,
                free_bytes=free_bytes,
                limit=_text(value["limit"]),
                reclaimable_bytes=reclaimable_bytes,
            )
    except (TypeError, KeyError) as exc:
        raise Nonsense("not an error") from exc
    if kind == SourceBusy.__name__:  # the lock is this process's to hold: what a reader finds is the mark
        return SourceBusy(message, path=path, is_marked=True)
    if kind in _KINDS:
        return _KINDS[kind](message)
    return BadSource(f"{path}: reading it failed: {message}")


def refusals_to_json(refusals: Any) -> list[dict[str, object]]:
    """What was refused, as JSON."""
    return [asdict(one) for one in refusals]


def refusals_from_json(value: Any) -> tuple[Refusal, ...]:
    """The inverse; raises Nonsense."""
    try:
        if not all(one["allow"] in (None, "external", "oversized") for one in value):
            raise TypeError("no such flag")
        return tuple(Refusal(_text(one["path"]), _text(one["reason"]), one["allow"]) for one in value)
    except (TypeError, KeyError) as exc:
        raise Nonsense("not a list of refusals") from exc


def explained_to_json(explained: Explanation) -> dict[str, object]:
    """What a file holds and what would be refused of it, as JSON."""
    return {"datasets": [asdict(one) for one in explained.datasets], "refusals": refusals_to_json(explained.refused)}


def explained_from_json(value: Any, path: str, size_bytes: int) -> Explanation:
    """The inverse, of a file of that size; raises Nonsense."""
    try:
        datasets = tuple(_dataset(one) for one in value["datasets"])
        return Explanation(path, size_bytes, datasets, refusals_from_json(value["refusals"]))
    except (TypeError, KeyError) as exc:
        raise Nonsense("not an explanation") from exc


def _dataset(record: Any) -> ExplainedDataset:
    ratio, tier = record["ratio"], record["tier"]
    if tier not in get_args(Tier) or type(ratio) not in (float, type(None)):
        raise TypeError("not a dataset")
    return ExplainedDataset(
        path=_text(record["path"]),
        shape=_extents(record["shape"]),
        dtype=_text(record["dtype"]),
        layout=_text(record["layout"]),
        chunks=_extents(record["chunks"]),
        filters=tuple(map(_text, record["filters"])),
        size_bytes=_count(record["size_bytes"]),
        stored_bytes=_count(record["stored_bytes"]),
        ratio=ratio,
        tier=tier,
        why=_text(record["why"]),
        is_outside=record["is_outside"] is True,
        note=None if record["note"] is None else _text(record["note"]),
        in_processes=record["in_processes"] is True,
    )


def _extents(value: Any) -> tuple[int, ...] | None:
    return None if value is None else tuple(map(_count, value))


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("a text is not a text")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= LARGEST_COUNT:
        raise TypeError("a number is not a number")
    return value


def checked_count(value: Any) -> int:
    """A size in bytes; raises Nonsense."""
    try:
        return _count(value)
    except TypeError as exc:
        raise Nonsense(str(exc)) from exc
