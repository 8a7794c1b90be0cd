"""Progress that several threads report is told in order."""

from __future__ import annotations

import threading

from dsmem.progress import ByteCounter


def test_a_slow_listener_hears_of_bytes_in_order() -> None:
    told: list[tuple[int, int]] = []
    is_listening, was_overtaken = threading.Event(), threading.Event()

    def listen(done_bytes: int, total_bytes: int) -> None:
        is_listening.set()
        if done_bytes == 1:
            was_overtaken.wait(0.1)
        told.append((done_bytes, total_bytes))

    counter = ByteCounter(listen, 3)

    def add_later() -> None:
        is_listening.wait()
        counter.add(2)
        was_overtaken.set()

    other = threading.Thread(target=add_later)
    other.start()
    counter.add(1)
    other.join()
    assert told == [(1, 3), (3, 3)]


def test_never_more_than_all_are_told() -> None:
    told: list[tuple[int, int]] = []
    counter = ByteCounter(lambda *state: told.append(state), 4)
    for size_bytes in (3, 0, 3):
        counter.add(size_bytes)
    assert told == [(3, 4), (3, 4), (4, 4)]
