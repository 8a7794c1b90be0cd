"""`pin`: a checkpoint into the store, once, as one safetensors file that every process maps.

Tensors are read straight to where they lie in the object. Tied weights of a torch file stay one tensor.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from dsmem import digest, settings
from dsmem.arrays import header, layout
from dsmem.arrays.header import DATA_BYTES_KEY, Tensor
from dsmem.arrays.layout import Planned
from dsmem.checkpoint import formats, into
from dsmem.checkpoint import workers as choosing
from dsmem.checkpoint.formats import Found
from dsmem.checkpoint.into import Source
from dsmem.checkpoint.opened import Io, memory_at
from dsmem.checkpoint.workers import Workers
from dsmem.errors import SourceChanged, SourceMissing, UsageError
from dsmem.files import FileIdentity
from dsmem.progress import Progress, ignore
from dsmem.store import names, objects, refs, sources
from dsmem.store.draft import Draft
from dsmem.store.objects import KIND_KEY, PROVENANCE_KEY
from dsmem.store.obtain import Filled, Obtained, Request, attach, obtain
from dsmem.store.refs import Provenance
from dsmem.store.root import Store, make_store
from dsmem.store.sweep import sweep

KIND = "checkpoint"
SAME_KEY = "dsmem.same"
"""JSON {name: the tensor that is the very same}."""
LEFT_OUT_KEY = "dsmem.left_out"
"""JSON [name]: what the checkpoint holds that is no tensor."""
_WIDEST = "9" * 19
_SETTLED_S = 0.05
"""Kernels stamp files with a clock that ticks every 1–10 ms: a younger file may change and keep its stamp."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """A checkpoint in the store."""

    name: str
    """The object's name: what `attach` and `dsmem shm clean` take."""
    source: str
    """Its real path: a directory, an index, or a file."""
    tensors: int
    left_out: tuple[str, ...]
    """What is no tensor, and what `skip_unsupported` left out."""
    size_bytes: int
    elapsed_s: float
    already: bool
    """It was there before this call."""
    waited: bool
    """Another process was loading it, and this call waited."""
    evicted: tuple[str, ...] = ()
    evicted_bytes: int = 0
    kept: bool = False
    """It is never evicted, and cleaned only when it is named."""


def pin(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    only: str | Iterable[str] | None = None,
    workers: Workers = "auto",
    io: Io = "auto",
    budget: int | None = None,
    keep: bool | None = None,
    skip_unsupported: bool = False,
    trusted: bool = False,
    progress: Progress | None = None,
) -> Pinned:
    """Put the tensors of a checkpoint into shared memory, unless they are there already.

    path: a DCP directory, sharded or single safetensors, torch files. name: a name to attach by. only: globs of tensor
    names. workers, io: those of `load`. budget: bytes that all objects may hold together, the longest unused are
    evicted for it; None = DSMEM_BUDGET. keep: mark the object to be kept (False: no longer). skip_unsupported: leave
    out tensors that safetensors has no place for. trusted: that of `load`. progress: gets bytes.

    What is no tensor is left out; parameters become plain tensors. Raises SourceMissing, BadSource, Ambiguous,
    UntrustedPickle, Unsupported (tensors of a dtype or a layout that safetensors lacks, by name), CheckpointReadError,
    SourceChanged, NoSpace, UnsafeRoot, UsageError.
    """
    began = time.perf_counter()
    choosing.check(workers)
    if name is not None:
        names.check_name(name)
    if budget is not None and budget < 0:
        raise UsageError(f"a budget of {budget} bytes can't be meant")
    globs = None if only is None else sorted({only} if isinstance(only, str) else set(only))
    found = formats.detect(path)
    source = source_of(found)
    store = make_store()
    if name is not None:
        refs.check_free(store, name, source)
    identity = settled_identity(source)
    obtained = None
    for skipped in (False, True) if skip_unsupported else (False,):
        there = attach(store, source, _selection(globs, skipped), identity)
        if there is not None:
            obtained = Obtained(*there, loaded=False, waited=False)
            break
    if obtained is None:
        room = budget if budget is not None else settings.read().budget_bytes
        looked = into.look(path, only=globs, workers=workers, io=io, trusted=trusted)
        codes, refused = into.fitting(looked)
        if refused and not skip_unsupported:
            raise into.unsupported(looked, refused)
        looked.others += tuple(one.path for one in refused)
        request = Request(source, identity, _selection(globs, bool(refused)), name or _stem(found))

        def build(draft: Draft, report: Progress) -> Filled:
            return _fill(draft, request, looked, codes, room, workers, io, report)

        obtained = obtain(store, request, build, progress or ignore)
    if not obtained.loaded:
        sweep(store)
    if name is not None:
        refs.write(store, replace(obtained.ref, name=name))
    if keep is not None:
        objects.keep(store, obtained.ref.object, kept=keep)
    return _pinned(store, obtained, began)


def source_of(found: Found) -> str:
    """How the store knows a checkpoint: by the real path of its one file, or by all of its files."""
    directory = os.path.realpath(found.directory)
    if found.format == "dcp":
        return sources.checkpoint(directory, [os.path.join(directory, formats.METADATA)])
    if found.index is None:
        return os.path.realpath(os.path.join(directory, found.files[0]))
    index = os.path.realpath(os.path.join(directory, found.index))
    return sources.checkpoint(index, [os.path.realpath(os.path.join(directory, file)) for file in found.files])


def identity_of(source: str) -> FileIdentity:
    """Of the files as they are now. Raises SourceMissing."""
    if sources.is_request(source):
        return sources.identity(source)
    try:
        return FileIdentity.of(os.stat(source))
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise SourceMissing(f"{source}: no such file") from exc


def settled_identity(source: str) -> FileIdentity:
    """The same once the stamps are old enough to betray every later change (≤ 50 ms)."""
    while True:
        identity = identity_of(source)
        age_s = time.time() - max(identity.mtime_ns, identity.ctime_ns) / 1e9
        if not 0 <= age_s < _SETTLED_S:
            return identity
        time.sleep(_SETTLED_S - age_s)


def _selection(globs: Sequence[str] | None, skipped: bool) -> str:
    """Canonical JSON of what is taken; '' = every tensor."""
    if globs is None and not skipped:
        return ""
    return json.dumps({"only": list(globs or ()), "skipped": skipped}, separators=(",", ":"))


def _stem(found: Found) -> str:
    if found.format == "dcp":
        return names.stem_of(os.path.realpath(found.directory) + ".x")
    if found.index is not None:
        return names.stem_of(os.path.realpath(found.directory) + ".x")
    return names.stem_of(found.files[0])


def _fill(
    draft: Draft,
    request: Request,
    source: Source,
    codes: Mapping[str, str],
    budget_bytes: int | None,
    workers: Workers,
    io: Io,
    progress: Progress,
) -> Filled:
    planned = [Planned(name, codes[name], entry.shape, entry.dtype.itemsize) for name, entry in source.entries.items()]
    placed = layout.placed(planned)
    tensors = {name: placed[name] for name in source.entries}
    widest = Provenance(request.source, request.identity, request.selection, "f" * 64, "", 10**19)
    metadata = {
        PROVENANCE_KEY: widest.dump(),
        DATA_BYTES_KEY: _WIDEST,
        KIND_KEY: KIND,
        SAME_KEY: json.dumps(source.same),
        LEFT_OUT_KEY: json.dumps(source.others),
    }
    data_start = header.reserve(tensors, metadata, spare_bytes=64)
    data_bytes = max((tensor.end for tensor in tensors.values()), default=0)
    draft.make_room(data_start + data_bytes, budget_bytes)
    draft.allocate(data_start + data_bytes)
    view = draft.reserved(0, data_start + data_bytes)
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    # By address: tensors over the map itself would keep it open, and it is closed before the object gets its name.
    into.read(
        source,
        {name: _over(address + data_start, tensors[name], entry.dtype) for name, entry in source.entries.items()},
        workers=workers,
        io=io,
        progress=progress,
    )
    view.release()
    if identity_of(request.source) != request.identity:
        raise SourceChanged(f"{sources.label(request.source)} changed while it was read; nothing was published")
    hexdigest = digest.hash_descriptor(draft.fd, data_start + data_bytes, digest.DEFAULT_ALGORITHM)

    def seal(provenance: Provenance) -> None:
        sealed = {**metadata, PROVENANCE_KEY: provenance.dump(), DATA_BYTES_KEY: str(data_bytes)}
        header.write(draft.write, tensors, sealed, size_bytes=data_start)

    return Filled(f"tensors:{hexdigest}", "", seal)


def _over(address: int, tensor: Tensor, dtype: torch.dtype) -> torch.Tensor:
    size_bytes = tensor.end - tensor.begin
    if size_bytes == 0:
        return torch.empty(tensor.shape, dtype=dtype)
    return torch.frombuffer(memory_at(address + tensor.begin, size_bytes), dtype=dtype).view(tensor.shape)


def _pinned(store: Store, obtained: Obtained, began: float) -> Pinned:
    ref = obtained.ref
    parsed = objects.read_header(store, ref.object)
    return Pinned(
        name=ref.object,
        source=sources.label(ref.provenance.source),
        tensors=len(parsed.names()) + len(json.loads(parsed.metadata.get(SAME_KEY, "{}"))),
        left_out=tuple(json.loads(parsed.metadata.get(LEFT_OUT_KEY, "[]"))),
        size_bytes=len(obtained.lease.map),
        elapsed_s=time.perf_counter() - began,
        already=not obtained.loaded and not obtained.waited,
        waited=obtained.waited,
        evicted=obtained.evicted.names,
        evicted_bytes=obtained.evicted.freed_bytes,
        kept=objects.is_kept(os.stat(store.object_path(ref.object))),
    )
