"""`load_dataset`: that of `datasets`, from shared memory where the table is there, else by ordinary loading.

The fast path asks nobody: catalogue, ref, lease, map. The log says why ordinary loading was fallen back to, and
`.dsmem_source` on the result is 'shared' or 'loaded'. A denied permission, or another revision than the one that was
asked for, is an error and no reason to fall back.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from dsmem import settings
from dsmem.errors import Ambiguous, DamagedObject, InUse, LoadFailed, NoServer, NotPinned, ServerTimeout, UsageError
from dsmem.server import attaching, catalogue, overflow
from dsmem.server.attaching import Missing
from dsmem.server.spec import Spec
from dsmem.store.root import Store, open_store

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

Fallback = Literal["load", "error"]
SOURCE = "dsmem_source"
_POSITIONAL = (
    "cache_dir", "features", "download_config", "download_mode", "verification_mode", "keep_in_memory", "save_infos",
    "revision", "token", "streaming", "num_proc", "storage_options",
)  # fmt: skip
"""What follows `split` in the signature of datasets.load_dataset."""
_PRIVATE = {
    "streaming": (None, False), "keep_in_memory": (None, False), "download_mode": (None, "reuse_dataset_if_exists"),
}  # fmt: skip
"""Arguments that shared data can't do: any other value is loaded in the ordinary way."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A request as the user made it, and as the store knows it."""

    arguments: dict[str, object]
    """For datasets.load_dataset."""
    spec: Spec | None
    """None = it can't be shared, and `why` says so."""
    name: str = ""
    """In the catalogue; '' when it was asked for by its source."""
    why: str = ""


def load_dataset(
    path: str | os.PathLike[str],
    name: str | None = None,
    data_dir: str | None = None,
    data_files: object = None,
    split: object = None,
    *more: object,
    shared: bool = True,
    server_timeout: float | None = None,
    auto_start: bool | None = None,
    fallback: Fallback = "load",
    sample_limit: int | None = None,
    **options: Any,
) -> Dataset | DatasetDict:
    """Rows of a dataset, shared with every process of this machine where it is in the store.

    `path` is what datasets.load_dataset takes, a directory of save_to_disk, or a name of the catalogue (`dsmem server
    ls`); the other arguments are those of datasets.load_dataset, and the result is the same. What is not in the store
    is waited for where a server loads it (`server_timeout` seconds, or DSMEM_TIMEOUT), asked of a new server with
    `auto_start` (or DSMEM_AUTO_START), else loaded in the ordinary way, or NotPinned is raised (`fallback="error"`).
    `sample_limit`: the first rows of each split alone. `shared=False` loads in the ordinary way.
    Raises UsageError, Ambiguous, UnsafeRoot, and whatever datasets.load_dataset raises.
    """
    if fallback not in ("load", "error"):
        raise UsageError(f"fallback={fallback!r} means nothing; it is 'load' or 'error'")
    if len(more) > len(_POSITIONAL):
        raise UsageError(f"load_dataset takes {len(_POSITIONAL) + 5} positional arguments")
    options = {**dict(zip(_POSITIONAL, more, strict=False)), **options}
    options |= {"data_dir": data_dir, "data_files": data_files}
    if isinstance(split, list | tuple):
        ours: dict[str, Any] = {"shared": shared, "server_timeout": server_timeout, "auto_start": auto_start}
        ours |= {"fallback": fallback, "sample_limit": sample_limit}
        each = [load_dataset(path, name, split=one, **ours, **options) for one in split]
        return each  # a list, as datasets.load_dataset gives
    store = _store()
    wanted = _wanted(store, os.fspath(path), name, split, sample_limit, options)
    missing = Missing("sharing was not asked for", expected=True)
    if shared:
        found = _from_store(store, wanted)
        if isinstance(found, Missing) and wanted.spec is not None:
            found = _from_server(wanted, found, server_timeout, auto_start)
        if not isinstance(found, Missing):
            return _told(found, "shared", wanted)
        missing = found
        if fallback == "error":
            raise NotPinned(missing.reason, target=os.fspath(path))
    _log.log(
        logging.INFO if missing.expected else logging.WARNING,
        "%s: loaded in the ordinary way: %s",
        path,
        missing.reason,
    )
    return _told(_loaded(wanted), "loaded", wanted)


def _store() -> Store | None:
    chosen = settings.read()
    root = chosen.data_dir or chosen.root
    return open_store(os.path.abspath(root) if root is not None else None)


def _wanted(
    store: Store | None,
    path: str,
    name: str | None,
    split: object,
    sample_limit: int | None,
    options: dict[str, object],
) -> _Wanted:
    arguments = {"path": path, "name": name, "split": split, **options}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    for key, ordinary in _PRIVATE.items():
        if options.get(key) not in ordinary:
            return _Wanted(arguments, None, why=f"{key}={options[key]!r} can't be had from shared memory")
    try:
        asked = Spec.of(path, name, split=split, sample_limit=sample_limit, **options)  # type: ignore[arg-type]
    except UsageError as exc:
        if sample_limit is not None:
            raise
        return _Wanted(arguments, None, why=str(exc))
    known = catalogue.read(store) if store is not None else {}
    named = known.get(path)
    if named is not None and not _is_same_source(asked, named):
        if os.path.exists(path):
            raise Ambiguous(
                f"{path!r} is both a path here and a name in the catalogue",
                candidates=[f"./{path}", f"name {path}"],
            )
        spec = _refined(path, named, asked)
        if spec is not None:
            return _Wanted(arguments, spec, path)
    return _Wanted(arguments, asked, next((one for one, spec in known.items() if _serves(spec, asked)), ""))


def _is_same_source(asked: Spec, named: Spec) -> bool:
    """A name that is also what it stands for: the plain reading is the right one."""
    return asked.path == named.path and asked.data_files == named.data_files


def _serves(spec: Spec, asked: Spec) -> bool:
    return spec in (asked, asked.with_split(None))


def _refined(name: str, named: Spec, asked: Spec) -> Spec | None:
    """What is asked of a name of the catalogue; None when it is not what stands there under that name.

    Raises UsageError for another revision.
    """
    if asked.revision is not None and asked.revision != named.revision:
        raise UsageError(
            f"revision {asked.revision!r} of {name} was asked for; the catalogue has {named.revision or 'the newest'}"
        )
    for field in ("name", "data_dir", "data_files", "options"):
        if getattr(asked, field) not in (None, "", getattr(named, field)):
            return None
    if asked.split is not None:
        named = named.with_split(asked.split)
    if asked.sample_limit is not None:
        named = replace(named, sample_limit=asked.sample_limit)
    elif named.sample_limit is not None:
        _log.warning("%s is a sample in the catalogue: the first %d rows of each split", name, named.sample_limit)
    return named


def _from_store(store: Store | None, wanted: _Wanted) -> Dataset | DatasetDict | Missing:
    if wanted.spec is None:
        return Missing(wanted.why, expected=True)
    found: Dataset | DatasetDict | Missing
    found = Missing(f"{wanted.spec.label} is not in the store: there is none", expected=True)
    try:
        if store is not None:
            found = attaching.attach(store, wanted.spec)
        if isinstance(found, Missing) or overflow.is_later(store, wanted.spec):
            other = overflow.second(store)
            elsewhere = attaching.attach(other, wanted.spec) if other is not None else found
            if not isinstance(elsewhere, Missing) or (isinstance(found, Missing) and not elsewhere.expected):
                return elsewhere
        return found
    except (DamagedObject, InUse) as exc:
        return Missing(str(exc), expected=False)


def _from_server(
    wanted: _Wanted, missing: Missing, server_timeout: float | None, auto_start: bool | None
) -> Dataset | DatasetDict | Missing:
    """Ask for what is missing, and look again; the old reason where nobody can be asked."""
    try:
        root = _ask_server(wanted, server_timeout, auto_start)
    except (LoadFailed, NotPinned, ServerTimeout) as exc:
        return Missing(str(exc), expected=False)
    except NoServer as exc:
        return Missing(f"{missing.reason}; {exc}", expected=missing.expected)
    if root is None:
        return missing
    return _from_store(open_store(root), wanted)


def _ask_server(wanted: _Wanted, server_timeout: float | None, auto_start: bool | None) -> str | None:
    """Have a server load it: the root of the store where it is then, or None when the server does not know it.

    Raises NoServer, ServerTimeout, LoadFailed; UnsafeRoot when another user's process answers.
    """
    from dsmem.config.resolve import resolve
    from dsmem.server import control

    chosen = resolve()
    timeout_s = server_timeout if server_timeout is not None else chosen.timeout_s.value
    assert wanted.spec is not None
    name = wanted.name
    if auto_start if auto_start is not None else chosen.auto_start.value:
        from dsmem.server import lifecycle

        lifecycle.ensure_started(timeout_s)
        if not name:
            # The server finds a name: two requests may have the same label.
            name = str(control.ask({"op": "add", "spec": wanted.spec.as_dict()}, timeout_s)["dataset"]["name"])
    if not name:
        return None
    answer = control.ask({"op": "wait", "dataset": name, "timeout_s": timeout_s}, timeout_s + control.PATIENCE_S)
    return str(answer["root"])


def _loaded(wanted: _Wanted) -> Dataset | DatasetDict:
    """What plain `datasets` gives."""
    import datasets

    from dsmem.server import gathering

    spec = wanted.spec
    if spec is None or (spec.sample_limit is None and not wanted.name and not gathering.is_saved(spec.path)):
        return datasets.load_dataset(**wanted.arguments)
    fetching = {key: value for key, value in wanted.arguments.items() if key in _POSITIONAL and key not in _ROWS}
    cache_dir = fetching.pop("cache_dir", None)
    found = gathering.whole(spec, None if cache_dir is None else str(cache_dir), **fetching)
    return found[""] if "" in found else datasets.DatasetDict(found)


_ROWS = ("features", "revision")


def _told(found: Dataset | DatasetDict, source: str, wanted: _Wanted) -> Dataset | DatasetDict:
    setattr(found, SOURCE, source)
    _log.debug("%s: %s", wanted.arguments["path"], source)
    return found
