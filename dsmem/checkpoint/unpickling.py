"""Pickles of checkpoints, read without running anything of theirs: a name that is not on a list ends the reading.

Three lists: what `.metadata` of torch.distributed.checkpoint consists of (real classes, plain records), what `data.pkl`
of torch.save says about tensors (stand-ins: no storage is made), and what a byte item may hold (inert stand-ins, it is
only looked at). Source: torch/distributed/checkpoint/metadata.py, torch/_utils.py, torch/serialization.py of 2.13.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from dsmem.errors import BadSource, UntrustedPickle

_PATHS = ("PosixPath", "PurePosixPath", "Path", "PurePath")
_METADATA = (
    "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
    "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
)  # fmt: skip
_OLDER_METADATA = ("TensorProperties", "MEM_FORMAT_ENCODING")
"""Those of sharded tensors, which older torch wrote there, and torch still reads."""
_BUILTINS = (
    "set", "frozenset", "complex", "bytearray", "slice", "list", "dict", "tuple", "int", "float", "str", "bool",
    "bytes",
)  # fmt: skip
_PLAIN = {
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,  # how protocol 2 calls them, which is torch's
    "collections": ("OrderedDict", "defaultdict", "Counter", "deque"),
    "_codecs": ("encode",),
    "datetime": ("datetime", "date", "time", "timedelta", "timezone"),
    "numpy": ("dtype", "ndarray"),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.numeric": ("_frombuffer",),
    "torch": ("Size", "device", "Tensor"),
    "torch.nn.parameter": ("Parameter",),
    "torch.serialization": ("_get_layout",),
    "torch._utils": ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter",
                     "_rebuild_parameter_with_state", "_rebuild_qtensor", "_rebuild_sparse_tensor"),
    "torch._tensor": ("_rebuild_from_type_v2",),
}  # fmt: skip
"""What byte items may name: data of Python, numpy and torch. Whatever it is called with, none of it runs other code."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as `data.pkl` describes it: where its elements lie in a storage."""

    storage: str
    """The key of the storage: the record `data/<key>`."""
    storage_bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    """Of the first element, in elements."""
    requires_grad: bool = False
    parameter: bool = False

    @property
    def reach_bytes(self) -> int:
        """How far into the storage its elements go."""
        if 0 in self.shape:
            return self.offset * self.dtype.itemsize
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        return (self.offset + last + 1) * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether its elements lie in C order without gaps."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size == 0:
                return True
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


class NotPlain(Exception):
    """`data.pkl` holds more than tensors of plain storages: that is torch's to load."""


class _Unpickler(pickle.Unpickler):
    """`find` stands for every import; `storage` for every persistent id."""

    def __init__(
        self, data: io.BytesIO, find: Callable[[str, str], object], storage: Callable[[Any], object] | None = None
    ) -> None:
        super().__init__(data)
        self._find = find
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        return self._find(module, name)

    def persistent_load(self, pid: Any) -> Any:
        if self._storage is None:
            raise pickle.UnpicklingError("a persistent id where none belongs")
        return self._storage(pid)


def metadata(data: bytes, *, where: str) -> Any:
    """The object in a `.metadata` file. Raises UntrustedPickle, or BadSource for what is no pickle of that kind."""
    before = {kind: dict(vars(kind)) for kind in _metadata_classes().values() if kind.__module__.startswith("torch.d")}
    try:
        found = _Unpickler(io.BytesIO(data), lambda module, name: _of_metadata(module, name, where)).load()
    except UntrustedPickle:
        raise
    except Exception as exc:
        raise BadSource(f"{where} is damaged: {type(exc).__name__}: {exc}") from exc
    finally:
        # BUILD can set attributes of a class as well as of its instances.
        changed = [kind for kind, own in before.items() if not _restored(kind, own)]
    if changed:
        raise UntrustedPickle(f"{where} tried to change {changed[0].__qualname__}", wants=(changed[0].__qualname__,))
    return found


def _restored(kind: type, own: Mapping[str, object]) -> bool:
    """Whether the class is as it was; whatever was set is taken away again."""
    now = dict(vars(kind))
    changed = [name for name, value in now.items() if name not in own or own[name] is not value]
    for name in changed:
        if name in own:
            setattr(kind, name, own[name])
        else:
            delattr(kind, name)
    return not changed


@cache
def _metadata_classes() -> dict[tuple[str, str], Any]:
    import pathlib

    from torch.distributed._shard.sharded_tensor import metadata as older
    from torch.distributed.checkpoint import filesystem
    from torch.distributed.checkpoint import metadata as records

    table: dict[tuple[str, str], Any] = {(records.__name__, name): getattr(records, name) for name in _METADATA}
    table |= {(older.__name__, name): getattr(older, name) for name in _OLDER_METADATA}
    table[filesystem.__name__, "_StorageInfo"] = filesystem._StorageInfo
    table[filesystem.__name__, "_StoragePrefix"] = filesystem._StoragePrefix
    for module in ("pathlib", "pathlib._local"):
        table |= {(module, name): getattr(pathlib, name) for name in _PATHS}
    table["collections", "OrderedDict"] = OrderedDict
    table["torch", "Size"] = torch.Size
    return table


def _of_metadata(module: str, name: str, where: str) -> object:
    found = _metadata_classes().get((module, name))
    if found is None and (module, name) == ("torch.serialization", "_get_layout"):
        return _layout
    if found is None:
        found = _dtype(module, name)
    if found is None:
        raise _refused(where, module, name)
    return found


def _layout(text: str) -> torch.layout:
    """What `torch.serialization._get_layout` gives, by name only."""
    found = getattr(torch, text.removeprefix("torch."), None)
    if not isinstance(found, torch.layout):
        raise pickle.UnpicklingError(f"{text!r} is no layout")
    return found


def _dtype(module: str, name: str) -> torch.dtype | None:
    found = getattr(torch, name, None) if module == "torch" and name.isidentifier() else None
    return found if isinstance(found, torch.dtype) else None


def _refused(where: str, *wanted: str) -> UntrustedPickle:
    name = ".".join(wanted)
    return UntrustedPickle(f"{where} is a pickle that wants {name}, which is no data", wants=(name,))


# data.pkl -----------------------------------------------------------------------------------------------------------


class _Call:
    """Stands for a function: slots keep BUILD from setting anything on it."""

    __slots__ = ("_run",)

    def __init__(self, run: Callable[..., object]) -> None:
        self._run = run

    def __call__(self, *arguments: object) -> object:
        return self._run(*arguments)


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: torch.dtype | None
    key: str
    elements: int


def _rebuild(dtype: torch.dtype | None, storage: Any, offset: Any, size: Any, stride: Any, grad: Any) -> Stored:
    kind = dtype if storage.dtype is None else storage.dtype
    if kind is None or not isinstance(storage, _Storage):
        raise NotPlain("a tensor without a storage")
    storage_bytes = storage.elements * (1 if storage.dtype is None else kind.itemsize)
    shape, strides = tuple(size), tuple(stride)
    if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in (*shape, *strides, offset)):
        raise NotPlain("a shape that is none")
    return Stored(storage.key, storage_bytes, kind, shape, strides, offset, requires_grad=bool(grad))


def _v2(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any = False, hooks: Any = None, extra: Any = None
) -> Stored:
    if extra or hooks:
        raise NotPlain("conjugate, negative or hooked tensors")
    return _rebuild(None, storage, offset, size, stride, grad)


def _v3(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, extra: Any = None) -> Any:
    if extra or hooks or not isinstance(dtype, torch.dtype):
        raise NotPlain("conjugate, negative or hooked tensors")
    return _rebuild(dtype, storage, offset, size, stride, grad)


def _parameter(data: Any, grad: Any, hooks: Any = None) -> Stored:
    if hooks or not isinstance(data, Stored):
        raise NotPlain("a parameter of something else")
    return Stored(
        data.storage, data.storage_bytes, data.dtype, data.shape, data.stride, data.offset, bool(grad), parameter=True
    )


_REBUILD = {
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_v2),
    ("torch._utils", "_rebuild_tensor_v3"): _Call(_v3),
    ("torch._utils", "_rebuild_parameter"): _Call(_parameter),
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
}


@cache
def _storage_dtypes() -> dict[tuple[str, str], torch.dtype | None]:
    names = torch.storage._storage_type_to_dtype_map()
    table: dict[tuple[str, str], torch.dtype | None] = {("torch", name): dtype for name, dtype in names.items()}
    table["torch.storage", "UntypedStorage"] = None
    return table


def tensors(data: bytes) -> Any:
    """The object in `data.pkl` with a Stored for each tensor. Raises NotPlain for whatever is not that simple."""

    def find(module: str, name: str) -> object:
        if (module, name) in _REBUILD:
            return _REBUILD[module, name]
        if (module, name) in _storage_dtypes():
            return _Storage(_storage_dtypes()[module, name], "", 0)
        dtype = _dtype(module, name)
        if dtype is None:
            raise NotPlain(f"{module}.{name}")
        return dtype

    def storage(pid: Any) -> object:
        kind, of, key, _location, elements = pid
        if kind != "storage" or not (type(key) is str and type(elements) is int and elements >= 0):
            raise NotPlain("a persistent id that is no storage")
        if not isinstance(of, _Storage):
            raise NotPlain("a storage of an unknown kind")
        return _Storage(of.dtype, key, elements)

    try:
        return _Unpickler(io.BytesIO(data), find, storage).load()
    except NotPlain:
        raise
    except Exception as exc:
        raise NotPlain(f"data.pkl is damaged: {type(exc).__name__}: {exc}") from exc


# byte items ---------------------------------------------------------------------------------------------------------


class _Inert:
    """Stands for whatever a pickle makes: takes every call and does nothing."""

    def __new__(cls, *arguments: object, **named: object) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *arguments: object, **named: object) -> None:
        return

    def __call__(self, *arguments: object) -> _Inert:
        return self

    def __setstate__(self, state: object) -> None:
        return

    def __setitem__(self, key: object, value: object) -> None:
        return

    def append(self, value: object) -> None:
        return

    def extend(self, values: object) -> None:
        return

    def add(self, value: object) -> None:
        return

    def __hash__(self) -> int:
        return id(self)


def check_byte_item(data: bytes, *, where: str) -> None:
    """Raises UntrustedPickle unless torch.load can read these bytes without running code of theirs.

    Bytes that no unpickler can even begin with are left to the planner.
    """
    if data[:4] == b"PK\x03\x04":
        _check_pickle(_pickle_of_zip(data, where), where)
        return
    stream = io.BytesIO(data)
    if _is_tar(stream):
        raise UntrustedPickle(f"{where} is a tar file of pickles", wants=("tar",))
    # torch's older format is several pickles in a row: each is looked at, until something is no pickle from the start.
    while stream.tell() < len(data) and _check_pickle(stream, where, first=True):
        continue


def _pickle_of_zip(data: bytes, where: str) -> io.BytesIO:
    try:
        archive = torch._C.PyTorchFileReader(io.BytesIO(data))
        if "constants.pkl" in archive.get_all_records():
            raise UntrustedPickle(f"{where} is a TorchScript program", wants=("TorchScript",))
        return io.BytesIO(archive.get_record("data.pkl"))
    except RuntimeError as exc:
        raise BadSource(f"{where} is damaged: {str(exc).splitlines()[0]}") from exc


def _check_pickle(stream: io.BytesIO, where: str, *, first: bool = False) -> bool:
    """With `first`, False for what fails before anything was made of it: every unpickler fails there."""
    made = False

    def find(module: str, name: str) -> object:
        nonlocal made
        made = True
        known = name in _PLAIN.get(module, ()) or _dtype(module, name) is not None
        path = module in ("pathlib", "pathlib._local") and name in _PATHS
        if not (known or path or (module, name) in _storage_dtypes()):
            raise _refused(where, module, name)
        return _Inert

    def storage(pid: object) -> object:
        nonlocal made
        made = True
        return _Inert()

    try:
        _Unpickler(stream, find, storage).load()
    except UntrustedPickle:
        raise
    except Exception as exc:
        if first and not made:
            return False
        raise BadSource(f"{where} is damaged: {type(exc).__name__}: {exc}") from exc
    return True


def _is_tar(stream: io.BytesIO) -> bool:
    try:
        with tarfile.open(fileobj=stream, mode="r:"):
            return True
    except tarfile.TarError:
        return False
    finally:
        stream.seek(0)
