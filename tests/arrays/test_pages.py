"""Memory that begins at a page."""

from __future__ import annotations

import numpy as np
import pytest

from dsmem.arrays import pages


@pytest.mark.parametrize("size_bytes", [pages.LEAST_BYTES, 921_600, (5 << 20) + 1])
def test_it_begins_at_a_page(size_bytes: int) -> None:
    made = [pages.empty(size_bytes) for _ in range(4)]
    assert all(one.ctypes.data % pages.PAGE_BYTES == 0 and one.shape == (size_bytes,) for one in made)
    assert pages.empty(3, least_bytes=0).ctypes.data % pages.PAGE_BYTES == 0


def test_what_is_small_takes_no_page_more() -> None:
    small = pages.empty(100)
    assert small.nbytes == 100 and small.base is None


def test_a_copy_is_equal_and_apart() -> None:
    array = np.arange(60_000, dtype="<f4").reshape(2, 100, 300).transpose(1, 0, 2)
    copy = pages.copied(array)
    assert copy.dtype == array.dtype and copy.flags.c_contiguous and copy.ctypes.data % pages.PAGE_BYTES == 0
    np.testing.assert_array_equal(copy, array)
    copy[...] = 0
    assert array.any()
