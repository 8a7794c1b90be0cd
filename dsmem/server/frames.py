"""Frames of the control socket: four bytes of length (big-endian), then one JSON object; both ends bound them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

REQUEST_BYTES = 1 << 20
ANSWER_BYTES = 16 << 20
_HEAD_BYTES = 4


class BadFrame(ValueError):
    """Bytes that are no frame: too long, not JSON, or not an object."""


def encode(message: Mapping[str, object]) -> bytes:
    """A message as a frame."""
    body = json.dumps(message).encode()
    return len(body).to_bytes(_HEAD_BYTES, "big") + body


class Decoder:
    """Puts one frame together from whatever pieces arrive; never holds more than the limit."""

    __slots__ = ("_data", "_limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self._data = bytearray()
        self._limit_bytes = limit_bytes

    @property
    def empty(self) -> bool:
        """Whether nothing of a frame has come."""
        return not self._data

    def feed(self, part: bytes) -> dict[str, Any] | None:
        """The next message once it is whole; raises BadFrame as soon as it can't become one."""
        self._data += part
        if len(self._data) < _HEAD_BYTES:
            return None
        length = int.from_bytes(self._data[:_HEAD_BYTES], "big")
        if not 2 <= length <= self._limit_bytes:
            raise BadFrame(f"a frame of {length} bytes; at most {self._limit_bytes} are taken")
        if len(self._data) < _HEAD_BYTES + length:
            return None
        body = bytes(self._data[_HEAD_BYTES : _HEAD_BYTES + length])
        del self._data[: _HEAD_BYTES + length]
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as exc:
            raise BadFrame("not JSON") from exc
        if not isinstance(message, dict):
            raise BadFrame("not an object")
        return message
