"""A server in a thread of this process, on a port of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from satunet.prediction import Predictor
from satunet.serving.app import create_app
from satunet.serving.options import ServeOptions


@contextlib.contextmanager
def running(predictor: Predictor, folder: Path, options: ServeOptions | None = None) -> Iterator[str]:
    """Its address."""
    app = create_app(predictor, folder, options or ServeOptions())
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
