"""A model may look for its classes at several spacings, and draws only what it has scores for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from satunet.datasets.memory import looks_bytes
from satunet.errors import PlanError, ScanTooLargeError
from satunet.geometry import Grid
from satunet.images.image import Image, write_volume
from satunet.models.folder import ClassScore, EncoderIdentity, ModelCard, ModelFolder
from satunet.network.model import ImageFeatures
from satunet.plan import UnifiedPlan
from satunet.prediction import Predictor
from satunet.prediction.door import limits
from satunet.prediction.door.inputs import Scan
from satunet.prediction.door.limits import require_memory

from .conftest import Bright, make_model
from .test_predictor import dice, scene

SPACINGS = {"mri": {"left bright": (2.0,), "right bright": (1.0, 3.0)}}


def plan_with(**changes: object) -> UnifiedPlan:
    return replace(make_model().plan, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "modality", "extent", "spacing"),
    [
        ("bright", "mri", (50.0, 50.0, 50.0), 1.0),  # the plan's
        ("left bright", "mri", (50.0, 50.0, 50.0), 2.0),
        ("left bright", "ct", (50.0, 50.0, 50.0), 1.0),  # spacings are those of a modality
        ("right bright", "mri", (16.0, 12.0, 9.0), 1.0),  # one window at 1 mm holds it
        ("right bright", "mri", (17.0, 12.0, 9.0), 3.0),
        ("right bright", "mri", (500.0, 12.0, 9.0), 3.0),  # no window does
        (None, "mri", (16.0, 16.0, 16.0), 1.0),
    ],
)
def test_the_spacing_of_a_class_depends_on_modality_and_extent(name, modality, extent, spacing) -> None:
    plan = plan_with(class_spacings_mm=SPACINGS)
    assert plan.spacing_for(name, modality, extent) == (spacing,) * 3


def test_spacings_are_kept_in_the_plan_file_and_left_out_where_there_are_none() -> None:
    plan = plan_with(class_spacings_mm=SPACINGS, fit_windows=True, one_piece=("bright",))
    assert UnifiedPlan.from_nnunet(plan.to_nnunet()) == plan
    plain = make_model().plan.to_nnunet()["satunet"]
    assert not {"class_spacings_mm", "fit_windows", "one_piece"} & set(plain)


@pytest.mark.parametrize("wrong", [(), (0.0, 1.0), (2.0, 1.0), (1.0, 1.0)])
def test_spacings_that_are_none_are_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(PlanError, match="spacings of 'bright'"):
        plan_with(class_spacings_mm={"mri": {"bright": wrong}})


def test_a_window_fits_the_scan_if_the_plan_says_so() -> None:
    assert plan_with().window_for((5, 40, 16)) == (16, 16, 16)
    assert plan_with(fit_windows=True).window_for((5, 40, 16)) == (6, 16, 16)


def test_a_class_is_looked_for_in_windows_of_the_size_of_its_patches() -> None:
    windows = {"mri": {"left bright": ((8, 8, 8),), "right bright": ((4, 4, 4), (16, 8, 16))}}
    plan = plan_with(class_spacings_mm=SPACINGS, class_windows=windows)
    assert UnifiedPlan.from_nnunet(plan.to_nnunet()) == plan
    assert plan.window_of("left bright", "mri", 2.0) == (8, 8, 8)
    assert plan.window_of("right bright", "mri", 3.0) == (16, 8, 16)
    assert plan.window_of("bright", "mri", 1.0) == plan.patch_size
    # A window of 4 voxels at 1 mm does not hold a scan of 5 mm.
    assert plan.spacing_for("right bright", "mri", (4.0, 4.0, 4.0)) == (1.0,) * 3
    assert plan.spacing_for("right bright", "mri", (5.0, 4.0, 4.0)) == (3.0,) * 3
    image, truth = scene((48, 40, 30), np.diag([1.0, 1.2, 2.0, 1]))
    predictor = Predictor(replace(make_model(), plan=plan), device="cpu", precision="float32")
    prompts = ["bright", "left bright", "right bright"]
    result = predictor.predict(image, prompts)
    scan = predictor.prepare(image, "mri", predictor.match(prompts))
    assert {(look[1][0], look[2]): view.patch for look, view in scan.views.items()} == {
        (1.0, plan.patch_size): plan.patch_size, (2.0, (8, 8, 8)): (8, 8, 8), (3.0, (16, 8, 16)): (16, 8, 16),
    }  # fmt: skip
    assert all(dice(mask.mask, truth) > 0.7 for mask in result.masks if mask.mask is not None)


def test_looks_that_differ_by_their_window_share_a_volume() -> None:
    spacings = {"mri": {"left bright": (2.0,), "right bright": (2.0,)}}
    windows = {"mri": {"left bright": ((8, 8, 8),), "right bright": ((4, 8, 4),)}}
    image, _ = scene((48, 40, 30), np.diag([1.0, 1.2, 2.0, 1]))
    model = replace(make_model(), plan=plan_with(class_spacings_mm=spacings, class_windows=windows))
    predictor = Predictor(model, device="cpu")
    scan = predictor.prepare(image, "mri", predictor.match(["left bright", "right bright"]))
    first, second = scan.views.values()
    assert first.volume is second.volume
    assert first.patch != second.patch


@pytest.mark.parametrize("wrong", [((8, 8, 8), (8, 8, 8)), (), ((0, 8, 8),), ((7, 8, 8),)])
def test_windows_that_are_none_are_refused(wrong) -> None:
    with pytest.raises(PlanError, match="windows of 'left bright'"):
        plan_with(class_spacings_mm=SPACINGS, class_windows={"mri": {"left bright": wrong}})


def test_the_memory_is_that_of_the_spacings_of_what_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spacings = {"mri": {"left bright": (0.02,), "right bright": (4.0,)}}
    image, _ = scene((16, 16, 16), np.eye(4))
    write_volume(tmp_path / "scan.nii.gz", image.array, like=image.grid)
    scan = Scan(path=tmp_path / "scan.nii.gz", name="scan")

    def with_plan(plan: UnifiedPlan) -> Predictor:
        require_memory(scan, [plan])
        return Predictor(replace(make_model(), plan=plan), device="cpu")

    predictor = with_plan(plan_with(class_spacings_mm=spacings))
    monkeypatch.setattr(limits, "available_memory", lambda: 1_000_000_000)
    with pytest.raises(
        ScanTooLargeError, match=r"16 × 16 × 16 voxels of 1 × 1 × 1 mm, resampled to 0.02 × 0.02 × 0.02 mm for"
    ) as told:
        predictor.predict(image, ["bright", "left bright"])  # the plan has 1 mm
    assert "would need 6.1 GB of memory, but 1.0 GB are free" in str(told.value)  # 12 bytes for each of 800³ voxels
    # What was prepared before is paid for; what is not asked for costs nothing.
    before = predictor.prepare(image, "mri", predictor.match(["bright", "right bright"]))
    with pytest.raises(ScanTooLargeError):
        predictor.prepare(image, "mri", predictor.match(["bright", "left bright"]), before=before)
    monkeypatch.setattr(limits, "available_memory", lambda: 0)
    predictor.prepare(image, "mri", predictor.match(["bright"]), before=before)
    # A plan with fine voxels may have classes that are looked for in coarse ones.
    monkeypatch.setattr(limits, "available_memory", lambda: 1_000_000_000)
    fine = with_plan(plan_with(class_spacings_mm=spacings, spacing_mm=(0.02, 0.02, 0.02)))
    assert fine.predict(image, ["right bright"]).masks[0].mask is not None
    with pytest.raises(ScanTooLargeError):
        with_plan(plan_with(spacing_mm=(0.02, 0.02, 0.02)))


def test_all_spacings_of_a_scan_are_in_memory_together() -> None:
    grid = Grid(shape=(100, 100, 100), affine=np.diag([2.0, 2.0, 2.0, 1.0]))
    one = looks_bytes(grid, [(1.0, 1.0, 1.0)])
    assert one == 8 * 10**6 + 12 * 8 * 10**6
    assert looks_bytes(grid, [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0)]) == one + 4 * 10**6
    assert looks_bytes(grid, [(2.0, 2.0, 2.0), (1.0, 1.0, 1.0)]) == one + 4 * 10**6
    assert looks_bytes(grid, [(8.0, 8.0, 8.0)]) == 8 * 10**6 + 12 * 250_000
    assert looks_bytes(grid, []) == 0


def test_masks_of_several_spacings_lie_in_one_grid() -> None:
    image, truth = scene((48, 40, 30), np.diag([1.0, 1.2, 2.0, 1]))
    model = replace(make_model(), plan=plan_with(class_spacings_mm=SPACINGS, fit_windows=True))
    seen: list[tuple[int, int]] = []
    predictor = Predictor(model, device="cpu", precision="float32")
    prompts = ["bright", "left bright", "right bright"]
    result = predictor.predict(image, prompts, on_progress=lambda done, total: seen.append((done, total)))
    scan = predictor.prepare(image, "mri", predictor.match(prompts))
    assert {spacing for _, spacing, _ in scan.views} == {(1.0,) * 3, (2.0,) * 3, (3.0,) * 3}
    for mask in result.masks:
        assert mask.mask is not None
        assert mask.mask.shape == image.grid.shape
        assert dice(mask.mask, truth) > 0.7
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def with_scores(*scores: tuple[str, str]) -> ModelFolder:
    rows = tuple(
        ClassScore(class_name=name, modality=modality, dsc=0.8, nsd=0.8, scans=1, dataset="D", kept_out=True)
        for name, modality in scores
    )
    card = ModelCard(
        name="m", weights_hash="0", text_encoder=EncoderIdentity(name="minilm", fingerprint="x"), scores=rows
    )
    return replace(make_model(), card=card)


def test_a_model_with_scores_draws_only_what_has_one_in_the_scans_modality() -> None:
    image, truth = scene((16, 16, 16), np.eye(4))
    predictor = Predictor(with_scores(("bright", "mri"), ("left bright", "ct")), device="cpu")
    good, refused = predictor.predict(image, ["bright", "left bright"], modality="mri").masks
    assert np.array_equal(good.mask, truth)
    assert refused.mask is None
    assert (
        refused.match.note
        == "'left bright' has no score in mri and is therefore not segmented; it has scores in ct (if this is such a scan: --modality ct)"
    )


def test_a_model_without_scores_draws_everything() -> None:
    predictor = Predictor(make_model(), device="cpu")
    (match,) = predictor.match(["bright"])
    assert predictor.vocabulary.offered(match, "ct") == match


def test_of_a_class_that_is_one_piece_the_largest_is_kept() -> None:
    image, truth = scene((16, 16, 16), np.eye(4))
    image.array[14, 14, 14] = 5
    both, largest = (
        Predictor(replace(make_model(), plan=plan_with(one_piece=names)), device="cpu", precision="float32")
        .predict(image, ["bright"])
        .masks[0]
        for names in ((), ("bright",))
    )
    assert both.mask is not None
    assert largest.mask is not None
    assert both.mask[14, 14, 14]
    assert np.array_equal(largest.mask, truth)


def test_a_class_of_crops_is_drawn_as_its_two_sides_where_the_scan_is_larger() -> None:
    image, _ = scene((48, 40, 30), np.eye(4))
    image.array[:24] *= 0.9
    spacings = {"mri": {"bright": (1.0, 3.0), "left bright": (3.0,), "right bright": (3.0,)}}
    model = replace(make_model(), plan=plan_with(class_spacings_mm=spacings))
    vectors = model.bank.vectors.copy()
    vectors[:, 0] = [{"bright": 99.0, "left bright": 2.0, "right bright": 1.0}[text] for text in model.bank.texts]
    predictor = Predictor(replace(model, bank=replace(model.bank, vectors=vectors)), device="cpu", precision="float32")
    both, left, right = (m.mask for m in predictor.predict(image, ["bright", "left bright", "right bright"]).masks)
    assert left is not None
    assert right is not None
    assert right.sum() > left.sum() > 0
    assert np.array_equal(both, left | right)
    small, _ = scene((12, 12, 12), np.eye(4))  # one window at 1 mm holds it
    assert not predictor.predict(small, ["bright"]).masks[0].mask.any()  # type: ignore[union-attr]


THRESHOLDS = {"mri": {"bright": 0.2, "left bright": 0.9}}


@pytest.mark.parametrize(("name", "threshold"), [("bright", 0.2), ("left bright", 0.9), ("right bright", 0.5)])
@pytest.mark.parametrize("biased", [True, False])
def test_a_voxel_is_of_a_class_where_its_probability_exceeds_the_threshold_of_the_class(
    name: str, threshold: float, biased: bool
) -> None:
    ramp = np.linspace(-4, 4, 16, dtype=np.float32)
    image = Image(
        array=np.broadcast_to(ramp[:, None, None], (16, 16, 16)).copy(), grid=Grid(shape=(16,) * 3, affine=np.eye(4))
    )
    model = replace(make_model(), plan=plan_with(class_thresholds=THRESHOLDS), network=Ramp(biased))
    result = Predictor(model, device="cpu", precision="float32").predict(image, [name], modality="mri")
    z = (ramp - ramp.mean()) / ramp.std()
    expected = 1 / (1 + np.exp(-3 * z)) > threshold  # the network's own probability, by its definition
    assert 0 < expected.sum() < 16
    mask = result.masks[0].mask
    assert mask is not None
    assert np.array_equal(mask, np.broadcast_to(expected[:, None, None], mask.shape))


HELD = {"mri": {"bright": 0.7}}


@pytest.mark.parametrize(
    ("length", "name", "threshold"),
    [
        (16, "bright", 0.7),
        (16, "left bright", 0.9),
        (16, "right bright", 0.5),
        (48, "bright", 0.2),
        (48, "left bright", 0.9),
    ],
)
def test_a_scan_that_one_window_holds_has_thresholds_of_its_own(length: int, name: str, threshold: float) -> None:
    """A class without one has its threshold for all scans; the network's probability is known by its definition."""
    ramp = np.linspace(-4, 4, length, dtype=np.float32)
    grid = Grid(shape=(length, 16, 16), affine=np.eye(4))
    image = Image(array=np.broadcast_to(ramp[:, None, None], grid.shape).copy(), grid=grid)
    plan = plan_with(class_thresholds=THRESHOLDS, held_thresholds=HELD)
    predictor = Predictor(replace(make_model(), plan=plan, network=Ramp(True)), device="cpu", precision="float32")
    scan = predictor.prepare(image, "mri", predictor.match([name]))
    assert predictor.is_held(scan, predictor.match([name])[0]) == (length == 16)
    mask = predictor.predict(image, [name], modality="mri").masks[0].mask
    z = (ramp - ramp.mean()) / ramp.std()
    expected = 1 / (1 + np.exp(-3 * z)) > threshold
    assert mask is not None and 0 < expected.sum() < length
    assert np.array_equal(mask, np.broadcast_to(expected[:, None, None], mask.shape))


def test_thresholds_are_those_of_a_modality() -> None:
    plan = plan_with(class_thresholds=THRESHOLDS)
    assert plan.logit_offset("bright", "mri") == pytest.approx(np.log(4))
    assert (
        plan.logit_offset("bright", "ct")
        == plan.logit_offset(None, "mri")
        == plan.logit_offset("right bright", "mri")
        == 0
    )
    plan = plan_with(class_thresholds=THRESHOLDS, held_thresholds=HELD)
    assert plan.logit_offset("bright", "mri", held=True) == pytest.approx(np.log(3 / 7))
    assert plan.logit_offset("bright", "ct", held=True) == plan.logit_offset(None, "mri", held=True) == 0
    assert UnifiedPlan.from_nnunet(plan.to_nnunet()) == plan
    assert not {"class_thresholds", "held_thresholds"} & set(make_model().plan.to_nnunet()["satunet"])


@pytest.mark.parametrize("wrong", [0.0, 1.0, -0.1, float("nan")])
def test_thresholds_that_are_none_are_refused(wrong: float) -> None:
    with pytest.raises(PlanError, match="threshold of 'bright'"):
        plan_with(class_thresholds={"mri": {"bright": wrong}})
    with pytest.raises(PlanError, match="threshold of 'bright'"):
        plan_with(held_thresholds={"mri": {"bright": wrong}})


class Ramp(Bright):
    """Logits are three times the normalised image, whatever is asked; with a bias of the logits or without."""

    def __init__(self, biased: bool) -> None:
        super().__init__()
        self.biased = biased

    def decode(self, features: ImageFeatures, queries: Tensor, modality: Tensor | None = None) -> tuple[Tensor, ...]:
        weight = torch.full_like(queries[..., :1], 3.0)
        return (torch.cat((weight, torch.zeros_like(weight)), dim=-1) if self.biased else weight,)


class Sided(Bright):
    """A structure on each side of a scan: a query finds it left (1), right (2), or on both sides (3) of the middle of a
    window, surer on the left of the image that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def encode_image(self, image: Tensor) -> ImageFeatures:
        self.seen.append(image.clone())
        x = torch.linspace(-1, 1, image.shape[2])[None, None, :, None, None].expand_as(image)
        bright = (image > 0).float()
        left, right = bright * (x < 0) * 4.0, bright * (x >= 0) * 2.0
        maps = torch.cat((left, right, torch.ones_like(image)), dim=1)
        return ImageFeatures(memory=image.new_zeros(1, 1, 1), grid=(1, 1, 1), maps=(maps,))

    def decode(self, features: ImageFeatures, queries: Tensor, modality: Tensor | None = None) -> tuple[Tensor, ...]:
        code = queries[..., 0]
        parts = ((code == 1) | (code == 3), (code == 2) | (code == 3), torch.ones_like(code))
        return (torch.stack([parts[0].float(), parts[1].float(), -parts[2].float()], dim=-1),)


MIRRORED = {"mri": ("left bright", "right bright", "bright")}
SIDED_PROMPTS = ("left bright", "right bright", "bright")


def sided(plan: UnifiedPlan, **options: object) -> tuple[Predictor, Sided]:
    network, model = Sided(), make_model()
    vectors = model.bank.vectors.copy()
    vectors[:, 0] = [{"left bright": 1.0, "right bright": 2.0, "bright": 3.0}[text] for text in model.bank.texts]
    changed = replace(model, plan=plan, network=network, bank=replace(model.bank, vectors=vectors))
    return Predictor(changed, device="cpu", precision="float32", **options), network  # type: ignore[arg-type]


def peaks_of(predictor: Predictor, image: Image) -> dict[str, tuple[float, float]]:
    """Prompt → largest probability in the left and in the right half of the scan."""
    matches = predictor.match(SIDED_PROMPTS)
    scan = predictor.prepare(image, "mri", matches)
    found = {}
    for i, one in predictor.find(scan, matches, level=0.01):
        values, start = one.restored() or (np.zeros((1, 1, 1), np.float32), (0, 0, 0))
        whole = np.zeros(image.grid.shape, np.float32)
        whole[tuple(slice(s, s + n) for s, n in zip(start, values.shape, strict=True))] = values
        middle = whole.shape[0] // 2
        found[SIDED_PROMPTS[i]] = (float(whole[:middle].max()), float(whole[middle:].max()))
    return found


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def both_sides() -> Image:
    array = np.zeros((16, 16, 16), np.float32)
    array[2:6, 4:12, 4:12] = array[10:14, 4:12, 4:12] = 5
    return Image(array=array, grid=Grid(shape=array.shape, affine=np.eye(4)))


def test_a_mirrored_window_is_asked_for_the_other_side() -> None:
    """Left is found with a logit of 3 and right with one of 1; a mirrored look finds each as it finds the other."""
    once, network = sided(plan_with())
    apart = peaks_of(once, both_sides())
    assert len(network.seen) == 1
    assert apart["left bright"] == pytest.approx((sigmoid(3), sigmoid(-1)), abs=1e-3)
    assert apart["right bright"] == pytest.approx((sigmoid(-1), sigmoid(1)), abs=1e-3)
    twice, network = sided(plan_with(mirrored_classes=MIRRORED))
    mean, none = (sigmoid(3) + sigmoid(1)) / 2, sigmoid(-1)
    found = peaks_of(twice, both_sides())
    assert found["left bright"] == pytest.approx((mean, none), abs=1e-3)
    assert found["right bright"] == pytest.approx((none, mean), abs=1e-3)
    assert found["bright"] == pytest.approx((mean, mean), abs=1e-3)
    assert len(network.seen) == 2
    assert torch.equal(network.seen[0].flip(2), network.seen[1])


def test_a_class_that_was_not_trained_mirrored_is_looked_at_once_whatever_else_is_asked() -> None:
    predictor, network = sided(plan_with(mirrored_classes={"mri": ("bright",), "ct": SIDED_PROMPTS}))
    found = peaks_of(predictor, both_sides())
    assert len(network.seen) == 2
    assert found["left bright"] == pytest.approx((sigmoid(3), sigmoid(-1)), abs=1e-3)
    assert found["right bright"] == pytest.approx((sigmoid(-1), sigmoid(1)), abs=1e-3)
    assert found["bright"] == pytest.approx(((sigmoid(3) + sigmoid(1)) / 2,) * 2, abs=1e-3)


@pytest.mark.parametrize(
    ("size", "options", "looks"),
    [(16, {}, 2), (16, {"fast": True}, 1), (24, {}, 1), (24, {"mirror": True}, 2), (16, {"mirror": True}, 2)],
)
def test_a_second_look_is_taken_where_it_is_cheap_or_asked_for(size: int, options: dict[str, bool], looks: int) -> None:
    image = Image(
        array=np.random.default_rng(0).random((size, 16, 16), np.float32),
        grid=Grid(shape=(size, 16, 16), affine=np.eye(4)),
    )
    predictor, network = sided(plan_with(mirrored_classes=MIRRORED), **options)
    windows = predictor.windows(
        predictor.prepare(image, "mri", predictor.match(SIDED_PROMPTS)), predictor.match(SIDED_PROMPTS)
    )
    predictor.predict(image, SIDED_PROMPTS, modality="mri")
    assert len(network.seen) == looks * windows
