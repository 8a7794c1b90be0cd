"""One setting tried for real, in a process of its own as a training script would be: `python -m dsmem.tune.trial`.

It reads a request, a line of JSON, from stdin, opens the loader, answers with a line on stdout, and then makes a pass
over all batches for each further line. It ends with its stdin. With "spare" in the request it removes then what was
pinned of the files and has no such name, unless another process holds it: also when its parent was killed.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TextIO

from dsmem import stopping


def main() -> None:
    """Serve one parent."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    request = json.loads(sys.stdin.readline())
    from dsmem.errors import DsmemError

    code: int | str | None = 0
    with stopping.raised():
        try:
            serve(request, answers)
        except (DsmemError, OSError, RuntimeError, MemoryError) as exc:
            code = 1
            with suppress(BrokenPipeError):  # its parent was killed
                _answer(answers, {"error": _said(exc)})
        except SystemExit as exc:
            code = exc.code
    if request["spare"] is not None:
        gc.collect()  # loader, workers and leases are gone
        from dsmem.tune import trials

        trials.remove_pinned(request["paths"], request["spare"])
    with suppress(BrokenPipeError):
        answers.close()
    sys.exit(code)


def _said(exc: Exception) -> str:
    """An error in a line: of a traceback from a worker, the error it ends with."""
    lines = [line for line in str(exc).splitlines() if line.strip()] or [""]
    text = lines[-1] if lines[0].startswith("Caught ") else " ".join(lines)
    return " ".join(f"{type(exc).__name__}: {text}".split())


def serve(request: dict[str, Any], answers: TextIO) -> None:
    """Open what is asked for, then a pass a line."""
    import torch

    from dsmem.training import create_optimized_dataloader

    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than CPUs are tried, too
    torch.set_num_threads(1)  # what copies a batch to a GPU is one thread
    began = time.perf_counter()
    loader, dataset = create_optimized_dataloader(
        request["paths"],
        request["cameras"],
        request["batch_size"],
        dataset_kwargs=request["dataset"],
        **request["loader"],
        **({} if request["steps"] is None else {"shuffle": False, "sampler": request["steps"]}),
    )
    opened_s = time.perf_counter() - began
    _answer(answers, {"opened_s": opened_s, "batches": len(loader), "objects": list(dataset.pinned_objects)})
    taken: dict[tuple[Any, ...], torch.Tensor] = {}
    for line in sys.stdin:
        began = time.perf_counter()
        batches, mark = 0, 0
        for batch in loader:
            batches += 1
            for tensor in _tensors(batch):
                # Every byte is read once, as by a copy to the GPU.
                taken.setdefault((tensor.shape, tensor.dtype), torch.empty_like(tensor)).copy_(tensor)
            time.sleep(request["step_s"])
            if line.startswith("check"):
                mark += sum(_mark(batch, at) for at in range(len(batch["step"])))
        elapsed_s = time.perf_counter() - began
        _answer(answers, {"batch_s": elapsed_s / batches, "mark": mark % (1 << 32)})


def _tensors(batch: dict[str, Any]) -> Iterator[Any]:
    yield from batch["images"].values()
    yield from (batch["state"], batch["action"])


def _mark(batch: dict[str, Any], at: int) -> int:
    """A number that tells a sample from others, and adds up to the same in any order."""
    where = (int(batch["episode"][at]), int(batch["step"][at]))
    mark = zlib.crc32(repr(where).encode())
    for tensor in _tensors(batch):
        mark = zlib.crc32(tensor[at].contiguous().numpy().tobytes(), mark)
    return mark


def _answer(answers: TextIO, what: dict[str, Any]) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
