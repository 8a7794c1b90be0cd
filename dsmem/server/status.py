"""What runs, and what it serves, as one record: also when nothing runs. Looking changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from dsmem import files, proc
from dsmem.errors import DamagedObject, NoServer, NotPinned, ServerTimeout, UnsafeRoot
from dsmem.proc import ProcessMemory
from dsmem.server import catalogue, control, places
from dsmem.server.places import Places
from dsmem.server.records import ServerState
from dsmem.store import refs
from dsmem.store.root import Store, open_store

if TYPE_CHECKING:
    from dsmem.server.generations import Facts

RUNNING, DEAD, STOPPED = 0, 1, 3
"""Exit codes of `status` by the Linux Standard Base (iniscrptact): running; dead, and a pid file is there; stopped."""
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Client:
    """A process that holds a dataset."""

    pid: int
    command: str
    datasets: tuple[str, ...]
    pss_bytes: int | None = None
    """Its proportional share: a page that n processes map counts as 1/n of one. None = not asked for, or not known."""
    anonymous_bytes: int | None = None
    """Memory that is its own and no file's."""


@dataclass(frozen=True, slots=True)
class DatasetStatus:
    """One dataset."""

    name: str
    source: str
    state: Literal["waiting", "loading", "ready", "failed", "evicted", "published", "absent"]
    """Of a server that does not run: 'published' = in the store all the same, else 'absent'."""
    rows: int
    size_bytes: int
    generation: int
    """How often its rows have changed, from 1 on; kept with the table. 0 = there is none."""
    object: str
    clients: tuple[int, ...]
    """Pids of the processes that hold it."""
    root: str = ""
    """Of the store that it is in; '' = it is in none."""
    error: str = ""
    refreshing: bool = False
    done_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """A server."""

    running: bool
    pid: int | None
    """Of a server that is dead: what its pid file says."""
    mmap_file: str
    """The store that holds the tables."""
    mmap_size_mb: float
    """MiB (2^20 bytes) of all datasets together."""
    status: ServerState
    datasets: tuple[DatasetStatus, ...]
    uptime_s: float | None
    socket: str
    pid_file: str
    log: str
    exit_code: int
    """By the LSB."""
    settings: tuple[tuple[str, Any, str], ...] = ()
    """(name, value, where from) as the running server has them, else as they would be."""
    clients: tuple[Client, ...] = ()
    requests: int = 0
    loads: Mapping[str, int] | None = None
    failures: Mapping[str, int] | None = None


def status(
    where: Places, *, settings: Sequence[tuple[str, Any, str]] = (), timeout_s: float = 2.0, memory: bool = False
) -> Status:
    """How the server of this store is. `settings` are shown where no server tells its own.

    `memory`: also what each client takes, by /proc. Raises UnsafeRoot.
    """
    facts: dict[str, Any] = {}
    holder = places.holder(where)
    if holder is not None:
        try:
            facts = control.ask({"op": "status"}, timeout_s, where=where)
        except (NoServer, ServerTimeout):
            facts = {}  # it has the lock, and does not answer yet
    if facts:
        return _running(facts, memory=memory)
    stores = [store for store in map(open_store, where.data_roots) if store is not None]
    datasets, held = _known(where, stores)
    pid, dead = (holder.pid, False) if holder is not None else _pid_of(where)
    return Status(
        running=holder is not None,
        pid=pid or None,
        mmap_file=where.data_root,
        mmap_size_mb=_mib(datasets),
        status="starting" if holder is not None else "stopped",
        datasets=datasets,
        uptime_s=None,
        socket=where.socket,
        pid_file=where.pid,
        log=where.log,
        exit_code=RUNNING if holder is not None else (DEAD if dead else STOPPED),
        settings=tuple(settings),
        clients=_clients(datasets, held) if memory else (),
    )


def of_facts(
    facts: Mapping[str, Any],
    *,
    held: Mapping[str, Mapping[int, str]] | None = None,
) -> Status:
    """A running server as it tells of itself; `held`: object → the processes that hold it."""
    told = facts["datasets"]
    datasets = tuple(
        DatasetStatus(
            **{name: one[name] for name in _TOLD},
            clients=tuple(sorted((held or {}).get(one["object"], {}))),
        )
        for one in told
    )
    return Status(
        running=True,
        pid=facts["pid"],
        mmap_file=facts["root"],
        mmap_size_mb=_mib(datasets),
        status=facts["status"],
        datasets=datasets,
        uptime_s=facts["uptime_s"],
        socket=facts["socket"],
        pid_file=facts["pid_file"],
        log=facts["log"],
        exit_code=RUNNING,
        settings=tuple((name, value, origin) for name, value, origin in facts["settings"]),
        requests=facts["requests"],
        loads={one["name"]: one["loads"] for one in told},
        failures={one["name"]: one["failures"] for one in told},
    )


def _running(facts: Mapping[str, Any], *, memory: bool) -> Status:
    told = facts["datasets"]
    held = _held([(one["root"] or facts["root"], one["object"]) for one in told])
    found = of_facts(facts, held=held)
    return replace(found, clients=_clients(found.datasets, held)) if memory else found


_TOLD = (
    "name", "source", "state", "rows", "size_bytes", "generation", "object", "root", "error", "refreshing",
    "done_bytes", "total_bytes",
)  # fmt: skip


_Held = Mapping[str, Mapping[int, str]]
"""Object → {pid: command} of the processes that hold it."""


def _known(where: Places, stores: Sequence[Store]) -> tuple[tuple[DatasetStatus, ...], _Held]:
    """What the catalogue names, without a server, and who holds it."""
    from dsmem.store import objects

    known = next((catalogue.read(store) for store in stores if store.root == where.data_root), {})
    sizes = {(store.root, one.name): one.size_bytes for store in stores for one in objects.scan(store)}
    led: dict[str, tuple[str, str]] = {}
    for name, spec in known.items():
        refs_to = [(store.root, refs.find_source(store, spec.source, spec.selection)) for store in stores]
        there = [(root, ref.object) for root, ref in refs_to if ref is not None and (root, ref.object) in sizes]
        led[name] = there[0] if there else ("", "")
    held = _held(list(led.values()))
    found = []
    for name, spec in known.items():
        root, object_name = led[name]
        facts = _facts(Store(root).object_path(object_name)) if object_name else None
        found.append(
            DatasetStatus(
                name=name,
                source=spec.label,
                state="published" if object_name else "absent",
                rows=facts.rows if facts is not None else 0,
                size_bytes=sizes.get((root, object_name), 0),
                generation=facts.generation if facts is not None else 0,
                object=object_name,
                root=root,
                clients=tuple(sorted(held.get(object_name, {}))),
            )
        )
    return tuple(found), held


def _facts(path: str) -> Facts | None:
    """What a table says of itself; None when it can't."""
    from dsmem.server.generations import Facts
    from dsmem.store import directories

    try:
        return Facts.from_dict(directories.read_anchor(path).facts)
    except (DamagedObject, NotPinned, ValueError):
        return None


def _pid_of(where: Places) -> tuple[int, bool]:
    """The pid that a dead server has left, and whether it left one."""
    try:
        text = files.read_own(where.pid, 32).strip()
    except (FileNotFoundError, NotADirectoryError):
        return 0, False
    except (UnsafeRoot, ValueError, OSError):  # something else's file
        return 0, False
    return (int(text), True) if text.isdigit() else (0, False)


def _mib(datasets: Sequence[DatasetStatus]) -> float:
    return round(sum(one.size_bytes for one in datasets) / _MIB, 3)


def _held(places: Collection[tuple[str, str]]) -> _Held:
    """Who holds these objects, each with the root of its store."""
    from dsmem.store import objects

    found: dict[str, Mapping[int, str]] = {}
    for root in {root for root, name in places if name}:
        names = {name for place, name in places if place == root}
        held = objects.holders([one for one in objects.scan(Store(root)) if one.name in names])
        found |= {name: {one.pid: one.command for one in some} for name, some in held.by_name.items()}
    return found


def _clients(datasets: Sequence[DatasetStatus], held: _Held) -> tuple[Client, ...]:
    by_pid: dict[int, tuple[str, list[str]]] = {}
    for one in datasets:
        for pid, command in held.get(one.object, {}).items():
            by_pid.setdefault(pid, (command, []))[1].append(one.name)
    found = []
    for pid, (command, names) in sorted(by_pid.items()):
        used = _memory_of(pid)
        found.append(
            Client(
                pid,
                command,
                tuple(names),
                pss_bytes=used.pss_bytes if used is not None else None,
                anonymous_bytes=used.anonymous_bytes if used is not None else None,
            )
        )
    return tuple(found)


def _memory_of(pid: int) -> ProcessMemory | None:
    try:
        return proc.memory_of(pid)
    except (ProcessLookupError, PermissionError):  # it has ended, or is another's
        return None
