"""Attributes of an HDF5 file as JSON, none of them read into more memory than there is for them.

HDF5 reads an attribute whole, and does not tell before how long its values are: many references to one long text take
16 bytes each in the file. What might come to much is read by a child whose memory is limited.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from h5py import h5a, h5i

from dsmem import helpers, units
from dsmem.arrays import attributes, dtypes, tree
from dsmem.arrays.dtypes import UnsupportedType
from dsmem.arrays.header import MAX_HEADER_BYTES
from dsmem.errors import Allow
from dsmem.hdf5.elsewhere import NotAllowed
from dsmem.hdf5.places import place

MOST_BYTES = 1 << 30
"""What an attribute may come to that is read in this process."""
_CHILD_BYTES = 1 << 30
"""What a child may take."""
_LONG = 64 << 10
"""Characters of JSON from which on a value lies apart."""
_SHORT = 128
"""Characters of JSON up to which a value never lies apart: to say where it does would take half as many."""
_MOST_TOGETHER = 2 << 20
"""Characters of longer JSON that lie together, in memory and in the header of an object; further ones lie apart."""
_MOST_HELD_BYTES = 16 << 20
"""What is held of values that lie apart; others are read twice, which costs time, not memory."""
_HOLDING_BYTES = 256
"""What each of them takes beside its bytes."""
_LEAST_POINTER_BYTES = 10
"""What a value of variable length takes in an attribute at least: length, address (2 bytes at least) and index."""


class AttributeReader:
    """Reads attributes; its children, one for each file that needs one, live until it is closed."""

    def __init__(self, allow: Collection[Allow], *, of_all: bool = True, apart: bool = False) -> None:
        """`of_all`: whether all that is read is kept, and has to fit together; `apart`: what is long is not kept."""
        self._is_allowed = "oversized" in allow
        self._children: dict[int, _Child] = {}
        self._of_all = of_all
        self._apart = apart
        self._read_bytes = 0
        self._together = 0
        self._held_bytes = 0

    def __enter__(self) -> AttributeReader:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            for child in self._children.values():
                stack.callback(child.close)

    def read(self, node: Any, name: str | bytes) -> object:
        """The JSON value of an attribute of an h5py object, or `attributes.Apart` where it lies apart.

        Raises UnsupportedType, NotAllowed for more memory than there is, and what h5py raises.
        """
        value = self._encoded(node, name)
        length = value.length
        if self._read_bytes + length > MAX_HEADER_BYTES:
            left = f"{MAX_HEADER_BYTES - self._read_bytes:,} are left of the {MAX_HEADER_BYTES:,} for all"
            raise UnsupportedType(f"values of {length:,} bytes as JSON, where {left}")
        self._read_bytes += length if self._of_all else 0
        if length > _SHORT and self._apart:
            if length > _LONG or self._together + length > _MOST_TOGETHER:
                return self._apart_of(value)
            self._together += length
        return value.json()

    def _apart_of(self, value: attributes.Encoded) -> attributes.Apart:
        raw = value.raw()
        held_bytes = self._held_bytes + len(raw) + _HOLDING_BYTES
        is_held = held_bytes <= _MOST_HELD_BYTES
        self._held_bytes = held_bytes if is_held else self._held_bytes
        return attributes.Apart(value.rest, value.key, len(raw), raw if is_held else None)

    def raw(self, node: Any, name: str | bytes) -> memoryview:
        """What is long of an attribute that lies apart, read again; raises as `read` does."""
        return self._encoded(node, _bytes(name)).raw()

    def _encoded(self, node: Any, name: str | bytes) -> attributes.Encoded:
        if not self.may_be_much(node, name):
            return attributes.encode(node.attrs[name])
        return attributes.encode(attributes.from_json(self._child_of(node).read(_path(node), _bytes(name))))

    def may_be_much(self, node: Any, name: str | bytes) -> bool:
        """Whether an attribute is to be read with care; raises UnsupportedType for a type that is not to be read."""
        size_bytes = h5a.get_info(node.id, _bytes(name)).data_size
        if size_bytes < _LEAST_POINTER_BYTES:
            return False
        dtype = node.attrs.get_id(name).dtype
        if not dtype.hasobject:
            return False
        attributes.check(dtype)
        base, _ = dtypes.elements(dtype)
        metadata: Mapping[str, Any] = base.metadata or {}
        inner = metadata.get("vlen")
        is_nested = inner not in (str, bytes) and getattr(inner, "hasobject", False)
        most_values = size_bytes // _LEAST_POINTER_BYTES
        if self._is_allowed or (most_values == 1 and not is_nested):
            return False
        return is_nested or most_values * int(h5i.get_file_id(node.id).get_filesize()) > MOST_BYTES

    def _child_of(self, node: Any) -> _Child:
        fileno = place(node.id).fileno
        child = self._children.get(fileno)
        if child is None or child.is_dead:
            if child is not None:
                child.close()
            child = self._children[fileno] = _Child(h5i.get_file_id(node.id).get_vfd_handle())
        return child


class _Child:
    def __init__(self, fd: int) -> None:
        self._process = helpers.start(
            "dsmem.hdf5.attrs_child",
            _CHILD_BYTES,
            fds=(fd,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.is_dead = False

    def read(self, path: bytes, name: bytes) -> object:
        assert self._process.stdin is not None and self._process.stdout is not None
        line = b""
        try:
            self._process.stdin.write(request(path, name))
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            pass  # it is dead, which the missing answer says
        if not line.endswith(b"\n"):
            self.is_dead = True
            raise _too_much()
        answer = json.loads(line)
        if "value" in answer:
            return answer["value"]
        if answer.get("too_much"):
            raise _too_much()
        raise ValueError(answer["error"])

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def _bytes(name: str | bytes) -> bytes:
    return tree.text(name).encode("utf-8", "surrogateescape")


def _path(node: Any) -> bytes:
    path = h5i.get_name(node.id)
    if not isinstance(path, bytes):
        raise ValueError("HDF5 does not tell the name of its object")
    return path


def _too_much() -> UnsupportedType:
    limit = units.format_bytes(_CHILD_BYTES)
    return NotAllowed(f"values that can't be read within {limit}: many may refer to one", allow="oversized")


def request(path: bytes, name: bytes) -> bytes:
    """What a child is asked for, as a line: the object by its path, the attribute by its name."""
    return json.dumps([path.decode("latin-1"), name.decode("latin-1")]).encode() + b"\n"


def requested(line: bytes) -> Sequence[bytes]:
    """The inverse."""
    return [text.encode("latin-1") for text in json.loads(line)]
