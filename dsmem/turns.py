"""In which order several take turns, so that none always comes after the same other one."""

from __future__ import annotations


def balanced(count: int, turn: int) -> list[int]:
    """A balanced Latin square: E. J. Williams, Aust. J. Sci. Res. A 2 (1949) 149; of an odd number, every second row
    backwards.

    In an order that only rotates, the same predecessor would leave its pages and caches to the same successor.
    """
    row = [(turn + (place + 1) // 2 * (1 if place % 2 else -1)) % count for place in range(count)]
    return row[::-1] if turn % 2 and count % 2 else row
