"""A hub on loopback: the routes that huggingface_hub asks, and what goes wrong on a way."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """Files of a repository at one commit.

    Attributes:
        folder: The files.
        large: Endings of files that Git LFS keeps.
        card: Of the README's head: the licence.
    """

    folder: Path
    large: tuple[str, ...] = (".pth", ".safetensors")
    card: dict[str, Any] = field(default_factory=lambda: {"license": "apache-2.0"})

    @property
    def commit(self) -> str:
        state = "".join(f"{f}{f.stat().st_size}{hashlib.sha256(f.read_bytes()).hexdigest()}" for f in self.paths)
        return hashlib.sha1(state.encode()).hexdigest()

    @property
    def paths(self) -> list[Path]:
        return sorted(f for f in self.folder.rglob("*") if f.is_file())

    def info(self, name: str) -> dict[str, Any]:
        siblings = []
        for file in self.paths:
            content = file.read_bytes()
            entry: dict[str, Any] = {"rfilename": file.relative_to(self.folder).as_posix(), "size": len(content)}
            if file.suffix in self.large:
                sha = hashlib.sha256(content).hexdigest()
                pointer = (
                    f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {len(content)}\n".encode()
                )
                entry |= {
                    "blobId": hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest(),
                    "lfs": {"sha256": sha, "size": len(content), "pointerSize": len(pointer)},
                }
            else:
                entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            siblings.append(entry)
        return {"_id": "1", "id": name, "modelId": name, "sha": self.commit, "private": False, "tags": [], "downloads": 0,
                "likes": 0, "siblings": siblings, "cardData": self.card}  # fmt: skip


class Hub:
    """A hub, with what it was asked and what it does wrong.

    Attributes:
        repositories: Name → files.
        cut_after: Bytes of a file after which the connection is cut, for each request in turn; then none is.
        served: Path → bytes that are served in place of the file's, once for each entry.
        down: Whether every request is refused.
        asked: Requests so far: method, path and range.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.cut_after: list[int] = []
        self.served: dict[str, list[bytes]] = {}
        self.down = False
        self.asked: list[tuple[str, str, str]] = []

    def __enter__(self) -> Hub:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def files_asked(self) -> list[str]:
        """Files that were asked for, without those that were only listed."""
        return [path.rsplit("/", 1)[-1] for _, path, _ in self.asked if "/resolve/" in path]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.asked.append((request.command, path, request.headers.get("Range", "")))
        if self.down:
            return _send(request, 503, b"down")
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        if listing:
            found = self.repositories.get(listing[1])
            if found is None:
                return _send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if listing[2] not in (None, "main", "v1", found.commit):
                return _send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return _send(request, 200, json.dumps(found.info(listing[1])).encode())
        asked = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = self.repositories.get(asked[1]) if asked else None
        if asked is None or found is None or asked[2] != found.commit:
            return _send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
        wrong = self.served.get(asked[3])
        content = wrong.pop(0) if wrong else (found.folder / asked[3]).read_bytes()
        start = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        first = int(start[1]) if start else 0
        if first >= len(content) and start:
            return _send(request, 416, b"")
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": found.commit}
        if start:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        cut = self.cut_after.pop(0) if self.cut_after else None
        return _send(request, 206 if start else 200, content[first:], headers, cut)


def _send(
    request: BaseHTTPRequestHandler,
    code: int,
    body: bytes,
    headers: dict[str, str] | None = None,
    cut: int | None = None,
) -> None:
    request.send_response(code)
    for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
        request.send_header(key, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body if cut is None else body[:cut])
    if cut is not None:
        request.wfile.flush()
        request.close_connection = True
