"""`dsmem server`: datasets loaded once per machine, for any number of processes."""

from __future__ import annotations

from dsmem.cli import commands, server_datasets, server_logs, server_start, server_status, server_stop

app = commands.group(
    "server",
    help="Serve datasets, loaded once per machine.",
    examples=(
        "dsmem server start --dataset train=train.jsonl",
        "dsmem server status",
        "dsmem server stop",
    ),
)
commands.add(app, server_start.run, examples=server_start.RUN_EXAMPLES)
commands.add(app, server_start.start, examples=server_start.START_EXAMPLES)
commands.add(app, server_stop.stop, examples=server_stop.EXAMPLES)
commands.add(app, server_start.restart, examples=server_start.RESTART_EXAMPLES)
commands.add(app, server_status.status, examples=server_status.STATUS_EXAMPLES)
commands.add(app, server_status.ls, examples=server_status.LS_EXAMPLES)
commands.add(app, server_datasets.refresh, examples=server_datasets.REFRESH_EXAMPLES)
commands.add(app, server_datasets.add, examples=server_datasets.ADD_EXAMPLES)
commands.add(app, server_datasets.remove, examples=server_datasets.REMOVE_EXAMPLES)
commands.add(app, server_logs.logs, examples=server_logs.LOGS_EXAMPLES)
commands.add(app, server_logs.unit, examples=server_logs.UNIT_EXAMPLES)
