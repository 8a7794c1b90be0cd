"""A child that loads nothing: what it does is written in the spec's `path`, and it puts small files into the store.

ok:NAME = publish at once; slow:SECONDS; fail:MESSAGE; die:SIGNAL; nonsense; silent; flood; count = progress in between.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from dsmem.errors import BadSource
from dsmem.progress import Progress
from dsmem.server import loader
from dsmem.server.records import Published
from dsmem.server.spec import Spec
from dsmem.store.root import Store


def publish(store: Store, spec: Spec, progress: Progress) -> Published:
    if spec.local_paths():
        return _of_file(store, spec)
    kind, _, detail = spec.path.partition(":")
    if kind == "slow":
        time.sleep(float(detail))
    elif kind == "count":
        for done in range(5):
            progress(done * 100, 500)
            time.sleep(0.06)
    elif kind == "fail":
        raise BadSource(detail)
    elif kind == "die":
        os.kill(os.getpid(), int(detail))
    elif kind == "silent":
        os._exit(0)
    elif kind in ("nonsense", "flood"):
        pipe = int(sys.argv[3])
        os.write(pipe, b"\xff\xff\xff\xffgarbage" if kind == "flood" else b"\x00\x00\x00\x02[]")
        time.sleep(60)
    name = f"{kind}-object"
    Path(store.object_path(name)).write_text(spec.path)
    return Published(name, 10, 1000, spec.identity(), 1)


def _of_file(store: Store, spec: Spec) -> Published:
    """The number of lines of a file, and an object's name that changes with it; `wait` in it = slow."""
    identity = spec.identity()
    text = Path(spec.local_paths()[0]).read_text()
    if "wait" in text:
        time.sleep(1)
    if "bad" in text:
        raise BadSource("the file says bad")
    name = f"file-{identity.mtime_ns}"
    Path(store.object_path(name)).write_text(text)
    return Published(name, len(text.splitlines()), identity.size_bytes, identity, 1)


if __name__ == "__main__":
    sys.exit(loader.run(sys.argv[1:], publish))
