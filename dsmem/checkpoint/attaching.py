"""`attach`: what was pinned of a checkpoint as tensors over shared memory, in a time that does not grow with its bytes.

Each tensor keeps the map, and the map the lease: the object can't be removed while one of them lives.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os

import numpy as np
import torch

from dsmem.arrays import header as headers
from dsmem.arrays.header import DATA_BYTES_KEY, Header
from dsmem.checkpoint import formats, safetensors_files
from dsmem.checkpoint.pinning import KIND, SAME_KEY, identity_of, source_of
from dsmem.errors import DamagedObject, NotPinned, UsageError
from dsmem.store import leases, objects, obtain, refs
from dsmem.store.objects import KIND_KEY
from dsmem.store.root import Store, open_store


def attach(target: str | os.PathLike[str], *, writable: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of a pinned checkpoint by name, without a copy: N processes hold one.

    writable: writes are safe, and seen by this process alone (copy-on-write, a page at a time). False: maps that nobody
    can write to; who tries is killed by SIGSEGV, as torch knows no read-only tensors.
    A target with a `/`, or that exists, is a path; anything else a name. Raises NotPinned (also when the files have
    changed since), Ambiguous, SourceMissing, BadSource, DamagedObject, UnsafeRoot, InUse, UsageError for another kind.
    """
    text = os.fspath(target)
    store = open_store()
    if refs.means_path(store, target):
        source = source_of(formats.detect(text))
        found = None if store is None else obtain.attach(store, source, "", identity_of(source))
        if store is None or found is None:
            raise _not_pinned(store, text, source)
        held = found[1]
    else:
        if store is None:
            raise NotPinned(f"nothing called {text!r} is in the store", target=text)
        name = objects.find(store, text)
        if os.path.isdir(store.object_path(name)):
            raise UsageError(f"{name} is a dataset, which dsmem.load_dataset opens")
        held = leases.lease(store, name)
    parsed = _checked(held)
    shared = held.map
    if writable:
        private = leases.private_map(store, held)
        if private is None:
            raise NotPinned(f"{held.name} was removed meanwhile", target=text)
        shared = private
    return _tensors(shared, parsed, held.name)


def _checked(held: leases.Lease) -> Header:
    try:
        with memoryview(held.map) as view:
            parsed = headers.parse(view, len(view))
        if parsed.metadata.get(DATA_BYTES_KEY) != str(parsed.data_bytes):
            raise DamagedObject("its size is not the one it was published with")
    except DamagedObject as exc:
        held.map.close()  # else the error's traceback would hold the lease, and nobody could remove the object
        raise DamagedObject(f"{held.name} in the store is damaged: {exc}", name=held.name) from exc
    if parsed.metadata.get(KIND_KEY) != KIND:
        held.map.close()
        raise UsageError(f"{held.name} holds arrays, which dsmem.attach opens")
    return parsed


def _tensors(shared: mmap.mmap, parsed: Header, name: str) -> dict[str, torch.Tensor]:
    # numpy tells the address of maps that are read-only too.
    address = np.frombuffer(shared, np.uint8).ctypes.data + parsed.data_start
    found: dict[str, torch.Tensor] = {}
    try:
        for one in parsed.names():
            tensor = parsed.tensor(one)
            dtype = safetensors_files.dtype_of(tensor.dtype)
            size_bytes = tensor.end - tensor.begin
            if size_bytes == 0:
                found[one] = torch.empty(tensor.shape, dtype=dtype)
                continue
            memory = (ctypes.c_char * size_bytes).from_address(address + tensor.begin)
            # A storage of its own for each: who saves one tensor saves no others. torch keeps this, and this the map.
            memory.map = shared  # type: ignore[attr-defined]
            found[one] = torch.frombuffer(memory, dtype=dtype).view(tensor.shape)
        for one, other in json.loads(parsed.metadata.get(SAME_KEY, "{}")).items():
            found[one] = found[other]
    except (DamagedObject, KeyError, ValueError, AttributeError) as exc:
        raise DamagedObject(f"{name} in the store is damaged: {exc}", name=name) from None
    return found


def _not_pinned(store: Store | None, text: str, source: str) -> NotPinned:
    parts = []
    for ref in refs.all_refs(store) if store is not None else ():
        if ref.provenance.source == source and not ref.name:
            if not ref.provenance.selection:
                return NotPinned(f"{text} has changed since it was pinned", target=text)
            parts.append(ref.object)
    if parts:
        listed = ", ".join(sorted(parts))
        return NotPinned(f"{text} is pinned only in part, as {listed}: attach that by its name", target=text)
    return NotPinned(f"{text} is not pinned", target=text)
