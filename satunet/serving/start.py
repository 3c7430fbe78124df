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
        options: Options of the server.

    Raises:
        UserError: The server cannot listen on the address.
    """
    listening = _listen(options)
    predictor = in_network_thread(Predictor, models, prediction)
    host, port = listening.getsockname()[:2]
    with tempfile.TemporaryDirectory(prefix="satunet-serve-") as folder:
        app = create_app(predictor, Path(folder) / "desk", options)
        shown = f"[{host}]" if ":" in host else host
        logger.info("serving %s at http://%s:%d; press Ctrl-C to stop", predictor.model.path.name, shown, port)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=10, server_header=False)
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:  # or Terminated: the normal end of a server, after which there is nothing to continue
            logger.info("the server has stopped; the scans and masks that it kept are deleted")


def _listen(options: ServeOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((options.host, options.port))
    except OSError as error:
        listening.close()
        raise UserError(f"cannot listen on {options.host}:{options.port} ({error.strerror or error})") from error
    listening.listen(128)
    return listening
