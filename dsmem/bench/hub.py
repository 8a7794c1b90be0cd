"""A hub on this machine that holds one dataset of jsonl files and answers each request after a while, as one far away.

It speaks as much of the protocol of huggingface.co as `datasets` asks of it: what a repository holds, and its files.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPOSITORY = "bench/rows"
_PART_BYTES = 1 << 20


@contextmanager
def serving(files: Sequence[Path], *, answer_s: float) -> Iterator[str]:
    """The address of a hub with these files in its one repository; it is gone at the end."""
    names = {file.name: file for file in files}
    revision = hashlib.sha1("\n".join(names).encode(), usedforsecurity=False).hexdigest()

    class Handler(_Handler):
        held = names
        sha = revision
        delay_s = answer_s

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="dsmem-bench-hub", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    held: dict[str, Path]
    sha: str
    delay_s: float

    def do_GET(self) -> None:
        """The repository, its list of files, or one of them."""
        time.sleep(self.delay_s)
        path = unquote(urlsplit(self.path).path)
        api = f"/api/datasets/{REPOSITORY}"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{self.sha}"):
            self._json(self._about())
        elif path.startswith(f"{api}/tree/"):
            self._json(self._listed() if path.endswith((self.sha, "main")) else [])
        elif path.startswith(f"/datasets/{REPOSITORY}/resolve/"):
            self._file(path.rsplit("/", 1)[1])
        else:
            self._missing("RepoNotFound" if not path.startswith(api) else "EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """What is known of some paths."""
        time.sleep(self.delay_s)
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if "/paths-info/" not in self.path:
            self._missing("EntryNotFound")
            return
        self._json([one for one in self._listed() if str(one["path"]) in unquote(asked)])

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""

    def _about(self) -> dict[str, object]:
        return {
            "_id": "0", "id": REPOSITORY, "sha": self.sha, "private": False, "gated": False, "disabled": False,
            "downloads": 0, "likes": 0, "tags": [], "siblings": [{"rfilename": name} for name in self.held],
        }  # fmt: skip

    def _listed(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "oid": self._etag(name), "size": file.stat().st_size, "path": name}
            for name, file in self.held.items()
        ]

    def _etag(self, name: str) -> str:
        return hashlib.sha1(f"{self.sha}{name}".encode(), usedforsecurity=False).hexdigest()

    def _file(self, name: str) -> None:
        found = self.held.get(name)
        if found is None:
            self._missing("EntryNotFound")
            return
        self.send_response(200)
        self.send_header("Content-Length", str(found.stat().st_size))
        self.send_header("ETag", f'"{self._etag(name)}"')
        self.send_header("X-Repo-Commit", self.sha)
        self.send_header("Content-Type", "application/octet-stream")
        self.end_headers()
        if self.command == "GET":
            with found.open("rb") as file:
                while part := file.read(_PART_BYTES):
                    self.wfile.write(part)

    def _json(self, record: object) -> None:
        body = json.dumps(record).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
