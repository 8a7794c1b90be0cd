"""The control socket: what is asked is answered, and whoever sends nonsense holds nobody up."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import children
import pytest
from daemons import Plans, eventually
from hypothesis import given
from hypothesis import strategies as st

from dsmem.errors import LoadFailed, NoServer, NotPinned, ServerTimeout, UnsafeRoot, UsageError
from dsmem.server import control, daemon, frames, lifecycle, listening, places
from dsmem.server.frames import BadFrame, Decoder
from dsmem.server.places import Places


@pytest.fixture
def server(plan: Plans, where: Places) -> Iterator[Places]:
    lifecycle.ensure_started(plan=plan(a="ok:", b="fail:oh\x1b no"))
    yield where
    lifecycle.stop(where)


def connect(where: Places) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    with control.short_path(where.directory, places.SOCKET) as path:
        connection.connect(path)
    connection.settimeout(20)
    return connection


def receive(connection: socket.socket) -> dict[str, Any] | None:
    decoder = Decoder(frames.ANSWER_BYTES)
    while part := connection.recv(4096):
        message = decoder.feed(part)
        if message is not None:
            return message
    return None


def test_answers(server: Places) -> None:
    pid = control.ask({"op": "ping"}, where=server)["pid"]
    assert pid == lifecycle.answering(server)
    found = control.ask({"op": "wait", "dataset": "a", "timeout_s": 20}, 25, where=server)
    assert found["dataset"]["object"] == "ok-object"
    assert found["root"] == server.data_root
    told = control.ask({"op": "status"}, where=server)
    assert [one["name"] for one in told["datasets"]] == ["a", "b"]
    assert control.ask({"op": "ping"})["pid"] == pid  # by the environment alone


def test_errors_come_back_as_what_they_were(server: Places) -> None:
    with pytest.raises(LoadFailed, match="oh") as failed:
        control.ask({"op": "wait", "dataset": "b", "timeout_s": 20}, 25, where=server)
    assert failed.value.dataset == "b"
    with pytest.raises(NotPinned, match="no dataset 'c'"):
        control.ask({"op": "wait", "dataset": "c"}, where=server)
    for request in (
        {"op": "explode"},
        {},
        {"op": "wait", "dataset": "a", "timeout_s": "long"},
        {"op": "wait", "dataset": "a", "timeout_s": float("nan")},
        {"op": "add", "name": "x", "spec": {"path": 7}},
        {"op": "add", "name": "", "spec": {"path": "ok:"}},
        {"op": "add", "name": "a\n", "spec": {"path": "ok:"}},
    ):
        with pytest.raises(UsageError):
            control.ask(request, where=server)


def test_only_we_may_reach_it(server: Places) -> None:
    assert stat.S_IMODE(os.lstat(server.socket).st_mode) == 0o600
    assert stat.S_IMODE(os.lstat(server.directory).st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_another_user_is_turned_away(server: Places) -> None:
    """Should the modes of socket and directory fail to, the kernel's word on who it is keeps others out."""
    os.chmod(server.socket, 0o666)
    os.chmod(server.directory, 0o755)

    def knock() -> bytes:
        os.chdir(server.directory)  # what lies above it stays closed to others
        children.become(65534)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(places.SOCKET)
            try:
                connection.sendall(frames.encode({"op": "ping"}))
                return connection.recv(100)
            except OSError:
                return b""

    assert children.call(knock) == b""
    assert lifecycle.answering(server)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_a_socket_of_another_user_is_not_believed(where: Places) -> None:
    places.make_directory(where.directory)
    ready, told = os.pipe()

    def impostor() -> None:
        listener = socket.socket(socket.AF_UNIX)
        with control.short_path(where.directory, places.SOCKET) as path:
            listener.bind(path)
        os.chmod(where.socket, 0o666)
        children.become(65534)
        listener.listen()  # SO_PEERCRED is of who listens
        os.write(told, b"!")
        time.sleep(60)

    with children.started(impostor):
        os.read(ready, 1)
        with pytest.raises(UnsafeRoot, match="uid 65534"):
            control.ask({"op": "ping"}, where=where)
    os.close(ready)
    os.close(told)


GARBAGE = [
    b"POST / HTTP/1.1\r\n\r\n",
    b"\xff\xff\xff\xff",
    (frames.REQUEST_BYTES + 1).to_bytes(4, "big"),
    b"\x00\x00\x00\x00",
    b"\x00\x00\x00\x02[]",
    b"\x00\x00\x00\x04\xff\xfe\xfd\xfc",
    (5000).to_bytes(4, "big") + b'{"a":' + b"[" * 4995,
]


def test_garbage_is_refused_at_once(server: Places) -> None:
    for sent in GARBAGE:
        with connect(server) as connection:
            connection.sendall(sent)
            answer = receive(connection)
            assert answer is not None and answer["kind"] == "UsageError", sent
            assert connection.recv(1) == b""
    assert lifecycle.answering(server)


def test_a_frame_in_single_bytes_is_a_frame(server: Places) -> None:
    with connect(server) as connection:
        for byte in frames.encode({"op": "ping"}):
            connection.sendall(bytes([byte]))
        answer = receive(connection)
    assert answer is not None and answer["ok"]


def test_slow_clients_are_dropped_and_hold_nobody_up(
    plan: Plans, where: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "REQUEST_S", 0.4)  # of a daemon that is a fork of this process
    ours = plan()
    with children.started(lambda: daemon.serve(ours)):
        eventually(lambda: lifecycle.answering(where))
        with connect(where) as slow:
            began = time.monotonic()
            slow.sendall(b"\x00\x00")
            assert lifecycle.answering(where)
            assert slow.recv(1) == b""
            assert 0.3 < time.monotonic() - began < 5
        lifecycle.stop(where)


def test_more_silent_clients_than_it_takes(server: Places) -> None:
    silent = [connect(server) for _ in range(listening.CONNECTIONS + 50)]
    try:
        assert lifecycle.answering(server)
    finally:
        for connection in silent:
            connection.close()


def test_many_at_once(server: Places) -> None:
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: control.ask({"op": "status"}, 20, where=server)["ok"], range(200)))
    assert answers == [True] * 200


def test_who_waits_is_answered_when_it_is_ready(server: Places) -> None:
    control.ask({"op": "add", "name": "later", "spec": {"path": "slow:0.5"}}, where=server)
    with pytest.raises(ServerTimeout, match="later is still loading") as late:
        control.ask({"op": "wait", "dataset": "later", "timeout_s": 0.05}, where=server)
    assert late.value.dataset == "later"
    with ThreadPoolExecutor(8) as pool:
        request = {"op": "wait", "dataset": "later", "timeout_s": 30}
        answers = list(pool.map(lambda _: control.ask(request, 30, where=server), range(8)))
    assert {one["dataset"]["state"] for one in answers} == {"ready"}


def test_who_waits_and_leaves_is_forgotten(server: Places) -> None:
    control.ask({"op": "add", "name": "later", "spec": {"path": "slow:0.3"}}, where=server)
    with connect(server) as leaving:
        leaving.sendall(frames.encode({"op": "wait", "dataset": "later", "timeout_s": 30}))
    assert control.ask({"op": "wait", "dataset": "later", "timeout_s": 30}, 30, where=server)["ok"]


def test_names_are_found_for_those_who_have_none(server: Places) -> None:
    def add(path: str, **more: object) -> str:
        return str(control.ask({"op": "add", "spec": {"path": path, **more}}, where=server)["dataset"]["name"])

    assert add("ok:") == "a"  # that very request is served already
    assert add("ok:x") == "hf:ok:x"
    assert add("ok:x", sample_limit=5) == "hf:ok:x (2)"
    assert add("ok:x") == "hf:ok:x"


def test_nobody_there(where: Places) -> None:
    with pytest.raises(NoServer, match="no dataset server runs"):
        control.ask({"op": "ping"}, where=where)
    places.make_directory(where.directory)
    with socket.socket(socket.AF_UNIX) as stale, control.short_path(where.directory, places.SOCKET) as path:
        stale.bind(path)
    with pytest.raises(NoServer):
        control.ask({"op": "ping"}, where=where)


@pytest.mark.parametrize("answer", [b"", b"\xff\xff\xff\xff", b"\x00\x00\x00\x02[]"])
def test_a_server_that_makes_no_sense(answer: bytes, where: Places) -> None:
    places.make_directory(where.directory)
    with socket.socket(socket.AF_UNIX) as listener:
        with control.short_path(where.directory, places.SOCKET) as path:
            listener.bind(path)
        listener.listen()

        def speak() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(100)
                peer.sendall(answer)

        speaker = threading.Thread(target=speak)
        speaker.start()
        with pytest.raises(NoServer):
            control.ask({"op": "ping"}, where=where)
        speaker.join()
        with pytest.raises(ServerTimeout):  # it is in the backlog, and nobody accepts it
            control.ask({"op": "ping"}, 0.05, where=where)


def test_long_paths(plan: Plans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100) / ("y" * 100)
    long.mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    longer = plan(a="ok:")
    assert len(longer.places.socket) > 200
    started = lifecycle.ensure_started(plan=longer)
    assert lifecycle.answering(longer.places) == started.pid
    assert lifecycle.stop(longer.places).pid == started.pid


@given(st.binary(max_size=200), st.lists(st.integers(1, 50)))
def test_the_decoder_takes_anything(data: bytes, cuts: list[int]) -> None:
    whole: list[object] = []
    for decoder, parts in ((Decoder(100), [data]), (Decoder(100), _cut(data, cuts))):
        try:
            found = [message for part in parts if (message := decoder.feed(part)) is not None]
            whole.append(found[:1])
        except BadFrame:
            whole.append("bad")
    assert whole[0] == whole[1]


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    parts = []
    for cut in cuts:
        parts.append(data[:cut])
        data = data[cut:]
    return [*parts, data]


def test_expired_clients_do_not_pile_up(server: Places) -> None:
    """Descriptors of the daemon are as many after a thousand clients as before."""
    pid = lifecycle.answering(server)
    eventually(lambda: control.ask({"op": "status"}, where=server)["status"] == "degraded")
    before = len(os.listdir(f"/proc/{pid}/fd"))
    for _ in range(300):
        connect(server).close()
        lifecycle.answering(server)
    eventually(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= before)
