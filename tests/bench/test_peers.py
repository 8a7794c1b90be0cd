"""Peers: fake interpreters that write right or wrong ids, fail or are none; the scripts themselves, over stubs."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import children
import numpy as np
import psutil
import pytest
from tokenizers import Tokenizer

import dsmem
from dsmem.bench import peer, texts
from dsmem.bench import run as runs
from dsmem.bench.cases import tokenize, weights
from dsmem.bench.cases.tokenize import Encoded
from dsmem.bench.harness import Comparison, ResultsDiffer, measure
from dsmem.bench.peer import Peer, PeerFailed
from dsmem.bench.results import Compared
from dsmem.bench.scratch import scratch
from dsmem.bench.sources import Source
from dsmem.bench.workbench import Workbench
from dsmem.errors import UsageError

DATATROVE_STUB = """
import json
from pathlib import Path
import numpy as np
from tokenizers import Tokenizer

class JsonlReader:
    def __init__(self, folder, glob_pattern):
        self.paths = sorted(Path(folder).glob(glob_pattern))

class DocumentTokenizer:
    def __init__(self, folder, tokenizer, eos_token, shuffle_documents):
        assert not shuffle_documents
        self.folder, self.tokenizer = Path(folder), Tokenizer.from_file(tokenizer)
        self.end = self.tokenizer.token_to_id(eos_token)

    def write(self, rank, path):
        ids, ends = [], []
        for line in path.open():
            ids += [*self.tokenizer.encode(json.loads(line)["text"]).ids, self.end]
            ends.append(len(ids))
        np.array(ids, "<u2").tofile(self.folder / f"{rank:05d}_unshuffled.ds")
        np.array(ends, "<u8").tofile(self.folder / f"{rank:05d}_unshuffled.ds.index")

class LocalPipelineExecutor:
    def __init__(self, pipeline, tasks, workers, logging_dir):
        self.reader, self.writer = pipeline
        assert tasks == len(self.reader.paths) and workers >= 1

    def run(self):
        self.writer.folder.mkdir()
        for rank, path in enumerate(self.reader.paths):
            self.writer.write(rank, path)
        print("a library says something")
"""
MEGATRON_STUB = """
import struct
import numpy as np

class DType:
    @staticmethod
    def optimal_dtype(count):
        return np.uint16 if count < 65500 else np.int32

class IndexedDatasetBuilder:
    def __init__(self, path, dtype):
        self.file, self.dtype, self.lengths, self.documents = open(path, "wb"), dtype, [], [0]

    def add_document(self, ids, lengths):
        self.file.write(np.array(ids, self.dtype).tobytes())
        self.lengths += lengths
        self.documents.append(len(self.lengths))

    def finalize(self, path):
        self.file.close()
        places = np.cumsum([0, *self.lengths[:-1]]) * self.dtype().itemsize
        with open(path, "wb") as file:
            file.write(b"MMIDIDX\\0\\0" + struct.pack("<QB", 1, 8))
            file.write(struct.pack("<QQ", len(self.lengths), len(self.documents)))
            file.write(np.array(self.lengths, "<i4").tobytes() + places.astype("<i8").tobytes())
            file.write(np.array(self.documents, "<i8").tobytes())
"""
FASTSAFETENSORS_STUB = """
from safetensors.torch import load_file

class SingleGroup:
    pass

class SafeTensorsFileLoader:
    def __init__(self, group, device, nogds):
        assert device == "cpu" and nogds

    def add_filenames(self, by_rank):
        self.tensors = {name: one for file in by_rank[0] for name, one in load_file(file).items()}

    def copy_files_to_device(self):
        print("a library says something")
        return self

    def get_keys(self):
        return list(self.tensors)

    def get_tensor(self, name):
        return self.tensors[name]

    def close(self):
        pass
"""
RUNAI_STUB = """
from safetensors.torch import load_file

class SafetensorsStreamer:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def stream_files(self, files):
        self.files = files

    def get_tensors(self):
        for file in self.files:
            yield from load_file(file).items()
"""
FAKE = """
import json, sys
from pathlib import Path
import numpy as np

isolated, script, *arguments = sys.argv[1:]
assert isolated == "-I" and Path(script).name == "datatrove_tokenizer.py"
if arguments == ["--version"]:
    print(json.dumps({"version": "1.2"}))
    sys.exit()
text, tokenizer, end, place, processes = arguments
known = np.load(Path(text, "known.npz"))
ids, ends = known["ids"].astype("<u2"), known["ends"]
"""
WRITE = """
ids.tofile(f"{place}/0.ds")
ends.tofile(f"{place}/0.ds.index")
print(json.dumps({"files": [f"{place}/0.ds"]}))
"""


class Material:
    """Documents, their tokenizer, and what both come to by the reference."""

    def __init__(self, place: Path) -> None:
        place.mkdir()
        self.files = place / "turns"
        self.files.mkdir()
        self.text, self.tokenizer, self.parts = place / "text.jsonl", place / "tokenizer.json", place / "parts"
        documents = texts.documents(40_000)
        texts.write_jsonl(self.text, documents)
        tokenize.write_parts(self.parts, documents, 2)
        end = texts.train_tokenizer(self.tokenizer, documents, 40_000)
        encoder = Tokenizer.from_file(str(self.tokenizer))
        encoded = [[*encoder.encode(one).ids, end] for one in documents]
        self.right = Encoded(np.concatenate(encoded), np.cumsum([len(one) for one in encoded], dtype=np.uint64))
        np.savez(self.parts / "known.npz", ids=self.right.ids, ends=self.right.ends)

    def measure(self, other: Peer) -> None:
        """As the case does; raises ResultsDiffer where the peer's ids are not those of the reference."""
        contender = tokenize.beside(other, self.text, self.parts, self.tokenizer, self.files, part=8)
        measure(Comparison("", 1, [contender], expected={contender.question: tokenize.digest(self.right)}), runs=1)
        assert list(self.files.iterdir()) == []


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material(tmp_path_factory.mktemp("peers") / "material")


def interpreter(path: Path, source: str) -> str:
    path.write_text(f"#!{sys.executable}\n{source}")
    path.chmod(0o755)
    return str(path)


def fake(tmp_path: Path, source: str) -> Peer:
    (found,) = peer.find([f"datatrove={interpreter(tmp_path / 'fake', FAKE + source)}"])
    return found


def loaders(tmp_path: Path, *, fastsafetensors: str = FASTSAFETENSORS_STUB) -> list[str]:
    """Options for both tools that load weights: this interpreter, with packages that do what they do."""
    place = tmp_path / "stubs"
    place.mkdir()
    for module, source in (("fastsafetensors", fastsafetensors), ("runai_model_streamer", RUNAI_STUB)):
        (place / f"{module}.py").write_text(source)
    python = _with_stubs(tmp_path, place, "fastsafetensors-7.8", "runai_model_streamer-9.0")
    return [f"fastsafetensors={python}", f"runai={python}"]


def stubbed(tmp_path: Path) -> list[str]:
    """Options for both tools: this interpreter, with packages of their names that do what they do."""
    place = tmp_path / "stubs"
    for module, source in (
        ("datatrove/executor", DATATROVE_STUB),
        ("datatrove/pipeline/readers", DATATROVE_STUB),
        ("datatrove/pipeline/tokens", DATATROVE_STUB),
        ("megatron/core/datasets/indexed_dataset", MEGATRON_STUB),
    ):
        (place / module).parent.mkdir(parents=True, exist_ok=True)
        (place / f"{module}.py").write_text(source)
    python = _with_stubs(tmp_path, place, "datatrove-3.4", "megatron_core-5.6")
    return [f"datatrove={python}", f"megatron={python}"]


def _with_stubs(tmp_path: Path, place: Path, *packages: str) -> str:
    for name in packages:
        (place / f"{name}.dist-info").mkdir()
        package, version = name.replace("_", "-").rsplit("-", 1)
        (place / f"{name}.dist-info/METADATA").write_text(f"Name: {package}\nVersion: {version}\n")
    run_it = "import runpy, sys\nsys.path.insert(0, {!r})\nsys.argv = sys.argv[2:]\n{}"
    source = run_it.format(str(place), "runpy.run_path(sys.argv[0], run_name='__main__')")
    return interpreter(tmp_path / "python", source)


def test_both_peers_beside_dsmem(tmp_path: Path) -> None:
    report = runs.run(["tokenize"], size_bytes=2 << 20, runs=1, peers=stubbed(tmp_path))
    compared, *other_forms = report.cases[0].compared
    assert [one.title.split()[-1] for one in other_forms] == [".parquet", "each"]  # a .txt, a line each
    named = {one.name: one for one in compared.measured}
    for name in ("datatrove 3.4: the first 1/8", "preprocess_data, megatron-core 5.6: the first 1/8"):
        assert named[name].role == "recipe" and (named[name].median_s or 0) > 0
    assert "dsmem tokenize, as a process" in named
    assert report.notes == ()


def test_loaders_beside_dsmem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_FEWEST", 4)
    found = peer.find(loaders(tmp_path))
    named = [{one.name: one for one in compared.measured} for compared in measured_weights(found)]
    for name in ("fastsafetensors 7.8", "Run:ai model streamer 9.0"):
        assert [name in table for table in named] == [True, True, False]  # a torch file is nothing for them
        assert all((table[name].median_s or 0) > 0 and table[name].role == "recipe" for table in named[:2])
    assert children.still_running() == []


def measured_weights(peers: Sequence[Peer]) -> list[Compared]:
    with scratch() as place:
        bench = Workbench(place, Source(path="", data_bytes=0, names=()), 1 << 20)
        with closing(weights.compare(bench, 1 << 20, peers)) as comparisons:
            return [measure(one, runs=1) for one in comparisons]


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("return self.tensors[name]", "return self.tensors[name] + 1", ResultsDiffer, "fastsafetensors 7.8"),
        ("return list(self.tensors)", "return list(self.tensors)[1:]", ResultsDiffer, "fastsafetensors 7.8"),
        ("print(", "raise OSError(", PeerFailed, "OSError: a library says something"),
        ("class SingleGroup", "raise SystemExit(3)\nclass SingleGroup", PeerFailed, "fastsafetensors ended with 3"),
    ],
)
def test_a_loader_that_is_wrong_or_fails(
    old: str, new: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    asked = loaders(tmp_path, fastsafetensors=FASTSAFETENSORS_STUB.replace(old, new))
    with pytest.raises(error, match=message):
        measured_weights(peer.find(asked[:1]))
    assert children.still_running() == []


def test_without_peers_it_says_how_to_add_them() -> None:
    assert peer.without((), "tokenize") == (
        "left out, an environment of its own adds it: "
        "--peer datatrove=PYTHON (pip install 'datatrove[processing]' orjson tokenizers), "
        "--peer megatron=PYTHON (pip install megatron-core torch tokenizers)"
    )
    warned: list[str] = []
    with scratch() as place:
        source = Source(path="", data_bytes=0, names=())
        with closing(tokenize.compare(Workbench(place, source, 1 << 20, note=warned.append))) as comparisons:
            assert "datatrove" not in " ".join(one.name for one in next(comparisons).contenders)
    assert warned == [f"tokenize: {peer.without((), 'tokenize')}"]
    assert "--peer fastsafetensors=PYTHON (pip install fastsafetensors torch)" in (peer.without((), "ckpt") or "")


def test_right_ids(tmp_path: Path, material: Material) -> None:
    other = fake(tmp_path, WRITE)
    assert other.name == "datatrove 1.2"
    material.measure(other)


@pytest.mark.parametrize(
    "spoil",
    [
        "ids[7] ^= 1",
        "ends[0] -= 1",
        "ids, ends = ids[: ends[-2]], ends[:-1]",
        "ids = ids.astype('<u4') + 65536",
    ],
    ids=["an id", "an end of a document", "a document less", "beyond 16 bits"],
)
def test_wrong_ids_show_no_speed(spoil: str, tmp_path: Path, material: Material) -> None:
    with pytest.raises(ResultsDiffer, match=r"datatrove 1\.2"):
        material.measure(fake(tmp_path, f"{spoil}\n{WRITE}"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("sys.exit('\\nno such field: text\\n')", "datatrove ended with 1: no such field: text"),
        ("import os; os.kill(os.getpid(), 9)", "datatrove was killed by SIGKILL"),
        ("print('done')", "datatrove answered 'done'"),
        ("print('{\"files\": []}')", "named no files"),
        (f"ids = ids[:-1]\n{WRITE}", "do not belong together"),
    ],
)
def test_a_peer_that_fails(source: str, message: str, tmp_path: Path, material: Material) -> None:
    with pytest.raises(PeerFailed, match=message):
        material.measure(fake(tmp_path, source))
    assert list(material.files.iterdir()) == []


def test_an_interpreter_without_the_tool() -> None:
    with pytest.raises(PeerFailed, match=r"megatron ended with 1: .*megatron-core") as caught:
        peer.find([f"megatron={sys.executable}"])
    assert caught.value.__notes__ == [f"it belongs to {sys.executable}: -m pip install megatron-core torch tokenizers"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["nanogpt=python"], "one of datatrove, megatron, fastsafetensors, runai"),
        (["datatrove"], "NAME=PYTHON is meant"),
        (["datatrove="], "NAME=PYTHON is meant"),
        (["datatrove=/none/bin/python"], "no interpreter /none/bin/python"),
        ([f"datatrove={__file__}"], "no interpreter"),
    ],
)
def test_misuse(asked: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        runs.run(["tokenize"], peers=asked)


def test_one_name_twice_and_cases_without_peers(tmp_path: Path) -> None:
    asked = stubbed(tmp_path)
    with pytest.raises(UsageError, match="megatron is given twice"):
        peer.find([*asked, asked[1]])
    with pytest.raises(UsageError, match="only tokenize, ckpt takes peers"):
        runs.run(["hash"], peers=asked)
    with pytest.raises(UsageError, match="--peer datatrove is measured in the case tokenize"):
        runs.run(["ckpt"], peers=asked)


def test_megatrons_index_is_read(tmp_path: Path, material: Material) -> None:
    """The one that dsmem writes, and the same with a length that does not fit."""
    path = tmp_path / "out.bin"
    dsmem.tokenize(str(material.text), path, tokenizer=str(material.tokenizer))
    read = peer.TOOLS["megatron"].read([str(path)])
    assert tokenize.digest(Encoded(*read)) == tokenize.digest(material.right)
    index = bytearray(path.with_suffix(".idx").read_bytes())
    index[34] ^= 1
    path.with_suffix(".idx").write_bytes(index)
    with pytest.raises(PeerFailed, match="do not belong together"):
        peer.TOOLS["megatron"].read([str(path)])


def test_what_a_command_leaves_ends_with_it() -> None:
    said = peer.run("it", ["sh", "-c", "sleep 60 & echo $!"])
    assert _is_gone(int(said))


def test_an_interrupted_run_ends_all_of_it(tmp_path: Path) -> None:
    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    pids = tmp_path / "pids"
    ready = threading.Event()

    def interrupt() -> None:
        while not ready.wait(0.01) and not (pids.exists() and pids.read_text().endswith("\n")):
            continue
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, stop)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            peer.run("it", ["sh", "-c", f"sleep 60 & echo $! $$ > {pids}; wait"])
    finally:
        ready.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert all(_is_gone(int(pid)) for pid in pids.read_text().split())


def _is_gone(pid: int) -> bool:
    """A killed child of a process that is gone itself may be a zombie until its new parent looks."""
    try:
        process = psutil.Process(pid)
        process.wait(10)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True
