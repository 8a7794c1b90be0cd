"""One test a row of the table in docs/older-tools.md: what users of the older systems type, in dsmem's words."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoints
import h5py
import numpy as np
import pytest
import torch
from episodes import CAMERAS, GZIP, check_aloha, write_aloha
from torch.distributed.checkpoint.filesystem import FileSystemReader

import dsmem
from dsmem import checkpoint, training, tune
from dsmem.config import schema
from dsmem.tune import sampling


@pytest.fixture
def server(
    tmp_path: Path, hf_cache: Path, monkeypatch: pytest.MonkeyPatch, expected_leftovers: set[str]
) -> Iterator[Path]:
    """A file of 20 rows for a server of this test's own, which is ended with the test."""
    from arrowtables import rows, write_jsonl

    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    expected_leftovers.add("server/catalogue.json")
    yield write_jsonl(tmp_path / "rows.jsonl", rows(0, 20))
    pid = server_status()["pid"]
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def server_status() -> dict[str, Any]:
    """`dsmem server status --json`, whatever its exit code."""
    command = [sys.executable, "-m", "dsmem", "server", "status", "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, timeout=120).stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def h5(tmp_path: Path) -> Path:
    path = tmp_path / "train.h5"
    with h5py.File(path, "w") as file:
        file["images"] = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)
        file["heatmaps"] = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    return path


def run(*arguments: str, code: int = 0) -> str:
    """What `dsmem …` prints on a pipe."""
    done = subprocess.run(
        [sys.executable, "-m", "dsmem", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def test_shm_manager_list(h5: Path) -> None:
    """`shm_manager.py --list [--h5 F]` → `dsmem shm ls [--h5 F]`."""
    name = dsmem.pin(h5).name
    assert name in run("shm", "ls")
    listed = json.loads(run("shm", "ls", "--h5", str(h5), "--json"))
    (entry,) = listed["entries"]
    assert {one["path"] for one in entry["datasets"]} == {"images", "heatmaps"}
    assert entry["digest"] == "xxh3-tree:" + dsmem.pin(h5).digest


def test_shm_manager_cleanup_of_one_file(h5: Path, tmp_path: Path) -> None:
    """`shm_manager.py --cleanup --h5 F` → `dsmem shm clean F`."""
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["x"] = np.arange(5)
    dsmem.pin(h5)
    kept = dsmem.pin(other).name
    run("shm", "clean", str(h5), "-y")
    assert [line.split("\t")[0] for line in run("shm", "ls").splitlines()[1:]] == [kept]


def test_shm_manager_cleanup_all(h5: Path) -> None:
    """`shm_manager.py --cleanup-all` → `dsmem shm clean --all`."""
    dsmem.pin(h5)
    run("shm", "clean", "--all", "-y")
    assert run("shm", "ls").splitlines()[1:] == []


def test_shared_memory_flag_first_process_creates(h5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--shared_memory`: the first process creates → `pin="auto"`, or DSMEM_PIN=auto for scripts left as they are."""
    assert dsmem.File(h5).source == "mapped"
    assert dsmem.File(h5, pin="auto").source == "pinned"
    run("shm", "clean", "--all", "-y")
    monkeypatch.setenv("DSMEM_PIN", "auto")
    assert dsmem.File(h5).source == "pinned"


def test_plain_preload(h5: Path) -> None:
    """Plain preload → `dsmem.File(path, preload=True)`: a private copy in RAM, nothing in the store."""
    with dsmem.File(h5, preload=True) as file, h5py.File(h5) as plain:
        assert file.source == "preloaded"
        np.testing.assert_array_equal(file["images"][()], plain["images"][()])
    assert run("shm", "ls").splitlines()[1:] == []


def test_md5_is_what_md5sum_prints(h5: Path) -> None:
    """`glint_<md5>_<dataset>` → one object a file; the MD5 is there for those who want it."""
    expected = f"{hashlib.md5(h5.read_bytes()).hexdigest()}  {h5}\n"
    assert run("hash", "--algo", "md5", str(h5)) == expected
    assert dsmem.pin(h5, algo="md5").digest == expected.split()[0]


def test_large_token_dataset(tmp_path: Path) -> None:
    """`LargeTokenDataset(data_path, sequence_length)` → `dsmem.TokenDataset`: a bare `.bin` is uint16."""
    path = tmp_path / "train.bin"
    np.arange(50_000, 50_100, dtype=np.uint16).tofile(path)
    for dataset in (
        dsmem.LargeTokenDataset(str(path), 8),
        dsmem.LargeTokenDataset(data_path=path, sequence_length=8),
        dsmem.TokenDataset(path, seq_len=8),
    ):
        x, y = dataset[91]
        assert (len(dataset), str(x.dtype)) == (92, "torch.int64")
        assert (x.tolist(), y.tolist()) == (list(range(50_091, 50_099)), list(range(50_092, 50_100)))


@pytest.fixture
def dcp(tmp_path: Path) -> Path:
    return checkpoints.save({"x": torch.arange(10.0), "y": torch.ones(3, 4)}, tmp_path / "dcp", files=2)


def loaded(reader: Any) -> None:
    """Loads with the reader what `dcp` holds."""
    into = checkpoints.load({"x": torch.zeros(10), "y": torch.zeros(3, 4)}, reader)
    assert torch.equal(into["x"], torch.arange(10.0)) and torch.equal(into["y"], torch.ones(3, 4))


def test_parallel_file_reader(dcp: Path) -> None:
    """`ParallelFileReader(enable_parallel=True, max_workers=8)` → `ParallelFileSystemReader(workers=8)`."""
    for reader in (
        checkpoint.ParallelFileReader(dcp, enable_parallel=True, max_workers=8),
        checkpoint.ParallelFileSystemReader(dcp, workers=8),
    ):
        loaded(reader)
        assert reader.last_report is not None and reader.last_report.workers == 8
    auto = checkpoint.ParallelFileReader(dcp)
    assert auto.read_options.workers == "auto"


@pytest.mark.parametrize("name", ["read_data_parallel", "read_data_parallel_v2"])
def test_read_data_parallel(dcp: Path, name: str) -> None:
    """`read_data_parallel`, `read_data_parallel_v2` → `read_data`."""

    class Older(checkpoint.ParallelFileReader):
        def read_data(self, plan: Any, planner: Any) -> Any:
            return getattr(self, name)(plan, planner)

    loaded(Older(dcp))


def test_parallel_read_mixin(dcp: Path) -> None:
    """A mixin over a class that has `fs`, `path` and `storage_data` → `ParallelReadMixin`."""

    class Mixed(checkpoint.ParallelReadMixin, FileSystemReader):
        pass

    reader = Mixed(dcp)
    loaded(reader)
    assert reader.last_report is not None and reader.last_report.fallback == 0


def test_replaced_steps_of_a_checkpoint_reader(dcp: Path) -> None:
    """`_slice_file_simple`, `_narrow_tensor_simple`, transform → `slice_file`, `narrow_tensor`, `transform`."""
    steps = []

    class Replaced(checkpoint.ParallelFileSystemReader):
        def slice_file(self, stream: Any, item_metadata: Any) -> Any:
            steps.append("slice_file")
            return super().slice_file(stream, item_metadata)

        def narrow_tensor(self, tensor: Any, offsets: Any, lengths: Any) -> Any:
            steps.append("narrow_tensor")
            return super().narrow_tensor(tensor, offsets, lengths)

        def transform(self, read_item: Any, descriptors: Any, stream: Any) -> Any:
            steps.append("transform")
            return super().transform(read_item, descriptors, stream)

    reader = Replaced(dcp)
    loaded(reader)
    assert steps == ["slice_file", "transform", "narrow_tensor"] * 2
    assert reader.last_report is not None
    assert reader.last_report.why == {"slice_file, narrow_tensor, transform overridden": 2}


@pytest.fixture
def leftover() -> Iterator[Path]:
    """A segment as the older system left it in shared memory."""
    handle, path = tempfile.mkstemp(prefix=f"glint_{os.urandom(16).hex()}_images", dir="/dev/shm")
    os.write(handle, b"x" * 4096)
    os.close(handle)
    named = Path(path).with_name(Path(path).name[:-8])
    os.rename(path, named)
    yield named
    named.unlink()


def test_leftovers_are_reported(leftover: Path) -> None:
    """Leftovers of `glint_<md5>_<dataset>` are reported by `dsmem shm ls --all`."""
    found = json.loads(run("shm", "ls", "--all", "--json"))["leftovers"]
    assert {"path": str(leftover), "size_bytes": 4096} in found


@pytest.fixture
def episodes(tmp_path: Path, hf_cache: Path) -> Path:
    """A directory with a data file, as the older configuration names one."""
    from arrowtables import rows, write_jsonl

    return write_jsonl(tmp_path / "episodes" / "train.jsonl", rows(0, 20)).parent


def publish(source: str, **options: Any) -> None:
    """What the server's child does."""
    from dsmem.server import building
    from dsmem.server.spec import Spec
    from dsmem.store.root import make_store

    building.publish(make_store(), Spec.parse(source, **options))


def test_load_hf_datasets(episodes: Path) -> None:
    """`load_hf_datasets(hf_config, sample_percentage, seed, use_shared_memory)`: defaults 1.0, 42, False."""
    hf_config = {"datasets": [{"name": str(episodes), "dataset_name": "mine", "subset": None, "split": "train"}]}
    publish(f"{episodes}:/train")
    plain: Any = dsmem.load_hf_datasets(hf_config)
    assert plain.dsmem_source == "loaded" and plain.num_rows == 20
    shared: Any = dsmem.load_hf_datasets(hf_config, use_shared_memory=True)
    assert shared.dsmem_source == "shared" and shared.to_list() == plain.to_list()
    half = dsmem.load_hf_datasets(hf_config, 0.5)
    assert half.to_list() == dsmem.load_hf_datasets(hf_config, 0.5, 42, True).to_list() and half.num_rows == 10
    with pytest.raises(dsmem.UsageError):
        dsmem.load_hf_datasets(hf_config, 50)  # a percentage of the older kind


def test_hf_config_as_a_list_and_as_yaml(episodes: Path) -> None:
    """`{"datasets": [...]}`, a bare list, and what YAML with `dataset.datasets` and `use_shared_memory` holds."""
    entry = {"name": str(episodes), "split": "train"}
    publish(f"{episodes}:/train")
    assert dsmem.load_hf_datasets([entry]).num_rows == 20
    from_yaml: Any = dsmem.load_hf_datasets({"dataset": {"use_shared_memory": True, "datasets": [entry]}})
    assert from_yaml.dsmem_source == "shared"


def test_a_sample_is_never_given_in_silence(episodes: Path) -> None:
    """`--sample-limit N`: part of the key; a client that did not ask for the limit gets all rows."""
    source = f"{episodes}:/train"
    publish(source, sample_limit=5)
    everything: Any = dsmem.load_dataset(str(episodes), split="train")
    assert (everything.dsmem_source, everything.num_rows) == ("loaded", 20)
    few: Any = dsmem.load_dataset(str(episodes), split="train", sample_limit=5)
    assert (few.dsmem_source, few.num_rows) == ("shared", 5)


def test_manager_start_status_restart_stop(server: Path) -> None:
    """`python -m share_dataset.manager start|stop|status|restart` → `dsmem server …`."""
    run("server", "status", code=3)
    run("server", "start", "--dataset", f"rows={server}")
    first = server_status()
    assert {"running", "pid", "mmap_file", "mmap_size_mb", "status", "datasets"} <= set(first)
    assert (first["running"], first["status"], first["datasets"][0]["rows"]) == (True, "ready", 20)
    assert first["mmap_file"] == os.environ["DSMEM_ROOT"] and first["mmap_size_mb"] > 0
    run("server", "restart")
    second = server_status()
    assert second["pid"] != first["pid"] and [one["name"] for one in second["datasets"]] == ["rows"]
    shared: Any = dsmem.load_dataset("rows")
    assert shared.dsmem_source == "shared"
    run("server", "stop")
    stopped = server_status()
    assert (stopped["running"], stopped["pid"], stopped["status"]) == (False, None, "stopped")


def test_sample_limit_of_the_server(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--sample-limit N`, SHARED_DATASET_SAMPLE_LIMIT → the same, DSMEM_SAMPLE_LIMIT."""
    monkeypatch.setenv("SHARED_DATASET_SAMPLE_LIMIT", "7")
    run("server", "start", "--dataset", f"seven={server}")
    run("server", "start", "--dataset", f"five={server}", "--sample-limit", "5")
    monkeypatch.setenv("DSMEM_SAMPLE_LIMIT", "6")
    run("server", "add", f"six={server}")
    assert {one["name"]: one["rows"] for one in server_status()["datasets"]} == {"seven": 7, "five": 5, "six": 6}
    run("server", "stop")


def test_mmap_file(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--mmap-file`, SHARED_DATASET_MMAP_FILE → `--data-dir`, DSMEM_DATA_DIR: a directory; a file there is an error."""
    run("server", "start", "--mmap-file", str(server), code=2)
    run("server", "start", "--mmap-file", str(tmp_path / "data"), "--dataset", f"rows={server}")
    assert server_status()["mmap_file"] == str(tmp_path / "data")
    monkeypatch.setenv("SHARED_DATASET_MMAP_FILE", str(tmp_path / "data"))
    shared: Any = dsmem.load_dataset("rows")
    assert (shared.dsmem_source, shared["train"].num_rows) == ("shared", 20)
    run("server", "stop")
    assert [one["state"] for one in server_status()["datasets"]] == ["published"]


def test_pid_file_and_log(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--pid-file`, SHARED_DATASET_PID_FILE, `/tmp/shared_dataset_server.log` → `--pid-file`, `--log-file`."""
    monkeypatch.setenv("SHARED_DATASET_PID_FILE", str(tmp_path / "old.pid"))
    run("server", "start", "--log-file", str(tmp_path / "my.log"))
    assert int((tmp_path / "old.pid").read_text()) == server_status()["pid"]
    assert "serves" in (tmp_path / "my.log").read_text()
    run("server", "stop")
    assert not (tmp_path / "old.pid").exists()
    run("server", "start")
    assert (tmp_path / "state" / "dsmem").is_dir()
    run("server", "stop")


def test_server_timeout(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SHARED_DATASET_TIMEOUT, `dataset.shared_memory.server_timeout` → DSMEM_TIMEOUT, 30 s."""
    from dsmem.config.resolve import resolve

    assert resolve().timeout_s.value == 30.0
    (tmp_path / "dsmem.yaml").write_text("dataset: {shared_memory: {server_timeout: 12}}\n")
    monkeypatch.setenv("DSMEM_CONFIG", str(tmp_path / "dsmem.yaml"))
    assert resolve().timeout_s.value == 12.0
    monkeypatch.setenv("SHARED_DATASET_TIMEOUT", "11")
    assert "timeout_s\t11.0\tSHARED_DATASET_TIMEOUT" in run("server", "status", "--verbose", code=3)


def test_auto_start(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto_start` (YAML) → the same, DSMEM_AUTO_START, false: a client starts the server that is not there."""
    plain: Any = dsmem.load_dataset("json", data_files=str(server), split="train")
    assert plain.dsmem_source == "loaded" and not server_status()["running"]
    (tmp_path / "dsmem.yaml").write_text("dataset: {shared_memory: {auto_start: true}}\n")
    monkeypatch.setenv("DSMEM_CONFIG", str(tmp_path / "dsmem.yaml"))
    shared: Any = dsmem.load_dataset("json", data_files=str(server), split="train")
    assert shared.dsmem_source == "shared" and shared.to_list() == plain.to_list()
    assert server_status()["running"]
    run("server", "stop")


@pytest.fixture
def robots(tmp_path: Path) -> list[Path]:
    """Two episodes in the layout of ALOHA, gzip."""
    return [write_aloha(tmp_path / f"episode_{n}.hdf5", steps=6 + n, seed=n, **GZIP) for n in range(2)]


def test_flags_of_training_scripts(h5: Path) -> None:
    """`--shared_memory`, `--preload`, `--cleanup_shm`, `--num_workers`, `--h5` → the same, from `add_arguments`."""
    parser = training.add_arguments(argparse.ArgumentParser())
    args = parser.parse_args(["--h5", str(h5)])
    assert (args.shared_memory, args.preload, args.cleanup_shm, args.num_workers) == (False, True, False, 4)
    assert training.open_from_args(args).source == "preloaded"
    args = parser.parse_args(["--h5", str(h5), "--shared_memory", "--preload", "--num_workers", "2"])
    with training.open_from_args(args) as file:
        assert (file.source, args.num_workers) == ("pinned", 2)
    with pytest.raises(SystemExit) as ended:
        training.open_from_args(parser.parse_args(["--h5", str(h5), "--cleanup_shm"]))
    assert ended.value.code == 0 and run("shm", "ls").splitlines()[1:] == []


def test_optimized_episodic_dataset(robots: list[Path]) -> None:
    """`OptimizedEpisodicDataset`, `OptimizedDataset` → `EpisodicDataset`; `memory_map_cache_size` is `cache_size`."""

    class Mine(training.OptimizedEpisodicDataset):
        def get_language_instruction(self) -> str:
            return "fold the towel"

        def _fallback_load_onestep(self, dataset_path: str, start_ts: int) -> Any:
            return dataset_path, start_ts

    assert training.OptimizedDataset is training.OptimizedEpisodicDataset is training.EpisodicDataset
    dataset = Mine(robots, CAMERAS, use_shared_memory=True, memory_map_cache_size=50)
    check_aloha(dataset, robots)
    assert dataset[3]["language_instruction"] == "fold the towel"
    assert Mine(robots, CAMERAS)._ways.open_files == schema.MemoryMapping().cache_size == 100


def test_memory_mapped_hdf5_and_shared_memory_manager(h5: Path) -> None:
    """`MemoryMappedHDF5` → `dsmem.File`; `SharedMemoryManager` → the store."""
    with training.MemoryMappedHDF5(h5) as file:
        assert file.source == "mapped"
    manager = training.SharedMemoryManager()
    name = manager.pin(h5).name
    assert [one.name for one in manager.list()] == [name]
    assert manager.cleanup(h5).removed == (name,)


def test_sections_of_the_configuration(robots: list[Path]) -> None:
    """`memory_mapping`, `shared_memory`, `dataloader` of dsmem.yaml → the same, with the constructors' defaults."""
    mapping, sharing, loading = schema.MemoryMapping(), schema.SharedMemory(), schema.Dataloader()
    assert (mapping.enabled, mapping.cache_size) == (True, 100)
    assert (sharing.enabled, sharing.preload_critical_data) == (True, True)
    options = dataclasses.asdict(loading)
    assert options == {"num_workers": 4, "pin_memory": True, "persistent_workers": True, "prefetch_factor": 2}
    ours = inspect.signature(training.create_optimized_dataloader).parameters
    assert {name: ours[name].default for name in options} == options
    taken = inspect.signature(training.EpisodicDataset.__init__).parameters
    assert taken["use_shared_memory"].default is sharing.enabled
    assert taken["memory_mapping"].default is mapping.enabled
    assert taken["preload_critical_data"].default is sharing.preload_critical_data


def test_create_optimized_dataloader(robots: list[Path]) -> None:
    """`create_optimized_dataloader(paths, cameras, batch_size, num_workers, use_distributed)` → the same."""
    loader, dataset = training.create_optimized_dataloader(robots, CAMERAS, 4, 0)
    steps = sorted(
        place for batch in loader for place in zip(batch["episode"].tolist(), batch["step"].tolist(), strict=True)
    )
    assert steps == [(0, step) for step in range(6)] + [(1, step) for step in range(7)]
    assert isinstance(dataset, training.EpisodicDataset)
    ranked, _ = training.create_optimized_dataloader(robots, CAMERAS, 4, 0, use_distributed=True, rank=0, world_size=2)
    ranked.set_epoch(1)
    assert sum(len(batch["step"]) for batch in ranked) == 7


def test_print_performance_report(robots: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """`enable_monitoring=True`, `print_performance_report()` → the same; also `get_performance_report()`, a dict."""
    dataset = training.EpisodicDataset(robots, CAMERAS, enable_monitoring=True)
    check_aloha(dataset, robots)
    dataset.print_performance_report()
    shown = capsys.readouterr().out
    assert "pinned" in shown and "p99" in shown and f"process {os.getpid()}: PSS" in shown
    pinned = next(one for one in dataset.get_performance_report()["sources"] if one["source"] == "pinned")
    assert pinned["reads"] == 4 * len(dataset) and pinned["p99_s"] > 0


def test_auto_optimize_dataset(robots: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto_optimize_dataset(...) -> (config, analysis)`, `DatasetOptimizer` → the same, in `dsmem.tune`."""
    config, analysis = tune.auto_optimize_dataset(dataset_paths=robots, camera_names=CAMERAS, batch_size=2)
    assert set(config["optimization"]).isdisjoint({"dataset_path_list", "camera_names", "use_shared_memory"})
    sharing = config["shared_memory"]["enabled"]
    check_aloha(training.EpisodicDataset(robots, CAMERAS, sharing, **config["optimization"]), robots)
    assert analysis["system"]["cpus"] >= 1 and analysis["recommendation"]["reasons"]
    monkeypatch.setattr(sampling, "handed_over_s", lambda *_, **__: 0.01)  # once is enough
    optimizer = tune.DatasetOptimizer(robots, CAMERAS, 2)
    assert optimizer.analyze_system().memory_bytes > 0 and optimizer.analyze_datasets().episodes == 2
    assert optimizer.optimize().settings.as_config().keys() == config.keys() and "because" in optimizer.report()


def test_presets_and_yaml(robots: list[Path], tmp_path: Path) -> None:
    """Presets small, medium, large, xlarge; `memory_mapping`, `shared_memory`, `dataloader` as YAML."""
    path = tmp_path / "dsmem.yaml"
    for name in ("small", "medium", "large", "xlarge"):
        run("tune", "--preset", name, "-o", str(path))
        assert tune.read_config(path) == tune.PRESETS[name].as_config()
    run("tune", *map(str, robots), "--batch-size", "2", "-o", str(path))
    found = schema.read(str(path))
    assert found.memory_mapping.enabled and found.dataloader.prefetch_factor >= 1


def test_train_with_shm() -> None:
    """`train_with_shm.sh` → `examples/train_with_shm.sh`; `tests/training/test_arguments.py` runs it."""
    script = Path(__file__).parents[1] / "examples" / "train_with_shm.sh"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.count("--shared-memory --loss") == 2 and text.count("wait ") == 2 and "--cleanup-shm" in text
