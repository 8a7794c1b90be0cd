"""Scripts that other tools' interpreters run, so that they are measured beside dsmem; none imports anything of dsmem.

Each is run by itself as `PYTHON -I SCRIPT`. With `--version` it prints {"version": …} without importing the tool. With
TEXT TOKENIZER END PLACE PROCESSES it turns a .jsonl, or a directory of them, into ids below PLACE, an END after every
document, synced to the disk; it prints {"files": […]} as its last line. `load_weights`, which
serves two tools, tells its own.
"""
