"""Token files in the forms of other trainers: llm.c, datatrove, OLMo. The tokens are copied, nothing is encoded anew.

- llm.c: `dsmem.tokens.llmc`.
- datatrove: `OUT.ds`, the ids; `OUT.ds.index`, the document ends in tokens as uint64; `OUT.ds.metadata`, three lines:
  tokenizer and bytes a token, the count, the count for people (`TokenizedFile` in datatrove 0.10.1,
  datatrove/pipeline/tokens/tokenizer.py).
- OLMo: `OUT.npy`, the ids without numpy's header, as OLMo and OLMo-core map it; `OUT.csv.gz`, a line a document: start,
  end, id, source, place in it (python/dolma/tokenizer/memmap_writer.py and data_types.py of allenai/dolma).
"""

from __future__ import annotations

import csv
import gzip
import io
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from dsmem.errors import OutputExists, UsageError
from dsmem.progress import Progress, ignore
from dsmem.tokens import joining, llmc
from dsmem.tokens.boundaries import ends_of
from dsmem.tokens.drafts import Drafts
from dsmem.tokens.index import Ends, blocks_of, check_rising
from dsmem.tokens.inspecting import manifest_of
from dsmem.tokens.joining import Stretch, counter
from dsmem.tokens.layout import ITEM_BYTES, Beside
from dsmem.tokens.opening import TokenFile, open_tokens

Form = Literal["llm.c", "datatrove", "olmo"]
FORMS: tuple[Form, ...] = get_args(Form)
_SUFFIXES: dict[Form, str] = {"llm.c": ".bin", "datatrove": ".ds", "olmo": ".npy"}


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    form: Form
    paths: tuple[str, ...]
    tokens: int
    documents: int


def export(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    form: Form,
    *,
    eot: int | None = None,
    overwrite: bool = False,
    progress: Progress = ignore,
) -> Exported:
    """Write the token file `path` in another form; `out` names the file, with or without its suffix.

    `eot` is the id that begins each document for llm.c: without it the bos or eos that does, else the manifest's eos.
    Files are complete before they have their names, and the tokens come last. What belongs to `path` is never replaced.
    Raises BadSource where nothing tells where documents end, OutputExists for what is there and not to be replaced
    (`overwrite`), UsageError, OSError.
    """
    if form not in FORMS:
        raise UsageError(f"there is no form {form!r}; the forms are {', '.join(FORMS)}")
    if eot is not None and form != "llm.c":
        raise UsageError(f"only llm.c's form begins documents with a token of its own; {form}'s holds what is there")
    file = open_tokens(path)
    ends = cast(Ends, ends_of(file))
    check_rising(ends, file.path)
    stem = os.fspath(out).removesuffix(_SUFFIXES[form])
    target = f"{stem}{_SUFFIXES[form]}"
    tokens = file.tokens
    with Drafts(_Names(file, overwrite=overwrite).claim) as drafts:
        if form == "llm.c":
            tokens = llmc.write(drafts, target, file, ends, eot, progress)
        elif form == "datatrove":
            drafts.claim(target, f"{target}.index", f"{target}.metadata")
            _copy(file, drafts.begin(target), progress)
            _write_datatrove(drafts, target, file, ends)
        else:
            drafts.claim(target, f"{stem}.csv.gz")
            _copy(file, drafts.begin(target), progress)
            _write_olmo(drafts, f"{stem}.csv.gz", file, ends)
        return Exported(form, drafts.publish(), tokens, len(ends))


class _Names:
    """What lies under the names of an export, and what of it may be replaced."""

    def __init__(self, file: TokenFile, *, overwrite: bool) -> None:
        self._source = [os.path.abspath(path) for path in Beside.of(file.path).paths()]
        self._overwrite = overwrite

    def claim(self, path: str) -> None:
        """Raise OutputExists or UsageError where `path` is not to be taken."""
        there = os.path.abspath(path)
        held = [one for one in self._source if os.path.exists(one)]
        if there in self._source or (os.path.exists(there) and any(os.path.samefile(there, one) for one in held)):
            raise UsageError(f"{path} is what is to be exported, or lies beside it; give another name")
        if not os.path.isdir(os.path.dirname(there)):
            raise UsageError(f"there is no directory {os.path.dirname(there)}")
        if os.path.isdir(there):
            raise UsageError(f"{path} is a directory")
        if os.path.lexists(there) and not self._overwrite:
            raise OutputExists(f"{path} is there already", path=path)
        if path.endswith(".bin"):
            for other in Beside.of(path).paths()[1:]:
                if os.path.lexists(other):
                    told = "it would be taken for that of the new file: take it away, or give another name"
                    raise UsageError(f"{other} is there, and {told}")


def _copy(file: TokenFile, draft: str, progress: Progress) -> None:
    size_bytes = file.tokens * ITEM_BYTES[file.dtype]
    joining.join(
        draft, joining.cut(Stretch(file.path, file.offset_bytes, size_bytes, 0)), counter(size_bytes, progress)
    )


def _write_datatrove(drafts: Drafts, target: str, file: TokenFile, ends: Ends) -> None:
    with Path(drafts.begin(f"{target}.index")).open("wb") as index:
        for _, block in blocks_of(ends):
            index.write(block.astype("<u8").data)
    manifest = manifest_of(file)
    name = "Unknown Tokenizer" if manifest is None else manifest.tokenizer.spec
    lines = (f"{name}|{ITEM_BYTES[file.dtype]}", str(file.tokens), _for_people(file.tokens))
    Path(drafts.begin(f"{target}.metadata")).write_text("\n".join(lines), encoding="utf-8")


def _for_people(tokens: int) -> str:
    """'1.23 MT', as humanize.metric(tokens, unit="T") says it: three digits and the prefix."""
    thousands = max(0, (len(str(tokens)) - 1) // 3)
    digits = len(str(tokens)) - 3 * thousands
    prefix = "" if not thousands else "kMGTPE"[thousands - 1]
    return f"{tokens / 1000**thousands:.{3 - digits}f} {prefix}T"


def _write_olmo(drafts: Drafts, path: str, file: TokenFile, ends: Ends) -> None:
    source = os.path.basename(file.path)
    with ExitStack() as stack:
        raw = stack.enter_context(Path(drafts.begin(path)).open("wb"))
        # Without a time in its head: the same tokens give the same bytes.
        packed = stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0))
        text = stack.enter_context(io.TextIOWrapper(packed, encoding="utf-8", newline=""))
        rows, number = csv.writer(text), 0
        for before, block in blocks_of(ends):
            bounds = [before, *block.tolist()]
            numbers = range(number, number + len(block))
            rows.writerows(zip(bounds, bounds[1:], numbers, [source] * len(block), numbers, strict=False))
            number += len(block)
