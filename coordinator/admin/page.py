"""The web page: a handful of files that hold no data, so they are open to whoever passes the checks of Host and Origin.

The policy of what the page may load and where it may talk to is as strict as it gets: its own files, this server.
https://www.w3.org/TR/CSP3/
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from aiohttp import web

FOLDER = Path(__file__).parents[1] / "web"
SCRIPTS = ("main.js", "api.js", "charts.js", "decisions.js", "models.js", "words.js")
FILES = {
    "/": ("index.html", "text/html"),
    "/web/style.css": ("style.css", "text/css"),
    "/web/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/web/{name}": (name, "text/javascript") for name in SCRIPTS},
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Page:
    """The files, read once. Raises OSError where the installation lacks one."""

    def __init__(self) -> None:
        self._bodies = {path: (FOLDER / name).read_bytes() for path, (name, _) in FILES.items()}
        self._tags = {path: f'"{hashlib.sha256(body).hexdigest()[:32]}"' for path, body in self._bodies.items()}

    def answer(self, request: web.Request) -> web.Response:
        headers = {**HEADERS, "ETag": self._tags[request.path]}
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers=headers)
        _, kind = FILES[request.path]
        return web.Response(body=self._bodies[request.path], headers=headers, content_type=kind, charset="utf-8")
