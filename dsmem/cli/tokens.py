"""`dsmem tokens`: the commands that look at token files, check them, and write them in other forms."""

from __future__ import annotations

from dsmem.cli import commands, tokens_export, tokens_info, tokens_show, tokens_verify

app = commands.group(
    "tokens",
    help="Look at token files, check them, export them.",
    examples=("dsmem tokens info train.bin", "dsmem tokens show train.bin --doc 3", "dsmem tokens verify train.bin"),
)
commands.add(app, tokens_info.info, examples=tokens_info.EXAMPLES)
commands.add(app, tokens_show.show, examples=tokens_show.EXAMPLES)
commands.add(app, tokens_verify.verify, examples=tokens_verify.EXAMPLES)
commands.add(app, tokens_export.export, examples=tokens_export.EXAMPLES)
