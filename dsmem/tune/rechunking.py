"""An HDF5 file written anew in chunk shapes that fit how it is read; all the rest of it is kept as it is.

Memory: 64 MiB, or one row of the source's chunks where that is more. The data is read back and compared before the file
gets its name; killed at any moment, nothing is left of it.
"""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import xxhash
from h5py import h5, h5a, h5d, h5f, h5fd, h5g, h5l, h5o, h5p, h5s

from dsmem import digest, stopping
from dsmem.arrays import tree
from dsmem.errors import BadSource, DsmemError, OutputExists, OutputFull, Refusal, SourceChanged, Unsupported
from dsmem.files import FileIdentity, NewFile
from dsmem.hdf5 import opening, places
from dsmem.hdf5.datasets import inspect
from dsmem.hdf5.places import Place
from dsmem.hdf5.scan import scan
from dsmem.progress import Progress, ignore
from dsmem.training import layouts
from dsmem.training.episodes import EpisodeFile, survey
from dsmem.tune import chunking, looking
from dsmem.tune.facts import Role
from dsmem.tune.looking import GivenLayout
from dsmem.tune.streams import Stream

Array = np.ndarray[Any, np.dtype[Any]]
_SLAB_BYTES = 64 << 20
_FILTERS = frozenset({"gzip", "shuffle", "fletcher32", "lzf", "lz4", "zstd", "blosc"})
"""Those that HDF5 sets up for another chunk shape by themselves."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """One dataset that gets another chunk shape."""

    path: str
    role: Role
    chunks: tuple[int, ...]
    better: tuple[int, ...]
    size_bytes: int
    """Decoded."""


@dataclass(frozen=True, slots=True)
class Rechunked:
    """What became of a file."""

    source: str
    destination: str | None
    """None = not written: there is nothing to change."""
    datasets: tuple[Dataset, ...]
    left: Mapping[str, str]
    """Path → why its chunks stay although others would fit better."""
    before_bytes: int
    after_bytes: int
    """Of the files."""
    elapsed_s: float


def rechunk(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    cameras: Sequence[str],
    *,
    chunk_size: int = 100,
    layout: GivenLayout = None,
    mask: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Rechunked:
    """Write an episode file anew, each dataset that is trained on in chunks that fit; equal in all else.

    Filters, fill values, attributes, groups, links and their order are kept. Where all fit already nothing is written.
    `force`: replace what is there, also the source itself.

    Raises BrokenEpisodes, Unsupported (by name: references, external data and named types can't be kept), OutputExists,
    OutputFull, SourceChanged, and what reading raises.
    """
    began = time.perf_counter()
    path, out = os.fspath(source), os.path.abspath(destination)
    if os.path.lexists(out) and not force:
        raise OutputExists(f"{out} is there already", path=out)
    (file,) = survey([path], cameras, layout=layouts.layout_of(layout), mask=mask)
    fd = digest.open_source(path)
    try:
        opening.lock_source(fd, path)
        before = FileIdentity.of(os.fstat(fd))
        with opening.opened(fd, path) as opened:
            datasets, left = plan(opened, file, before.size_bytes, chunk_size=chunk_size)
            if not datasets:
                taken_s = time.perf_counter() - began
                return Rechunked(path, None, (), left, before.size_bytes, before.size_bytes, taken_s)
            _check(opened, path, before.size_bytes)
            with _translated(out), NewFile(out) as new:
                stream = Stream(new.fd)
                _undisturbed(lambda: _write(opened, fd, stream, new, datasets, progress or ignore), stream)
                after_bytes = os.fstat(new.fd).st_size
                if FileIdentity.of(os.fstat(fd)) != before:
                    raise SourceChanged(f"{path} changed while it was read")
                new.publish(replace=force)
    finally:
        os.close(fd)
    return Rechunked(path, out, datasets, left, before.size_bytes, after_bytes, time.perf_counter() - began)


def plan(
    opened: Any, file: EpisodeFile, file_bytes: int, *, chunk_size: int
) -> tuple[tuple[Dataset, ...], Mapping[str, str]]:
    """What to change in an open file, and what would be worth it and can't be, with the reason."""
    chosen: list[Dataset] = []
    left: dict[str, str] = {}
    with opening.translated(file.path):
        for path, role in looking.datasets_of(file):
            stored = file.stored[path]
            if stored.is_encoded:
                continue
            item = inspect(opened[path].id, path, file_bytes)
            chunks = item.info.chunks
            if item.layout != "chunked" or chunks is None:
                continue
            rows = chunking.rows_read(role, chunk_size)
            other = chunking.better(stored.shape, chunks, item.info.dtype.itemsize, rows)
            if other is None:
                continue
            unfit = [one.name for one in item.filters if one.name not in _FILTERS]
            if item.tier != "chunked" or unfit:
                left[path] = f"its filters may not be set up for another shape: {', '.join(unfit) or item.why}"
                continue
            chosen.append(Dataset(path, role, chunks, other, item.size_bytes))
    return tuple(chosen), left


def _check(opened: Any, path: str, file_bytes: int) -> None:
    """Raise Unsupported for what could not be kept."""
    found = scan(opened, path, file_bytes=file_bytes)
    refusals = [*found.refusals, *(Refusal(f"/{one}", "a named type") for one in found.tree.types)]
    if refusals:
        what = "one thing" if len(refusals) == 1 else f"{len(refusals)} things"
        raise Unsupported(f"{path}: {what} in it can't be kept in another file", refusals=refusals)


def _undisturbed(work: Callable[[], None], stream: Stream) -> None:
    """Do it in a thread: a signal that raises inside of what HDF5 calls back would crash it, and none comes there."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as exc:  # noqa: BLE001 - raised below
            failed.append(exc)

    thread = threading.Thread(target=run, name="dsmem-rechunk")
    with stopping.held(stream.stop):
        thread.start()
        thread.join()
    if failed:
        raise failed[0]


def _write(opened: Any, fd: int, stream: Stream, new: NewFile, datasets: Sequence[Dataset], progress: Progress) -> None:
    copy = _Copy({places.place(opened[one.path].id): one for one in datasets}, stream, progress)
    fcpl = opened.id.get_create_plist()
    root = opened["/"].id
    fcpl.set_link_creation_order(root.get_create_plist().get_link_creation_order())
    fapl = h5p.create(h5p.FILE_ACCESS)
    fapl.set_fileobj_driver(h5fd.fileobj_driver, stream)  # by a path HDF5 opens no file without a name
    fapl.set_fclose_degree(h5f.CLOSE_STRONG)
    made = h5f.create(os.path.basename(new.path).encode(errors="surrogateescape"), h5f.ACC_TRUNC, fcpl, fapl)
    try:
        copy.group(root, h5g.open(made, b"/"))
        h5f.flush(made)
        for one in datasets:
            stream.check()
            _compare(made, one, copy.digests[one.path])
    finally:
        made.close()
    stream.check()
    userblock = fcpl.get_userblock()
    if userblock:
        os.pwrite(new.fd, os.pread(fd, userblock, 0), 0)


class _Copy:
    """A walk over the source that makes everything anew."""

    def __init__(self, datasets: Mapping[Place, Dataset], stream: Stream, progress: Progress) -> None:
        self.digests: dict[str, str] = {}
        self._datasets = datasets
        self._stream = stream
        self._progress = progress
        self._total_bytes = sum(one.size_bytes for one in datasets.values())
        self._done_bytes = 0
        self._made: dict[Place, tuple[Any, bytes]] = {}
        """Object of the source → (group in the new file, name in it) of what was made of it."""

    def group(self, source: Any, target: Any) -> None:
        _copy_attributes(source, target)
        _copy_comment(source, target)
        self._made.setdefault(places.place(source), (target, b"."))
        for name in _names(source):
            self._link(source, target, name)

    def _link(self, source: Any, target: Any, name: bytes) -> None:
        self._stream.check()
        info = source.links.get_info(name)
        lcpl = h5p.create(h5p.LINK_CREATE)
        lcpl.set_char_encoding(info.cset)
        if info.type == h5l.TYPE_SOFT:
            target.links.create_soft(name, source.links.get_val(name), lcpl)
            return
        opened = h5o.open(source, name)  # `_check` let no other kind through
        here = places.place(opened)
        known = self._made.get(here)
        if known is not None:
            target.links.create_hard(name, *known, lcpl)
            return
        if places.kind(opened) == "group":
            made = h5g.create(target, name, lcpl, opened.get_create_plist())
            self.group(opened, made)
        elif here in self._datasets:
            self._dataset(opened, target, name, lcpl, self._datasets[here])
        else:
            h5o.copy(source, name, target, name, None, lcpl)
        self._made[here] = (target, name)

    def _dataset(self, opened: Any, target: Any, name: bytes, lcpl: Any, about: Dataset) -> None:
        dcpl = opened.get_create_plist()
        dcpl.set_chunk(about.better)
        made = h5d.create(target, name, opened.get_type(), opened.get_space(), dcpl)
        _copy_attributes(opened, made)
        _copy_comment(opened, made)
        hashed = xxhash.xxh3_128()
        for start, rows in _slabs(h5py.Dataset(opened), about.chunks[0]):
            hashed.update(rows.data.cast("B"))
            h5py.Dataset(made)[start : start + len(rows)] = rows
            self._stream.check()
            self._done_bytes += rows.nbytes
            self._progress(self._done_bytes, self._total_bytes)
        self.digests[about.path] = hashed.hexdigest()


def _slabs(dataset: Any, together: int) -> Iterator[tuple[int, Array]]:
    """(first row, rows), whole rows of the source's chunks each time, so that none is decoded twice."""
    row_bytes = max(math.prod(dataset.shape[1:]) * dataset.dtype.itemsize, 1)
    rows = max(_SLAB_BYTES // (row_bytes * together), 1) * together
    for start in range(0, dataset.shape[0], rows):
        yield start, np.ascontiguousarray(dataset[start : start + rows])


def _compare(made: Any, about: Dataset, expected: str) -> None:
    """Read what was written, and raise where it is not what was read."""
    hashed = xxhash.xxh3_128()
    for _, rows in _slabs(h5py.Dataset(h5d.open(made, tree.raw(about.path))), about.better[0]):
        hashed.update(rows.data.cast("B"))
    if hashed.hexdigest() != expected:
        raise DsmemError(f"/{about.path} reads otherwise in the new file: nothing was written")


def _names(group: Any) -> list[bytes]:
    """Names of its links, in the order in which they were made where the group keeps it."""
    names: list[bytes] = []
    tracked = group.get_create_plist().get_link_creation_order() & h5p.CRT_ORDER_TRACKED
    group.links.iterate(names.append, idx_type=h5.INDEX_CRT_ORDER if tracked else h5.INDEX_NAME)
    return names


def _copy_attributes(source: Any, target: Any) -> None:
    tracked = source.get_create_plist().get_attr_creation_order() & h5p.CRT_ORDER_TRACKED
    order = h5.INDEX_CRT_ORDER if tracked else h5.INDEX_NAME
    for index in range(h5a.get_num_attrs(source)):
        one = h5a.open(source, index=index, index_type=order)
        made = h5a.create(target, one.name, one.get_type(), one.get_space())
        if one.get_space().get_simple_extent_type() == h5s.NULL:
            continue
        if one.dtype.hasobject:
            values = np.empty(one.shape, one.dtype)
            one.read(values)
            made.write(values)
            continue
        # Bare bytes of the file's own type: no conversion could change them.
        raw = np.empty(one.shape, f"V{one.get_type().get_size()}")
        one.read(raw, mtype=one.get_type())
        made.write(raw, mtype=one.get_type())


def _copy_comment(source: Any, target: Any) -> None:
    comment = h5o.get_comment(source, b".")
    if comment:
        h5o.set_comment(target, comment)


@contextmanager
def _translated(path: str) -> Iterator[None]:
    """OutputFull for the ways in which HDF5 and the kernel say that there is no room, OutputExists for a name taken."""
    try:
        yield
    except DsmemError:
        raise
    except FileExistsError as exc:
        raise OutputExists(f"{path} is there already", path=path) from exc
    except (OSError, RuntimeError, ValueError) as exc:
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputFull(f"no room for {path}") from exc
        if isinstance(exc, OSError) and exc.errno is not None:
            raise
        raise BadSource(f"{path} can't be written: {opening.reason(exc)}") from exc
