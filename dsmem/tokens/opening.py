"""Opening a token file: what its ids are and where they begin, told without reading them; nothing is loaded.

The dtype is what `token_dtype` says, else the manifest, else Megatron's `.idx`, else the header of llm.c, else uint16.
A file whose size does not fit what was found is refused with the numbers, never cut or padded.
"""

from __future__ import annotations

import logging
import mmap
import os
import re
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, cast

import numpy as np

from dsmem.errors import BadSource, SourceMissing, UsageError
from dsmem.tokens import manifest as manifests
from dsmem.tokens.layout import IDX_CODES, IDX_MAGIC, IDX_VERSION, ITEM_BYTES, Beside, TokenDtype

_log = logging.getLogger(__name__)

Tokens = np.ndarray[Any, np.dtype[Any]]
Known = Literal["asked", "manifest", "idx", "header", "default"]
LLMC_HEADER_BYTES = 256 * 4
LLMC_VERSIONS: dict[tuple[int, int], TokenDtype] = {(20240520, 1): "uint16", (20240801, 7): "uint32"}
"""Magic and version of llm.c's data files, the first two int32 of a header of 256; the third is the count of tokens
(llm.c, dev/data/data_common.py, `write_datafile`)."""
_NO_IDS = {
    b"\x93NUMPY": "numpy's header (a .npy)",
    b"\x1f\x8b\x08": "the header of gzip",
    b"(\xb5/\xfd": "the header of zstd",
    b"PK\x03\x04": "that of a zip file",
    IDX_MAGIC: "that of a Megatron index",
}
_NPY_HEAD_BYTES = 4096
_NPY = re.compile(
    rb"\x93NUMPY(?:\x01\0(?P<length>..)|[\x02\x03]\0(?P<long>....))"
    rb"(?P<header>\{'descr': '<u8', 'fortran_order': (?:True|False), 'shape': \((?P<count>\d{1,18}),\), \})",
    re.DOTALL,
)
"""Magic, version, length of the header, and the header up to what fills it (numpy.lib.format)."""
_IDX_HEAD = struct.Struct("<9sQBQQ")


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A token file that was looked at. It holds nothing open; `map` opens it."""

    path: str
    dtype: TokenDtype
    tokens: int
    offset_bytes: int
    """Of the first token: 0, or the length of a header."""
    known_by: Known
    """What told the dtype."""

    def map(self) -> Tokens:
        """The ids: a read-only little-endian array over the file's pages; costs the same for any size.

        The array owns the map. As with every map, a file that is cut short while it is read raises SIGBUS.
        """
        end = self.offset_bytes + self.tokens * ITEM_BYTES[self.dtype]
        kind = np.dtype(self.dtype).newbyteorder("<")
        with _open(self.path) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes != end:
                raise BadSource(f"{self.path} has changed since it was opened: {size_bytes} bytes instead of {end}")
            if not self.tokens:
                return np.empty(0, kind)
            # A map can't be empty; and np.memmap, a subclass, makes every slice several times as slow.
            whole = mmap.mmap(file.fileno(), end, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        return np.frombuffer(whole, kind, offset=self.offset_bytes)

    def documents(self) -> Tokens | None:
        """The end of each document in tokens, uint64, never decreasing; None where no side file tells.

        From `.docs.npy`, which is mapped, else from `.idx` (8 bytes a document in memory). Raises BadSource where they
        are not about this file.
        """
        beside = Beside.of(self.path)
        if os.path.exists(beside.docs):
            return _ends_of_npy(beside.docs, self)
        found = read_idx(beside.idx)
        return None if found is None else found.ends(self)


@dataclass(frozen=True, slots=True)
class Index:
    """The head of a Megatron index; its arrays are mapped when they are asked for."""

    path: str
    dtype: TokenDtype
    sequences: int
    documents: int
    """Entries of the document array: one more than there are documents."""
    tokens: int
    """Where the last sequence ends."""

    def ends(self, file: TokenFile) -> Tokens:
        """The end of each document in tokens; a document may be several sequences."""
        if self.tokens != file.tokens:
            raise BadSource(f"{self.path} ends at token {self.tokens}, but {file.path} holds {file.tokens}")
        with _open(self.path) as opened:
            whole = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
        at = _IDX_HEAD.size
        lengths = np.frombuffer(whole, "<i4", self.sequences, at)
        pointers = np.frombuffer(whole, "<i8", self.sequences, at + 4 * self.sequences)
        firsts = np.frombuffer(whole, "<i8", self.documents, at + 12 * self.sequences)
        lasts = firsts[1:] - 1
        if len(lasts) and (int(lasts.min()) < -1 or int(lasts.max()) >= self.sequences):
            raise BadSource(f"{self.path} names sequences that it does not have")
        ends = np.zeros(len(lasts), np.uint64)
        filled = lasts >= 0
        ends[filled] = pointers[lasts[filled]] // ITEM_BYTES[self.dtype] + lengths[lasts[filled]]
        return _checked(ends, self.path, file)


def open_tokens(path: str | os.PathLike[str], *, token_dtype: TokenDtype | None = None) -> TokenFile:
    """Look at a token file; constant in its size.

    `token_dtype` overrides what the side files say, and their counts are not looked at then. Raises SourceMissing,
    BadSource (a size that does not fit), UsageError.
    """
    text = os.fspath(path)
    if token_dtype is not None and token_dtype not in ITEM_BYTES:
        raise UsageError(f"token_dtype={token_dtype!r} means nothing; it is {' or '.join(map(repr, ITEM_BYTES))}")
    with _open(text) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        head = file.read(12)
    if token_dtype is not None:
        offset_bytes = LLMC_HEADER_BYTES if _llmc(head) is not None and size_bytes >= LLMC_HEADER_BYTES else 0
        return _fitting(text, token_dtype, size_bytes, offset_bytes, None, "asked")
    beside = Beside.of(text)
    manifest = _read_manifest(beside.manifest)
    if manifest is not None:
        return _fitting(text, manifest.dtype, size_bytes, 0, (beside.manifest, manifest.tokens), "manifest")
    index = read_idx(beside.idx)
    if index is not None:
        return _fitting(text, index.dtype, size_bytes, 0, (beside.idx, index.tokens), "idx")
    header = _llmc(head)
    if header is not None:
        dtype, tokens = header
        return _fitting(text, dtype, size_bytes, LLMC_HEADER_BYTES, ("its header", tokens), "header")
    _refuse_known(text, head)
    return _fitting(text, "uint16", size_bytes, 0, None, "default")


def open_all(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, token_dtype: TokenDtype | None = None
) -> tuple[TokenFile, ...]:
    """`open_tokens` for one path or several, which are opened when they are read: as they are meant from here.

    Raises UsageError for none.
    """
    many = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not many:
        raise UsageError("no token file is given")
    return tuple(open_tokens(os.path.abspath(path), token_dtype=token_dtype) for path in many)


def read_idx(path: str) -> Index | None:
    """The head of a Megatron index, and where it ends; None where there is no such file, or of another kind.

    Raises BadSource for one of Megatron's that is cut short, of another version, or of a dtype that no ids have.
    """
    try:
        file = _open(path)
    except SourceMissing:
        return None
    with file:
        head = file.read(_IDX_HEAD.size)
        if not head.startswith(IDX_MAGIC):
            _log.info("%s is no index of Megatron-LM's: not looked at", path)
            return None
        size_bytes = os.fstat(file.fileno()).st_size
        if len(head) < _IDX_HEAD.size:
            raise BadSource(f"{path} is cut short: {size_bytes} bytes")
        _, version, code, sequences, documents = _IDX_HEAD.unpack(head)
        dtype = next((name for name, one in IDX_CODES.items() if one == code), None)
        if version != IDX_VERSION or dtype is None:
            raise BadSource(f"{path} is of version {version} and dtype code {code}: no index that dsmem reads")
        need = _IDX_HEAD.size + 12 * sequences + 8 * documents
        if size_bytes < need:
            raise BadSource(f"{path} is cut short: {size_bytes} bytes instead of {need}")
        tokens = 0
        if sequences:
            file.seek(_IDX_HEAD.size + 4 * (sequences - 1))
            (length,) = struct.unpack("<i", file.read(4))
            file.seek(_IDX_HEAD.size + 4 * sequences + 8 * (sequences - 1))
            (pointer,) = struct.unpack("<q", file.read(8))
            tokens = pointer // ITEM_BYTES[dtype] + length
    return Index(path, dtype, sequences, documents, tokens)


def _fitting(
    path: str, dtype: TokenDtype, size_bytes: int, offset_bytes: int, told: tuple[str, int] | None, known_by: Known
) -> TokenFile:
    tokens, over = divmod(size_bytes - offset_bytes, ITEM_BYTES[dtype])
    if size_bytes < offset_bytes or over:
        raise BadSource(f"{path} holds {size_bytes} bytes: not whole tokens of {dtype} after {offset_bytes} bytes")
    if told is not None and told[1] != tokens:
        raise BadSource(
            f"{path} holds {tokens} tokens of {dtype}, but {told[0]} says {told[1]}; token_dtype= reads it all the same"
        )
    return TokenFile(path, dtype, tokens, offset_bytes, known_by)


def _llmc(head: bytes) -> tuple[TokenDtype, int] | None:
    if len(head) < 12:
        return None
    magic, version, tokens = struct.unpack("<iii", head)
    dtype = LLMC_VERSIONS.get((magic, version))
    return None if dtype is None else (dtype, tokens)


def _refuse_known(path: str, head: bytes) -> None:
    """What is known to be no bare ids would be read as such, header and all."""
    magic, version = struct.unpack("<ii", head[:8]) if len(head) >= 8 else (0, 0)
    what = next((what for begin, what in _NO_IDS.items() if head.startswith(begin)), None)
    if any(magic == known for known, _ in LLMC_VERSIONS):
        what = f"llm.c's magic {magic} with version {version}, which is not known"
    if what is not None:
        raise BadSource(f"{path} begins with {what}: token_dtype= reads it as bare ids all the same")


def _read_manifest(path: str) -> manifests.Manifest | None:
    """The manifest; None where there is none, or a JSON file of somebody else's."""
    try:
        file = _open(path)
    except SourceMissing:
        return None
    with file:
        data = file.read(256)
        if b'"dsmem_tokens"' not in data:
            _log.info("%s is no manifest of a token file: not looked at", path)
            return None
        data += file.read(manifests.MAX_BYTES - len(data))
        if file.read(1):
            raise BadSource(f"{path} is larger than {manifests.MAX_BYTES} bytes: no manifest")
    try:
        return manifests.load(data)
    except manifests.BadManifest as exc:
        raise BadSource(f"{path}: {exc}") from exc


def _ends_of_npy(path: str, file: TokenFile) -> Tokens:
    """Mapped. Its header is read strictly, as numpy writes it: numpy's own reading of a damaged one raises anything."""
    with _open(path) as opened:
        size_bytes = os.fstat(opened.fileno()).st_size
        head = opened.read(_NPY_HEAD_BYTES)
        found = _NPY.match(head)
        if found is None:
            raise BadSource(f"{path} holds no document ends: they are a .npy of uint64 in one dimension")
        count = int(found["count"])
        at = found.start("header") + int.from_bytes(found["length"] or found["long"], "little")
        if head[found.end() : at].lstrip(b" ") != b"\n" or size_bytes != at + 8 * count:
            raise BadSource(f"{path} holds no document ends: {count} of them don't make {size_bytes} bytes")
        whole = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
    return _checked(np.frombuffer(whole, "<u8", count, at), path, file)


def _checked(ends: Tokens, path: str, file: TokenFile) -> Tokens:
    last = int(ends[-1]) if len(ends) else 0
    if last != file.tokens:
        raise BadSource(f"{path}: the last document ends at token {last}, but {file.path} holds {file.tokens}")
    return ends


def _open(path: str) -> BinaryIO:
    try:
        # Non-blocking: a FIFO of that name must not hang whoever looks.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise SourceMissing(f"{path}: no such file") from exc
    except OSError as exc:
        raise BadSource(f"{path} can't be read: {exc.strerror}") from exc
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise BadSource(f"{path} is no regular file")
    return cast(BinaryIO, os.fdopen(fd, "rb"))
