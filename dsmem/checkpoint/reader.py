"""The storage reader for torch.distributed.checkpoint that stands wherever FileSystemReader stands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import IO, Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future

from dsmem.checkpoint import metadata as records
from dsmem.checkpoint import reading, stock, unpickling
from dsmem.checkpoint.direct import Verify
from dsmem.checkpoint.opened import Io
from dsmem.checkpoint.options import Options
from dsmem.checkpoint.reading import FilesProgress
from dsmem.checkpoint.report import ReadReport
from dsmem.checkpoint.stock import Executor, Hooks
from dsmem.checkpoint.workers import Workers


class ParallelReadMixin:
    """Gives `read_data` in parallel to a class that has `path`, `storage_data` and `fs`.

    A `fs` that is not torch's own FileSystem is read through `fs.create_stream`, in threads. Override `slice_file`,
    `narrow_tensor` or `transform` to replace that step: the items it touches are then read by torch's own code, with
    your step in it, and `last_report` says so.
    """

    path: Any
    storage_data: Any
    fs: Any
    read_options: Options = Options()
    progress: FilesProgress | None = None
    last_report: ReadReport | None = None
    """What the last read did; None before the first."""

    def slice_file(self, stream: Any, item_metadata: Any) -> Any:
        """The bytes of one item (`item_metadata.offset`, `.length`) as a seekable stream of their own."""
        older = getattr(type(self), "_slice_file", None)
        if older not in (None, FileSystemReader._slice_file):
            return older(self, stream, item_metadata)
        return stock.slice_file(stream, item_metadata)

    def narrow_tensor(self, tensor: torch.Tensor, offsets: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
        """The part of a stored tensor that is asked for."""
        return stock.narrow_tensor(tensor, offsets, lengths)

    def transform(self, read_item: Any, descriptors: Sequence[str], stream: IO[bytes]) -> IO[bytes]:
        """Undo what extensions did when the item was saved."""
        transforms = getattr(self, "transforms", None)
        if transforms is None:
            return stream
        undone: IO[bytes] = transforms.transform_load_stream(read_item, descriptors, stream)
        return undone

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read every item of the plan. Raises CheckpointReadError, once, for all that failed."""
        return self.read_data_with_progress(plan, planner, self.progress)

    def read_data_with_progress(
        self, plan: LoadPlan, planner: LoadPlanner, progress_callback: FilesProgress | None
    ) -> Future[None]:
        """`read_data`; the callback gets (files done, files in all), in this thread."""
        options, hooks = self.read_options, self._hooks()
        if options.executor == "process":
            stock.check_picklable(
                [("progress_callback", progress_callback)]
                + [(name, getattr(hooks, name)) for name in ("slice_file", "narrow_tensor", "transform", "fs")]
            )

        def keep(report: ReadReport) -> None:
            self.last_report = report

        reading.read(
            self.path,
            self.storage_data,
            plan.items,
            planner,
            hooks=hooks,
            options=options,
            progress=progress_callback,
            report=keep,
        )
        done: Future[None] = Future()
        done.set_result(None)
        return done

    read_data_parallel = read_data
    read_data_parallel_v2 = read_data

    def __getstate__(self) -> dict[str, Any]:
        # Steps that are methods are sent to other processes with their reader, which need not be large for that.
        return {**self.__dict__, "storage_data": {}, "last_report": None, "progress": None}

    def _hooks(self) -> Hooks:
        own = [
            name
            for name in ("slice_file", "narrow_tensor", "transform")
            if name in vars(self) or getattr(type(self), name) is not getattr(ParallelReadMixin, name)
        ]
        transforms = getattr(self, "transforms", None)
        if transforms is not None and not stock.stock_transforms(transforms):
            own.append("transforms")
        # torch's own name for the step: a subclass of FileSystemReader may have replaced it before.
        sliced = getattr(type(self), "_slice_file", None)
        if sliced not in (None, FileSystemReader._slice_file) and "slice_file" not in own:
            own.append("slice_file")
        return Hooks(
            slice_file=self.slice_file if "slice_file" in own else stock.slice_file,
            narrow_tensor=self.narrow_tensor if "narrow_tensor" in own else stock.narrow_tensor,
            transform=self.transform if "transform" in own else stock.Transform(transforms),
            fs=self.fs,
            replaced=tuple(own),
        )


class ParallelFileSystemReader(ParallelReadMixin, FileSystemReader):
    """Reads a checkpoint of torch.distributed.checkpoint with every core; what it reads is what FileSystemReader reads.

    workers: threads, or "auto" (CPUs, memory, size). executor: where torch's own code runs for items that need it;
    direct reads are always threads, which hold no lock meanwhile. io: how bytes get to their places. verify: "crc"
    compares the saved checksums. memory_budget: bytes that planner and reader may take for destinations that the
    planner allocates when asked. sequential_below: smaller reads get one thread. fail_fast: stop at the first failure.
    trusted: unpickle `.metadata` and byte items without a list of what they may hold, and follow paths out of the
    directory. progress: called with (files done, files in all).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        workers: Workers = "auto",
        executor: Executor = "thread",
        io: Io = "auto",
        verify: Verify = "none",
        memory_budget: int | None = None,
        sequential_below: int = 32 << 20,
        enable_parallel: bool = True,
        progress: FilesProgress | None = None,
        fail_fast: bool = False,
        trusted: bool = False,
        _extension_registry: Any = None,
    ) -> None:
        super().__init__(path, _extension_registry)
        self.read_options = Options(
            workers=workers,
            executor=executor,
            io=io,
            verify=verify,
            memory_budget=memory_budget,
            sequential_below=sequential_below,
            parallel=enable_parallel,
            fail_fast=fail_fast,
            trusted=trusted,
        )
        self.progress = progress

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The metadata of the checkpoint, or with `rank=` of one rank. Raises UntrustedPickle, BadSource, OSError."""
        if self.read_options.trusted:
            return super().read_metadata(*args, **kwargs)
        path = self._get_metadata_path(kwargs.get("rank"))
        with self.fs.create_stream(path, "rb") as stream:
            found = unpickling.metadata(stream.read(), where=str(path))
        metadata = records.check(found, where=str(path))
        storage_meta = metadata.storage_meta = getattr(metadata, "storage_meta", None) or StorageMeta()
        storage_meta.load_id = self.load_id
        return metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """As FileSystemReader's: torch looks for the name `kwargs` in the signature. Raises BadSource."""
        if not self.read_options.trusted:
            records.check_dimensions(metadata, where=str(self._get_metadata_path()))
        super().set_up_storage_reader(metadata, is_coordinator, *args, **kwargs)


class ParallelFileReader(ParallelFileSystemReader):
    """The reader under an older name, with the older names of its options."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        enable_parallel: bool = True,
        max_workers: Workers | None = None,
        **options: Any,
    ) -> None:
        if max_workers is not None:
            options["workers"] = max_workers
        super().__init__(path, enable_parallel=enable_parallel, **options)
