"""Chunks cut off at the edge of a dataset, which a writer may have left without the filters of the others.

H5Pset_chunk_opts(H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS) says so in the layout of the dataset, which h5py does not show,
and not in the filter masks of those chunks. They lie in the file in their whole size then.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

_MOST_LOOKED_AT = 256


def may_be_unfiltered(dataset_id: Any, shape: tuple[int, ...], chunks: tuple[int, ...], item_bytes: int) -> bool:
    """Whether, of a dataset with filters, chunks at the edge may be unfiltered, though their masks do not say so.

    One that is stored in another size than its whole size rules that out; of filters that change no size none is.
    """
    whole_bytes = item_bytes * math.prod(chunks)
    corners = _corners(shape, chunks)
    for corner in itertools.islice(corners, _MOST_LOOKED_AT):
        found = dataset_id.get_chunk_info_by_coord(corner)
        if found.byte_offset is not None and not found.filter_mask:
            return bool(found.size == whole_bytes)
    return next(corners, None) is not None  # none of those is there, or is filtered at all


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
