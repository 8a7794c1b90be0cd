"""Other tools, measured beside dsmem in environments of their own: scripts of `peers/`, run by the user's interpreters.

What a peer takes is the time of a whole process, from its start until what it wrote is on the disk; what it wrote is
read back here, in the peer's own format and without the peer.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np

from dsmem import helpers
from dsmem.bench.recipes import Array
from dsmem.errors import DsmemError, UsageError

_SCRIPTS = Path(__file__).with_name("peers")
_MEGATRON = np.dtype([("magic", "S9"), ("version", "<u8"), ("code", "u1"), ("sequences", "<u8"), ("documents", "<u8")])
_MEGATRON_IDS: Mapping[int, np.dtype[Any]] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}


FRESH = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""glibc, mallopt(3): else it keeps what is freed, and the next load finds memory that has its pages already."""


class PeerFailed(DsmemError, RuntimeError):
    """A peer is not installed where it should be, failed, or wrote what it should not."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that can be a peer."""

    name: str
    """As it is typed."""
    title: str
    script: str
    install: str
    """What pip installs, for who has no environment yet."""
    read: Callable[[Sequence[str]], tuple[Array, Array]]
    """Files → ids of all documents, in order, and where each ends (uint64)."""
    case: str = "tokenize"
    """In which it is measured."""
    arguments: tuple[str, ...] = ()
    """That come first, where a script serves several tools."""
    takes_parts: bool = False
    """It reads a directory of files, each by a process of its own, rather than one file."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A tool and the interpreter that has it."""

    tool: Tool
    python: str
    version: str

    @property
    def name(self) -> str:
        """As a contender."""
        return f"{self.tool.title} {self.version}"

    def tokenize(self, text: Path, tokenizer: Path, end: str, place: Path, processes: int) -> list[str]:
        """Let it turn a .jsonl, or a directory of parts, into ids below `place`; the files that it names."""
        answer = _ask(self.tool, self.python, text, tokenizer, end, place, processes)
        files = answer.get("files")
        if not isinstance(files, list) or not files:
            raise PeerFailed(f"{self.tool.name} named no files")
        return [str(file) for file in files]


class Serving:
    """A peer that loads the same files as often as it is asked, in a process that has imported all it needs."""

    def __init__(self, peer: Peer, files: Sequence[Path]) -> None:
        """Start it; raises PeerFailed."""
        self._name = peer.tool.name
        self._complained: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - `close` does
        self._process = subprocess.Popen(
            [*_command(peer.tool, peer.python), *map(str, files)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complained,
            env={**os.environ, **FRESH},
            text=True,
            process_group=0,  # Ctrl-C is for this process, which then ends it
        )
        try:
            self._hear("ready")
        except BaseException:
            self.close()
            raise

    def load(self) -> None:
        """Let it load everything."""
        self._say("load")
        self._hear("loaded")

    def digest(self) -> str:
        """Of what it loaded, as `load_weights.digest` makes it; the peer drops it."""
        self._say("digest")
        return self._hear()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()
        except BrokenPipeError as exc:
            raise self._failed("ended") from exc

    def _hear(self, expected: str | None = None) -> str:
        assert self._process.stdout is not None
        word = self._process.stdout.readline().rstrip("\n")
        if not word:
            raise self._failed(f"ended with {self._process.wait()}")
        if expected is not None and word != expected:
            raise self._failed(f"answered {word[:100]!r}")
        return word

    def _failed(self, how: str) -> PeerFailed:
        return PeerFailed(f"{self._name} {how}{_last_line(self._complained)}")

    def close(self) -> None:
        """End it, however busy it is."""
        with self._process, self._complained:
            self._process.kill()


def find(asked: Sequence[str]) -> tuple[Peer, ...]:
    """Peers from what is typed, NAME=PYTHON each; every interpreter is asked which version of the tool it has.

    Raises UsageError for a name or an interpreter that is none, PeerFailed where the tool is not installed.
    """
    wanted: dict[str, str] = {}
    for one in asked:
        name, equals, python = one.partition("=")
        if name not in TOOLS or not equals or not python:
            raise UsageError(f"--peer {one}: NAME=PYTHON is meant, NAME one of {', '.join(TOOLS)}")
        if name in wanted:
            raise UsageError(f"--peer {name} is given twice")
        found = shutil.which(os.path.expanduser(python))
        if found is None:
            raise UsageError(f"--peer {one}: there is no interpreter {python} that can be run")
        wanted[name] = os.path.abspath(found)
    return tuple(Peer(TOOLS[name], python, _version(TOOLS[name], python)) for name, python in wanted.items())


def without(peers: Iterable[Peer], case: str) -> str | None:
    """How to add those that are left out of a case; None = none is."""
    there = {peer.tool.name for peer in peers}
    absent = [tool for tool in TOOLS.values() if tool.name not in there and tool.case == case]
    if not absent:
        return None
    options = ", ".join(f"--peer {tool.name}=PYTHON (pip install {tool.install})" for tool in absent)
    return f"left out, an environment of its own adds it: {options}"


def run_dsmem(*arguments: str) -> None:
    """`dsmem ARGUMENTS` as a process, from this very package; raises PeerFailed."""
    run("dsmem", [sys.executable, "-P", "-m", "dsmem", *arguments], helpers.environment())


def run(name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a command to its end; returns its stdout. What it started ends with it.

    Raises PeerFailed with the last line of its stderr.
    """
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=complained,
            env=environment,
            process_group=0,  # Ctrl-C is for this process, which then ends the whole group
        )
        try:
            # It stays a zombie until the group is gone: no other process can have got its number.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        if code:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            raise PeerFailed(f"{name} {how}{_last_line(complained)}")
        said.seek(0)
        return said.read().decode(errors="replace")


def _last_line(file: Any) -> str:
    file.seek(0)
    lines = file.read().decode(errors="replace").split("\n")
    return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")


def _version(tool: Tool, python: str) -> str:
    try:
        return str(_ask(tool, python, "--version").get("version"))
    except PeerFailed as exc:
        exc.add_note(f"it belongs to {python}: -m pip install {tool.install}")
        raise


def _command(tool: Tool, python: str) -> list[str]:
    return [python, "-I", str(_SCRIPTS / tool.script), *tool.arguments]


def _ask(tool: Tool, python: str, *arguments: object) -> dict[str, Any]:
    """The last line of what its script says; libraries may have said something before."""
    said = run(tool.name, [*_command(tool, python), *map(str, arguments)])
    last = said.strip().rpartition("\n")[2]
    try:
        answer = json.loads(last)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise PeerFailed(f"{tool.name} answered {last[:100]!r}, which is not what its script says")
    return answer


def _read_datatrove(files: Sequence[str]) -> tuple[Array, Array]:
    """Each .ds, uint16 or uint32 without a header; its .index has the ends, in tokens, as uint64."""
    parts, ends, before = [], [], 0
    for file in files:
        here = np.fromfile(f"{file}.index", "<u8")
        tokens = int(here[-1])
        width = Path(file).stat().st_size // tokens
        ids = np.fromfile(file, f"<u{width}")
        _require(file, len(ids) == tokens and bool(np.all(here[1:] >= here[:-1])))
        parts.append(ids)
        ends.append(here + np.uint64(before))
        before += tokens
    return np.concatenate(parts), np.concatenate(ends)


def _read_megatron(files: Sequence[str]) -> tuple[Array, Array]:
    """A .bin of ids and its .idx: header, int32 lengths, int64 places in bytes, int64 numbers of first sequences.

    The format is that of megatron/core/datasets/indexed_dataset.py, version 1.
    """
    (file,) = files
    index = Path(file.removesuffix(".bin") + ".idx").read_bytes()
    head: Any = np.frombuffer(index, _MEGATRON, 1)[0]
    _require(file, head["magic"] == b"MMIDIDX" and head["version"] == 1 and int(head["code"]) in _MEGATRON_IDS)
    sequences, documents = int(head["sequences"]), int(head["documents"])
    at = _MEGATRON.itemsize
    lengths = np.frombuffer(index, "<i4", sequences, at).astype(np.int64)
    places = np.frombuffer(index, "<i8", sequences, at + 4 * sequences)
    begins = np.frombuffer(index, "<i8", documents, at + 12 * sequences)
    ids: Array = np.fromfile(file, _MEGATRON_IDS[int(head["code"])])
    after = np.concatenate([[0], np.cumsum(lengths)])
    _require(file, after[-1] == len(ids) and np.array_equal(places, after[:-1] * ids.itemsize))
    _require(file, begins[0] == 0 and begins[-1] == sequences)
    return ids, after[begins[1:]].astype(np.uint64)


def _reads_no_tokens(files: Sequence[str]) -> tuple[Array, Array]:
    raise PeerFailed("it writes no tokens")


def _require(file: str, right: bool) -> None:
    if not right:
        raise PeerFailed(f"{file} and its index do not belong together")


TOOLS: Mapping[str, Tool] = MappingProxyType(
    {
        tool.name: tool
        for tool in (
            Tool(
                "datatrove",
                "datatrove",
                "datatrove_tokenizer.py",
                "'datatrove[processing]' orjson tokenizers",
                _read_datatrove,
                takes_parts=True,
            ),
            Tool(
                "megatron",
                "preprocess_data, megatron-core",
                "megatron_preprocess.py",
                "megatron-core torch tokenizers",
                _read_megatron,
            ),
            Tool(
                "fastsafetensors",
                "fastsafetensors",
                "load_weights.py",
                "fastsafetensors torch",
                _reads_no_tokens,
                case="ckpt",
                arguments=("fastsafetensors",),
            ),
            Tool(
                "runai",
                "Run:ai model streamer",
                "load_weights.py",
                "runai-model-streamer torch",
                _reads_no_tokens,
                case="ckpt",
                arguments=("runai",),
            ),
        )
    }
)
"""By name."""
