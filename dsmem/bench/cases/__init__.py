"""The cases, in the order in which `dsmem bench` runs them. A new one is a module with a CASE, added to CASES."""

from dsmem.bench.cases import (
    attach,
    checkpoint,
    dataset,
    decode,
    hashing,
    memory,
    pin,
    read,
    server,
    tokenize,
    tokens,
    training,
    tune,
)
from dsmem.bench.workbench import Case

CASES: tuple[Case, ...] = (
    hashing.CASE,
    pin.CASE,
    decode.CASE,
    attach.CASE,
    memory.CASE,
    read.CASE,
    tokenize.CASE,
    tokens.CASE,
    checkpoint.CASE,
    dataset.CASE,
    server.CASE,
    training.CASE,
    tune.CASE,
)

__all__ = ["CASES"]
