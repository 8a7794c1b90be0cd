"""`dsmem pin --explain`: how each dataset would come into memory and what would be refused, without pinning."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from dsmem import units
from dsmem.cli import rows
from dsmem.cli.errors import Failures, because
from dsmem.cli.output import Column, Output

if TYPE_CHECKING:
    from dsmem.errors import Allow, Refusal
    from dsmem.pinning.explaining import ExplainedDataset, Explanation

_HOW = {
    "contiguous": "copied as it lies",
    "chunked": "decoded in threads",
    "h5py": "read by h5py: ",
    "empty": "nothing to read: ",
}
COLUMNS = (
    *rows.DATASET,
    Column("ratio", "ratio", show=lambda ratio: f"{ratio:.1f}", right=True),
    Column("stored", "stored"),
    Column("how", "how"),
)
"""For people."""
FIELDS = (
    Column("source", "source"),
    *rows.DATASET,
    Column("layout", "layout"),
    Column("chunks", "chunks"),
    Column("filters", "filters"),
    Column("ratio", "ratio"),
    Column("tier", "tier"),
    Column("why", "why"),
)
"""For a pipe; the tier of what is refused is 'refused'."""


def explain(
    files: Sequence[str],
    failures: Failures,
    out: Output,
    *,
    only: Sequence[str] | None,
    allow: Sequence[Allow],
    untrusted: bool,
) -> None:
    """Shows what pinning the files would do; what fails is kept in `failures`."""
    from dsmem.pinning.explaining import explain as explain_file

    found: list[Explanation] = []
    for path in files:
        one = failures.attempt(path, partial(explain_file, path, only=only, allow=allow, untrusted=untrusted))
        if one is None:
            continue
        found.append(one)
        if out.terminal:
            _show(out, one, more=len(found) > 1)
    if out.as_json:
        out.json({"explained": found, "failed": failures.as_rows()})
    elif not out.terminal and found:
        out.table(FIELDS, [[one.path, *cells] for one in found for cells in _fields(one)])


def _show(out: Output, one: Explanation, *, more: bool) -> None:
    if more:
        out.line("")
    out.record([("source", one.path)])
    out.table(COLUMNS, _cells(one))
    size = units.format_bytes(sum(dataset.size_bytes for dataset in one.datasets))
    refused = f", {len(one.refused)} refused" if one.refused else ""
    out.result(f"would hold {size} of a file of {units.format_bytes(one.size_bytes)}{refused}")


def _cells(one: Explanation) -> list[list[object]]:
    shown: list[list[object]] = []
    for dataset in one.datasets:
        parts = (dataset.layout, "" if dataset.chunks is None else str(dataset.chunks), " + ".join(dataset.filters))
        why = _why(dataset) if dataset.tier in ("h5py", "empty") else f"; {dataset.note}" if dataset.note else ""
        how = "decoded in processes" if dataset.in_processes else _HOW[dataset.tier]
        shown.append([*rows.dataset(dataset), dataset.ratio, " ".join(filter(None, parts)), how + why])
    return shown + [[_path(refusal), *[None] * 5, f"refused: {because(refusal)}"] for refusal in one.refused]


def _fields(one: Explanation) -> list[list[object]]:
    listed: list[list[object]] = []
    for dataset in one.datasets:
        chunks = None if dataset.chunks is None else str(dataset.chunks)
        stored = [dataset.layout, chunks, " + ".join(dataset.filters) or None, dataset.ratio]
        listed.append([*rows.dataset(dataset), *stored, dataset.tier, _why(dataset)])
    return listed + [[_path(refusal), *[None] * 7, "refused", because(refusal)] for refusal in one.refused]


def _why(dataset: ExplainedDataset) -> str:
    return f"{dataset.why}; {dataset.note}" if dataset.note else dataset.why


def _path(refusal: Refusal) -> str:
    return refusal.path.removeprefix("/")
