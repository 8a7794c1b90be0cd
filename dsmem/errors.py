"""All errors of dsmem: each is a DsmemError and the builtin that a caller would expect.

They carry facts as attributes (all picklable); exit codes and hints are the command line's (`cli/errors.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Allow = Literal["external", "oversized"]
"""What is refused unless it is allowed: data in other files; sizes that a file can hardly hold."""


class DsmemError(Exception):
    """Anything dsmem refuses or fails to do."""

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only facts would be lost by Exception's own pickling, which replays the positional arguments.
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(kind: type[DsmemError], args: tuple[object, ...], facts: dict[str, object]) -> DsmemError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


class UsageError(DsmemError, ValueError):
    """Arguments that cannot be meant; `option` with `value` in its place would do."""

    def __init__(self, message: str, *, option: str = "", value: str = "") -> None:
        super().__init__(message)
        self.option = option
        self.value = value


class NotPinned(DsmemError, LookupError):
    """Nothing of that path or name is in the store (`target`), or what is there is of an older file."""

    def __init__(self, message: str, *, target: str = "") -> None:
        super().__init__(message)
        self.target = target


class Ambiguous(DsmemError, LookupError):
    """Several things could be meant; `candidates` names them all."""

    def __init__(self, message: str, *, candidates: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.candidates = tuple(candidates)


class SourceMissing(DsmemError, FileNotFoundError):
    """The file to read is not there."""


class BadSource(DsmemError, ValueError):
    """The file to read is not what it should be: not HDF5, truncated, empty, a directory, unreadable."""


class SourceChanged(DsmemError, RuntimeError):
    """The file changed while it was read; nothing was published."""


class SourceBusy(DsmemError, BlockingIOError):
    """The file is open for writing in another process (`path`).

    `is_marked`: it says so of itself; also after its writer was killed, and nothing else tells one from the other.
    """

    def __init__(self, message: str, *, path: str = "", is_marked: bool = False) -> None:
        super().__init__(message)
        self.path = path
        self.is_marked = is_marked


@dataclass(frozen=True, slots=True)
class Refusal:
    """One thing in a file that dsmem does not pin, and why."""

    path: str
    reason: str
    allow: Allow | None = None
    """What would let it through, if anything does."""


class Unsupported(DsmemError, TypeError):
    """The file holds things that can't be pinned exactly; `refusals` names every one with its reason."""

    def __init__(self, message: str, *, refusals: Sequence[Refusal] = ()) -> None:
        super().__init__(message)
        self.refusals = tuple(refusals)


FILE_SIZE = "size of a file, ulimit -f"
"""What `NoSpace.limit` calls that limit of a process."""


class NoSpace(DsmemError, OSError):
    """Not enough room: `need_bytes`, `free_bytes`, what limits it (`limit`), what a clean would free.

    Under a budget (`budget_bytes`) also what others take of it that are being loaded (`loading_bytes`), and the objects
    that could not be evicted: `held` by processes, and `kept`.
    """

    def __init__(
        self,
        message: str,
        *,
        need_bytes: int = 0,
        free_bytes: int = 0,
        limit: str = "",
        reclaimable_bytes: int = 0,
        budget_bytes: int | None = None,
        loading_bytes: int = 0,
        held: Sequence[str] = (),
        kept: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.need_bytes = need_bytes
        self.free_bytes = free_bytes
        self.limit = limit
        self.reclaimable_bytes = reclaimable_bytes
        self.budget_bytes = budget_bytes
        self.loading_bytes = loading_bytes
        self.held = tuple(held)
        self.kept = tuple(kept)


class InUse(DsmemError, BlockingIOError):
    """Objects that other processes hold were left alone; `names` and `pids` say which and by whom."""

    def __init__(self, message: str, *, names: Sequence[str] = (), pids: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.names = tuple(names)
        self.pids = tuple(pids)


class DamagedObject(DsmemError, ValueError):
    """An object in the store (`name`) is not what it should be."""

    def __init__(self, message: str, *, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class UnsafeRoot(DsmemError, PermissionError):
    """The store's root (`root`) is a symlink, another user's, on a network file system, or not a directory."""

    def __init__(self, message: str, *, root: str = "") -> None:
        super().__init__(message)
        self.root = root


class NoProc(DsmemError, OSError):
    """There is no /proc to look at; what the system says of mounts, memory and holders is there only."""


class NoServer(DsmemError, ConnectionError):
    """No dataset server runs for this store, or it does not speak (`socket`)."""

    def __init__(self, message: str, *, socket: str = "") -> None:
        super().__init__(message)
        self.socket = socket


class ServerTimeout(DsmemError, TimeoutError):
    """The dataset server, or a dataset that it loads (`dataset`), was not ready within `timeout_s`."""

    def __init__(self, message: str, *, dataset: str = "", timeout_s: float = 0.0) -> None:
        super().__init__(message)
        self.dataset = dataset
        self.timeout_s = timeout_s


class LoadFailed(DsmemError, RuntimeError):
    """A dataset (`dataset`) that the server could not load; the message is the error of the process that tried."""

    def __init__(self, message: str, *, dataset: str = "") -> None:
        super().__init__(message)
        self.dataset = dataset


class UntrustedPickle(BadSource):
    """A pickle in a checkpoint wants more than data, so it was not loaded; `wants` names it."""

    def __init__(self, message: str, *, wants: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.wants = tuple(wants)


@dataclass(frozen=True, slots=True)
class ReadFailure:
    """One item of a checkpoint that could not be read, or several for one reason."""

    file: str
    tensors: tuple[str, ...]
    offset: int
    """Of the item in the file, in bytes."""
    kind: str
    """The type of the error."""
    message: str
    traceback: str = ""


class CheckpointReadError(DsmemError, RuntimeError):
    """Parts of a checkpoint could not be read: every one is in `failures`; `complete` names what was read whole.

    Tensors of the others may be partly overwritten.
    """

    def __init__(self, message: str, *, failures: Sequence[ReadFailure] = (), complete: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.failures = tuple(failures)
        self.complete = tuple(complete)


@dataclass(frozen=True, slots=True)
class EpisodeFailure:
    """One episode that can't be trained on, or a whole file."""

    path: str
    episode: str
    """The group in the file; '' = the file itself."""
    reason: str


class BrokenEpisodes(BadSource):
    """Episodes that can't be read, or are not what they should be: every one is in `failures`."""

    def __init__(self, message: str, *, failures: Sequence[EpisodeFailure] = ()) -> None:
        super().__init__(message)
        self.failures = tuple(failures)


class BadDocument(BadSource):
    """A document that can't be read: `path`, and its `place` in it (a line, a row), with the reason.

    `fields` are the first of those that it has, where it lacks the one that was to hold its text.
    """

    def __init__(self, message: str, *, path: str = "", place: str = "", fields: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.path = path
        self.place = place
        self.fields = tuple(fields)


class TableTooLarge(BadSource):
    """A table (`path`) that is read in parts too large for memory: pages of its column of text, or batches."""

    def __init__(self, message: str, *, path: str = "", text_field: str = "", is_parquet: bool = True) -> None:
        super().__init__(message)
        self.path = path
        self.text_field = text_field
        self.is_parquet = is_parquet


class NoDocuments(BadSource):
    """No input has a document; `skipped` of them were bad and left out, the first at `places`."""

    def __init__(self, message: str, *, skipped: int = 0, places: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.skipped = skipped
        self.places = tuple(places)


class EngineDiffers(DsmemError, ValueError):
    """An engine and the reference disagree about a document (`path`, `place`)."""

    def __init__(self, message: str, *, path: str = "", place: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.place = place


class OutputExists(DsmemError, FileExistsError):
    """The output is there already (`path`)."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class OutputFull(NoSpace):
    """The file system of the output is full; finished parts stay, and a later run goes on with them."""


class OutputGone(DsmemError, FileNotFoundError):
    """The directory of the output, or of its parts, was removed while it was made (`path`)."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class OutputBusy(InUse):
    """Another process makes the same output."""


class OtherPlan(DsmemError, RuntimeError):
    """An unfinished run for the same output was made another way; `differences` names how."""

    def __init__(self, message: str, *, differences: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.differences = tuple(differences)


class NoEndToken(DsmemError, ValueError):
    """A token that should begin or end documents is not known (`option` would name it)."""

    def __init__(self, message: str, *, option: str = "") -> None:
        super().__init__(message)
        self.option = option


class WorkerLost(DsmemError, RuntimeError):
    """A process that worked for this one ended before it was done: killed, or out of memory."""


class WrongIds(DsmemError, RuntimeError):
    """An engine gave ids that its tokenizer can't give."""
