"""A stand-in of the Hugging Face hub: the three routes that fetching a model asks (https://huggingface.co/docs/hub/api),
over folders on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves `root/<org>/<name>`; each has the revisions `main` and `commit`. `gated`: those that want a token."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.commit = COMMIT
        self.gated: set[str] = set()
        self.broken = False
        """It ends connections in the middle of weights."""
        self.asked: list[str] = []
        self.sent: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        words = path.removeprefix("/api/models").strip("/").split("/")
        if len(words) < 4:
            self._refuse(404, "EntryNotFound")
            return
        repo, verb, revision, rest = "/".join(words[:2]), words[2], words[3], "/".join(words[4:])
        folder = self.server.root / repo
        if repo in self.server.gated and self.headers.get("Authorization") != "Bearer sesame":
            self._refuse(403, "GatedRepo")
        elif not folder.is_dir():
            self._refuse(404, "RepoNotFound")
        elif revision not in ("main", self.server.commit):
            self._refuse(404, "RevisionNotFound")
        elif verb == "resolve":
            self._file(folder / rest, body=body)
        else:
            self._json(
                self._tree(folder) if verb == "tree" else {"id": repo, "sha": self.server.commit, "siblings": []}
            )

    def _tree(self, folder: Path) -> list[dict[str, object]]:
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        return [
            {"type": "file", "path": str(file.relative_to(folder)), "size": file.stat().st_size, "oid": _oid(file)}
            for file in files
        ]

    def _file(self, file: Path, *, body: bool) -> None:
        content = file.read_bytes()
        self._head(
            200, {"ETag": f'"{_oid(file)}"', "X-Repo-Commit": self.server.commit, "Content-Length": str(len(content))}
        )
        if body:
            self.server.sent.append(file.name)
            cut = self.server.broken and file.suffix == ".safetensors"
            self.wfile.write(content[: len(content) // 2] if cut else content)

    def _json(self, value: object) -> None:
        content = json.dumps(value).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(content))})
        self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        self._head(status, {"X-Error-Code": code, "X-Error-Message": code, "Content-Length": "0"})

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def running_hub(root: Path) -> Iterator[Hub]:
    hub = Hub(root)
    serving = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
    serving.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        serving.join()
        hub.server_close()
