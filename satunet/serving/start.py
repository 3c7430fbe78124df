"""Starting and stopping a server."""

from __future__ import annotations

import logging
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from satunet.compute.threads import in_network_thread
from satunet.errors import UserError
from satunet.models.folder import ModelFolder
from satunet.prediction.options import PredictOptions
from satunet.prediction.predictor import Predictor
from satunet.serving.app import create_app
from satunet.serving.options import ServeOptions

logger = logging.getLogger(__name__)


def serve(models: Sequence[ModelFolder], prediction: PredictOptions, options: ServeOptions) -> None:
    """Serve until the process is asked to end (Ctrl-C or SIGTERM), then return.

    Args:
        models: Models that are used together, at least one.
        prediction: Options of the prediction.
        options: Address of the server, and limits of what it may use.

    Raises:
        UserError: The server cannot listen on the address.
    """
    listening = _listen(options)
    predictor = in_network_thread(Predictor, models, prediction)
    host, port = listening.getsockname()[:2]
    with tempfile.TemporaryDirectory(prefix="satunet-serve-") as folder:
        app = create_app(predictor, Path(folder) / "desk", options)
        shown = f"[{host}]" if ":" in host else host
        logger.info("http://%s:%d serves %s; Ctrl-C ends it", shown, port, predictor.model.path.name)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=10, server_header=False)
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:  # or Terminated: this is how a server ends, and nothing is left to continue from
            logger.info("the server has ended; scans and masks that it kept are deleted")


def _listen(options: ServeOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((options.host, options.port))
    except OSError as error:
        listening.close()
        raise UserError(f"{options.host}:{options.port} cannot be listened on ({error.strerror or error})") from error
    listening.listen(128)
    return listening
