"""SAT's checkpoints become a model folder, or are refused with a list of what is wrong."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from satunet.cli import run
from satunet.datasets.raw import MODALITIES
from satunet.errors import ModelError, UserError
from satunet.models.import_sat import import_sat
from satunet.network import NetworkConfig
from satunet.network.model import PromptedUNet
from satunet.network.published import modality_rows
from satunet.prediction import ModelFolder, Predictor

from .published_sat import (
    TINY,
    WORDS,
    bert_folder,
    network_checkpoint,
    published_state,
    text_checkpoint,
)

CONV = "module.backbone.encoder.stages.0.0.convs.0"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SATUNET_CACHE", str(tmp_path / "cache"))


def do_import(folder: Path, output: str = "model", **options: object) -> ModelFolder:
    values: dict = {"checkpoint": None, "text_encoder": None} | options
    import_sat(
        values.pop("checkpoint") or network_checkpoint(folder / "nano.pth"),
        values.pop("text_encoder") or text_checkpoint(folder / "text.pth"),
        folder / output,
        text_architecture=str(bert_folder(folder / "bert")),
        presets=[TINY],
        patch_size=(16, 16, 8),
        **values,
    )
    return ModelFolder.load(folder / output)


def test_an_imported_model_is_the_published_network(tmp_path: Path) -> None:
    model = do_import(tmp_path)
    published = PromptedUNet(TINY).eval()
    published.load_state_dict({k.removeprefix("module."): v for k, v in published_state(TINY).items()})
    published.deep_supervision = False
    image, texts = torch.randn(1, 1, 16, 16, 8), torch.randn(1, 3, 24)
    modality = torch.load(tmp_path / "text.pth")["model_state_dict"]["module.modality_embed.weight"]
    with torch.inference_mode():
        for index in range(4):  # ct, mri, us, pet: the published order
            (ours,) = model.network(image, texts, torch.tensor([index]))
            (theirs,) = published(image, texts + modality[index])
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert model.modalities == ("ct", "mri", "pet")
    assert (len(model.space.classes), sum(len(c.modalities) for c in model.space.classes)) == (451, 498)
    assert model.plan.spacing_mm == (1, 1, 3)
    assert model.card is not None
    assert model.card.provenance["checkpoint"]["file"] == "nano.pth"
    assert "no such modality" in model.card.provenance["modality_embedding"]["other"]


def test_texts_are_encoded_exactly_as_published(tmp_path: Path) -> None:
    """The definition, written down again: lower-case, literal strings, zeros, mask from ids, mean, projection."""
    from transformers import AutoModel

    model = do_import(tmp_path)
    state = {k.removeprefix("module."): v for k, v in torch.load(tmp_path / "text.pth")["model_state_dict"].items()}
    bert = AutoModel.from_pretrained(tmp_path / "model" / "text_encoder").eval()
    texts = ["Left KIDNEY", "liver", "left lungs tumor"]
    split = [["left", "kidney"], ["liver"], ["left", "lung", "##s", "tumor"]]
    ids = torch.zeros(3, 6, dtype=torch.long)
    for row, tokens in zip(ids, split, strict=True):
        row[: len(tokens) + 2] = torch.tensor([WORDS.index(t) for t in ["[CLS]", *tokens, "[SEP]"]])
    mask = (ids > 0).long()
    with torch.inference_mode():
        for name, value in state.items():
            if name.startswith("text_tower.biolord.") and "position_ids" not in name:
                assert torch.equal(bert.state_dict()[name.removeprefix("text_tower.biolord.")], value)
        hidden = bert(input_ids=ids, attention_mask=mask).last_hidden_state
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        inner = torch.nn.functional.gelu(
            pooled @ state["projection_layer.0.weight"].T + state["projection_layer.0.bias"]
        )
        expected = inner @ state["projection_layer.2.weight"].T + state["projection_layer.2.bias"]
    encoder = model.text_encoder()
    np.testing.assert_allclose(encoder.encode(texts), expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model.bank.matrix(["liver"]), encoder.encode(["liver"]))
    assert len(encoder.encode(["liver " * 20])[0]) == 24


def test_a_long_text_is_cut(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from satunet.text.sat import token_ids

    tokenizer = AutoTokenizer.from_pretrained(bert_folder(tmp_path / "bert"))
    assert token_ids(tokenizer, ["liver " * 400, "left"]).shape == (2, 256)
    assert token_ids(tokenizer, ["left"]).tolist() == [[2, 6, 3]]


def test_rows_of_the_modality_embedding() -> None:
    published = torch.arange(5.0)[:, None].repeat(1, 3)
    rows, sources = modality_rows(published, MODALITIES)
    assert rows[:, 0].tolist() == pytest.approx([0, 1, 2, 3, (0 + 1 + 3) / 3])
    assert rows.shape == (5, 3)
    assert list(sources) == list(MODALITIES)
    shuffled, _ = modality_rows(published, ("pet", "ct"))
    assert shuffled[:, 0].tolist() == [3, 0]


def test_it_predicts(tmp_path: Path) -> None:
    import nibabel as nib

    do_import(tmp_path)
    scan = tmp_path / "scan_ct.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(0, 300, (20, 18, 9)).astype(np.float32), np.eye(4)), scan)
    (tmp_path / "moved").mkdir()
    (tmp_path / "model").rename(tmp_path / "moved" / "model")  # nothing in it depends on where it stands
    predictor = Predictor(tmp_path / "moved" / "model", device="cpu")
    result = predictor.predict(scan, ["liver", "kidney on the left side", "lefts lung thing"])
    assert [m.match.class_name for m in result.masks] == ["liver", "left kidney", None]
    assert result.masks[0].mask is not None
    assert result.masks[0].mask.shape == (20, 18, 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{CONV}.conv.weight": None, f"{CONV}.all_modules.0.weight": None}, "first convolution.*is missing"),
        ({"module.transformer_decoder.norm.weight": None}, r"1 missing: transformer_decoder\.norm\.weight"),
        ({"module.extra": torch.zeros(1)}, r"1 not part of this network: extra"),
        ({"module.transformer_decoder.norm.weight": torch.zeros(3)}, r"\(3,\) instead of \(24,\)"),
        ({f"{CONV}.all_modules.1.bias": torch.ones(4)}, r"copies differ: backbone.*0\.norm\.bias"),
        ({"module.backbone.decoder.encoder.stages.0.0.convs.0.norm.bias": torch.ones(4)}, "copies differ"),
        ({"module.transformer_decoder.norm.weight": torch.full((24,), float("nan"))}, "NaN or infinite"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    checkpoint = network_checkpoint(tmp_path / "nano.pth", **changes)
    with pytest.raises(ModelError, match=message):
        do_import(tmp_path, checkpoint=checkpoint)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"module.modality_embed.weight": None}, r"missing modality_embed\.weight"),
        ({"module.modality_embed.weight": torch.zeros(3, 24)}, r"\(3, 24\), needed \(4 or 5, 24\)"),
        ({"module.projection_layer.2.bias": None}, r"missing projection_layer\.2\.bias"),
        ({"module.projection_layer.4.bias": torch.zeros(1)}, r"unknown projection_layer\.4\.bias"),
        ({"module.logit_scale": torch.zeros(1)}, r"unknown logit_scale"),
        ({"module.text_tower.biolord.embeddings.LayerNorm.bias": None}, r"missing text_tower.*LayerNorm\.bias"),
        ({"module.text_tower.biolord.embeddings.position_ids": torch.zeros(1, 40)}, "unknown text_tower.*position_ids"),
        ({"module.text_tower.biolord.pooler.dense.bias": None}, r"missing text_tower\.biolord\.pooler\.dense\.bias"),
        ({"module.text_tower.biolord.embeddings.LayerNorm.bias": torch.zeros(7)}, r"\(7,\), needed \(24,\)"),
    ],
)
def test_a_text_encoder_that_does_not_fit_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    text = text_checkpoint(tmp_path / "text.pth", **changes)
    with pytest.raises(ModelError, match=message):
        do_import(tmp_path, text_encoder=text)
    assert {p.name for p in tmp_path.iterdir()} == {"nano.pth", "text.pth", "bert"}


def test_five_rows_of_modalities_and_no_pooler_are_taken(tmp_path: Path) -> None:
    pooler = {f"module.text_tower.biolord.pooler.dense.{kind}": None for kind in ("weight", "bias")}
    text = text_checkpoint(tmp_path / "text.pth", rows=5, **pooler)
    assert do_import(tmp_path, text_encoder=text).network.adapter.modality_embedding.weight.shape == (5, 24)


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_file_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    trace = tmp_path / "was_run"
    content = {"step": 1, "model_state_dict": {"module.x": torch.zeros(1)}, "optimizer_state_dict": Evil(trace)}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ModelError, match="Python objects other than weights"):
        do_import(tmp_path, checkpoint=tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(content["optimizer_state_dict"]))
    with pytest.raises(ModelError, match="cannot be read"):
        do_import(tmp_path, checkpoint=tmp_path / "plain.pth")
    assert not trace.exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    content = network_checkpoint(tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=r"cut\.pth.*(truncated|empty)"):
        do_import(tmp_path, checkpoint=tmp_path / "cut.pth")


def test_swapped_files_are_refused(tmp_path: Path) -> None:
    network, text = network_checkpoint(tmp_path / "nano.pth"), text_checkpoint(tmp_path / "text.pth")
    with pytest.raises(ModelError, match=r"text\.pth: not a SAT network.*nano: 4 features"):
        do_import(tmp_path, checkpoint=text, text_encoder=network)
    with pytest.raises(ModelError, match=r"nano\.pth: not SAT's text encoder"):
        do_import(tmp_path, checkpoint=network, text_encoder=network)
    torch.save({"weights": {}}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"'model_state_dict', but holds \['weights'\]"):
        do_import(tmp_path, checkpoint=tmp_path / "other.pth")


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="already exists"):
        do_import(tmp_path)
    assert (tmp_path / "model" / "mine.txt").read_text() == "x"


def test_a_hub_that_cannot_be_reached_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"give a folder with config\.json"):
        import_sat(
            network_checkpoint(tmp_path / "n.pth"), text_checkpoint(tmp_path / "t.pth"), tmp_path / "m",
            text_architecture="nobody/no-such-model", presets=[TINY],
        )  # fmt: skip


@pytest.mark.slow
def test_the_command_imports_a_whole_nano(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every tensor of the published list, from the command line; the text side is too narrow for it, and is refused."""
    checkpoint = network_checkpoint(tmp_path / "SAT_Nano.pth", NetworkConfig.nano())
    names = {k for k in torch.load(checkpoint, mmap=True)["model_state_dict"] if "all_modules" in k}
    assert len(names) == 4 * (12 + 10)
    code = run(
        [
            "import", "sat", "--checkpoint", str(checkpoint), "--text-encoder", str(text_checkpoint(tmp_path / "t.pth")),
            "-o", str(tmp_path / "m"), "--text_architecture", str(bert_folder(tmp_path / "bert")),
        ]
    )  # fmt: skip
    assert code == 2
