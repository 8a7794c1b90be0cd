"""`dsmem shm`: the commands that see, remove and check what is in shared memory."""

from __future__ import annotations

from dsmem.cli import commands, shm_clean, shm_doctor, shm_ls

app = commands.group(
    "shm",
    help="What is in shared memory: list, remove, check.",
    examples=("dsmem shm ls", "dsmem shm clean", "dsmem shm doctor"),
)
commands.add(app, shm_ls.ls, examples=shm_ls.EXAMPLES)
commands.add(app, shm_clean.clean, examples=shm_clean.EXAMPLES)
commands.add(app, shm_doctor.doctor, examples=shm_doctor.EXAMPLES)
