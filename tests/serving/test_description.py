"""What the description of the server allows, schemathesis sends; and what it does not allow, too."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from satunet.geometry import Grid
from satunet.images.image import write_volume
from satunet.prediction import Predictor
from satunet.serving.app import create_app
from satunet.serving.options import ServeOptions
from satunet.serving.uploads import scan_in
from tests.prediction.conftest import make_model

TOKEN = "0123456789abcdef"
EXAMPLES = 12


@pytest.mark.slow
def test_nothing_breaks_the_server(tmp_path: Path) -> None:
    """Every operation, with what fits its description and with what does not: no answer is a 500, none shows a traceback."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    options = ServeOptions(token=TOKEN, queue=4, most_upload_mb=1, disk_gb=0.05)
    app = create_app(Predictor(make_model(), device="cpu"), tmp_path / "desk", options)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    asked: dict[str, list[int]] = {}
    desk = app.state.desk
    write_volume(
        tmp_path / "a.nii.gz",
        np.eye(16, dtype=np.float32)[..., None].repeat(8, 2),
        like=Grid(shape=(16, 16, 8), affine=np.eye(4)),
    )

    def there() -> str:
        """A scan that is there; what was sent before may have removed it."""
        name, folder = desk.new_folder()
        shutil.copy(tmp_path / "a.nii.gz", folder / "upload.nii.gz")
        return str(desk.bring(name, folder, scan_in(folder / "upload.nii.gz", 1_000_000)).id)

    def send(case: Any) -> None:
        if len(asked.get(f"{case.method} {case.path}", [])) % 2 and "scan" in (case.path_parameters or {}):
            case.path_parameters["scan"] = there()
        answer = case.call(headers={"Authorization": f"Bearer {TOKEN}"})
        asked.setdefault(f"{case.method} {case.path}", []).append(answer.status_code)
        # 503 says that the queue is full: what it is described to do.
        assert answer.status_code < 500 or answer.status_code == 503, (answer.status_code, answer.content[:500])
        assert b"Traceback" not in answer.content

    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in modes:
            try:
                strategy = operation.as_strategy(generation_mode=mode)
                settled = settings(
                    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )  # fmt: skip
                settled(given(case=strategy)(send))()
            except Unsatisfiable:
                continue  # nothing can be wrong about an operation without arguments
    desk.close()
    assert {"POST /scans", "POST /scans/{scan}/jobs", "POST /infer/{model}", "PUT /datastore/"} <= set(asked)
    assert sum(map(len, asked.values())) > 100
    assert 202 in asked["POST /scans/{scan}/jobs"] and 404 in asked["POST /scans/{scan}/jobs"]
