"""A budget for the store: what was not used for longest goes when a new object needs the room, and only then.

What somebody has leased, or is kept, never goes; nothing goes unless what is needed fits afterwards.
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass

from dsmem import files, proc, units
from dsmem.errors import DamagedObject, InUse, NoSpace, NotPinned
from dsmem.store import directories, leases, locks, names, objects, space
from dsmem.store.root import Store

_TURN = "room"
_CLAIM_PREFIX = "claim-"
_BLOCK_BYTES = 512
"""The unit of st_blocks, stat(2)."""
_LISTED = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Evicted:
    """What was removed to make room, the longest unused first."""

    names: tuple[str, ...] = ()
    freed_bytes: int = 0

    def and_then(self, later: Evicted) -> Evicted:
        """Both together."""
        return Evicted(self.names + later.names, self.freed_bytes + later.freed_bytes)


NOTHING = Evicted()


def make_room(store: Store, need_bytes: int, budget_bytes: int | None) -> Evicted:
    """Evict until `need_bytes` more are within the budget and fit the file system, the cgroups and the machine.

    Without a budget nothing is evicted. Raises NoSpace when they can't fit, before anything is removed.
    """
    if budget_bytes is None:
        space.require(store, need_bytes)
        return NOTHING
    with locks.exclusive(store, _TURN):
        return _make_room(_Wish(need_bytes, need_bytes + space.BOOKKEEPING_BYTES, budget_bytes), store)


class Claim:
    """Room under a budget for an object that is not published yet; others who make room count it.

    It is a locked file of that length without content, named by the inode of the draft, so that what is published and
    still claimed counts once. Its lock ends with the process, and a claim without a lock is none.
    """

    def __init__(self, store: Store, draft_fd: int, budget_bytes: int) -> None:
        self._store = store
        self._budget_bytes = budget_bytes
        self._ino = os.fstat(draft_fd).st_ino
        self._path = f"{store.locks}/{_CLAIM_PREFIX}{self._ino}"
        self._fd = -1
        self._taken_bytes = -1
        self.evicted = NOTHING

    def take(self, need_bytes: int, unwritten_bytes: int, beside_bytes: int = 0) -> None:
        """Make room for an object of that size, of which so much is still to be written; again when it has grown.

        `beside_bytes`: as for `space.require`.
        """
        if need_bytes <= self._taken_bytes:
            return
        wish = _Wish(need_bytes, unwritten_bytes, self._budget_bytes, beside_bytes, self._ino)
        with locks.exclusive(self._store, _TURN):
            self.evicted = self.evicted.and_then(_make_room(wish, self._store))
            with space.translated(self._store):
                if self._fd < 0:
                    self._fd = self._opened()
                os.ftruncate(self._fd, need_bytes)
        self._taken_bytes = need_bytes

    def _opened(self) -> int:
        while True:
            fd = files.open_own(self._path, os.O_RDWR | os.O_CREAT)
            if files.try_lock(fd, exclusive=True) and files.names_inode(self._path, os.fstat(fd)):
                return fd
            os.close(fd)  # a sweep took it for an abandoned one, before it was locked

    def close(self) -> None:
        """Give it up: the object is published, or never will be."""
        if self._fd >= 0:
            files.unlink_if_there(self._path)
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True, slots=True)
class _Wish:
    need_bytes: int
    unwritten_bytes: int
    """What must still fit the file system, the store's bookkeeping with it."""
    budget_bytes: int
    beside_bytes: int = 0
    """Of memory that is taken beside the store meanwhile."""
    ino: int = -1
    """Of the draft whose own claim does not count."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """One entry of the store as eviction sees it; no header is read."""

    name: str
    size_bytes: int
    """A file that several objects share is divided among them."""
    memory_bytes: int
    """That comes back when it is removed."""
    used_ns: int
    """When it was last leased, or published."""
    dev: int
    ino: int
    kept: bool
    ours: bool
    """A regular file of this user, or a directory with an anchor, with a name that dsmem gives."""


@dataclass(frozen=True, slots=True)
class _State:
    """The store against one wish."""

    seen: tuple[_Seen, ...]
    """The longest unused first."""
    loading_bytes: int
    room: space.Room
    over_budget_bytes: int
    """What would have to go for the budget; <= 0 when it holds."""
    lacking_bytes: int
    """What would have to go for the file system, the cgroups and the machine."""

    @property
    def total_bytes(self) -> int:
        return sum(one.size_bytes for one in self.seen)


def _make_room(wish: _Wish, store: Store) -> Evicted:
    """Plan, do, look again: what somebody takes between plan and removal stays, and the next plan does without it."""
    if wish.need_bytes > wish.budget_bytes:
        raise _larger_than_budget(store, wish)
    evicted = NOTHING
    stay: set[str] = set()
    state = _look(store, wish)
    while todo := _plan(store, wish, state, stay, evicted):
        before, gone = state, _evict(store, todo, stay)
        evicted = evicted.and_then(Evicted(tuple(one.name for one in gone), sum(one.size_bytes for one in gone)))
        state = _look(store, wish)
        gained = state.room.free_bytes - before.room.free_bytes
        if state.lacking_bytes > 0 and gone and gained < sum(one.memory_bytes for one in gone) // 2:
            raise _refusal(store, wish, state, evicted, because="what was evicted was charged elsewhere")
    if evicted.names:
        freed = units.format_bytes(evicted.freed_bytes)
        _log.info("evicted %s to make room: %s freed", ", ".join(evicted.names), freed)
    return evicted


def _look(store: Store, wish: _Wish) -> _State:
    claims = _claims(store, wish.ino)  # before the objects: what is published meanwhile is then in both, and told apart
    seen = tuple(_survey(store))
    published = {one.ino for one in seen}
    loading_bytes = sum(size_bytes for ino, size_bytes in claims.items() if ino not in published)
    room = space.room(store, wish.beside_bytes)
    return _State(
        seen=seen,
        loading_bytes=loading_bytes,
        room=room,
        over_budget_bytes=sum(one.size_bytes for one in seen) + loading_bytes + wish.need_bytes - wish.budget_bytes,
        lacking_bytes=wish.unwritten_bytes - room.left_of(wish.beside_bytes) if wish.unwritten_bytes else 0,
    )


def _claims(store: Store, own: int) -> dict[int, int]:
    """Bytes by inode of the drafts of others."""
    with os.scandir(store.locks) as entries:
        paths = {entry.name: entry.path for entry in entries if entry.name.startswith(_CLAIM_PREFIX)}
    found = {}
    for name, path in paths.items():
        ino = int(name.removeprefix(_CLAIM_PREFIX))
        try:
            fd = files.open_own(path)
        except FileNotFoundError:
            continue
        try:
            if ino != own and not files.try_lock(fd, exclusive=False):
                found[ino] = os.fstat(fd).st_size
        finally:
            os.close(fd)
    return found


def _survey(store: Store) -> list[_Seen]:
    found = []
    with os.scandir(store.objects) as entries:
        listed = [entry.name for entry in entries if not entry.name.startswith(".")]
    for name in listed:
        try:
            status = os.lstat(store.object_path(name))
        except FileNotFoundError:
            continue
        size_bytes, memory_bytes = status.st_size, status.st_blocks * _BLOCK_BYTES
        ours = _is_ours(name, status)
        if stat.S_ISDIR(status.st_mode):
            try:
                inside = directories.contents(store.object_path(name))
            except NotPinned:
                continue
            except DamagedObject as exc:
                _log.debug("%s", exc)
            else:
                status, ours = inside.anchor, names.split(name) is not None
                size_bytes, memory_bytes = inside.share_bytes, inside.own_bytes
        found.append(
            _Seen(
                name=name,
                size_bytes=size_bytes,
                memory_bytes=memory_bytes,
                used_ns=max(status.st_atime_ns, status.st_mtime_ns),
                dev=status.st_dev,
                ino=status.st_ino,
                kept=objects.is_kept(status),
                ours=ours,
            )
        )
    return sorted(found, key=lambda one: (one.used_ns, one.name))


def _is_ours(name: str, status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and names.split(name) is not None


def _plan(store: Store, wish: _Wish, state: _State, stay: set[str], evicted: Evicted) -> list[_Seen]:
    """The longest unused objects that are enough, none of `stay`; nothing when it fits already.

    Raises NoSpace when all of them are too few.
    """
    over_bytes, lacking_bytes = state.over_budget_bytes, state.lacking_bytes
    chosen: list[_Seen] = []
    for one in state.seen:
        if over_bytes <= 0 and lacking_bytes <= 0:
            return chosen
        if one.ours and not one.kept and one.name not in stay and leases.is_free(store, one.name):
            chosen.append(one)
            over_bytes -= one.size_bytes
            lacking_bytes -= one.memory_bytes
    if over_bytes > 0 or lacking_bytes > 0:
        raise _refusal(store, wish, state, evicted)
    return chosen


def _evict(store: Store, todo: list[_Seen], stay: set[str]) -> list[_Seen]:
    """Remove them, up to the first that somebody has taken since; that one goes to `stay`."""
    gone = []
    for one in todo:
        try:
            removed = objects.remove(store, one.name, spare_kept=True)
        except InUse:
            removed = False
        if not removed:
            _log.debug("%s was taken, kept or removed before it could be evicted", one.name)
            stay.add(one.name)
            break
        gone.append(one)
    return gone


def _larger_than_budget(store: Store, wish: _Wish) -> NoSpace:
    need, budget = units.format_bytes(wish.need_bytes), units.format_bytes(wish.budget_bytes)
    return NoSpace(
        f"{need} needed, which is more than the whole budget of {budget}; nothing was evicted",
        need_bytes=wish.need_bytes,
        free_bytes=space.room(store).free_bytes,
        limit="budget",
        budget_bytes=wish.budget_bytes,
    )


def _refusal(store: Store, wish: _Wish, state: _State, evicted: Evicted, *, because: str = "") -> NoSpace:
    """All the numbers, who holds what, and what has gone in vain, if anything."""
    show = units.format_bytes
    kept = [one for one in state.seen if one.kept]
    held = [one for one in state.seen if one.ours and not one.kept and not leases.is_free(store, one.name)]
    holders = proc.holders({(one.dev, one.ino) for one in held}).by_file
    stays = [f"{one.name} ({show(one.size_bytes)}, kept)" for one in kept]
    for one in held:
        who = ", ".join(f"{holder.pid} {holder.command}" for holder in holders.get((one.dev, one.ino), ()))
        stays.append(f"{one.name} ({show(one.size_bytes)}, in use by {who or 'a process that can not be seen'})")
    if len(stays) > _LISTED:
        stays[_LISTED:] = [f"{len(stays) - _LISTED} more"]
    parts = [
        f"{show(wish.need_bytes)} needed{space.said_beside(state.room, wish.beside_bytes)}",
        f"{show(state.total_bytes)} of the budget of {show(wish.budget_bytes)} are taken",
        *([f"{show(state.loading_bytes)} more are being loaded"] if state.loading_bytes else []),
        f"{show(state.room.free_bytes)} free ({state.room.limit}{space.payer(store)})",
    ]
    told = [f"can't be evicted: {', '.join(stays)}"] if stays else []
    told.append(f"evicted in vain: {', '.join(evicted.names)}" if evicted.names else "nothing was evicted")
    return NoSpace(
        "; ".join([", ".join(parts), *told, *([because] if because else [])]),
        need_bytes=wish.need_bytes,
        free_bytes=state.room.free_bytes,
        limit="budget" if state.over_budget_bytes > 0 else state.room.limit,
        budget_bytes=wish.budget_bytes,
        loading_bytes=state.loading_bytes,
        held=[one.name for one in held],
        kept=[one.name for one in kept],
    )
