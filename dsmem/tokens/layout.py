"""The files that make up a token file: what lies beside `OUT.bin`, under which names and in which form.

`OUT.bin` holds token ids and nothing else, little-endian, uint16 or uint32: nanoGPT maps it, Megatron-LM reads it with
`OUT.idx`. Everything else is added beside it, and a `.bin` alone is enough to read it.

- `OUT.idx`: Megatron-LM's index, version 1: magic `MMIDIDX\\0\\0`, u64 version, u8 dtype code, u64 sequences, u64
  documents + 1, int32 lengths, int64 byte pointers, int64 document indices that start at 0
  (megatron/core/datasets/indexed_dataset.py, `_IndexWriter`). Here a sequence is a document.
- `OUT.docs.npy`: uint64, the end of each document in tokens, bos and eos included; increasing, the last is the count.
- `OUT.json`: the manifest (`dsmem.tokens.manifest`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TokenDtype = Literal["uint16", "uint32"]
ITEM_BYTES: dict[TokenDtype, int] = {"uint16": 2, "uint32": 4}
LARGEST_ID: dict[TokenDtype, int] = {"uint16": (1 << 16) - 1, "uint32": (1 << 32) - 1}
IDX_MAGIC = b"MMIDIDX\x00\x00"
IDX_VERSION = 1
IDX_CODES: dict[TokenDtype, int] = {"uint16": 8, "uint32": 4}
"""Megatron's DType: uint16 = 8; it has no uint32, but int32 = 4, which reads ids below 2**31 the same."""
LARGEST_IDX_ID = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Beside:
    """The paths of one token file."""

    bin: str
    idx: str
    docs: str
    manifest: str

    @classmethod
    def of(cls, path: str) -> Beside:
        """The files that belong to `path`, which ends in `.bin` (else that is added to the names of the others)."""
        stem = path.removesuffix(".bin")
        return cls(path, f"{stem}.idx", f"{stem}.docs.npy", f"{stem}.json")

    def paths(self) -> tuple[str, str, str, str]:
        """All of them, the `.bin` first."""
        return self.bin, self.idx, self.docs, self.manifest


def val_path(out: str) -> str:
    """Where the validation documents of OUT.bin go: OUT.val.bin."""
    return f"{out.removesuffix('.bin')}.val.bin"
