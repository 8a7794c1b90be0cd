"""fastsafetensors and the Run:ai model streamer: safetensors loaded to memory of the CPU, as often as stdin asks.

`PYTHON -I load_weights.py TOOL --version` prints {"version": …}. With TOOL FILE… it imports the tool and prints
`ready`; to a line `load` it loads all files and prints `loaded`, to `digest` it prints the digest of what it loaded,
and drops it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

Tensors = dict[str, Any]
Loaded = tuple[Tensors, Callable[[], None]]
"""The tensors, and what lets go of the memory in which they lie."""


def digest(tensors: Mapping[str, Any]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of torch tensors, in the order of the names."""
    import torch

    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def fastsafetensors(files: Sequence[str]) -> Loaded:
    """As its README does for one process; the device is the CPU."""
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    loader = SafeTensorsFileLoader(SingleGroup(), "cpu", nogds=True)
    loader.add_filenames({0: list(files)})
    buffers = loader.copy_files_to_device()

    def close() -> None:
        buffers.close()
        loader.close()

    return {name: buffers.get_tensor(name) for name in loader.get_keys()}, close


def runai(files: Sequence[str]) -> Loaded:
    """As its README does."""
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_files(list(files))
        return dict(streamer.get_tensors()), lambda: None


LOADERS = {"fastsafetensors": (fastsafetensors, "fastsafetensors"), "runai": (runai, "runai-model-streamer")}


def main() -> None:
    """What the docstring of the module says."""
    load, package = LOADERS[sys.argv[1]]
    if sys.argv[2:] == ["--version"]:
        sys.stdout.write(json.dumps({"version": version(package)}) + "\n")
        return
    answers = sys.stdout
    sys.stdout = sys.stderr  # what a library says is no answer
    load(sys.argv[2:])[1]()  # imports, and threads that are started once
    answers.write("ready\n")
    answers.flush()
    tensors: Tensors = {}
    for line in sys.stdin:
        if line == "load\n":
            tensors, close = load(sys.argv[2:])
            answers.write("loaded\n")
        else:
            answers.write(digest(tensors) + "\n")
            tensors = {}
            close()
        answers.flush()


if __name__ == "__main__":
    main()
