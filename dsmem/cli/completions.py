"""Writes the completion scripts: `python -m dsmem.cli.completions completions`.

The scripts in `completions/` are never edited by hand; a test compares them with what this writes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# Typer's own script does nothing at the first TAB when zsh autoloads it from fpath; this one answers at once.
ZSH = """\
#compdef dsmem
eval "$(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _DSMEM_COMPLETE=complete_zsh dsmem)"
"""


def scripts() -> dict[str, str]:
    """File name → script, for bash, zsh and fish."""
    return {"dsmem.bash": _typer_script("bash"), "_dsmem": ZSH, "dsmem.fish": _typer_script("fish")}


def write(directory: Path) -> list[Path]:
    """Writes the scripts into the directory, making it if needed; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in scripts().items():
        path = directory / name
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def _typer_script(shell: str) -> str:
    environ = {**os.environ, "_DSMEM_COMPLETE": f"source_{shell}"}
    done = subprocess.run(
        [sys.executable, "-m", "dsmem"], env=environ, stdout=subprocess.PIPE, check=True, encoding="utf-8"
    )
    return done.stdout.strip() + "\n"


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("error: one directory, please\nhint: python -m dsmem.cli.completions completions\n")
        return 2
    for path in write(Path(arguments[0])):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
