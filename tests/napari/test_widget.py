"""The plug-in in napari itself, on a display of its own, against a server whose answer is known."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

napari = pytest.importorskip("napari", reason="napari is not installed (pip install 'satunet[napari]')")
pytest.importorskip("qtpy", reason="no Qt is installed (pip install PyQt6)")
if shutil.which("Xvfb") is None:
    pytest.skip("Xvfb is not installed (Debian: apt-get install xvfb)", allow_module_level=True)

from satunet.geometry import Grid  # noqa: E402
from satunet.images.image import write_volume  # noqa: E402
from satunet.napari.widget import _file_of, segment_widget  # noqa: E402
from satunet.prediction import Predictor  # noqa: E402
from tests.prediction.conftest import make_model  # noqa: E402
from tests.serving.running import running  # noqa: E402

SHAPE = (20, 22, 24)
BOX = (slice(3, 9), slice(4, 16), slice(5, 17))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(Predictor(make_model(), device="cpu"), tmp_path_factory.mktemp("server") / "desk") as found:
        yield found


@pytest.fixture(scope="module")
def display() -> Iterator[None]:
    """An X server in memory: napari draws with OpenGL, which Qt's own offscreen platform lacks."""
    reading, writing = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1200x800x24", "-nolisten", "tcp"],
        pass_fds=(writing,),
        stderr=subprocess.DEVNULL,
    )
    os.close(writing)
    with os.fdopen(reading) as told, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISPLAY", f":{told.readline().strip()}")
        patch.setenv("QT_QPA_PLATFORM", "xcb")
        try:
            # Qt ends the process if a library is missing: ask another one first.
            tried = subprocess.run(
                [sys.executable, "-c", "from qtpy.QtWidgets import QApplication; QApplication([])"],
                stderr=subprocess.PIPE,
                text=True,
            )
            if tried.returncode:
                pytest.skip(f"Qt does not start here: {tried.stderr[:300]}")
            yield
        finally:
            server.terminate()
            server.wait(timeout=30)


@pytest.fixture
def viewer(display: None) -> Iterator[Any]:
    made = napari.Viewer(show=False)
    yield made
    made.close()


def volume() -> np.ndarray:
    image = np.random.default_rng(0).normal(0, 0.01, SHAPE).astype(np.float32)
    image[BOX] += 5
    return image


def asked(viewer: Any, address: str, words: str) -> Any:
    """The layer that comes, once the button was pressed."""
    from qtpy.QtWidgets import QApplication

    widget = segment_widget()
    viewer.window.add_dock_widget(widget, name="Segment by text")
    widget.words.value, widget.address.value = words, address
    before = len(viewer.layers)
    widget()
    end = time.monotonic() + 120
    while not widget.call_button.enabled and time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.01)
    assert widget.call_button.enabled
    return viewer.layers[-1] if len(viewer.layers) > before else None


@pytest.mark.slow
@pytest.mark.parametrize("turned", [False, True])
def test_words_on_a_file_become_a_layer(viewer: Any, address: str, tmp_path: Path, turned: bool) -> None:
    """As nibabel's readers show a file, and with the axes reversed, as ITK's do; the file says where left is."""
    from napari.layers import Image
    from napari.layers._source import layer_source

    image = volume()
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    write_volume(tmp_path / "scan.nii.gz", image, like=Grid(shape=SHAPE, affine=affine))
    with layer_source(path=str(tmp_path / "scan.nii.gz")):  # as viewer.open() with a reader's plug-in
        layer = Image(image.T if turned else image, scale=(2, 1, 1))
    viewer.add_layer(layer)
    found = asked(viewer, address, "bright, coffee cup")
    expected = np.zeros(SHAPE, bool)
    expected[BOX] = True
    np.testing.assert_array_equal(found.data > 0, expected.T if turned else expected)
    np.testing.assert_array_equal(found.scale, layer.scale)
    assert list(found.features["structure"]) == ["", "bright"]
    assert [p["status"] for p in found.metadata["prompts"]] == ["known", "unknown"]


@pytest.mark.slow
def test_a_layer_without_a_file_is_taken_as_itk_gives_it(viewer: Any, address: str) -> None:
    viewer.add_image(volume(), scale=(1, 1, 1))
    found = asked(viewer, address, "bright")
    expected = np.zeros(SHAPE, bool)
    expected[BOX] = True
    np.testing.assert_array_equal(found.data > 0, expected)


def test_what_is_sent_of_a_layer_without_a_file_is_what_itk_reads_back(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    from napari.layers import Image

    image = volume()
    file, turned = _file_of(Image(image, scale=(3, 2, 1.5)), tmp_path)
    read = sitk.ReadImage(str(file))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), image)
    np.testing.assert_allclose(read.GetSpacing(), (1.5, 2, 3))
    np.testing.assert_allclose(read.GetDirection(), np.eye(3).ravel(), atol=1e-9)
    assert turned


@pytest.mark.slow
def test_what_goes_wrong_is_told_and_the_button_comes_back(viewer: Any, address: str) -> None:
    from napari.utils.notifications import notification_manager

    viewer.add_image(np.zeros((5, 6), np.float32))
    assert asked(viewer, address, "bright") is None
    assert "the layer must be 3D" in notification_manager.records[-1].message


def test_the_manifest_is_npe2s() -> None:
    from npe2 import PluginManifest

    import satunet.napari

    manifest = PluginManifest.from_file(Path(satunet.napari.__file__).with_name("napari.yaml"))
    (widget,) = manifest.contributions.widgets
    (command,) = manifest.contributions.commands
    assert widget.command == command.id and command.python_name == "satunet.napari.widget:segment_widget"
