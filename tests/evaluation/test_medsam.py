"""SAM as a competitor, with a tiny network of random weights made on the spot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from satunet.datasets.raw import load_dataset
from satunet.errors import ModelError
from satunet.evaluation.benchmark.competitors.medsam import MedSAMCompetitor, load_sam, segment
from satunet.evaluation.benchmark.tasks import Task
from satunet.evaluation.scoring.run import evaluate_cases
from satunet.geometry import Grid
from satunet.images.image import Image, write_label_map, write_volume
from satunet.jobs.files import read_json, write_json

from .conftest import scored

# LIP order: the axis of slices comes second, and every axis is turned round on the way.
GRID = Grid(shape=(40, 6, 30), affine=np.array([[-1.0, 0, 0, 9], [0, 0, -1.0, 5], [0, -4.0, 0, 1], [0, 0, 0, 1]]))
CLASSES = {"disc": (1,), "both": (1, 2), "never": (5,)}


def reference() -> np.ndarray:
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    i, k = np.ogrid[:40, :30]
    labels[:, 1:4] = (((i - 12) ** 2 + (k - 20) ** 2 <= 36).astype(np.uint8))[:, None]
    labels[30:35, 2, 3:9] = 2
    return labels


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a SamModel with 64 pixels a side."""
    from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

    torch.manual_seed(0)
    vision = SamVisionConfig(
        hidden_size=16, output_channels=16, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=8,
        mlp_dim=16, window_size=2, global_attn_indexes=[0], num_pos_feats=8,
    )  # fmt: skip
    prompts = SamPromptEncoderConfig(hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4)
    decoder = SamMaskDecoderConfig(
        hidden_size=16, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16, iou_head_depth=2
    )
    folder = tmp_path_factory.mktemp("sam")
    SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)).save_pretrained(folder)  # fmt: skip
    return folder


def scan() -> Image:
    return Image(array=np.random.default_rng(0).normal(size=GRID.shape).astype(np.float32), grid=GRID)


class Painter:
    """Stands in for a SAM that fills the ellipse of every box: what comes out must lie where the box was."""

    config = SimpleNamespace(vision_config=SimpleNamespace(image_size=128))

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def get_image_embeddings(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.shape == (1, 3, 128, 128)
        assert 0 <= pixels.min() <= pixels.max() <= 1
        return pixels

    def __call__(self, image_embeddings: torch.Tensor, input_boxes: torch.Tensor, multimask_output: bool) -> Any:
        assert not multimask_output
        y, x = torch.meshgrid(*[torch.arange(128) + 0.5] * 2, indexing="ij")
        x0, y0, x1, y1 = (c[:, None, None] for c in input_boxes[0].T)
        inside = ((x - (x0 + x1) / 2) / (x1 - x0) * 2) ** 2 + ((y - (y0 + y1) / 2) / (y1 - y0) * 2) ** 2
        return SimpleNamespace(pred_masks=(1 - inside)[None, :, None])


def test_masks_lie_where_the_boxes_were() -> None:
    labels = reference()
    found = segment(scan(), labels, CLASSES, Painter())
    disc = labels == 1
    for ours, its in zip(np.nonzero(found["disc"]), np.nonzero(disc), strict=True):
        assert (ours.min(), ours.max()) == (its.min(), its.max())
    assert (disc & ~found["disc"]).sum() == 0  # the ellipse of a box is a little larger than the disc that made it
    assert found["disc"].sum() < 1.25 * disc.sum()
    assert found["disc"].any(axis=(0, 2)).tolist() == [False, True, True, True, False, False]
    assert not found["never"].any()


def test_the_oracle_box_is_the_box() -> None:
    labels = reference()
    found = segment(scan(), labels, CLASSES, None, boxes="oracle")
    expected = np.zeros_like(labels, dtype=bool)
    expected[6:19, 1:4, 14:27] = True
    np.testing.assert_array_equal(found["disc"], expected)
    assert found["both"][6:35, 2, 3:27].all()
    assert found["both"][:, 2].sum() == 29 * 24


def test_loose_boxes_are_larger_and_the_same_every_time() -> None:
    labels = reference()
    tight, loose, again = (segment(scan(), labels, CLASSES, Painter(), boxes=b) for b in ("tight", "loose", "loose"))  # type: ignore[arg-type]
    assert loose["disc"].sum() > tight["disc"].sum()
    np.testing.assert_array_equal(loose["disc"], again["disc"])


def test_a_sam_of_transformers_from_a_folder(nnunet_env: Path, sam: Path) -> None:
    name = "Dataset001_A"
    folder = nnunet_env / "raw" / name
    write_json(folder / "dataset.json", {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "disc": 1, "x": 2},
                                         "file_ending": ".nii.gz"})  # fmt: skip
    for case in ("a", "b"):
        write_label_map(folder / "labelsTr" / f"{case}.nii.gz", reference(), like=GRID)
        if case == "a":
            write_volume(folder / "imagesTr" / f"{case}_0000.nii.gz", scan().array, like=GRID)
    dataset = load_dataset(name)
    task = Task(dataset=dataset, fold=0, cases=dataset.training_cases(), classes=scored({"disc": (1,), "x": (2,)}))
    competitor = MedSAMCompetitor(output=nnunet_env / "out", source=str(sam), device="cpu")
    failures = competitor.predict(task)
    assert list(failures) == ["b"], failures
    assert "b_0000.nii.gz" in failures["b"]
    evaluation, _ = evaluate_cases(task.references, competitor.folder(task), task.classes)
    assert list(evaluation.failures) == ["b"]
    stamp = (competitor.folder(task) / "a" / "manifest.json").stat().st_mtime_ns
    assert list(competitor.predict(task)) == ["b"]
    assert (competitor.folder(task) / "a" / "manifest.json").stat().st_mtime_ns == stamp
    manifest = competitor.folder(task) / "a" / "manifest.json"
    more = replace(task, classes=scored({**task.classes.ids, "both": (1, 2)}))
    competitor.predict(more)  # a class more than before
    assert evaluate_cases(more.references, competitor.folder(task), more.classes)[0].failures.keys() == {"b"}
    assert manifest.stat().st_mtime_ns > stamp
    other = sam.parent / "another"
    if not other.exists():
        other.symlink_to(sam)
    MedSAMCompetitor(output=nnunet_env / "out", source=str(other), device="cpu").predict(more)
    assert read_json(manifest)["stamp"]["combined"]["model"] == str(other)
    cost = competitor.cost([task])
    assert cost is not None
    assert cost.parameters == sum(p.numel() for p in load_sam(str(sam)).parameters())
    assert (cost.seconds_per_case or 0) > 0
    with pytest.raises(ModelError, match="no SamModel"):
        load_sam(str(nnunet_env / "raw"))
