"""Where episodes lie in a file: the layouts of ALOHA/ACT and robomimic, and any other by a mapping.

Sources: github.com/tonyzhaozh/act (record_sim_episodes.py), robomimic's "Dataset contents and structure". No I/O here:
a layout lists candidates, `episodes` looks which of them a file has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dsmem.errors import UsageError

Names = str | Sequence[str]


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of an episode's datasets below its group; of several candidates the first that is there counts."""

    name: str
    action: tuple[str, ...]
    """Candidates: [steps, actions]."""
    state: tuple[tuple[str, ...], ...]
    """Candidates, each of one dataset or several, [steps, …], which are laid side by side."""
    images: tuple[str, ...]
    """Candidates with {camera}: [steps, height, width, channels], or encoded frames."""
    episodes: str = ""
    """The group that holds a group for each episode; '' = the file is one episode."""
    language: tuple[str, ...] = ()
    """Candidates: a dataset that holds a text, or an attribute, of the episode or of the file."""


_LANGUAGE = ("language_raw", "language_instruction", "language", "task")
ALOHA = Layout(
    "aloha",
    action=("action",),
    state=(("observations/qpos",),),
    images=("observations/images/{camera}", "observations/{camera}"),
    language=_LANGUAGE,
)
ROBOMIMIC = Layout(
    "robomimic",
    action=("actions",),
    state=(
        ("obs/robot0_eef_pos", "obs/robot0_eef_quat", "obs/robot0_gripper_qpos"),
        ("obs/ee_states", "obs/gripper_states"),
        ("obs/joint_states", "obs/gripper_states"),
        ("obs/qpos",),
        ("obs/state",),
        ("states",),
    ),
    images=("obs/{camera}", "obs/{camera}_image", "obs/{camera}_rgb"),
    episodes="data",
    language=_LANGUAGE,
)
KNOWN = (ROBOMIMIC, ALOHA)


def layout_of(given: Layout | str | Mapping[str, Names] | None) -> Layout | None:
    """What a user gave as a layout: one, the name of one, or a mapping with its fields; None = look at each file.

    A mapping: {"images": "cams/{camera}", "state": "robot/q" or ["robot/q", "robot/dq"], "action": "robot/command",
    "episodes": "runs", "language": "task"}; the last two may be left out. Raises UsageError.
    """
    if given is None or isinstance(given, Layout):
        return given
    if isinstance(given, str):
        for one in KNOWN:
            if one.name == given:
                return one
        raise UsageError(f"layout={given!r} is not known; it is {', '.join(one.name for one in KNOWN)}, or a mapping")
    unknown = sorted(set(given) - {"images", "state", "action", "episodes", "language"})
    missing = sorted({"images", "state", "action"} - set(given))
    if unknown or missing:
        raise UsageError(f"a layout has images, state, action (and episodes, language); {unknown=}, {missing=}")
    images = _texts(given["images"])
    if not all("{camera}" in one for one in images):
        raise UsageError(f"a layout's images are a path with {{camera}} in it, not {given['images']!r}")
    episodes = given.get("episodes", "")
    if not isinstance(episodes, str):
        raise UsageError(f"a layout's episodes are one group, not {episodes!r}")
    return Layout(
        "mapping",
        action=_texts(given["action"]),
        state=(_texts(given["state"]),),
        images=images,
        episodes=episodes.strip("/"),
        language=_texts(given.get("language", ())),
    )


def _texts(given: Names) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
