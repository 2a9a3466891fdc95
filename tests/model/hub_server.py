"""A local server that speaks as much of the Hugging Face hub's protocol as a file download needs.

``HEAD`` and ``GET`` of ``/OWNER/NAME/resolve/REVISION/FILE`` with the hub's headers, byte ranges
and error codes, and the faults of a bad connection on demand.
"""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import unquote

__all__ = ["HubServer"]


class HubServer:
    """One repository on 127.0.0.1, served in a thread while the context lasts.

    Attributes
    ----------
    repository, commit : str
        What exists; branch ``main`` is at `commit`.
    files : dict of str to bytes
        The files of that commit.
    url : str
        For HF_ENDPOINT.
    requests : list of tuple
        (method, path, Range header or None) of every request for a file so far.
    drops : int
        So many of the next downloads lose their connection half-way.
    deliverable : int or None
        No download ever gets past this many bytes of a file.
    sent_instead : dict of str to bytes
        Contents that are sent in place of those announced.
    announced_extra : int
        Bytes by which announced lengths exceed the true ones.
    is_portal : bool
        Answer everything with a login page, as public wireless networks do.
    """

    def __init__(self, repository: str = "owner/model", commit: str = "c" * 40) -> None:
        self.repository = repository
        self.commit = commit
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.drops = 0
        self.deliverable: int | None = None
        self.sent_instead: dict[str, bytes] = {}
        self.announced_extra = 0
        self.is_portal = False
        hub = self

        class Handler(_Handler):
            server_state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_state: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def _answer(self) -> None:
        hub = self.server_state
        if "/resolve/" in self.path:
            hub.requests.append((self.command, self.path, self.headers.get("Range")))
        # One request per connection, so that no idle one outlives the test.
        self.close_connection = True
        if hub.is_portal:
            self._send(200, {"Content-Type": "text/html"}, b"<html>Log in</html>")
            return
        repository, _, rest = unquote(self.path).lstrip("/").partition("/resolve/")
        revision, _, filename = rest.partition("/")
        if repository != hub.repository:
            self._refuse("RepoNotFound")
        elif revision not in ("main", hub.commit):
            self._refuse("RevisionNotFound")
        elif filename not in hub.files:
            self._refuse("EntryNotFound", {"X-Repo-Commit": hub.commit})
        else:
            self._send_file(filename)

    def _refuse(self, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(404, {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})}, b"")

    def _send_file(self, filename: str) -> None:
        hub = self.server_state
        content = hub.sent_instead.get(filename, hub.files[filename])
        total = len(content) + hub.announced_extra
        headers = {
            "X-Repo-Commit": hub.commit,
            "ETag": f'"{hashlib.sha256(hub.files[filename]).hexdigest()}"',
            "X-Linked-Size": str(total),
            "Accept-Ranges": "bytes",
        }
        start, status = 0, 200
        if "Range" in self.headers:
            start, status = int(self.headers["Range"].removeprefix("bytes=").split("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        end = len(content)
        if hub.deliverable is not None:
            end = min(end, hub.deliverable)
        if self.command == "GET" and hub.drops > 0:
            hub.drops -= 1
            end = start + (end - start) // 2
        self._send(status, headers, content[start:end], length=total - start)

    def _send(
        self, status: int, headers: dict[str, str], body: bytes, length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
