"""One read of a plan: sort items into tasks, run them, bring results to the planner in the calling thread.

The planner is called from that thread only, as torch's own reader calls it: resolve_tensor before a read,
commit_tensor after it, load_bytes for byte items.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.planner import LoadItemType

from dsmem.checkpoint import direct, opened, regions, stock, unpickling, workers
from dsmem.checkpoint.direct import SMALL_BYTES, Direct
from dsmem.checkpoint.items import Item, Outcome, items_of
from dsmem.checkpoint.opened import Directory
from dsmem.checkpoint.options import Options
from dsmem.checkpoint.pool import Pool
from dsmem.checkpoint.report import Counting, ReadReport
from dsmem.checkpoint.scratch import Scratch
from dsmem.checkpoint.stock import Hooks
from dsmem.errors import BadSource, CheckpointReadError, ReadFailure

log = logging.getLogger(__name__)

FilesProgress = Callable[[int, int], None]
"""Called with files done and files in all."""
_STOCK_BYTES = 16 << 20
_MOST_IN_TASK = 256
Task = Callable[[Scratch], Outcome]


def read(
    path: Any,
    storage_data: Any,
    requests: Sequence[Any],
    planner: Any,
    *,
    hooks: Hooks,
    options: Options,
    progress: FilesProgress | None = None,
    report: Callable[[ReadReport], None] = lambda report: None,
) -> None:
    """Do every request. Raises CheckpointReadError for all that failed together; `report` is called in any case."""
    began = time.perf_counter()
    reading = _Reading(path, storage_data, requests, planner, hooks, options, progress)
    try:
        reading.run()
    finally:
        report(reading.report(time.perf_counter() - began))
    reading.raise_failures()


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Items are made by the ten thousand and all stay: looking for garbage among them took half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Reading:
    def __init__(
        self,
        path: Any,
        storage_data: Any,
        requests: Sequence[Any],
        planner: Any,
        hooks: Hooks,
        options: Options,
        progress: FilesProgress | None,
    ) -> None:
        self._path = path
        self._planner = planner
        self._hooks = hooks
        self._options = options
        self._progress = progress
        with _collector_paused():
            self._items = items_of(requests, storage_data, path=path)
        self._counting = Counting(items=Counter(item.file for item in self._items))
        self._unfinished = Counter(self._counting.items)
        self._failures: list[ReadFailure] = []
        self._complete: list[str] = []
        self._failed: set[int] = set()
        self._again: set[int] = set()
        self._choice = workers.Choice(1, "nothing to read")
        self._ways = "pread"
        self._processes: ProcessPoolExecutor | None = None
        self._direct: Direct | None = None
        self._pool: Pool[Outcome] = Pool(1)
        self._slower: str | None = None

    def run(self) -> None:
        options = self._options
        budget = options.memory_budget or workers.available_bytes()
        with ExitStack() as stack:
            if self._hooks.local:
                directory = stack.enter_context(Directory(os.fspath(self._path), io=options.io, pages=options.pages))
                self._directory = directory
                self._direct = Direct(directory, verify=options.verify)
            self._choose(budget)
            pool = self._pool = Pool(self._choice.workers, lambda outcome: outcome.size_bytes)
            if options.executor == "process":
                self._processes = stack.enter_context(stock.processes(self._choice.workers))
            if self._progress is not None:
                self._progress(0, len(self._unfinished))
            for wave in self._waves(budget):
                with _collector_paused():
                    tasks = self._tasks(wave)
                try:
                    pool.run(tasks, self._handle)
                finally:
                    self._slower = self._slower or pool.pace.slower()
                if self._hooks.local:
                    self._ways = self._directory.ways
                if options.fail_fast and self._failures:
                    return

    def _choose(self, budget: int) -> None:
        options, size_bytes = self._options, sum(item.length for item in self._items)
        local = self._hooks.local
        network = not local or (size_bytes >= options.sequential_below and not self._directory.is_local())
        everything = bool(self._hooks.replaced) or not local
        left = (item.length for item in self._items if everything or item.info.transform_descriptors)
        self._choice = workers.choose(
            options.workers,
            size_bytes,
            largest_copy_bytes=2 * max(left, default=0),
            budget_bytes=budget,
            sequential_below=options.sequential_below,
            network=network,
            small_bytes=sum(item.length for item in self._items if item.length <= SMALL_BYTES),
            parallel=options.parallel,
        )

    def _waves(self, budget: int) -> Iterator[list[Item]]:
        """Items whose destinations together stay within the budget: a planner may allocate them when asked."""
        wave: list[Item] = []
        size_bytes = 0
        for item in self._items:
            if wave and size_bytes + item.length > budget:
                yield wave
                wave, size_bytes = [], 0
            wave.append(item)
            size_bytes += item.length
        yield wave

    def _tasks(self, items: Iterable[Item]) -> list[Task]:
        small: list[Item] = []
        large: list[Item] = []
        left: list[Item] = []
        resolve, trusted = self._planner.resolve_tensor, self._options.trusted
        everything = self._why_stock()
        checked: set[str] = set()
        for item in items:
            request = item.request
            try:
                if not trusted and item.file not in checked:
                    opened.check_relative(item.file)
                    checked.add(item.file)
                if request.type == LoadItemType.BYTE_IO:
                    self._counting.why["byte items"] += 1
                    left.append(item)
                    continue
                target = item.target = resolve(request).detach()
            except Exception as exc:  # noqa: BLE001 - a planner raises what it likes; it is one item's failure
                self._fail(item, item.failure(exc))
                continue
            why = everything
            if why is None and item.info.transform_descriptors:
                why = f"transformed by {', '.join(item.info.transform_descriptors)}"
            if why is None:
                item.straight = regions.is_straight(target)
                why = None if item.straight else regions.refusal(target)
            if why is not None:
                self._counting.why[why] += 1
                left.append(item)
                continue
            item.key = (item.length, target.dtype, target.shape)
            (small if item.length <= SMALL_BYTES else large).append(item)
        if self._options.fail_fast and self._failures:
            return []
        tasks: list[Task] = []
        if self._direct is not None:
            tasks += [partial(self._direct.large, item) for item in sorted(large, key=direct._place)]
            for group in direct.groups(small):
                tasks += [
                    partial(self._direct.group, group[at : at + _MOST_IN_TASK])
                    for at in range(0, len(group), _MOST_IN_TASK)
                ]
        return self._stock_tasks(left) + tasks

    def _why_stock(self) -> str | None:
        if self._hooks.replaced:
            return f"{', '.join(self._hooks.replaced)} overridden"
        return None if self._hooks.local else f"a file system of {type(self._hooks.fs).__name__}"

    def _stock_tasks(self, items: Sequence[Item]) -> list[Task]:
        """Of one file each, cut by bytes."""
        tasks: list[Task] = []
        batch: list[Item] = []
        size_bytes = 0
        for item in sorted(items, key=direct._place):
            full = size_bytes + item.length > _STOCK_BYTES or len(batch) == _MOST_IN_TASK
            if batch and (full or item.file != batch[0].file):
                tasks.append(partial(self._stock, batch))
                batch, size_bytes = [], 0
            batch.append(item)
            size_bytes += item.length
        if batch:
            tasks.append(partial(self._stock, batch))
        return tasks

    def _stock(self, items: Sequence[Item], scratch: Scratch) -> Outcome:
        """In a worker: load, and leave copying to the thread that reads."""
        began = time.perf_counter()
        outcome = Outcome(items[0].file)
        verify = self._options.verify == "crc"
        try:
            if self._hooks.local:
                self._directory.open(items[0].file)  # refuses what is no regular file: a pipe would be waited for
            path = self._hooks.fs.concat_path(self._path, items[0].file)
            with ExitStack() as stack:
                if self._processes is None:
                    stream = stack.enter_context(self._hooks.fs.create_stream(path, "rb"))
                for item in items:
                    if self._pool.stopping:
                        break
                    try:
                        if self._processes is None:
                            loaded = stock.load_item(self._hooks, stream, item.request, item.info, verify)
                        else:
                            sent = self._processes.submit(
                                stock.load_elsewhere, self._hooks, path, item.request, item.info, verify
                            )
                            loaded = stock.received(sent.result())
                    except Exception as exc:  # noqa: BLE001 - torch.load and hooks raise what they like
                        outcome.failed.append((item, item.failure(self._told(item, exc))))
                    else:
                        outcome.loaded.append((item, loaded))
                        outcome.size_bytes += item.length
        except Exception as exc:  # noqa: BLE001 - so do file systems; it is the failure of what was not reached
            dealt = {id(item) for item, _ in outcome.failed} | {id(item) for item, _ in outcome.loaded}
            outcome.failed += [(item, item.failure(exc)) for item in items if id(item) not in dealt]
        outcome.elapsed_s = time.perf_counter() - began
        return outcome

    def _told(self, item: Item, error: Exception) -> Exception:
        """The error of an item that the file is too short for says so first: torch's own does not."""
        if self._hooks.local:
            size_bytes = self._directory.open(item.file).size_bytes
            if item.offset + item.length > size_bytes:
                told = BadSource(
                    f"{item.file} is truncated: it has {size_bytes} bytes, {item.name} ends at byte "
                    f"{item.offset + item.length} ({type(error).__name__}: {error})"
                )
                told.__cause__ = error
                return told
        return error

    def _handle(self, outcome: Outcome) -> list[Task]:
        """In the calling thread."""
        counting = self._counting
        counting.add(outcome)
        tasks: list[Task] = list(outcome.more)
        again = []
        for item, reason in outcome.again:
            if id(item) not in self._again:
                self._again.add(id(item))
                counting.why[reason] += 1
                again.append(item)
        tasks += self._stock_tasks(again)
        for item in outcome.grouped:
            self._commit(item, item.target)
            counting.grouped += 1
        for item in outcome.direct:
            item.left += (outcome.pieces if outcome.pieces > 1 else 1) - 1
            item.left -= 1
            if item.left == 0 and id(item) not in self._again:
                self._commit(item, item.target)
                counting.direct += 1
        for item in outcome.bounced:
            self._commit(item, item.target)
            counting.bounced += 1
        for item, loaded in outcome.loaded:
            self._place(item, loaded)
        for item, failure in outcome.failed:
            self._fail(item, failure)
        if self._options.fail_fast and self._failures:
            self.raise_failures()
        return tasks

    def _place(self, item: Item, loaded: torch.Tensor | io.BytesIO) -> None:
        """As the stock reader does, in the calling thread."""
        try:
            if isinstance(loaded, io.BytesIO):
                if not self._options.trusted:
                    where = f"the byte item {item.name} in {item.file}"
                    unpickling.check_byte_item(loaded.getvalue(), where=where)
                self._planner.load_bytes(item.request, loaded)
            else:
                target = item.target
                if target.size() != loaded.size():
                    raise AssertionError(
                        f"req {item.request.storage_index} mismatch sizes {target.size()} vs {loaded.size()}"
                    )
                target.copy_(loaded)
                self._planner.commit_tensor(item.request, target)
        except Exception as exc:  # noqa: BLE001 - a planner raises what it likes; it is one item's failure
            self._fail(item, item.failure(exc))
            return
        self._counting.fallback += 1
        self._finish(item)

    def _commit(self, item: Item, target: torch.Tensor) -> None:
        try:
            self._planner.commit_tensor(item.request, target)
        except Exception as exc:  # noqa: BLE001 - a planner raises what it likes; it is one item's failure
            self._fail(item, item.failure(exc))
            return
        self._finish(item)

    def _finish(self, item: Item) -> None:
        self._complete.append(item.name)
        self._unfinish(item)

    def _fail(self, item: Item, failure: ReadFailure) -> None:
        if id(item) not in self._failed:
            self._failed.add(id(item))
            self._failures.append(failure)
            self._unfinish(item)

    def _unfinish(self, item: Item) -> None:
        self._unfinished[item.file] -= 1
        if not self._unfinished[item.file]:
            del self._unfinished[item.file]
            if self._progress is not None:
                total = len(self._counting.items)
                self._progress(total - len(self._unfinished), total)

    def report(self, elapsed_s: float) -> ReadReport:
        self._counting.failed = len(self._failed)
        return self._counting.report(elapsed_s=elapsed_s, choice=self._choice, pace=self._slower, io=self._ways)

    def raise_failures(self) -> None:
        raise_failures(self._failures, self._complete)


def raise_failures(failures: Sequence[ReadFailure], names: Iterable[str]) -> None:
    """Raises CheckpointReadError if there are any; `names`: of which those without a failure were read whole."""
    if not failures:
        return
    failures = sorted(failures, key=lambda failure: (failure.file, failure.offset))
    first = failures[0]
    failed = {name for failure in failures for name in failure.tensors}
    whole = sorted(set(names) - failed)
    others = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
    raise CheckpointReadError(
        f"{', '.join(first.tensors[:3])} in {Path(first.file).name}: {first.kind}: {first.message}{others}; "
        f"{len(whole)} of {len(whole) + len(failed)} were read",
        failures=failures,
        complete=whole,
    )
