"""Many processes at one store: one of them loads, all of them have it, and cleaning never breaks a reader."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from children import Child, all_started, call, started
from samples import MIB, assert_reads_as_h5py, settle, write_sample
from stores import InTmpfs, refuse, unnamed_bytes

import dsmem
from dsmem import progress
from dsmem.pinning.pin import PinRequest, obtain_file
from dsmem.store import objects, refs
from dsmem.store.root import Store, make_store

PROCESSES = 16


@dataclass(frozen=True, slots=True)
class Seen:
    """What one process found."""

    loaded: bool
    name: str
    content: str


class Gate:
    """A gate that opens for all who wait at once."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()

    def open(self) -> None:
        os.close(self._writing)

    def leave_to_the_parent(self) -> None:
        """In a child: it opens once the parent has opened it."""
        os.close(self._writing)

    def wait(self) -> None:
        os.read(self._reading, 1)

    def through(self, function: Callable[[Path], Seen], path: Path) -> Seen:
        self.leave_to_the_parent()
        self.wait()
        return function(path)

    def close(self) -> None:
        os.close(self._reading)


def pin_and_look(path: Path) -> Seen:
    obtained = obtain_file(make_store(), PinRequest(str(path)), progress.ignore).obtained
    with dsmem.attach(path) as file:
        assert file.object_name is not None
        content = hashlib.sha256(b"".join(file[name][()].tobytes() for name in ("images", "group/heatmaps")))
        return Seen(obtained.loaded, file.object_name, content.hexdigest())


def races(rounds: int, paths: list[Path]) -> Iterator[list[Seen]]:
    """A process a path; each round all of them pin at the same moment, and what each has found is yielded."""
    gates = [Gate() for _ in range(rounds)]

    def take_part(path: Path, says: int) -> None:
        for gate in gates:
            gate.leave_to_the_parent()
        for gate in gates:
            gate.wait()
            os.write(says, pickle.dumps(pin_and_look(path)))

    with ExitStack() as stack:
        for gate in gates:
            stack.callback(gate.close)
        running = []
        for path in paths:
            reading, says = os.pipe()
            heard = stack.enter_context(os.fdopen(reading, "rb"))
            child = stack.enter_context(started(partial(take_part, path, says)))
            os.close(says)
            running.append((child, heard))
        for gate in gates:
            gate.open()
            seen = []
            for child, heard in running:
                if not heard.peek(1):  # it has ended without a word
                    child.result()
                seen.append(pickle.load(heard))
            yield seen
        for child, _ in running:
            child.result()


def race(paths: list[Path]) -> list[Seen]:
    (seen,) = races(1, paths)
    return seen


def clear(root: Path) -> None:
    store = Store(str(root))
    for one in list(objects.scan(store)):
        objects.remove(store, one.name)


@pytest.mark.parametrize("rounds", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_sixteen_pin_one_file(rounds: int, tmp_path: Path, store_root: Path) -> None:
    path = settle(write_sample(tmp_path / "data.h5"))
    for seen in races(rounds, [path] * PROCESSES):
        assert sum(one.loaded for one in seen) == 1
        assert len({(one.name, one.content) for one in seen}) == 1
        assert os.listdir(store_root / "objects") == [seen[0].name]
        assert len(os.listdir(store_root / "refs")) == 1
        assert refuse(store_root) == []
        with dsmem.attach(path) as file:
            assert_reads_as_h5py(file, path)
        clear(store_root)


@pytest.mark.parametrize("rounds", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_two_paths_of_equal_content_share_one_object(rounds: int, tmp_path: Path, store_root: Path) -> None:
    one = settle(write_sample(tmp_path / "one.h5"))
    two = tmp_path / "a longer name, so that the headers differ.h5"
    two.write_bytes(one.read_bytes())
    settle(two)
    for seen in races(rounds, [one, two] * 4):
        assert sum(each.loaded for each in seen) == 2
        assert os.listdir(store_root / "objects") == [seen[0].name]
        assert {ref.provenance.source for ref in refs.all_refs(Store(str(store_root)))} == {str(one), str(two)}
        for path in (one, two):
            with dsmem.attach(path) as file:
                assert_reads_as_h5py(file, path)
        clear(store_root)


def test_a_hard_link_is_the_same_file(tmp_path: Path, store_root: Path) -> None:
    path = settle(write_sample(tmp_path / "one.h5"))
    other = tmp_path / "two.h5"
    os.link(path, other)
    settle(path)
    seen = race([path, other] * 4)
    assert sum(one.loaded for one in seen) == 1
    assert len(os.listdir(store_root / "objects")) == 1
    with dsmem.attach(other) as file:
        assert_reads_as_h5py(file, path)


def pin_while_cleaned(path: Path, expected: str, until_s: float) -> int:
    """Pin and attach over and over, once at least; what is held can always be attached a second time."""
    done = 0
    while not done or time.monotonic() < until_s:
        with dsmem.File(path, pin="auto") as file:
            assert file.source == "pinned", file.why
            assert hashlib.sha256(file["images"][()].tobytes()).hexdigest() == expected
            with dsmem.attach(path) as again:
                assert hashlib.sha256(again["images"][()].tobytes()).hexdigest() == expected
        done += 1
        time.sleep(random.uniform(0, 0.004))
    return done


def clean_all_the_time(root: Path, until_s: float) -> int:
    store, removed = Store(str(root)), 0
    while time.monotonic() < until_s:
        for one in list(objects.scan(store)):
            assert one.damaged is None
            try:
                removed += objects.remove(store, one.name)
            except dsmem.InUse:
                continue
        time.sleep(random.uniform(0, 0.002))  # who never rests leaves the others no time to pin
    return removed


@pytest.mark.parametrize("seconds", [1.0, pytest.param(5.0, marks=pytest.mark.slow)])
def test_pinning_while_everything_is_cleaned(seconds: float, tmp_path: Path, store_root: Path) -> None:
    path = settle(write_sample(tmp_path / "data.h5", 4096))
    with dsmem.File(path, pin="auto") as file:
        expected = hashlib.sha256(file["images"][()].tobytes()).hexdigest()
    removed, deadline = 0, time.monotonic() + 60
    while not removed and time.monotonic() < deadline:  # on a busy machine a round may find all held
        until_s = time.monotonic() + seconds
        pinners = [partial(pin_while_cleaned, path, expected, until_s)] * 3
        with all_started([*pinners, *[partial(clean_all_the_time, store_root, until_s)] * 2]) as running:
            done = [child.result() for child in running]
        assert all(done[: len(pinners)])
        removed = sum(done[len(pinners) :])
    assert removed
    dsmem.pin(path)
    with dsmem.attach(path) as file:
        assert_reads_as_h5py(file, path)
    assert len(os.listdir(store_root / "objects")) == 1


def test_two_files_race_into_room_for_one(tmp_path: Path, tiny_tmpfs: InTmpfs) -> None:
    paths = [settle(write_sample(tmp_path / f"{i}.h5", 5 * MIB // 2, seed=i)) for i in range(2)]

    def body(point: Path) -> None:
        for _ in range(5):
            gate = Gate()
            with all_started([partial(gate.through, pin_and_look, path) for path in paths]) as running:
                gate.open()
                outcomes = [outcome(child) for child in running]
            gate.close()
            assert "no space" in outcomes
            assert unnamed_bytes(point) == 0
            assert len(os.listdir(point / "store/objects")) == sum(one == "pinned" for one in outcomes)
            assert refuse(point / "store") == []
            clear(point / "store")
            call(partial(pin_and_look, paths[0]))
            clear(point / "store")

    tiny_tmpfs(body)


def outcome(child: Child[Seen]) -> str:
    try:
        child.result()
    except dsmem.NoSpace as exc:
        assert exc.need_bytes > exc.free_bytes
        return "no space"
    return "pinned"


def wait_for(path: Path, seen_bytes: Path) -> Seen:
    """Pin, and write down the progress that was heard of while another process was loading."""

    def heard(done_bytes: int, total_bytes: int) -> None:
        if done_bytes:
            partly = seen_bytes.with_suffix(f".{threading.get_ident()}")  # progress comes from any thread
            partly.write_text(f"{done_bytes} {total_bytes}")
            partly.rename(seen_bytes)

    obtained = obtain_file(make_store(), PinRequest(str(path)), heard).obtained
    return Seen(obtained.loaded, obtained.ref.object, str(obtained.waited))


def test_a_waiting_process_takes_over_from_a_killed_loader(tmp_path: Path, store_root: Path) -> None:
    path = settle(write_sample(tmp_path / "data.h5", 8 * MIB))
    copying = tmp_path / "copying"

    def load_slowly() -> None:
        def stuck(done_bytes: int, total_bytes: int) -> None:
            if done_bytes > total_bytes // 3:
                copying.touch()
                time.sleep(60)

        dsmem.pin(path, progress=stuck)

    with started(load_slowly) as loader:
        until_exists(copying)
        heard = [tmp_path / f"heard {i}" for i in range(4)]
        with all_started([partial(wait_for, path, one) for one in heard]) as waiting:
            for one in heard:
                until_exists(one)
                done_bytes, total_bytes = map(int, one.read_text().split())
                assert 0 < done_bytes < total_bytes
                assert total_bytes >= 8 * MIB
            loader.kill()
            seen = [child.result() for child in waiting]
    assert sum(one.loaded for one in seen) == 1
    assert {one.content for one in seen} == {"True"}
    assert len({one.name for one in seen}) == 1
    with dsmem.attach(path) as file:
        assert_reads_as_h5py(file, path)


def test_those_who_wait_for_a_loader_that_fails_try_themselves(tmp_path: Path, store_root: Path) -> None:
    """One at a time: whoever comes while the second one loads waits for that."""
    path = settle(write_sample(tmp_path / "data.h5", 2 * MIB))
    first, waits, go, second, third = (tmp_path / name for name in ("first", "waits", "go", "second", "third"))

    def fail() -> None:
        def stop(done_bytes: int, total_bytes: int) -> None:
            first.touch()
            until_exists(go)
            raise ArithmeticError("enough")

        dsmem.pin(path, progress=stop)

    def load_slowly() -> Seen:
        def report(done_bytes: int, total_bytes: int) -> None:
            if threading.current_thread() is threading.main_thread():
                waits.touch()  # what it hears of another's load
            else:
                second.touch()
                until_exists(third)

        obtained = obtain_file(make_store(), PinRequest(str(path)), report).obtained
        return Seen(obtained.loaded, obtained.ref.object, str(obtained.waited))

    with started(fail) as loader:
        until_exists(first)
        with started(load_slowly) as waiting:
            until_exists(waits)
            go.touch()
            with pytest.raises(ArithmeticError):
                loader.result()
            until_exists(second)
            with started(partial(wait_for, path, third)) as newcomer:
                seen = [waiting.result(), newcomer.result()]
    assert [one.loaded for one in seen] == [True, False]
    assert [one.content for one in seen] == ["True", "True"]
    assert refuse(store_root) == []


def until_exists(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.001)


def test_equal_contents_are_named_one_at_a_time(
    tmp_path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look for an equal object and the link are one step, however long the look takes."""
    one = settle(write_sample(tmp_path / "one.h5"))
    two = tmp_path / "two.h5"
    two.write_bytes(one.read_bytes())
    settle(two)
    real = objects.with_key

    def slowly(store: Store, key: str) -> list[str]:
        found = real(store, key)
        time.sleep(0.3)
        return found

    monkeypatch.setattr(objects, "with_key", slowly)
    seen = race([one, two])
    assert [each.loaded for each in seen] == [True, True]
    assert len(os.listdir(store_root / "objects")) == 1
