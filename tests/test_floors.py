"""DESIGN §1: an import goes to a lower floor, never up and never to another room of the same floor."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dsmem

PACKAGE = Path(dsmem.__file__).parent
FLOORS: dict[str, int] = {
    "errors": 0, "units": 0, "settings": 0, "progress": 0, "proc": 0, "files": 0, "parallel": 0, "helpers": 0,
    "buffers": 0, "malloc": 0, "scratch": 0, "lazy": 0, "stopping": 0, "madvise": 0, "residency": 0, "turns": 0,
    "arrays": 1, "digest": 1, "config": 1,
    "store": 2, "hdf5": 2, "arrow": 2,
    "pinning": 3, "server": 3, "checkpoint": 3, "tokens": 3, "shm": 3,
    "training": 4,
    "tune": 5,
    "bench": 6, "demo": 6,
    "cli": 7,
}  # fmt: skip
PUBLIC = ("__init__", "__main__")
"""The package's front: hands out names of every floor, lazily; no floor imports from it but its version."""
SIDE_BY_SIDE = {0, 6}
"""Floors whose rooms are so small that they lean on each other; `test_ground_floor_has_no_cycle` keeps the order."""
HEAVY = ("numpy", "h5py", "torch", "datasets", "pyarrow", "rich", "pydantic", "pandas")


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> list[tuple[str, int]]:
    """Modules of dsmem that a file imports, anywhere in it, with line numbers."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names if alias.name.split(".")[0] == "dsmem"]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dsmem":
            if node.module == "dsmem":
                found += [(f"dsmem.{alias.name}", node.lineno) for alias in node.names]
            else:
                found.append((node.module, node.lineno))
    return found


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    here = room_of(path)
    if here in PUBLIC:
        return
    assert here in FLOORS, f"{here} is in no floor of the table"
    for module, line in imports(path):
        there = room(module)
        if there == here:
            continue
        if there in ("__version__", "__init__"):
            continue
        if there not in FLOORS and here in ("bench", "demo", "cli"):
            assert there in dsmem.__all__, f"{path.name}:{line} imports {module}, which is no public name"
            continue
        assert there in FLOORS, f"{path.name}:{line} imports {module}, which is in no floor"
        down = FLOORS[there] < FLOORS[here]
        beside = FLOORS[there] == FLOORS[here] and FLOORS[here] in SIDE_BY_SIDE
        assert down or beside, f"{path.name}:{line}: {here} (floor {FLOORS[here]}) imports {module} ({FLOORS[there]})"


def test_ground_floor_has_no_cycle() -> None:
    """Rooms that may lean on each other must still stand in some order."""
    for floor in SIDE_BY_SIDE:
        leans: dict[str, set[str]] = {name: set() for name, level in FLOORS.items() if level == floor}
        for path in sources():
            if room_of(path) in leans:
                leans[room_of(path)] |= {room(module) for module, _ in imports(path)} & leans.keys() - {room_of(path)}
        standing: set[str] = set()
        while len(standing) < len(leans):
            free = {name for name, below in leans.items() if name not in standing and below <= standing}
            assert free, f"a cycle among {sorted(leans.keys() - standing)}"
            standing |= free


def test_only_the_command_line_knows_typer_and_rich() -> None:
    for path in sources():
        if room_of(path) == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"typer", "rich", "click"}, path


@pytest.mark.parametrize(
    "code",
    [
        "import dsmem; dsmem.__version__; dsmem.NotPinned",
        "import sys; sys.argv = ['dsmem', '--help']\nfrom dsmem.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass",
    ],
    ids=["import dsmem", "dsmem --help"],
)
def test_what_a_fresh_interpreter_imports(code: str) -> None:
    probe = f"{code}\nimport sys\nprint('HEAVY', *sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "HEAVY"


def test_every_public_name_resolves() -> None:
    for name in dsmem.__all__:
        assert getattr(dsmem, name) is not None
    assert set(dsmem._HOMES) | {"__version__"} == set(dsmem.__all__)
    for name in ("checkpoint", "training", "tune"):  # without an import of their own
        assert name in dir(dsmem) and dsmem.__getattr__(name) is sys.modules[f"dsmem.{name}"]
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = dsmem.no_such_name
