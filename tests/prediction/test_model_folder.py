"""One format of models on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from satunet.cli import run
from satunet.errors import DiskFullError, ModelError, UserError
from satunet.models.info import describe_model
from satunet.models.trained_scans import TrainedScans
from satunet.models.writing import export_model
from satunet.network.model import PromptedUNet
from satunet.prediction import ModelFolder

from .conftest import NETWORK, make_model


def result_folder(folder: Path, folds: tuple[str, ...] = ("0",)) -> Path:
    """What the trainer leaves behind."""
    model = make_model()
    model.plan.save(folder / "plans.json")
    model.space.save(folder / "label_space.json")
    model.bank.save(folder / "text_bank.safetensors")
    torch.manual_seed(0)
    weights = PromptedUNet(NETWORK).state_dict()
    for fold in folds:
        (folder / f"fold_{fold}").mkdir()
        content = {
            "network_weights": weights,
            "optimizer_state": {"state": {}, "param_groups": []},
            "logging": {"lr": np.float64(1.0)},
        }
        torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
        (folder / f"fold_{fold}" / "training_config.json").write_text('{"steps": 7}')
    return folder


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    return result_folder(tmp_path / "results")


@pytest.fixture
def exported(trained: Path, tmp_path: Path) -> Path:
    export_model(trained, tmp_path / "model", licence="CC-BY-4.0", name="Bright")
    return tmp_path / "model"


def test_an_exported_model_is_the_trained_one(trained: Path, exported: Path) -> None:
    before, after = ModelFolder.load(trained), ModelFolder.load(exported)
    assert after.weights_hash == before.weights_hash
    assert after.fold == before.fold == "0"
    assert (after.plan, after.space) == (before.plan, before.space)
    inputs = torch.randn(1, 1, 16, 16, 16), torch.randn(1, 2, 6)
    with torch.inference_mode():
        assert torch.equal(after.network(*inputs)[0], before.network(*inputs)[0])
    assert after.card is not None
    assert (after.card.licence, after.card.name) == ("CC-BY-4.0", "Bright")
    assert after.card.provenance["training"] == {"steps": 7}
    assert not list(exported.glob("**/*.pth"))
    assert not after.network.training
    assert all(p.requires_grad for p in after.network.parameters())


def test_a_model_folder_can_be_exported_again(exported: Path, tmp_path: Path) -> None:
    card = export_model(exported, tmp_path / "copy")
    assert dataclasses.asdict(card) == dataclasses.asdict(ModelFolder.load(exported).card)  # type: ignore[arg-type]


def test_a_model_folder_tells_what_it_was_trained_on_and_names_nothing(trained: Path, tmp_path: Path) -> None:
    split = {
        "train": ["Dataset001_A__patient7__0000", "Dataset001_A__patient8__0000"],
        "val": ["Dataset001_A__p__0000"],
    }
    (trained / "fold_0" / "split.json").write_text(json.dumps(split))
    export_model(trained, tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "copy")
    for folder in (trained, tmp_path / "model", tmp_path / "copy"):
        known = TrainedScans.of_model(folder, 0)
        assert known is not None
        assert all(scan in known for scan in split["train"])
        assert split["val"][0] not in known
        assert 7 not in known
    file = tmp_path / "copy" / "trained_scans.json"
    assert "patient" not in "".join(f.read_text("utf-8") for f in (tmp_path / "copy").glob("*.json"))
    file.write_text('{"sha256": ["abc"]}')
    with pytest.raises(ModelError, match=r"trained_scans\.json: not a list of digests of scans"):
        TrainedScans.of_model(tmp_path / "copy", 0)


def test_a_model_folder_of_unknown_training_tells_nothing(exported: Path) -> None:
    assert not (exported / "trained_scans.json").exists()
    assert TrainedScans.of_model(exported, 0) is None


def test_wrong_folds_are_refused(tmp_path: Path, exported: Path) -> None:
    assert ModelFolder.load(exported, fold=0).fold == "0"
    with pytest.raises(ModelError, match="fold 0, but fold 3 was asked for"):
        ModelFolder.load(exported, fold=3)
    (tmp_path / "two").mkdir()
    with pytest.raises(ModelError, match="give the fold; there are 0, 1"):
        ModelFolder.load(result_folder(tmp_path / "two", ("0", "1")))


def test_a_damaged_byte_is_found(exported: Path) -> None:
    file = exported / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ModelError, match="the file is damaged"):
        ModelFolder.load(exported)
    file.write_bytes(content[:-40])
    with pytest.raises(ModelError, match="truncated"):
        ModelFolder.load(exported)
    with pytest.raises(ModelError, match="truncated or damaged"):
        describe_model(exported)
    file.unlink()
    with pytest.raises(ModelError, match="no such file"):
        ModelFolder.load(exported)


@pytest.mark.parametrize(
    "change", [{"version": 99}, {"format": "other"}, {"weights_hash": None}, {"text_encoder": "minilm"}]
)
def test_a_model_json_that_is_none_is_refused(exported: Path, change: dict) -> None:
    file = exported / "model.json"
    content = json.loads(file.read_text()) | change
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    with pytest.raises(ModelError, match=r"model\.json"):
        ModelFolder.load(exported)


def test_nothing_is_left_of_an_export_that_fails(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("x")
    with pytest.raises(UserError, match="already exists"):
        export_model(trained, tmp_path / "model")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(DiskFullError, match="no space"):
        export_model(trained, tmp_path / "other")
    assert {p.name for p in tmp_path.iterdir()} == {"results", "model"}


def test_info_says_what_a_model_is(exported: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", str(exported), "--verify", "--classes"]) == 0
    shown = capsys.readouterr().out
    for expected in (
        "licence: CC-BY-4.0",
        "left bright",
        "minilm",
        "mri",
        "16, 16, 16",
        "and have the hash in model.json",
    ):
        assert expected in shown
    assert run(["info", str(trained), "--json", "--verify"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "result folder of a training"
    assert facts["checkpoints"][0].startswith("fold_0/checkpoint_final.pth")
    assert facts["verified"][0].endswith("fit the plan")
    assert facts["classes"] == {"count": 3, "lesions": 0, "mri": 3}
    assert run(["info", str(trained / "fold_0")]) == 2


def test_export_from_the_command_line(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "-m", str(trained), "-o", str(tmp_path / "out"), "--licence", "MIT"]) == 0
    assert "licence: MIT" in capsys.readouterr().out
    assert run(["export", "-m", str(trained), "-o", str(tmp_path / "out")]) == 2
