"""`dsmem ckpt`: the commands that look at checkpoints, read them and check them."""

from __future__ import annotations

from dsmem.cli import ckpt_ls, ckpt_read, ckpt_verify, commands

app = commands.group(
    "ckpt",
    help="Look at checkpoints, read them, check them.",
    examples=(
        "dsmem ckpt ls step-1000/",
        "dsmem ckpt read step-1000/",
        "dsmem ckpt verify step-1000/",
    ),
)
commands.add(app, ckpt_ls.ls, examples=ckpt_ls.EXAMPLES)
commands.add(app, ckpt_read.read, examples=ckpt_read.EXAMPLES)
commands.add(app, ckpt_verify.verify, examples=ckpt_verify.EXAMPLES)
