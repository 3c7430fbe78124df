"""Requests to a server; each error is one sentence."""

from __future__ import annotations

import contextlib
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, Any

from satunet.errors import UserError

_MOST_TOLD = 300
_CHUNK = 1 << 20


class ServerError(UserError):
    """A server cannot be reached, or refuses.

    Attributes:
        status: HTTP status of its answer; ``None`` if there was no answer.
        retry_seconds: Seconds after which to ask again, if the server says so.
    """

    def __init__(self, message: str, status: int | None = None, retry_seconds: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_seconds = status, retry_seconds


class _Stay(urllib.request.HTTPRedirectHandler):
    """Does not follow redirects, because the token would be sent to the new address."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Requests:
    """Requests to one address, each over its own connection; threads may share this object.

    Args:
        address: ``http://…`` or ``https://…``, with a path if a proxy serves it under one.
        token: Secret that the server requires.
        timeout_seconds: Longest silence of the server.

    Raises:
        ServerError: The address is not a valid one.
    """

    def __init__(self, address: str, token: str | None, timeout_seconds: float) -> None:
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
            raise ServerError(f"a server's address is like http://127.0.0.1:8000, got {address!r}")
        self.address = address.rstrip("/")
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._timeout = timeout_seconds
        self._opener = urllib.request.build_opener(_Stay)

    def json(self, method: str, path: str, content: Any = None) -> Any:
        """Send JSON, or nothing, and return the server's answer in JSON.

        Raises:
            ServerError: The server cannot be reached, refuses, or does not answer in JSON.
        """
        body = None if content is None else json.dumps(content).encode()
        return self._json(self._open(method, path, body, "application/json", 0 if body is None else len(body)))

    def upload(self, path: str, stream: IO[bytes], size: int) -> Any:
        """As :meth:`json`, with a file as the body.

        Raises:
            ServerError: As :meth:`json`.
        """
        return self._json(self._open("POST", path, stream, "application/octet-stream", size))

    def download(self, path: str, stream: IO[bytes]) -> None:
        """Write the server's answer to a stream.

        Raises:
            ServerError: As :meth:`json`, or the answer ends too early.
            OSError: The answer cannot be written.
        """
        with self._open("GET", path) as answer:
            announced, size = answer.headers.get("Content-Length", ""), 0
            while chunk := self._read(answer, _CHUNK):
                size += len(chunk)
                stream.write(chunk)
        if announced.isdigit() and int(announced) != size:
            raise ServerError(f"{self.address} ended after {size} of {announced} bytes")

    def _json(self, answer: http.client.HTTPResponse) -> Any:
        with answer:
            text = self._read(answer)
        try:
            return json.loads(text) if text else None
        except ValueError as error:
            raise ServerError(f"{self.address} does not answer in JSON: is it a satunet server?") from error

    def _open(
        self, method: str, path: str, body: bytes | IO[bytes] | None = None, kind: str = "", size: int = 0
    ) -> http.client.HTTPResponse:
        headers = dict(self._headers)
        if body is not None:
            headers |= {"Content-Type": kind, "Content-Length": str(size)}
        request = urllib.request.Request(f"{self.address}{path}", data=body, headers=headers, method=method)
        try:
            answer: http.client.HTTPResponse = self._opener.open(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error, size) from error
        return answer

    def _read(self, answer: http.client.HTTPResponse, most: int | None = None) -> bytes:
        try:
            return answer.read(most)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception, size: int = 0) -> ServerError:
        reason = getattr(error, "reason", None) or error
        told = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        if isinstance(reason, ConnectionError) and not isinstance(reason, ConnectionRefusedError) and size:
            told = f"the connection was closed while {size / 1e6:,.1f} MB were sent; is there a limit on uploads?"
        return ServerError(f"{self.address} cannot be reached: {told}")

    def _refusal(self, error: urllib.error.HTTPError) -> ServerError:
        if 300 <= error.code < 400:
            return ServerError(
                f"{self.address} redirects to {error.headers.get('Location')}: give that address", error.code
            )
        told = f"{error.code} {error.reason}"
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
            detail = json.loads(error.read(1 << 16))["detail"]
            told = detail if isinstance(detail, str) else "; ".join(str(d["msg"]) for d in detail)
        seconds = error.headers.get("Retry-After", "")
        retry = float(seconds) if seconds.isdigit() else None
        return ServerError(f"{self.address}: {told[:_MOST_TOLD]}", error.code, retry)


def quoted(text: str) -> str:
    """A text as one part of a path or as the value of a query."""
    return urllib.parse.quote(text, safe="")


def plain_name(name: str) -> str:
    """Check a file name from a server.

    Raises:
        ServerError: It is a path; a server must not choose the folder of a file.
    """
    if Path(name).name != name or "\\" in name or ":" in name or name.startswith("."):
        raise ServerError(f"the server names a result {name!r}, which is not a plain file name")
    return name
