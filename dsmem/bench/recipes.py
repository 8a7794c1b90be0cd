"""What people write today, without dsmem: the plain code that every case is compared with.

It is meant to be read and to be fair: what a careful user would write, no slower and no cleverer.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def md5_of_file(path: str) -> str:
    """The MD5 of a file, read in blocks of 1 MiB."""
    digest = hashlib.md5()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def preload(path: str, names: Iterable[str]) -> dict[str, Array]:
    """Every dataset as an array of this process: what a Dataset with `--preload` does when it starts."""
    with h5py.File(path, "r") as file:
        return {name: np.asarray(file[name][...]) for name in names}


def pin(path: str, names: Iterable[str]) -> tuple[str, dict[str, tuple[SharedMemory, Array]]]:
    """Share a file by hand: its MD5 names it, h5py reads each dataset, a copy goes into a segment of its own.

    The segments are the caller's to close and unlink.
    """
    digest = md5_of_file(path)
    shared = {}
    with h5py.File(path, "r") as file:
        for name in names:
            data = np.asarray(file[name][...])
            segment = SharedMemory(create=True, size=max(1, data.nbytes))
            array: Array = np.ndarray(data.shape, data.dtype, buffer=segment.buf)
            array[...] = data
            shared[name] = segment, array
    return digest, shared


def read_direct_into(memory: mmap.mmap, path: str, name: str) -> Array:
    """One dataset, read by h5py straight into memory that others can map: the least that h5py can do."""
    with h5py.File(path, "r") as file:
        dataset = file[name]
        array = np.frombuffer(memory, dataset.dtype).reshape(dataset.shape)
        dataset.read_direct(array)
    return array


def read_one_element(path: str, name: str) -> Any:
    """Open the file, read one element, close it."""
    with h5py.File(path, "r") as file:
        dataset = file[name]
        return dataset[(0,) * dataset.ndim]


def load_and_read_one_element(path: str, names: Sequence[str], name: str) -> Any:
    """Load everything into memory, then read one element: the start of a training process that preloads."""
    array = preload(path, names)[name]
    return array[(0,) * array.ndim]


def read_samples(dataset: Any, indices: Sequence[int], batch: Array) -> Array:
    """Random samples into a batch, one by one, as a DataLoader's workers do; `dataset` is anything that is indexed."""
    for place, index in enumerate(indices):
        batch[place] = dataset[index]
    return batch


def prepare(text: str, tokenizer: str, end: int, place: Path, processes: int | None) -> tuple[Path, Array]:
    """nanoGPT's data/openwebtext/prepare.py for a .jsonl: `datasets.map`, then a memmap filled shard by shard.

    Each document is encoded by itself, as `enc.encode_ordinary` does there, and gets an end of text. All is written
    below `place`. Returns the .bin of uint16 and the length of each document.
    """
    from datasets import Dataset, disable_progress_bars
    from tokenizers import Tokenizer

    disable_progress_bars()
    encoder = Tokenizer.from_file(tokenizer)

    def process(example: dict[str, Any]) -> dict[str, Any]:
        encoder.encode_special_tokens = True  # what looks like one is text; pickled for a process, it forgets that
        ids = encoder.encode(example["text"], add_special_tokens=False).ids
        ids.append(end)
        return {"ids": ids, "len": len(ids)}

    split = Dataset.from_json(text, cache_dir=str(place / "cache"))
    tokenized = split.map(process, remove_columns=["text"], num_proc=processes)
    lengths = np.asarray(tokenized.with_format("numpy")["len"])
    path = place / "train.bin"
    array = np.memmap(path, np.uint16, "w+", shape=(int(lengths.sum()),))
    total_batches = min(1024, len(tokenized) // 1000 + 1)  # 1024 there; for few documents more would only cost
    at = 0
    for number in range(total_batches):
        shard = tokenized.shard(num_shards=total_batches, index=number, contiguous=True).with_format("numpy")
        ids = np.concatenate(shard["ids"][:])
        array[at : at + len(ids)] = ids
        at += len(ids)
    array.flush()
    return path, lengths


def planned_read(reader: Any, state: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """What `dcp.load(state, storage_reader=reader)` does up to reading; calling the result reads into `state`."""
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

    metadata = reader.read_metadata()
    planner = DefaultLoadPlanner()
    planner.set_up_planner(state, metadata, True)
    reader.set_up_storage_reader(metadata, True)
    plan = reader.prepare_local_plan(planner.create_local_plan())

    def read() -> dict[str, Any]:
        reader.read_data(plan, planner).wait()
        return state

    return read


def load_rows(pattern: str, cache: str, *, keep_in_memory: bool = False) -> Any:
    """Rows of jsonl files, as a training script loads them; from the cache when it is there."""
    from datasets import load_dataset

    return load_dataset("json", data_files=pattern, split="train", cache_dir=cache, keep_in_memory=keep_in_memory)


def load_saved(directory: str) -> Any:
    """What was saved by `Dataset.save_to_disk`."""
    from datasets import load_from_disk

    return load_from_disk(directory)
