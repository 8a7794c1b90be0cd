"""`dsmem ckpt`: the commands that look at checkpoints, read, check, pin and convert them."""

from __future__ import annotations

from dsmem.cli import ckpt_convert, ckpt_ls, ckpt_pin, ckpt_read, ckpt_verify, commands

app = commands.group(
    "ckpt",
    help="Look at checkpoints, read, check, pin, convert them.",
    examples=(
        "dsmem ckpt ls step-1000/",
        "dsmem ckpt verify step-1000/",
        "dsmem ckpt pin step-1000/ --name weights",
        "dsmem ckpt convert step-1000/ weights.pt",
    ),
)
commands.add(app, ckpt_ls.ls, examples=ckpt_ls.EXAMPLES)
commands.add(app, ckpt_read.read, examples=ckpt_read.EXAMPLES)
commands.add(app, ckpt_verify.verify, examples=ckpt_verify.EXAMPLES)
commands.add(app, ckpt_pin.pin, examples=ckpt_pin.EXAMPLES)
commands.add(app, ckpt_convert.convert, examples=ckpt_convert.EXAMPLES)
