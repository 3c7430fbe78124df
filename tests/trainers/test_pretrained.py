"""Where weights may come from, and that nothing is loaded in part without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from satunet.datasets.paths import preprocessed_dir
from satunet.errors import ModelError, UserError
from satunet.jobs.files import read_json, write_json
from satunet.models.checkpoints import load_checkpoint
from satunet.models.folder import ModelFolder
from satunet.models.import_sat import import_sat
from satunet.network.config import NetworkConfig
from satunet.network.model import PromptedUNet
from satunet.plan import UnifiedPlan
from satunet.trainers.unified.pretrained import read_weights, start_from
from satunet.trainers.unified.run import run_training
from tests.prediction.published_sat import TINY, bert_folder, network_checkpoint, text_checkpoint

from .helpers import NAME, config, fold_folder

CONFIG = NetworkConfig.auto(
    features_per_stage=(4, 8), strides=((1, 1, 1), (2, 2, 2)), kernel_sizes=((3, 3, 3),) * 2, text_dim=8
)


def network(seed: int) -> PromptedUNet:
    torch.manual_seed(seed)
    return PromptedUNet(CONFIG)


def weights(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.contiguous() for k, v in net.state_dict().items()}


@pytest.mark.parametrize("form", ["nnunet", "ddp", "published", "safetensors", "model folder", "result folder"])
def test_every_form_of_whole_weights(tmp_path: Path, form: str) -> None:
    theirs, ours = network(1), network(2)
    content = weights(theirs)
    path = tmp_path / "weights.pth"
    if form == "nnunet":
        torch.save({"network_weights": content}, path)
    elif form == "ddp":
        torch.save({"network_weights": {f"module._orig_mod.{k}": v for k, v in content.items()}}, path)
    elif form == "published":
        torch.save({"step": 3, "model_state_dict": {f"module.{k}": v for k, v in content.items()}}, path)
    elif form == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(content, path)
    elif form == "model folder":
        path = tmp_path
        save_file(content, path / "weights.safetensors")
        save_file({"vectors": torch.zeros(2)}, path / "text_bank.safetensors")
    else:
        path = tmp_path
        (tmp_path / "fold_3").mkdir()
        torch.save({"network_weights": content}, tmp_path / "fold_3" / "checkpoint_final.pth")
    assert "all weights" in start_from(ours, path)
    assert all(torch.equal(v, content[k]) for k, v in ours.state_dict().items())


@pytest.mark.parametrize("prefix", ["backbone.encoder.", "encoder.", ""])
def test_the_encoder_alone(tmp_path: Path, prefix: str) -> None:
    theirs, ours = network(1), network(2)
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    content = {f"{prefix}{k}": v for k, v in weights(theirs.backbone.encoder).items()}
    save_file(content, tmp_path / "encoder.safetensors")
    assert "image encoder" in start_from(ours, tmp_path / "encoder.safetensors")
    for key, value in ours.state_dict().items():
        expected = theirs.state_dict()[key] if key.startswith("backbone.encoder.") else before[key]
        assert torch.equal(value, expected), key


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    ours = network(2)
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    content = weights(network(1))
    content.pop("mask_embed_proj.0.bias")
    save_file(content, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=r"x\.safetensors.*1 missing: mask_embed_proj\.0\.bias"):
        start_from(ours, tmp_path / "x.safetensors")
    half = {k: v for k, v in weights(network(1).backbone.encoder).items() if ".bias" not in k}
    save_file({f"backbone.encoder.{k}": v for k, v in half.items()}, tmp_path / "half.safetensors")
    with pytest.raises(ModelError, match="missing"):
        start_from(ours, tmp_path / "half.safetensors")
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())
    (tmp_path / "broken.safetensors").write_bytes(b"\x08")
    for path, error in (("broken.safetensors", ModelError), ("nothing.pth", UserError), (".", UserError)):
        with pytest.raises(error, match=path.replace(".", r"\.") if path != "." else "safetensors"):
            read_weights(tmp_path / path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no weights here"):
        read_weights(tmp_path / "empty")
    for fold in (0, 1):
        (tmp_path / "empty" / f"fold_{fold}").mkdir()
        torch.save({"network_weights": content}, tmp_path / "empty" / f"fold_{fold}" / "checkpoint_final.pth")
    with pytest.raises(UserError, match=r"several folds: give one, such as .*fold_0"):
        read_weights(tmp_path / "empty")


def test_fine_tuning_takes_the_models_network(planned: Path) -> None:
    model = run_training(NAME, fold=0, config=config(steps=2), device="cpu").model_folder
    moved = model.rename(planned / "model")
    plan_file = preprocessed_dir() / NAME / "satunetPlans.json"
    plan = read_json(plan_file)
    plan["satunet"]["network"]["query_dim"] = 96  # another network than the model's
    plan["satunet"]["network"]["mask_heads"] = [[96, f] for _, f in plan["satunet"]["network"]["mask_heads"]]
    plan["satunet"]["network"]["num_heads"] = 4
    write_json(plan_file, plan)
    tuned = run_training(
        NAME, fold=1, config=config(steps=1, learning_rate=1e-9), device="cpu", pretrained_weights=moved
    )
    assert tuned.plan.network.query_dim != 96
    assert read_json(tuned.model_folder / "plans.json")["satunet"]["network"]["query_dim"] != 96
    before = load_checkpoint(moved / "fold_0" / "checkpoint_final.pth")["network_weights"]
    after = tuned.network.state_dict()
    assert all(torch.allclose(before[k].float(), after[k].float(), atol=1e-5) for k in before)
    assert "start from" in Path(str(tuned.log_file)).read_text()
    assert fold_folder().parent == tuned.model_folder


def test_fine_tuning_of_imported_weights_of_sat_goes_on_and_predicts(planned: Path) -> None:
    sat = import_sat(
        network_checkpoint(planned / "SAT.pth"),
        text_checkpoint(planned / "text_encoder.pth"),
        planned / "model",
        text_architecture=str(bert_folder(planned / "bert")),
        presets=[TINY],
        patch_size=(16, 16, 16),
    )
    options: dict[str, Any] = {"fold": 0, "config": config(steps=4), "device": "cpu", "validate": False}
    tuned = run_training(NAME, pretrained_weights=planned / "model", minutes=1e-9, **options)
    assert tuned.current_epoch == 1  # stopped in time
    assert tuned.setup.bank.encoder_fingerprint == sat.text_encoder.fingerprint
    (planned / "model").rename(planned / "gone")
    whole = run_training(NAME, continue_training=True, **options)
    assert whole.plan.network == tuned.plan.network
    assert (whole.model_folder / "fold_0" / "checkpoint_final.pth").is_file()
    encoder = ModelFolder.load(whole.model_folder).text_encoder()
    assert encoder.fingerprint == sat.text_encoder.fingerprint
    whole.model_folder.rename(planned / "tuned")
    # A run from scratch has the plan's network and encoder again, and no other encoder beside it.
    fresh = run_training(NAME, **options)
    assert fresh.plan.text_encoder == UnifiedPlan.load(preprocessed_dir() / NAME / "satunetPlans.json").text_encoder
    assert ModelFolder.load(fresh.model_folder).text_encoder().fingerprint == fresh.setup.bank.encoder_fingerprint
