"""madvise(2) by address, and when huge pages are given up."""

from __future__ import annotations

import errno
import logging
import mmap

import numpy as np
import pytest

from dsmem import madvise
from dsmem.madvise import Patience


def test_advice_is_followed_and_a_refusal_is_its_errno() -> None:
    with mmap.mmap(-1, 1 << 20) as memory:
        memory.write(b"x" * (1 << 20))
        array = np.frombuffer(memory, np.uint8)
        address = int(array.ctypes.data)
        assert madvise.advise(address + 4096, 4096, mmap.MADV_REMOVE) == 0
        assert not array[4096:8192].any() and array[:4096].all() and array[8192:].all()
        assert madvise.advise(address, 4096, 9999) == errno.EINVAL
        assert madvise.advise(address + 1, 4096, mmap.MADV_DONTNEED) == errno.EINVAL
        del array


def test_patience_ends_once_too_much_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    times = iter([0.0, 0.0, 0.0, 3.0, 3.0, 6.0])  # two that take 3 s each, after one that saves a second
    patience = Patience(worth_s=1.0, most_lost_s=3.5, clock=lambda: next(times))
    assert patience.ask(lambda: 0) == 0
    assert patience.ask(lambda: errno.EAGAIN) == errno.EAGAIN and not patience.is_over
    assert patience.ask(lambda: 0) == 0 and patience.is_over
    assert "4000 ms lost" in caplog.text
    patience.end("twice is once")
    assert "twice" not in caplog.text
