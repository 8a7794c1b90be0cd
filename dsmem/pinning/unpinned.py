"""A file that is not in the store: mapped when all of it is contiguous, else through h5py."""

from __future__ import annotations

import mmap
import os
from functools import partial

from dsmem import digest, proc
from dsmem.arrays import dtypes, tree
from dsmem.arrays.header import Header
from dsmem.arrays.views import TreeContents
from dsmem.files import FileIdentity
from dsmem.hdf5 import opening
from dsmem.hdf5.contents import H5Contents
from dsmem.hdf5.found import Scan
from dsmem.hdf5.scan import NotMappable, scan
from dsmem.pinning.arrayfile import ArrayFile, as_array

_MAP_NORESERVE = 0x4000


def open_unpinned(path: str, why: str) -> ArrayFile:
    """The file as it lies on its disk; `why` it is not read from shared memory goes into `.why`."""
    fd = digest.open_source(path)
    try:
        opening.check_signature(fd, path)
        mount = proc.mount_of(path)
        mappable = not proc.is_network_fs(mount.fstype)
        try:
            opening.lock_source(fd, path)
            if not mappable:
                raise NotMappable(f"on {mount.fstype}, not a local file system")
            return _open_mapped(fd, path, why)
        except NotMappable as exc:
            contents = H5Contents(path, f"{why}; not mapped: {exc}", mappable=mappable)
    finally:
        os.close(fd)
    return ArrayFile(contents, filename=path, object_name=None, digest=None, reopen=(open_unpinned, (path, why)))


def _open_mapped(fd: int, path: str, why: str) -> ArrayFile:
    """Raises NotMappable. The map holds the shared lock on the source: a writer that locks is kept out."""
    identity = FileIdentity.of(os.fstat(fd))
    with opening.opened(fd, path) as file:
        found = scan(file, path, mappable=True, file_bytes=identity.size_bytes)
    whole = mmap.mmap(fd, identity.size_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    contents = TreeContents(
        _header(found, identity.size_bytes),
        as_array(whole),
        "mapped",
        f"{why}; every dataset is contiguous",
        label=path,
        tree=found.tree,
        attributes=found.attributes,
    )
    return ArrayFile(
        contents,
        filename=path,
        object_name=None,
        digest=None,
        reopen=(open_unpinned, (path, why)),
        private=partial(_private, contents, path, identity),
    )


def _header(found: Scan, size_bytes: int) -> Header:
    """A header, as an object has one, for arrays that lie in an HDF5 file."""
    raw: dict[str, object] = {}
    for item in found.items:
        if item.info.shape is None or item.info.dtype.kind == "O":
            continue
        carrier = dtypes.carrier(item.info.dtype)
        begin = item.offset or 0
        raw[tree.tensor_name(item.path)] = {
            "dtype": carrier.code,
            "shape": [*item.info.shape, *carrier.item_shape],
            "data_offsets": [begin, begin + item.size_bytes],
        }
    return Header(raw, {}, 0, size_bytes)


def _private(contents: TreeContents, path: str, identity: FileIdentity) -> TreeContents | None:
    """The same contents over a copy-on-write map; None when the path leads to something else by now."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if FileIdentity.of(os.fstat(fd)) != identity:
            return None
        opening.lock_source(fd, path)
        flags, prot = mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        return contents.over(as_array(mmap.mmap(fd, identity.size_bytes, flags=flags, prot=prot)))
    finally:
        os.close(fd)
