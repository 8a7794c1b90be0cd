"""What a recommendation is made from: the machine, the files, what was measured of them, and what is to be done.

Plain data: whatever is planned can be planned for a machine that is not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["image", "state", "action"]


@dataclass(frozen=True, slots=True)
class System:
    """The machine as this process may use it."""

    cpus: int
    memory_bytes: int
    available_bytes: int
    """What can still be taken: available memory and the control groups' limits, whichever is least."""
    shared_free_bytes: int
    """Free in the file system of the store; also bounded by `available_bytes` where that is memory."""
    shared_point: str
    """Where the store lies."""
    gpus: int
    open_files: int
    """Descriptors that a process may have."""
    huge_pages: str
    """What the store's file system does: 'never', 'advise', 'within_size', 'always'."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Datasets that are stored alike, in all files and episodes."""

    name: str
    """Their path below the episode."""
    role: Role
    count: int
    """Datasets."""
    rows: int
    """Steps of all of them."""
    item_shape: tuple[int, ...]
    """Of a step as it is read; encoded frames decoded."""
    dtype: str
    layout: str
    """'contiguous', 'chunked', 'compact', 'virtual', 'external' or 'unknown'."""
    chunks: tuple[int, ...] | None
    """Of the datasets; where they differ, of the first."""
    filters: tuple[str, ...]
    is_encoded: bool
    """Frames are JPEG, PNG or WebP."""
    is_mapped: bool
    """Its bytes lie in a local file as they are in memory: all processes map the same pages of it."""
    size_bytes: int
    """Decoded."""
    stored_bytes: int
    """In the files."""
    step_s: float | None = None
    """Measured: seconds to read a step at random, decoding included; None = not measured."""
    decoded_bytes_per_step: int | None = None
    """What has to be decoded for a step: whole chunks."""

    @property
    def decode_bytes_per_s(self) -> float | None:
        """Decoded bytes a second, in one thread."""
        if not self.step_s or self.decoded_bytes_per_step is None:
            return None
        return self.decoded_bytes_per_step / self.step_s

    @property
    def ratio(self) -> float | None:
        """Size in memory by size in the file."""
        return self.size_bytes / self.stored_bytes if self.size_bytes and self.stored_bytes else None


@dataclass(frozen=True, slots=True)
class Data:
    """A set of episodes."""

    files: int
    episodes: int
    steps: int
    layouts: tuple[str, ...]
    """'aloha', 'robomimic' or 'mapping'."""
    cameras: tuple[str, ...]
    file_bytes: int
    data_bytes: int
    """What is trained on, decoded."""
    pinned_bytes: int
    """What pinning all files takes; encoded frames stay encoded."""
    mapped_bytes: int
    """Of the decoded data, what all processes map from the files: it takes no memory but the page cache."""
    critical_bytes: int
    """Actions and states."""
    step_bytes: int
    """Of a sample, decoded."""
    is_encoded: bool
    """Frames of any camera are encoded."""
    is_local: bool
    """On local file systems; others are not mapped."""
    changing: tuple[str, ...]
    """Files that have changed: since they were pinned, or while they were looked at."""
    storages: tuple[Storage, ...]


@dataclass(frozen=True, slots=True)
class Speeds:
    """Seconds for one sample, but for `exchange_s`, measured on a few of them, in one thread."""

    decode_s: float
    """To read it from the files, beyond what copying it from memory takes."""
    frames_s: float
    """Of that, what is left when the files are pinned: encoded frames are decoded all the same."""
    copy_s: float
    """From memory to the batch."""
    consume_s: float
    """Reading the batch once, as a copy to a GPU does."""
    unpacked_s: float
    """To decode every chunk once, for a sample's share of the data: what pinning does."""
    exchange_s: float
    """Of a batch: what a worker's takes in a real loader, beyond copying and reading it side by side."""
    samples: int
    """How many were measured."""
    untried: str | None = None
    """Why no loader with a worker could be tried, where none could: `exchange_s` is 0 then, and workers no choice."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is to be trained."""

    batch_size: int
    processes: int = 1
    """Training processes of this machine: one for each GPU."""
    step_s: float | None = None
    """How long a training step takes without loading; None = not known."""
