"""Options of a server."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from satunet.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Address and limits of a server.

    Attributes:
        host: Address to listen on; other machines can reach the server only if this is not a loopback address.
        port: Port to listen on; 0 takes a free one.
        token: Secret that clients send as "Authorization: Bearer TOKEN"; required if other machines can reach the
            server.
        token_file: File whose only line is the token, so that the token does not show in the list of processes.
        most_upload_mb: Largest upload in MB; an archive may unpack to at most ten times as much.
        queue: Number of jobs that may wait; further ones are refused.
        keep_minutes: Minutes after which unused scans and results are removed.
        features_gb: Memory for encoded features of scans, in GB; they make further prompts on a scan fast.
        scans_gb: Memory for prepared scans, in GB.
        disk_gb: Disk space for uploads and results, in GB; the oldest are removed first.
    """

    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    token_file: Annotated[Path | None, arg(metavar="FILE")] = None
    most_upload_mb: float = 1024.0
    queue: int = 32
    keep_minutes: float = 60.0
    features_gb: float = 4.0
    scans_gb: float = 2.0
    disk_gb: float = 20.0

    def __post_init__(self) -> None:
        for name in ("most_upload_mb", "queue", "keep_minutes", "disk_gb"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be more than 0, got {getattr(self, name)}")
        for name in ("features_gb", "scans_gb"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.port < 65536:
            raise UserError(f"port must be from 0 to 65535, got {self.port}")
        if self.token is not None and self.token_file is not None:
            raise UserError("give --token or --token_file, not both")
        if self.token is not None:
            _check_token(self.token)
        if not _is_loopback(self.host) and self.token is None and self.token_file is None:
            raise UserError(
                f"other machines can reach {self.host}: give a token (--token or --token_file) and put a proxy with TLS in "
                "front, or listen on 127.0.0.1"
            )

    def secret(self) -> str | None:
        """The token, given or read from its file; ``None`` if none is required.

        Raises:
            UserError: The file cannot be read, or does not hold a token.
        """
        if self.token_file is None:
            return self.token
        try:
            text = self.token_file.read_text("ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.token_file}: the token cannot be read ({error})") from error
        return _check_token(text.strip(), f"{self.token_file}: ")

    @property
    def most_upload_bytes(self) -> int:
        """Largest upload in bytes."""
        return int(self.most_upload_mb * 1e6)


def _check_token(token: str, where: str = "") -> str:
    if len(token) < 16 or not token.isprintable() or not token.isascii() or " " in token:
        raise UserError(
            f"{where}a token must be one word of at least 16 ASCII characters; this command makes one: "
            "python -c 'import secrets; print(secrets.token_hex())'"
        )
    return token


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
