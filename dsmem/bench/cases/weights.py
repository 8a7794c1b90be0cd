"""safetensors and torch files, warm, into new memory: the part of `dsmem bench ckpt` that other loaders do as well.

Memory that was freed goes back to the system in between, as for a process that loads its weights once. The limits read
the same bytes into memory that torch makes, with a thread for each CPU, and know beforehand where they lie. Theirs is
in pages of 4 KiB: the kernel hands out those that the contender before has freed. dsmem asks for huge pages: they come
from memory that has lain idle, in a virtual machine maybe from the host first, and then it goes on without them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dsmem import parallel, proc, units
from dsmem.bench import heap
from dsmem.bench.harness import Comparison, Contender
from dsmem.bench.peer import Peer, Serving
from dsmem.bench.peers import load_weights
from dsmem.bench.workbench import Workbench

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

SHARDS = 4
_TENSOR_BYTES = 16 << 20
_FEWEST = 16
_BLOCK_BYTES = 8 << 20
Places = Sequence[tuple[str, int, int]]
"""File, offset, bytes of each tensor."""


def compare(bench: Workbench, size_bytes: int, peers: Sequence[Peer]) -> Generator[Comparison]:
    """One safetensors file, several, and a torch file."""
    import torch

    from dsmem import checkpoint

    count = max(_FEWEST, size_bytes // _TENSOR_BYTES)
    each = max(1, size_bytes // count // 4)
    generator = torch.Generator().manual_seed(0)
    state = {f"layers.{number}.weight": torch.rand(each, generator=generator) for number in range(count)}
    expected = {"": load_weights.digest(state)}
    place = bench.new_file("weights")
    place.mkdir()
    try:
        path = place / "model.pt"
        torch.save(state, path)
        del state
        checkpoint.convert(path, place / "model.safetensors")
        shard_bytes = -(-count // SHARDS) * each * 4
        checkpoint.convert(path, place / "shards", to="safetensors", max_shard=shard_bytes)
        told = units.format_bytes(count * each * 4)
        for source, title in (
            (place / "model.safetensors", "one safetensors file"),
            (place / "shards", f"{SHARDS} safetensors files"),
            (path, "a torch file"),
        ):
            with ExitStack() as stack:
                stack.enter_context(heap.given_back())
                contenders = _contenders(bench, source)
                if source != path:
                    files = sorted(source.glob("*.safetensors")) if source.is_dir() else [source]
                    contenders += [_beside(stack, peer, files) for peer in peers]
                yield Comparison(f"{title}, {told}, warm, new memory", count * each * 4, contenders, expected=expected)
    finally:
        shutil.rmtree(place)


def _contenders(bench: Workbench, path: Path) -> list[Contender]:
    from dsmem import checkpoint

    def contender(name: str, load: Callable[[], Tensors]) -> Contender:
        ours = name.startswith("dsmem")
        return Contender(name, "dsmem" if ours else "recipe", lambda _: load(), answer=load_weights.digest)

    found = [contender("dsmem.checkpoint.load", lambda: checkpoint.load(path))]
    if path.suffix == ".pt":
        found.append(contender("torch.load", partial(_torch, path)))
        found.append(contender("torch.load(mmap=True), clone", partial(_torch_mapped, path)))
    else:
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        try:
            import safetensors.torch
        except ImportError:
            bench.note("ckpt: safetensors is left out, pip install safetensors adds it")
        else:

            def stock() -> Tensors:
                # Its tensors are the mapped file: a copy is what leaves none of them to be read later.
                some = [safetensors.torch.load_file(file) for file in files]
                return {name: tensor.clone() for one in some for name, tensor in one.items()}

            found.append(contender("safetensors load_file, clone", stock))
    contents = checkpoint.contents(path)
    places = [(os.path.join(contents.directory, one.file), one.offset, one.size_bytes)
              for entry in contents.tensors for one in entry.parts]  # fmt: skip
    names = [entry.name for entry in contents.tensors]
    for name, way in (("pread into new memory, threads", _pread), ("mmap + copy, threads", _mapped)):
        run = partial(_limit, way, names, places)
        found.append(Contender(name, "limit", run, answer=load_weights.digest))
    return found


def _torch(path: Path) -> Tensors:
    import torch

    loaded: Tensors = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def _torch_mapped(path: Path) -> Tensors:
    import torch

    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return {name: tensor.clone() for name, tensor in loaded.items()}


def _beside(stack: ExitStack, peer: Peer, files: Sequence[Path]) -> Contender:
    serving = Serving(peer, files)
    stack.callback(serving.close)
    return Contender(peer.name, "recipe", lambda _: serving.load(), answer=lambda _: serving.digest())


def _limit(way: Callable[[Places], Sequence[torch.Tensor]], names: Sequence[str], places: Places, _: object) -> Tensors:
    import torch

    return {name: one.view(torch.float32) for name, one in zip(names, way(places), strict=True)}


def _pread(places: Places) -> list[torch.Tensor]:
    with ExitStack() as stack:
        fds = {file: stack.enter_context(Path(file).open("rb", buffering=0)).fileno() for file, _, _ in places}

        def read(target: torch.Tensor, file: str, offset: int, size_bytes: int) -> None:
            view = target.numpy().data
            for start in range(0, size_bytes, _BLOCK_BYTES):
                os.preadv(fds[file], [view[start : start + _BLOCK_BYTES]], offset + start)

        return _into_new_memory(places, read)


def _mapped(places: Places) -> list[torch.Tensor]:
    maps: dict[str, tuple[mmap.mmap, int]] = {}
    for file, _, _ in places:
        if file not in maps:
            with Path(file).open("rb") as opened:
                mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
            maps[file] = mapped, ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    return _into_new_memory(
        places,
        lambda target, file, offset, size_bytes: ctypes.memmove(target.data_ptr(), maps[file][1] + offset, size_bytes),
    )


def _into_new_memory(places: Places, bring: Callable[[torch.Tensor, str, int, int], object]) -> list[torch.Tensor]:
    import torch

    made = [torch.empty(size_bytes, dtype=torch.uint8) for _, _, size_bytes in places]

    def work(number: int) -> None:
        bring(made[number], *places[number])

    parallel.run((partial(work, number) for number in range(len(places))), proc.usable_cpus())
    return made
