"""datatrove's way: a JsonlReader and a DocumentTokenizer, a task for each file of a directory, a process for each task.

Documents stay in their order. Files: pairs of .ds (ids) and .ds.index (uint64 ends of documents, in tokens).
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path


def tokenize(directory: str, tokenizer: str, end: str, place: str, processes: int) -> list[str]:
    """The .ds files, in the order of the files of text."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    LocalPipelineExecutor(
        [
            JsonlReader(directory, glob_pattern="*.jsonl"),
            DocumentTokenizer(f"{place}/ids", tokenizer, eos_token=end, shuffle_documents=False),
        ],
        tasks=len(list(Path(directory).glob("*.jsonl"))),
        workers=processes,
        logging_dir=f"{place}/logs",
    ).run()
    return sorted(map(str, Path(place, "ids").glob("*.ds")))


def main() -> None:
    """What the package's docstring says."""
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(json.dumps({"version": version("datatrove")}) + "\n")
        return
    text, tokenizer, end, place, processes = sys.argv[1:]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads in every process only get in each other's way
    files = tokenize(text, tokenizer, end, place, int(processes))
    for path in [path for file in files for path in (file, f"{file}.index")]:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    sys.stdout.write(json.dumps({"files": files}) + "\n")


if __name__ == "__main__":
    main()
