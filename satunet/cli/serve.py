"""``satunet serve``: prediction over HTTP."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from tyro.conf import OmitArgPrefixes

from satunet.cli.options import Verbose
from satunet.models.choice import ModelChoice
from satunet.prediction.options import PredictOptions
from satunet.serving.options import ServeOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve a model over HTTP: it takes scans and words and returns masks; its address opens a page (extra: server)."""

    models: OmitArgPrefixes[ModelChoice] = field(default_factory=ModelChoice)
    serving: OmitArgPrefixes[ServeOptions] = field(default_factory=ServeOptions)
    verbose: Verbose = False

    def run(self) -> int:
        """Serve until Ctrl-C or SIGTERM."""
        from satunet.errors import EnvironmentProblemError

        try:
            import fastapi  # noqa: F401
            import multipart  # noqa: F401
            import uvicorn  # noqa: F401
        except ImportError as error:
            raise EnvironmentProblemError(f"satunet serve needs {error.name}: pip install 'satunet[server]'") from error
        from satunet.serving.start import serve

        serve(self.models.load(), PredictOptions(), self.serving)
        return 0
