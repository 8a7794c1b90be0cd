"""Hash whole files: slices in threads for xxh3-tree, one stream for the others."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from dataclasses import dataclass
from functools import partial

from dsmem import files, parallel, proc
from dsmem.buffers import Buffer
from dsmem.digest import cache as digest_cache
from dsmem.digest.algorithms import (
    DEFAULT_ALGORITHM,
    SLICE_BYTES,
    check_algorithm,
    slice_digest,
    stream,
    tree_digest,
)
from dsmem.errors import BadSource, SourceChanged, SourceMissing
from dsmem.files import FileIdentity
from dsmem.progress import ByteCounter, Progress, ignore

_BLOCK_BYTES = 1 << 20
_STREAM_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class FileDigest:
    """The digest of one file, and whether it was remembered instead of computed."""

    path: str
    algo: str
    hex: str
    size_bytes: int
    cached: bool
    elapsed_s: float


def hash_file(
    path: str | os.PathLike[str],
    algo: str = DEFAULT_ALGORITHM,
    *,
    cache: bool = True,
    progress: Progress = ignore,
) -> FileDigest:
    """Digest of a regular file; with `cache` a remembered one is used while the file is unchanged.

    Raises SourceMissing, BadSource (not a regular file), SourceChanged (written to meanwhile), PermissionError.
    """
    check_algorithm(algo)
    began = time.perf_counter()
    name = os.fspath(path)
    fd = open_source(name)
    try:
        identity = FileIdentity.of(os.fstat(fd))
        known = digest_cache.look_up(identity).get(algo) if cache else None
        if known is None:
            identity = files.settled_identity(fd)
            digest = hash_descriptor(fd, identity.size_bytes, algo, progress=progress)
            if FileIdentity.of(os.fstat(fd)) != identity:
                raise SourceChanged(f"{name} changed while it was hashed")
            if cache:
                digest_cache.remember(identity, algo, digest)
    finally:
        os.close(fd)
    return FileDigest(
        path=name,
        algo=algo,
        hex=digest if known is None else known,
        size_bytes=identity.size_bytes,
        cached=known is not None,
        elapsed_s=time.perf_counter() - began,
    )


def open_source(path: str) -> int:
    """A read-only descriptor of a regular file; raises SourceMissing, BadSource or PermissionError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as exc:
        raise SourceMissing(f"{path}: no such file") from exc
    except NotADirectoryError as exc:
        raise SourceMissing(f"{path}: no such file") from exc
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            raise BadSource(f"{path} is not a regular file") from exc
        raise
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise BadSource(f"{path} is a directory" if stat.S_ISDIR(mode) else f"{path} is not a regular file")
    return fd


def hash_descriptor(fd: int, size_bytes: int, algo: str, *, progress: Progress = ignore) -> str:
    """Hex digest of the first `size_bytes` of an open file; raises SourceChanged when it is shorter."""
    if algo == "xxh3-tree":
        return _hash_tree(fd, size_bytes, progress)
    hasher = stream(algo)
    buffer = Buffer()
    for offset in range(0, size_bytes, _STREAM_BLOCK_BYTES):
        piece = buffer.at(offset, min(_STREAM_BLOCK_BYTES, size_bytes - offset))
        if files.pread_full(fd, piece, offset) != len(piece):
            raise SourceChanged("the file became shorter while it was hashed")
        hasher.update(piece)
        progress(offset + len(piece), size_bytes)
    return hasher.hexdigest()


def _hash_tree(fd: int, size_bytes: int, progress: Progress) -> str:
    starts = range(0, size_bytes, SLICE_BYTES)
    digests = [b""] * len(starts)
    local = threading.local()
    counter = ByteCounter(progress, size_bytes)

    def hash_slice(index: int, start: int) -> None:
        if not hasattr(local, "buffer"):
            local.buffer = Buffer()
        hasher = slice_digest()
        end = min(start + SLICE_BYTES, size_bytes)
        for offset in range(start, end, _BLOCK_BYTES):
            piece = local.buffer.at(offset, min(_BLOCK_BYTES, end - offset))
            if files.pread_full(fd, piece, offset) != len(piece):
                raise SourceChanged("the file became shorter while it was hashed")
            hasher.update(piece)
        digests[index] = hasher.digest()
        counter.add(end - start)

    tasks = (partial(hash_slice, index, start) for index, start in enumerate(starts))
    parallel.run(tasks, min(proc.usable_cpus(), len(starts)))
    return tree_digest(digests)
