"""Opening a token file: what its ids are and where they begin, told without reading them; nothing is loaded.

The dtype is what `token_dtype` says, else the manifest, else Megatron's `.idx`, else the header of llm.c, else uint16.
A file whose size does not fit what was found is refused with the numbers, never cut or padded.
"""

from __future__ import annotations

import logging
import mmap
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dsmem.errors import BadSource, SourceMissing, UsageError
from dsmem.files import open_regular
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
_AT_ONCE = 1 << 18


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
        with open_regular(self.path) as file:
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
        lengths, pointers, firsts = self._arrays(file)
        self._check(lengths, pointers, firsts)
        lasts = firsts[1:] - 1
        ends = np.zeros(len(lasts), np.uint64)
        filled = lasts >= 0
        ends[filled] = pointers[lasts[filled]] // ITEM_BYTES[self.dtype] + lengths[lasts[filled]]
        return _checked(ends, self.path, file)

    def check(self, file: TokenFile) -> None:
        """Raise BadSource unless sequences follow one another through the file, and documents through sequences."""
        self._check(*self._arrays(file))

    def _arrays(self, file: TokenFile) -> tuple[Tokens, Tokens, Tokens]:
        """Lengths, pointers and first sequences of documents, mapped."""
        if self.dtype != file.dtype:
            raise BadSource(f"{self.path} is of {self.dtype}, but {file.path} holds {file.dtype}")
        if self.tokens != file.tokens:
            raise BadSource(f"{self.path} ends at token {self.tokens}, but {file.path} holds {file.tokens}")
        with open_regular(self.path) as opened:
            whole = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
        need = _IDX_HEAD.size + 12 * self.sequences + 8 * self.documents
        # Of several modalities Megatron-LM writes a byte for each sequence behind it.
        if len(whole) not in (need, need + self.sequences):
            raise BadSource(f"{self.path} has {len(whole)} bytes instead of {need}")
        at = _IDX_HEAD.size
        lengths = np.frombuffer(whole, "<i4", self.sequences, at)
        pointers = np.frombuffer(whole, "<i8", self.sequences, at + 4 * self.sequences)
        return lengths, pointers, np.frombuffer(whole, "<i8", self.documents, at + 12 * self.sequences)

    def _check(self, lengths: Tokens, pointers: Tokens, firsts: Tokens) -> None:
        item, before = ITEM_BYTES[self.dtype], 0
        for start in range(0, self.sequences, _AT_ONCE):
            sizes = lengths[start : start + _AT_ONCE].astype(np.int64)
            wrong = np.flatnonzero(sizes < 0)
            if len(wrong):
                number = start + int(wrong[0])
                raise BadSource(f"{self.path}: sequence {number} has a length of {lengths[number]}")
            stops = before + item * np.cumsum(sizes)
            wrong = np.flatnonzero(pointers[start : start + _AT_ONCE] != stops - item * sizes)
            if len(wrong):
                number = int(wrong[0])
                told = f"begins at byte {pointers[start + number]}, the one in front of it ends at"
                stop = stops[number] - item * sizes[number]
                raise BadSource(f"{self.path}: sequence {start + number} {told} {stop}")
            before = int(stops[-1])
        for start in range(0, len(firsts), _AT_ONCE):
            here = firsts[max(start - 1, 0) : start + _AT_ONCE]
            falls = np.flatnonzero(here[1:] < here[:-1])
            if len(falls):
                raise BadSource(f"{self.path}: document {max(start - 1, 0) + int(falls[0])} ends before it begins")
        if len(firsts) and (firsts[0] != 0 or firsts[-1] != self.sequences):
            told = f"sequences {firsts[0]} to {firsts[-1]}"
            raise BadSource(f"{self.path}: its documents are of {told}, and it has 0 to {self.sequences}")


def open_tokens(path: str | os.PathLike[str], *, token_dtype: TokenDtype | None = None) -> TokenFile:
    """Look at a token file; constant in its size.

    `token_dtype` overrides what the side files say, and their counts are not looked at then. Raises SourceMissing,
    BadSource (a size that does not fit), UsageError.
    """
    text = os.fspath(path)
    if token_dtype is not None and token_dtype not in ITEM_BYTES:
        raise UsageError(f"token_dtype={token_dtype!r} means nothing; it is {' or '.join(map(repr, ITEM_BYTES))}")
    with open_regular(text) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        head = file.read(12)
    if token_dtype is not None:
        offset_bytes = LLMC_HEADER_BYTES if _llmc(head) is not None and size_bytes >= LLMC_HEADER_BYTES else 0
        return _fitting(text, token_dtype, size_bytes, offset_bytes, None, "asked")
    beside = Beside.of(text)
    manifest = manifests.read(beside.manifest)
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
        file = open_regular(path)
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
            tokens, over = divmod(pointer, ITEM_BYTES[dtype])
            if length < 0 or tokens < 0 or over:
                raise BadSource(f"{path}: its last sequence has {length} tokens of {dtype} from byte {pointer} on")
            tokens += length
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


def _ends_of_npy(path: str, file: TokenFile) -> Tokens:
    """Mapped. Its header is read strictly, as numpy writes it: numpy's own reading of a damaged one raises anything."""
    with open_regular(path) as opened:
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
