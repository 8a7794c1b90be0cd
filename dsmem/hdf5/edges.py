"""Chunks cut off at the edge of a dataset, which a writer may have left without the filters of the others.

H5Pset_chunk_opts(H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS) says so in the layout of the dataset, which h5py does not show,
and not in the filter masks of those chunks. They lie in the file in their whole size then.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from dsmem.hdf5.chunkindex import is_found, visit

_MOST_LOOKED_UP = 256


def may_be_unfiltered(dataset_id: Any, shape: tuple[int, ...], chunks: tuple[int, ...], item_bytes: int) -> bool:
    """Whether, of a dataset with filters, chunks at the edge may be unfiltered, though their masks do not say so.

    One that is stored in another size than its whole size rules that out; of filters that change no size none is.
    Raises DamagedIndex for more chunks than it can have.
    """
    whole_bytes = item_bytes * math.prod(chunks)
    corners = _corners(shape, chunks)
    found = next(
        (corner for corner in itertools.islice(corners, _MOST_LOOKED_UP) if is_found(dataset_id, corner)), None
    )
    if found is not None:
        info = dataset_id.get_chunk_info_by_coord(found)  # which walks over the index, up to where it is
        if info.byte_offset is None:  # without an index HDF5 2.0.0 finds any, of a size that was never set
            return next(itertools.islice(corners, _MOST_LOOKED_UP - 1, None), None) is not None
        if not info.filter_mask:
            return bool(info.size == whole_bytes)
    elif next(corners, None) is None:
        return False
    return _is_any_whole(dataset_id, shape, chunks, whole_bytes)


def _is_any_whole(dataset_id: Any, shape: tuple[int, ...], chunks: tuple[int, ...], whole_bytes: int) -> bool:
    """Whether the first chunk at the edge that is listed, and is filtered, has its whole size."""
    last = [(axis, n - n % step) for axis, (n, step) in enumerate(zip(shape, chunks, strict=True)) if n % step]

    def look(info: Any) -> bool | None:
        corner = info[0]
        for axis, start in last:
            if corner[axis] == start and not info.filter_mask:
                return bool(info.size == whole_bytes)
        return None

    return bool(visit(dataset_id, shape, chunks, look))


def _corners(shape: tuple[int, ...], chunks: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Where the chunks begin that are cut off, some more than once; only as they are asked for: there may be many."""
    grid = [-(-extent // chunk) for extent, chunk in zip(shape, chunks, strict=True)]
    for axis, (extent, chunk) in enumerate(zip(shape, chunks, strict=True)):
        if extent % chunk:
            others = [1 if other == axis else count for other, count in enumerate(grid)]
            for number in range(math.prod(others)):
                corner = []
                for count, step in zip(reversed(others), reversed(chunks), strict=True):
                    number, here = divmod(number, count)
                    corner.append(here * step)
                corner[len(shape) - 1 - axis] = extent - extent % chunk
                yield tuple(reversed(corner))
