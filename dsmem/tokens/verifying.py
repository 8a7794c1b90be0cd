"""Whether a token file and all that lies beside it agree: every fault is named, none stops the search for others.

Reads the file twice at most, in threads: once for the digest, once for the ids.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import numpy as np

from dsmem import parallel, proc
from dsmem.digest import ALGORITHMS, hash_file
from dsmem.errors import BadSource
from dsmem.files import open_regular
from dsmem.progress import Progress, ignore
from dsmem.tokens import manifest as manifests
from dsmem.tokens.index import Ends, blocks_of, check_rising, pieces
from dsmem.tokens.layout import LARGEST_ID, Beside
from dsmem.tokens.manifest import Manifest
from dsmem.tokens.opening import TokenFile, Tokens, open_tokens, read_idx

_BLOCK_TOKENS = 1 << 22
_MOST_NAMED = 3
_NO_ENDS = "nothing tells where they end"
State = Literal["ok", "bad", "absent"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; `absent`: there is nothing to compare."""

    name: str
    state: State
    detail: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What became of one file."""

    path: str
    ok: bool
    checks: tuple[Check, ...]
    phantom_eos: int | None
    """Tokens that look like the end of a document and are not: literal in the text. Whoever scans for eos would cut
    documents there; the stored ends are right. None where no eos is known, or no documents."""


def verify(path: str | os.PathLike[str], *, progress: Progress = ignore) -> Verified:
    """Compare size, manifest, document ends, index, ids and digest of a token file; raises SourceMissing, OSError."""
    checks: list[Check] = []
    beside = Beside.of(os.fspath(path))
    manifest = _manifest(beside, checks)
    file = _opened(beside, manifest, checks)
    phantom = None
    if file is not None:
        ends = _ends(beside, file, manifest, checks)
        _index(beside, file, ends, checks)
        scanned = _scan(file, manifest, progress)
        checks.append(_range(manifest, scanned))
        if ends is not None and manifest is not None:
            check, at_bounds = _Markers.of(manifest).check(file.map(), ends)
            checks.append(check)
            phantom = None if scanned.eos is None else scanned.eos - at_bounds
    checks.append(_digest(beside, manifest))
    return Verified(beside.bin, all(check.state != "bad" for check in checks), tuple(checks), phantom)


def _manifest(beside: Beside, checks: list[Check]) -> Manifest | None:
    if not os.path.exists(beside.manifest):
        checks.append(Check("manifest", "absent", "there is none: nothing tells what the file should be"))
        return None
    try:
        found = manifests.read(beside.manifest)
    except BadSource as exc:
        checks.append(Check("manifest", "bad", str(exc)))
        return None
    if found is None:
        checks.append(Check("manifest", "bad", f"{beside.manifest} is not the manifest of a token file"))
        return None
    made = f"{found.tokenizer.spec}, dsmem {found.dsmem}"
    checks.append(Check("manifest", "ok", f"{found.tokens} tokens, {found.documents} documents, {made}"))
    return found


def _opened(beside: Beside, manifest: Manifest | None, checks: list[Check]) -> TokenFile | None:
    """The file as it says it is; else as its dtype alone says, so that the rest can be looked at."""
    try:
        file = open_tokens(beside.bin)
    except BadSource as exc:
        checks.append(Check("size", "bad", str(exc)))
    else:
        checks.append(Check("size", "ok", f"{file.tokens} tokens of {file.dtype}, as told by: {file.known_by}"))
        return file
    try:
        return open_tokens(beside.bin, token_dtype="uint16" if manifest is None else manifest.dtype)
    except BadSource:
        return None  # not whole tokens: told already


def _ends(beside: Beside, file: TokenFile, manifest: Manifest | None, checks: list[Check]) -> Ends | None:
    try:
        ends = cast("Ends | None", file.documents())
    except BadSource as exc:
        checks.append(Check("documents", "bad", str(exc)))
        return None
    if ends is None:
        told = manifest is not None and manifest.documents
        detail = f"the manifest says {told}, and nothing tells where they end any more" if told else _NO_ENDS
        checks.append(Check("documents", "bad" if told else "absent", detail))
        return None
    if manifest is not None and manifest.documents != len(ends):
        detail = f"{beside.docs} has {len(ends)} ends, the manifest says {manifest.documents}"
        checks.append(Check("documents", "bad", detail))
        return ends
    try:
        check_rising(ends, beside.bin)
    except BadSource as exc:
        checks.append(Check("documents", "bad", str(exc)))
        return None
    checks.append(Check("documents", "ok", f"{len(ends)}, the last ends with the file"))
    return ends


def _index(beside: Beside, file: TokenFile, ends: Ends | None, checks: list[Check]) -> None:
    """Every byte of the `.idx`, which follows from dtype and ends."""
    if not os.path.exists(beside.idx):
        checks.append(Check("index", "absent", "no .idx: Megatron-LM can't read the file"))
        return
    try:
        if not os.path.exists(beside.docs):
            checks.append(_on_its_own(beside.idx, file))
        elif ends is not None:
            checks.append(_compared(beside.idx, file, ends))
        else:
            open_regular(beside.idx).close()
    except BadSource as exc:
        checks.append(Check("index", "bad", str(exc)))


def _compared(path: str, file: TokenFile, ends: Ends) -> Check:
    with open_regular(path) as opened:
        same = all(opened.read(len(piece)) == piece for piece in pieces(ends, file.dtype)) and not opened.read(1)
    if same:
        return Check("index", "ok", f"{len(ends)} sequences")
    return Check("index", "bad", f"{path} is not about these documents")


def _on_its_own(path: str, file: TokenFile) -> Check:
    """What the document ends are taken from."""
    found = read_idx(path)
    if found is None:
        return Check("index", "absent", f"{path} is none of Megatron-LM's")
    found.check(file)
    return Check("index", "ok", f"{found.sequences} sequences; the document ends are its own")


@dataclass(frozen=True, slots=True)
class _Scanned:
    """What one pass over the ids tells."""

    largest: int
    first_beyond: int | None
    """Place of the first id that the tokenizer can't give."""
    eos: int | None
    """How often eos stands anywhere; None where it is not known."""


def _scan(file: TokenFile, manifest: Manifest | None, progress: Progress) -> _Scanned:
    tokens = file.map()
    eos_id = None if manifest is None else manifest.tokenizer.eos_id
    allowed = LARGEST_ID[file.dtype] if manifest is None else manifest.tokenizer.largest_id
    largest, beyond, eos, done = 0, len(tokens), 0, 0
    counting = threading.Lock()

    def look(start: int) -> None:
        nonlocal largest, beyond, eos, done
        block = tokens[start : start + _BLOCK_TOKENS]
        here = int(block.max())
        place = len(tokens) if here <= allowed else start + int(np.argmax(block > allowed))
        count = 0 if eos_id is None else int(np.count_nonzero(block == eos_id))
        with counting:
            largest, beyond, eos, done = max(largest, here), min(beyond, place), eos + count, done + len(block)
            progress(done * tokens.itemsize, tokens.nbytes)

    parallel.run((partial(look, start) for start in range(0, len(tokens), _BLOCK_TOKENS)), proc.usable_cpus())
    return _Scanned(largest, beyond if beyond < len(tokens) else None, None if eos_id is None else eos)


def _range(manifest: Manifest | None, scanned: _Scanned) -> Check:
    if manifest is None:
        return Check("ids", "absent", f"up to {scanned.largest}; nothing tells what they may be")
    allowed = manifest.tokenizer.largest_id
    if scanned.first_beyond is None:
        return Check("ids", "ok", f"up to {scanned.largest}; the tokenizer has {allowed}")
    where = f"the first at token {scanned.first_beyond}"
    return Check("ids", "bad", f"up to {scanned.largest}; the tokenizer has {allowed}; {where}")


def _digest(beside: Beside, manifest: Manifest | None) -> Check:
    if manifest is None or not manifest.digest:
        return Check("checksum", "absent", "the manifest has it, and there is none")
    algo, _, told = manifest.digest.partition(":")
    if algo not in ALGORITHMS:
        return Check("checksum", "bad", f"the manifest has {manifest.digest!r}, which is no checksum")
    found = hash_file(beside.bin, algo, cache=False).hex
    if found == told:
        return Check("checksum", "ok", manifest.digest)
    return Check("checksum", "bad", f"{algo}:{found} instead of {manifest.digest}")


@dataclass(frozen=True, slots=True)
class _Markers:
    """What begins and ends every document, by the manifest."""

    head: tuple[int, ...]
    tail: tuple[int, ...]
    eos_id: int | None

    @classmethod
    def of(cls, manifest: Manifest) -> _Markers:
        ids = [(manifest.bos, manifest.tokenizer.bos_id), (manifest.eos, manifest.tokenizer.eos_id)]
        head = tuple(sorted(one for place, one in ids if place == "prepend" and one is not None))
        tail = tuple(sorted(one for place, one in ids if place == "append" and one is not None))
        return cls(head, tail, manifest.tokenizer.eos_id)

    def check(self, tokens: Tokens, ends: Ends) -> tuple[Check, int]:
        """Whether they stand where they should, in any order; and how often eos is one of them."""
        wrong: list[int] = []
        number, eos = 0, 0
        for before, block in blocks_of(ends):
            stops = block.astype(np.int64)
            starts = np.concatenate((np.array([before], np.int64), stops[:-1]))
            bad = stops - starts < len(self.head) + len(self.tail)
            for places, wanted in self._places(starts, stops):
                inside = np.clip(places, 0, max(len(tokens) - 1, 0))
                found = np.sort(tokens[inside], axis=1) if len(tokens) else np.zeros(inside.shape, np.int64)
                good = (found == np.array(wanted)).all(axis=1)
                eos += int(np.count_nonzero(found[good & ~bad] == self.eos_id))
                bad |= ~good
            wrong += [number + int(one) for one in np.flatnonzero(bad)[: _MOST_NAMED + 1 - len(wrong)]]
            number += len(block)
        if not wrong:
            what = "as the manifest says" if self.head or self.tail else "none, as the manifest says"
            return Check("bos and eos", "ok", what), eos
        named = ", ".join(map(str, wrong[:_MOST_NAMED])) + (", …" if len(wrong) > _MOST_NAMED else "")
        return Check("bos and eos", "bad", f"documents without those that the manifest names: {named}"), eos

    def _places(self, starts: Any, stops: Any) -> Iterator[tuple[Any, tuple[int, ...]]]:
        if self.head:
            yield starts[:, None] + np.arange(len(self.head)), self.head
        if self.tail:
            yield stops[:, None] - len(self.tail) + np.arange(len(self.tail)), self.tail
