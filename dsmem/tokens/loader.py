"""`TokenLoader`: batches straight from the map, without a DataLoader, in an order that a state resumes exactly."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from operator import index
from typing import Any, Literal, TypeAlias

import torch

from dsmem.errors import UsageError
from dsmem.tokens.arguments import need_whole
from dsmem.tokens.batches import Batch, PackReader, Reader, WindowReader
from dsmem.tokens.dataset import Paths, check_rank, numpy_dtype
from dsmem.tokens.layout import TokenDtype
from dsmem.tokens.mixture import Mixture
from dsmem.tokens.opening import open_all
from dsmem.tokens.order import InEpochs, Order, Share, Step, mapping_of
from dsmem.tokens.packing import Packing
from dsmem.tokens.windows import Windows

_log = logging.getLogger(__name__)

Documents: TypeAlias = Literal["ignore", "within", "mark", "pack"]
_STATE = 1
_Made: TypeAlias = list[tuple[Batch, Any]]
"""Batches that were read together, each with the position after it."""


class TokenLoader:
    """Iterates over batches `(x, y)` of [batch_size, seq_len], y one token ahead, to the end of the epoch.

    Every window is read once an epoch: one each `stride` tokens (default seq_len: no overlap), shuffled by seed and
    epoch in constant memory. Opening, shuffling and resuming cost the same for any size.

    State: `state_dict()` is the place after the last batch that was handed out, counted in samples of all ranks, and
    the same on every rank. `load_state_dict` goes on exactly there, with any other `rank`, `world_size`, `batch_size`
    and `prefetch`. `for` after `break` goes on in the same epoch. A loader has one iterator: a new one, a state that is
    loaded, and a fork end the one before, whose next batch is a UsageError. Every rank gets the same number of batches:
    what is left at the end of an epoch (less than a step; with drop_last=False, less than one sample a rank) is left
    out.

    Who owns a batch: you, for ever, unless `buffers` is given. With `buffers=k` the memory is made once an epoch
    (pinned, with `pin_memory`) and used in turns: the last k batches that you got are whole, older ones overwritten.

    Small batches are read together, by blocks of 4 MiB. With `prefetch=n` n threads read n blocks ahead: worth it where
    the file is not in memory, or where a step of training takes longer than reading its batch and leaves a CPU idle.
    A loop that does next to nothing with a batch is slower with it: what another CPU wrote has to come over.

    Documents: "ignore" (windows run over ends), "within" (windows cross no end; what is too short is left out), "mark"
    (as "ignore", with `batch.cu_seqlens`, `.position_ids`, `.max_seqlen` for packed attention), "pack" (whole documents
    by best fit, see `dsmem.tokens.packing`; also with these; y is -100 at the end of a document and in the padding).

    `weights` mixes several files, each with a cursor and epochs of its own; then no iteration ends. Weights, and
    files, may be others at a resume.

    Ids come as `dtype`: torch.int64, int32, or uint16 for files of uint16, to be widened elsewhere (`Batch.to`).
    rank and world_size are torch.distributed's where it is initialised, else 0 and 1. Not for two threads at once.
    Raises SourceMissing, BadSource, UsageError.
    """

    def __init__(
        self,
        path: Paths,
        batch_size: int,
        seq_len: int,
        *,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        shuffle: bool = True,
        stride: int | None = None,
        weights: Sequence[float] | None = None,
        documents: Documents = "ignore",
        pad_id: int = 0,
        token_dtype: TokenDtype | None = None,
        dtype: torch.dtype = torch.int64,
        pin_memory: bool = False,
        buffers: int | None = None,
        prefetch: int = 0,
        drop_last: bool = True,
    ) -> None:
        need_whole(batch_size=batch_size, seq_len=seq_len, stride=stride, prefetch=prefetch, buffers=buffers, seed=seed)
        batch_size, seq_len, seed = index(batch_size), index(seq_len), index(seed)  # numpy's are not fit for JSON
        stride = None if stride is None else index(stride)
        if batch_size < 1 or prefetch < 0 or (buffers is not None and buffers < 1):
            raise UsageError(f"batch_size={batch_size}, buffers={buffers}, prefetch={prefetch}: at least 1, 1 and 0")
        if documents not in ("ignore", "within", "mark", "pack"):
            raise UsageError(f"documents={documents!r} means nothing; it is 'ignore', 'within', 'mark' or 'pack'")
        rank, world_size = _ranks(rank, world_size)
        share = Share(batch_size, rank, world_size, drop_last)
        files = open_all(path, token_dtype=token_dtype)
        every = seq_len if stride is None else stride
        self._order: Order[Any]
        self._reader: Reader[Any]
        if documents == "pack":
            if weights is not None or stride is not None:
                raise UsageError("documents='pack' has neither weights nor a stride")
            self._order = Packing(files, seq_len, share, seed=seed, shuffle=shuffle)
            self._reader = PackReader(files, seq_len, pad_id=pad_id)
            if numpy_dtype(dtype, files) == "uint16":
                raise UsageError("dtype=torch.uint16 can't hold the targets that documents='pack' marks with -100")
        else:
            within = documents == "within"
            windows = Windows(files, seq_len, every, within_documents=within, in_threads=prefetch > 0)
            numpy_dtype(dtype, files)
            self._reader = WindowReader(windows, mark=documents == "mark")
            if weights is None:
                self._order = InEpochs(windows.count, share, seed=seed, shuffle=shuffle)
                if not self._order.steps_an_epoch():
                    step = f"one step of {batch_size} for each of {world_size} ranks"
                    helps = "; drop_last=False takes what there is" if drop_last else ""
                    raise UsageError(f"{windows.count} windows are not {step}{helps}")
            else:
                paths = [file.path for file in files]
                self._order = Mixture(paths, windows.offsets, weights, share, seed=seed, shuffle=shuffle)
        self._about = {"seq_len": seq_len, "stride": every, "documents": documents, **self._order.about()}
        self._batch_size, self._dtype = batch_size, dtype
        self._pinned = pin_memory and _can_pin()
        self._buffers, self._prefetch = buffers, prefetch
        self._turn = 0
        """Of iterations and of places that were told: an iterator of an earlier one has ended."""
        self._at_once = self._reader.steps_at_once(batch_size)

    def __len__(self) -> int:
        """Batches of a whole epoch; raises TypeError for mixtures and packed documents, whose number is not known."""
        steps = self._order.steps_an_epoch()
        if steps is None:
            raise TypeError("the number of batches is not known: a mixture never ends, packing tells it at the end")
        return steps

    def __iter__(self) -> Iterator[Batch]:
        self._turn += 1
        mine = (self._turn, os.getpid())
        made = self._made_ahead() if self._prefetch else self._made()
        try:
            for block in made:
                for batch, after in block:
                    self._order.move(after)
                    yield batch
                    if mine != (self._turn, os.getpid()):
                        raise UsageError("the loader was told another place, or iterated anew or forked: iterate anew")
        finally:
            made.close()
        self._order.next_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, fit for JSON: some hundred bytes, the same on every rank."""
        return {"dsmem_token_loader": _STATE, "order": self._order.kind, "about": dict(self._about)} | {
            "position": self._order.position()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where the state was saved; raises UsageError where its samples are not the samples of this loader."""
        if not isinstance(state, Mapping) or state.get("dsmem_token_loader") != _STATE:
            raise UsageError("not the state of a TokenLoader")
        told = {"order": self._order.kind, **self._about}
        saved = {"order": state.get("order"), **mapping_of(state, "about")}
        for name in dict.fromkeys((*told, *saved)):
            if told.get(name) != saved.get(name):
                raise UsageError(f"the state is of {name}={saved.get(name)!r}, this loader has {told.get(name)!r}")
        self._order.restore(mapping_of(state, "position"))
        self._turn += 1

    def set_epoch(self, epoch: int) -> None:
        """Stand at the start of that epoch; a mixture has none."""
        if isinstance(self._order, Mixture):
            raise UsageError("a mixture has no epochs: each of its files has its own")
        self._order.restore({"epoch": index(epoch), "group": 0, "consumed": 0})
        self._turn += 1

    def _made(self) -> Generator[_Made]:
        memory = self._memory(ahead=0)
        for steps in self._blocks():
            yield self._read(steps, memory())

    def _blocks(self) -> Iterator[list[Step[Any]]]:
        """Steps to read together: one, then two, then four, so that the first batch waits for no other.

        In a ring every block is as large as the last, for its count of blocks is one of batches.
        """
        steps = self._order.steps()
        count = 1 if self._buffers is None else self._at_once
        while block := list(islice(steps, count)):
            yield block
            count = min(2 * count, self._at_once)

    def _read(self, steps: Sequence[Step[Any]], memory: torch.Tensor) -> _Made:
        batches = self._reader.read([step.work for step in steps], memory)
        return [(batch, step.after) for batch, step in zip(batches, steps, strict=True)]

    def _made_ahead(self) -> Generator[_Made]:
        """The same, some blocks ahead, each by a thread."""
        memory = self._memory(ahead=self._prefetch)
        with ThreadPoolExecutor(self._prefetch, "dsmem-tokens") as threads:
            waiting: deque[Future[_Made]] = deque()
            try:
                for steps in self._blocks():
                    waiting.append(threads.submit(self._read, steps, memory()))
                    if len(waiting) > self._prefetch:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for one in waiting:
                    one.cancel()

    def _memory(self, ahead: int) -> Callable[[], torch.Tensor]:
        """Memory for the next block: new, or the next of the ring, which has room for what may still be looked at."""
        shape = self._reader.shape(self._batch_size * self._at_once)
        if self._buffers is None:
            return lambda: torch.empty(shape, dtype=self._dtype, pin_memory=self._pinned)
        count = ahead + 1 + -(-(self._buffers - 1) // self._at_once)
        ring = [torch.empty(shape, dtype=self._dtype, pin_memory=self._pinned) for _ in range(count)]

        def turn() -> torch.Tensor:
            ring.append(ring.pop(0))
            return ring[-1]

        return turn


def _ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise UsageError("rank and world_size belong together")
    if rank is None or world_size is None:
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return 0, 1
        rank, world_size = distributed.get_rank(), distributed.get_world_size()
    check_rank(rank, world_size)
    return rank, world_size


def _can_pin() -> bool:
    if torch.accelerator.is_available():
        return True
    _log.warning("pin_memory: there is no accelerator here; done without")
    return False
