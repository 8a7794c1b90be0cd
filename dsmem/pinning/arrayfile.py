"""`ArrayFile`: an open file that reads like h5py.File, whether its arrays are shared memory, a file map, or h5py's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dsmem.arrays.nodes import Contents, Dataset, Group, Source
from dsmem.arrays.views import Array, TreeContents

if TYPE_CHECKING:
    import torch


class Closable(Contents, Protocol):
    """Contents that an open file owns."""

    source: Source
    why: str

    def close(self) -> None:
        """Let go of what is held."""


class ArrayFile(Group):
    """An open file: its root group, where its arrays come from, and a close that no array minds.

    `source` is "pinned" (shared memory), "mapped" (the pages of the HDF5 file itself), "h5py" or "preloaded" (a private
    copy), `why` says why. Pickles as a way to open the same again.
    """

    mode = "r"

    def __init__(
        self,
        contents: Closable,
        *,
        filename: str,
        object_name: str | None,
        digest: str | None,
        reopen: tuple[Callable[..., ArrayFile], tuple[object, ...]],
        private: Callable[[], TreeContents | None] | None = None,
        populating: threading.Thread | None = None,
    ) -> None:
        super().__init__(contents, None, "", "")
        self._owned = contents
        self._reopen = reopen
        self._make_private = private
        self._private: TreeContents | None = None
        self._closed = False
        self._populating = populating
        self.filename = filename
        """Path of the source file; the object's name for one that was attached by name."""
        self.object_name = object_name
        """Name of the object in the store; None unless pinned."""
        self.digest = digest
        """'<algo>:<hex>' of the source file; None unless pinned."""

    @property
    def source(self) -> Source:
        """Where the arrays come from."""
        return self._owned.source

    @property
    def why(self) -> str:
        """Why from there, in a few words."""
        return self._owned.why

    def populated(self, timeout_s: float | None = None) -> bool:
        """Wait until all pages are mapped (`populate=True`); False if that takes longer, or was not asked for."""
        if self._populating is None:
            return False
        self._populating.join(timeout_s)
        return not self._populating.is_alive()

    def torch(self, name: str) -> torch.Tensor:
        """A dataset as a tensor, without a copy for pinned and mapped files: private and copy-on-write.

        A copy is made where the source file packs numbers off their alignment (mapped files only).
        Writing to it is safe and changes only what this process's tensors see. Raises TypeError for types torch lacks.
        """
        import torch

        dataset = self[name]
        if not isinstance(dataset, Dataset):
            raise TypeError(f"{dataset.name} is not a dataset")
        if dataset.shape is None or dataset.dtype.kind not in "biufc" or not dataset.dtype.isnative:
            raise TypeError(f"{dataset.name}: torch has no {dataset.dtype}; convert it with astype() first")
        if self._private is None and self._make_private is not None:
            self._private = self._make_private()
        found = self._contents.resolve(name, "")
        if self._private is not None and dataset.source in ("pinned", "mapped") and found is not None:
            array = self._private.array(found[0])
            if array.flags.aligned:
                return torch.from_numpy(array)
        return torch.from_numpy(np.array(dataset[()]))

    def close(self) -> None:
        """Close the file; arrays and tensors that it gave stay valid, and hold the memory until they are gone."""
        self._closed = True
        self._owned.close()
        if self._private is not None:
            self._private.close()
            self._private = None
        self._make_private = None

    def __bool__(self) -> bool:
        return not self._closed

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Group) and other._path == "" and other.file is self)

    def __hash__(self) -> int:
        return hash((id(self), ""))

    def __reduce__(self) -> tuple[object, ...]:
        return self._reopen

    def __repr__(self) -> str:
        state = "closed" if self._closed else self.source
        return f"<dsmem file {self.filename!r} ({state})>"


def as_array(buffer: Any) -> Array:
    """The bytes of a map as an array that owns it."""
    return np.frombuffer(buffer, np.uint8)
