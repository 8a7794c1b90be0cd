"""Many processes and one dataset: the memory of all together, the first row of a fresh one, and who starts the server.

The memory is the data's: what the same processes take besides, with a dataset of ten rows, is taken off and told.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import islice
from typing import Any

from dsmem import units
from dsmem.bench import first_row, recipes, rowfiles
from dsmem.bench.crowd import Acted, Crowd, crowd
from dsmem.bench.first_row import Started, Way
from dsmem.bench.harness import Comparison, Contender
from dsmem.bench.sizes import Need
from dsmem.bench.workbench import Case, Effort, Workbench

PROCESSES = (1, 8, 32)
_MANY = 32
_PRIVATE = 8
_SHARE = 8
_FEW_ROWS = 10


def compare(bench: Workbench) -> Generator[Comparison]:
    """Memory, the first row, and 32 clients that find no server."""
    directory, few = bench.new_file("rows"), bench.new_file("few.jsonl")
    place = bench.new_file("crowd")
    place.mkdir(mode=0o700)
    with rowfiles.hugging_face(bench.place.files / "hugging-face") as cache, ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        size_bytes = rowfiles.make(directory, bench.size_bytes // _SHARE)
        with min(directory.iterdir()).open("rb") as file:
            few.write_bytes(b"".join(islice(file, _FEW_ROWS)))
        stack.enter_context(bench.place.store())
        pattern = f"{directory}/*.jsonl"
        for one in (pattern, str(few)):
            rowfiles.publish(one)
            recipes.load_rows(one, cache)
        people = stack.enter_context(crowd(place))
        yield _memory(people, pattern, str(few), cache)
        yield _first_row(pattern, cache, size_bytes)
        yield _race(people)


def _memory(people: Crowd, pattern: str, few: str, cache: str) -> Comparison:
    data_bytes = recipes.load_rows(pattern, cache).data.nbytes

    def rows(way: str, processes: int, what: str = pattern) -> Acted:
        return people.act("rows", processes, way=way, pattern=what, cache=cache)

    def contender(name: str, way: str, processes: int) -> Contender:
        label = f"{name}, {processes} {'process' if processes == 1 else 'processes'}"

        def data(acted: Acted) -> int:
            return max(acted.grown_bytes - rows(way, processes, few).grown_bytes, 1)

        return Contender(
            label,
            "dsmem" if way == "shared" else "recipe",
            lambda _: rows(way, processes),
            answer=lambda acted: sorted({tuple(result) for result in acted.results}),
            amount=data,
        )

    return Comparison(
        "memory of the data, all processes together",
        data_bytes,
        [
            *(contender("dsmem.load_dataset", "shared", processes) for processes in PROCESSES),
            contender("load_dataset(keep_in_memory=True)", "memory", _PRIVATE),
            contender("datasets.load_dataset, cached on a disk", "cached", _PRIVATE),
            Contender(
                f"what each of {_MANY} takes besides, with ten rows",
                "dsmem",
                lambda _: rows("shared", _MANY, few),
                amount=lambda acted: max(acted.grown_bytes // _MANY, 1),
            ),
            Contender("the data once", "limit", lambda _: None, amount=lambda _: data_bytes),
        ],
        quantity="memory",
        rounds=1,
    )


def _first_row(pattern: str, cache: str, size_bytes: int) -> Comparison:
    def row(way: Way) -> Started:
        return first_row.start(way, pattern, cache)

    def imports(name: str, way: Way) -> Contender:
        return Contender(name, "limit", lambda _: row(way), samples=lambda one: [one.import_s])

    def rows(name: str, way: Way) -> Contender:
        return Contender(
            name,
            "dsmem" if way == "shared" else "recipe",
            lambda _: row(way),
            answer=lambda one: one.row,
            samples=lambda one: [one.row_s],
        )

    return Comparison(
        f"the first row of {units.format_bytes(size_bytes)} in a fresh interpreter, after its imports",
        0,
        [
            rows("dsmem.load_dataset", "shared"),
            rows("datasets.load_dataset, cached, offline", "cached"),
            imports("the imports alone: datasets, dsmem", "shared"),
        ],
    )


def _race(people: Crowd) -> Comparison:
    @contextmanager
    def stopped() -> Iterator[None]:
        people.stop_server()
        yield
        people.stop_server()

    @contextmanager
    def running() -> Iterator[None]:
        people.act("start", 1)
        yield

    def one_daemon(acted: Acted) -> int:
        return len(set(acted.results))

    def started(name: str, processes: int, around: Callable[[], AbstractContextManager[Any]] = stopped) -> Contender:
        return Contender(
            name,
            "dsmem",
            lambda _: people.act("start", processes),
            answer=one_daemon,
            samples=lambda acted: acted.elapsed_s,
            around=around,
        )

    return Comparison(
        "clients that want a server at the same moment, until it answers each",
        0,
        [
            started(f"{_MANY} clients, none runs: one is started", _MANY),
            started("one client, none runs", 1),
            started(f"{_MANY} clients, it runs", _MANY, running),
            Contender("one Python that imports what the server does", "recipe", lambda _: people.imports()),
            Contender(
                f"{_MANY} processes do nothing",
                "limit",
                lambda _: people.act("nothing", _MANY),
                samples=lambda acted: acted.elapsed_s,
            ),
        ],
        expected={"": 1},
    )


CASE = Case(
    "server",
    "any number of processes hold one copy of a dataset, and start one server",
    compare,
    need=Need(memory=1.5, shared=0.2, files=0.5),
    effort=Effort(md5=4, fill=2, copy=2, fixed_s=12.0),
    takes_file=False,
)
