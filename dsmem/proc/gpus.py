"""How many GPUs this process may use, without loading a driver: NVIDIA's and AMD's as the kernel lists them.

Sources: /proc/driver/nvidia/gpus (README of NVIDIA's driver), /sys/class/kfd/kfd/topology/nodes (amdkfd: a node with
simd_count > 0 is a GPU), CUDA_VISIBLE_DEVICES and HIP_VISIBLE_DEVICES (CUDA's and ROCm's environment variables).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

_PROC = Path("/proc")
_SYS = Path("/sys")


def visible_gpus(*, proc: Path = _PROC, sys: Path = _SYS, environ: Mapping[str, str] = os.environ) -> int:
    """GPUs that a training process would see; 0 where there is none, or the environment hides all."""
    nvidia = _entries(proc / "driver/nvidia/gpus")
    found = nvidia or sum(_is_amd_gpu(node) for node in _listed(sys / "class/kfd/kfd/topology/nodes"))
    chosen = environ.get("CUDA_VISIBLE_DEVICES" if nvidia else "HIP_VISIBLE_DEVICES")
    if chosen is None:
        return found
    # The list ends at the first entry that names no device (CUDA's programming guide).
    named = 0
    for one in chosen.split(","):
        if not one.strip() or one.strip().startswith("-"):
            break
        named += 1
    return min(found, named)


def _entries(directory: Path) -> int:
    return len(_listed(directory))


def _listed(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def _is_amd_gpu(node: Path) -> bool:
    try:
        text = (node / "properties").read_text()
    except OSError:  # a node that is no GPU, or not for us
        return False
    match = re.search(r"^simd_count (\d+)$", text, re.MULTILINE)
    return match is not None and int(match[1]) > 0
