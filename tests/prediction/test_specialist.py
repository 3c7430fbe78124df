"""Prediction by nnunetv2, with a stand-in for its predictor that fails and is killed as it may be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from satunet.errors import ModelError
from satunet.evaluation.benchmark.competitors.nnunet import predict_specialist
from satunet.jobs.files import write_json


class Killed(BaseException):
    """The end of a process."""


@pytest.fixture
def nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A trained fold; the predictor writes the name of its input, and cannot read ``bad`` scans."""
    (tmp_path / "fold_0").mkdir()
    torch.save({"network_weights": {"w": torch.zeros(1)}}, tmp_path / "fold_0" / "checkpoint_final.pth")
    stage = SimpleNamespace(model=tmp_path, output=tmp_path / "out", asked=[], killed_in="")

    class Predictor:
        def __init__(self, **_: Any) -> None:
            self.dataset_json = {"file_ending": ".nii.gz"}

        def initialize_from_trained_model_folder(self, *_: Any) -> None: ...

        def predict_from_files_sequential(self, images: list[list[str]], outputs: list[str], **_: Any) -> None:
            for (image,), output in zip(images, outputs, strict=True):
                write_json(Path(output).parent / "dataset.json", {})
                write_json(Path(output).parent / "plans.json", {})
                stage.asked.append(image)
                if "bad" in image:
                    raise RuntimeError("not an image")
                Path(f"{output}.nii.gz").write_text("half")
                if image == stage.killed_in:
                    raise Killed
                Path(f"{output}.nii.gz").write_text(image)

    monkeypatch.setattr("nnunetv2.inference.predict_from_raw_data.nnUNetPredictor", Predictor)
    return stage


def predict(stage: SimpleNamespace, *cases: str) -> dict[str, str]:
    return predict_specialist(
        "Dataset001_A", [(c, [Path(c)]) for c in cases], stage.output, fold=0, device="cpu", model=stage.model
    )


def test_a_case_that_cannot_be_read_does_not_end_the_others(nnunet: SimpleNamespace) -> None:
    assert predict(nnunet, "a", "bad", "c") == {"bad": "RuntimeError: not an image"}
    assert sorted(p.name for p in nnunet.output.glob("*.nii.gz")) == ["a.nii.gz", "c.nii.gz"]
    assert (nnunet.output / "dataset.json").is_file()  # as nnunetv2 leaves it
    with pytest.raises(ModelError, match="none of 1 cases could be predicted; bad: RuntimeError: not an image"):
        predict(nnunet, "bad")


def test_a_killed_run_leaves_nothing_half_written(nnunet: SimpleNamespace) -> None:
    nnunet.killed_in = "b"
    with pytest.raises(Killed):
        predict(nnunet, "a", "b")
    assert [p.name for p in nnunet.output.glob("*.nii.gz")] == ["a.nii.gz"]
    (nnunet.output / ".tmp-left_by_a_killed_process").mkdir()
    nnunet.killed_in = ""
    assert predict(nnunet, "a", "b") == {}
    assert (nnunet.output / "b.nii.gz").read_text() == "b"
    assert nnunet.asked == ["a", "b", "b"]
    assert list(nnunet.output.glob(".tmp-*")) == []


class Evil:
    """What it is unpickled to: a call."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.file,)


def test_a_checkpoint_with_code_in_it_never_reaches_nnunetv2(nnunet: SimpleNamespace, tmp_path: Path) -> None:
    torch.save(
        {"network_weights": {}, "init_args": Evil(tmp_path / "ran")}, tmp_path / "fold_0" / "checkpoint_final.pth"
    )
    with pytest.raises(ModelError, match=r"checkpoint_final\.pth: .*objects other than weights"):
        predict(nnunet, "a")
    assert nnunet.asked == []
    assert not (tmp_path / "ran").exists()
