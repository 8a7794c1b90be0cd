"""Files from elsewhere, read in a child: HDF5 and the codecs crash there, or hang, and this process tells of it.

The child gets the source and the draft by descriptor and fills it, header included. Nothing of what it says or writes
is believed unchecked; the object is published when the child has ended, so that nobody can write to it any more.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from dsmem import helpers, proc, settings
from dsmem.arrays import views
from dsmem.arrays.summary import DatasetSummary
from dsmem.errors import BadSource, DamagedObject, DsmemError, Refusal, WorkerLost
from dsmem.pinning import messages
from dsmem.pinning.beside import Need
from dsmem.pinning.copying import Digests
from dsmem.pinning.explaining import Explanation
from dsmem.pinning.filling import Loaded
from dsmem.pinning.growing import Growth
from dsmem.pinning.loading import Reader
from dsmem.pinning.messages import Channel, Nonsense, Silence
from dsmem.pinning.source import Source
from dsmem.pinning.written import Written
from dsmem.progress import Progress, ignore
from dsmem.store.draft import Draft
from dsmem.store.objects import PROVENANCE_KEY
from dsmem.store.refs import Provenance
from dsmem.store.root import Store

PATIENCE_S = 60.0
"""How long nothing may come of a child."""
_ENDING_S = 5.0
_METADATA = {PROVENANCE_KEY, views.DATA_BYTES_KEY, views.TREE_KEY, views.ATTRIBUTES_KEY}


@contextmanager
def opened(source: Source, store: Store) -> Iterator[Reader]:
    """Read the file in a child, which ends with the block.

    Raises what reading it in this process raises, and BadSource when the child crashes, hangs or makes no sense.
    """
    with _started(source) as child:
        yield _Reader(child, source, store)


def explain(source: Source) -> Explanation:
    """What a child finds that `pin` would do with the file; raises as `opened` does."""
    with _started(source) as child:
        found = child.ask("explain", _described(source), "explained")
        with child.checked():
            return messages.explained_from_json(found, source.path, source.size_bytes)


@contextmanager
def _started(source: Source) -> Iterator[_Child]:
    proc.require_proc()
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = helpers.start(
                "dsmem.pinning.untrusted_reader",
                fds=(theirs.fileno(), source.fd),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None if settings.read().debug else subprocess.DEVNULL,
            )
        try:
            yield _Child(process, Channel(ours), source.path)
        finally:
            process.kill()
            process.wait()


def _described(source: Source) -> dict[str, object]:
    return {
        "path": source.path,
        "size_bytes": source.size_bytes,
        "only": source.only,
        "allow": sorted(source.allow),
    }


class _Reader:
    def __init__(self, child: _Child, source: Source, store: Store) -> None:
        self._child = child
        self._wide = ""
        self._object_bytes = 0
        found = child.ask("scan", {**_described(source), "store": store.root}, "scanned")
        with child.checked():
            self.refusals: Sequence[Refusal] = messages.refusals_from_json(found["refusals"])
            self.is_outside: bool = found["is_outside"] is True

    def plan(self, provenance: Provenance) -> Need:
        self._wide = provenance.dump()
        planned = self._child.ask("plan", self._wide, "planned")
        with self._child.checked():
            need = Need(*map(messages.checked_count, _pair(planned)))
        self._object_bytes = need.object_bytes
        return need

    def fill(self, draft: Draft, *, stream_algo: str | None, verify: bool, progress: Progress) -> Loaded:
        request = {"stream_algo": stream_algo, "verify": verify}
        growth = Growth(draft, self._object_bytes)  # the child knows of no budget

        def at_progress(done_bytes: int, total_bytes: int) -> None:
            growth.to(os.fstat(draft.fd).st_size)
            progress(done_bytes, total_bytes)

        digests = self._child.ask("fill", request, "filled", draft.fd, at_progress)
        self._child.end()
        with self._child.checked():
            place, datasets = _checked_object(draft.fd, self._wide)
            found = Digests(_hex(digests["tree"]), _hex(digests["stream"]) if stream_algo is not None else None)

        def seal(provenance: Provenance) -> None:
            draft.write(place[0], memoryview(_padded(provenance.dump(), place[1] - place[0])))

        return Loaded(found, seal, lambda: datasets)


class _Child:
    """The process that reads a file, and the socket to it."""

    def __init__(self, process: subprocess.Popen[bytes], channel: Channel, path: str) -> None:
        self._process = process
        self._channel = channel
        self._path = path

    def ask(self, kind: str, value: object, expected: str, fd: int | None = None, progress: Progress = ignore) -> Any:
        """Have the child do something; returns what it answers, raises what it raises."""
        with suppress(ConnectionError):  # it is dead: its last words, or the lack of them, come next
            self._channel.send(kind, value, fd)
        while True:
            with self.checked():
                message = self._channel.receive(PATIENCE_S)
            if message is None:
                raise self._death()
            said, value = message
            if said == expected:
                return value
            if said == "failed":
                with self.checked():
                    error = messages.error_from_json(value, self._path)
                raise error
            with self.checked():
                if said != "progress":
                    raise Nonsense(f"{said!r:.40} instead of {expected}")
                done_bytes, total_bytes = map(messages.checked_count, _pair(value))
            progress(done_bytes, total_bytes)

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Turn what a child must not do into BadSource."""
        try:
            yield
        except Silence as exc:
            raise BadSource(
                f"{self._path}: HDF5 made no progress for {PATIENCE_S:.0f} s: the file is damaged or hostile"
            ) from exc
        except (Nonsense, DamagedObject, KeyError, TypeError) as exc:
            raise BadSource(
                f"{self._path}: the process that read it made no sense ({exc}); it was not believed"
            ) from exc

    def _death(self) -> DsmemError:
        try:
            code = self._process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            return BadSource(f"{self._path}: the process that read it went silent")
        if code == -signal.SIGXCPU:
            return BadSource(f"{self._path}: reading it took more processor time than so large a file may take")
        if code == -signal.SIGKILL:
            return WorkerLost(
                f"{self._path}: the process that read it was killed (signal 9), as the kernel does where memory "
                "runs out; nothing was published"
            )
        if code < 0:
            return BadSource(
                f"{self._path}: HDF5 crashed ({helpers.ending(code)}) while reading it: the file is damaged or hostile"
            )
        return BadSource(f"{self._path}: the process that read it ended ({helpers.ending(code)})")

    def end(self) -> None:
        """See to it that the child is gone: it has the draft open for writing."""
        try:
            self._process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _checked_object(fd: int, provenance: str) -> tuple[tuple[int, int], Sequence[DatasetSummary]]:
    """Where a finished draft says what it was made from, and its datasets, all checked; raises DamagedObject."""
    written = Written(fd, exactly=True)
    if written.places.keys() != _METADATA or written.raw(PROVENANCE_KEY) != _escaped(provenance):
        raise DamagedObject("the header's __metadata__ is not as agreed")
    if written.raw(views.DATA_BYTES_KEY) != b"%d" % written.data_bytes:
        raise DamagedObject("the header says another size")
    written.check_attributes()
    begin, end = written.places[PROVENANCE_KEY]
    return (begin, end + 1), written.datasets()


def _escaped(text: str) -> bytes:
    """A text within JSON, without the quotes."""
    return json.dumps(text)[1:-1].encode("ascii")


def _padded(text: str, size_bytes: int) -> bytes:
    """It and the quote behind it, and spaces, which mean nothing there; raises ValueError when it does not fit."""
    escaped = _escaped(text) + b'"'
    if len(escaped) > size_bytes:
        raise ValueError(f"a text of {len(escaped)} bytes where {size_bytes} are kept for it")
    return escaped.ljust(size_bytes)


def _hex(value: Any) -> str:
    if type(value) is not str or not 0 < len(value) <= 128 or not set(value) <= set("0123456789abcdef"):
        raise Nonsense("not a digest")
    return value


def _pair(value: Any) -> tuple[Any, Any]:
    if type(value) is not list or len(value) != 2:
        raise Nonsense("not a pair")
    return value[0], value[1]
