"""What is pinned where not all fits: planned by sizes alone."""

from __future__ import annotations

from dsmem.training.episodes import Episode, EpisodeFile, Stored
from dsmem.training.placing import _HEADER_BYTES, plan

MIB = 1 << 20


def file(name: str, *, image_mib: int = 8, varying: bool = False) -> EpisodeFile:
    """1 MiB of actions, 1 MiB of states, and images."""
    images = Stored("top", (image_mib, MIB), "object" if varying else "|u1", varying)
    stored = {"action": Stored("action", (1, MIB), "|u1", False), "qpos": Stored("qpos", (1, MIB), "|u1", False)}
    episode = Episode("", 1, 0, "action", ("qpos",), (("top", "top"),), "")
    return EpisodeFile(name, "aloha", 3 * MIB, (episode,), {**stored, "top": images})


WHOLE = 10 * MIB + _HEADER_BYTES


def test_all_that_fits() -> None:
    files = [file("a"), file("b")]
    placement = plan(files, 2 * WHOLE, critical=True)
    assert placement.whole == ("a", "b") and placement.parts == {}
    assert placement.need_bytes == 2 * WHOLE


def test_critical_first_then_whole_files() -> None:
    files = [file(name) for name in "abc"]
    room = WHOLE + 3 * (2 * MIB + _HEADER_BYTES)
    placement = plan(files, room, critical=True)
    assert placement.whole == ("a",)
    assert dict(placement.parts) == {"b": ("action", "qpos"), "c": ("action", "qpos")}
    assert placement.need_bytes <= room
    assert plan(files, room, critical=False).parts == {}
    assert plan(files, MIB, critical=True).whole == ()


def test_what_is_there_takes_no_room() -> None:
    files = [file(name) for name in "abc"]
    placement = plan(files, WHOLE, critical=True, there=frozenset({"b", "c"}))
    assert placement.whole == ("a", "b", "c") and placement.need_bytes == WHOLE


def test_encoded_frames_count_as_their_file() -> None:
    assert plan([file("a", varying=True)], 100 * MIB, critical=True).need_bytes == 5 * MIB + _HEADER_BYTES
