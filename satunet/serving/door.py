"""Checks before a route sees a request: its token, its size, and how a refusal reaches the client.

They come first, because a web framework reads a whole form or JSON body, into memory or onto the disk, before it asks
whose request it is:

- **The token** is checked before a byte of the body is read.
- **The size** of a body is limited, both as announced and as received.
- **An answer before the end of an upload** says ``Connection: close``, and the data still on its way is read and
  discarded for a while. A connection that is closed with unread data is reset, and the client, or a proxy in between
  (which then reports 502), may lose the answer that was already sent. The time is bounded, as in nginx's
  ``lingering_close``.
"""

from __future__ import annotations

import hmac
from typing import Any

import anyio
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = ("/health", "/docs", "/openapi.json", "/", "/static/niivue.js", "/auth/")
"""Paths that are answered without a token."""
_UPLOADS = ("/scans", "/datastore/", "/session/", "/infer/")
_FORM_BYTES = 2_000_000
"""Number of bytes that a form may add to the file in it."""
_REQUEST_BYTES = 16_000_000
"""Largest request that uploads nothing: the allowed number of prompts, each of the allowed length, with escapes."""
DRAIN_BYTES = 64_000_000
"""Number of bytes up to which the rest of a refused upload is read, or the largest allowed upload if that is larger."""
DRAIN_SECONDS = 30.0
"""Time for which the rest of a refused upload is read."""
SILENT_SECONDS = 5.0
"""Seconds without data after which no more is expected."""


class Door:
    """The ASGI middleware.

    Args:
        app: Application behind the door.
        token: Secret that clients send; ``None`` if none is required.
        most_upload_bytes: Size of the largest upload.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, most_upload_bytes: int) -> None:
        self._app, self._token, self._most_upload = app, token, most_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        uploads = scope["path"].startswith(_UPLOADS) and not scope["path"].startswith("/scans/")
        most = self._most_upload if uploads else _REQUEST_BYTES
        visit = _Visit(
            scope, receive, send, most, room=_FORM_BYTES if uploads else 0, drain=max(DRAIN_BYTES, self._most_upload)
        )
        if not self._may_come_in(scope["path"], visit.headers):
            refused = JSONResponse(
                {"detail": "a token is required: Authorization: Bearer TOKEN"}, 401, {"WWW-Authenticate": "Bearer"}
            )
            await refused(scope, visit.receive, visit.send)
        elif visit.announced > most + visit.room:
            await JSONResponse({"detail": too_large(most)}, 413)(scope, visit.receive, visit.send)
        else:
            await self._app(scope, visit.receive, visit.send)

    def _may_come_in(self, path: str, headers: dict[bytes, bytes]) -> bool:
        if self._token is None or path in OPEN:
            return True
        return hmac.compare_digest(headers.get(b"authorization", b""), f"Bearer {self._token}".encode())


def too_large(most_bytes: int) -> str:
    """Message about an upload that is larger than allowed."""
    return f"the upload is larger than the allowed {most_bytes / 1e6:,.0f} MB"


class _Visit:
    """One request: how much of its body has arrived, and whether more is expected."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, most: int, *, room: int, drain: int) -> None:
        self._receive, self._send = receive, send
        self._most, self.room, self._drain_bytes = most, room, drain
        self.headers = {name.lower(): value for name, value in scope["headers"]}
        length = self.headers.get(b"content-length", b"0")
        self.announced = int(length) if length.isdigit() else 0
        self._more = self.announced > 0 or b"transfer-encoding" in self.headers
        self._asked = b"100-continue" not in self.headers.get(b"expect", b"").lower()
        self._size, self._closing = 0, False

    async def receive(self) -> Message:
        message = await self._next()
        if self._size > self._most + self.room:
            raise HTTPException(413, too_large(self._most))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and self._more:
            self._closing = True
            message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        elif self._closing and message["type"] == "http.response.body" and not message.get("more_body"):
            await self._send({**message, "more_body": True})  # the whole answer is sent, and the connection still open
            await self._drain()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _next(self) -> Message:
        self._asked = True
        message: dict[str, Any] = dict(await self._receive())
        self._more = message["type"] == "http.request" and bool(message.get("more_body"))
        self._size += len(message.get("body", b""))
        return message

    async def _drain(self) -> None:
        """Read the data still on its way; a client that waits for "100 Continue" sends no more."""
        most = self._size + self._drain_bytes
        with anyio.move_on_after(DRAIN_SECONDS):
            while self._asked and self._more and self._size < most:
                with anyio.move_on_after(SILENT_SECONDS) as silence:
                    await self._next()
                if silence.cancelled_caught:
                    return
