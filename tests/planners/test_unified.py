from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from satunet.demo.synthetic import make_synthetic_datasets
from satunet.errors import PlanError
from satunet.jobs.records import from_plain
from satunet.plan import UnifiedPlan
from satunet.planners.fingerprint.dataset import CaseFingerprint, DatasetFingerprint
from satunet.planners.fingerprint.intensities import CaseIntensities, ChannelStatistics
from satunet.planners.options import PlanOptions
from satunet.planners.run import fingerprint_datasets
from satunet.planners.unified import planner as unified
from satunet.planners.unified.planner import plan_unified, save_unified_plan, weighted_quantile
from satunet.planners.unified.topology import GB, Topology, memory_bytes

CHANNEL = ChannelStatistics.of([CaseIntensities.of(np.arange(10.0), 10)], "ct")


def dataset(
    name: str, count: int, spacing: tuple[float, float, float], shape: tuple[int, int, int], channels: int = 1
) -> DatasetFingerprint:
    cases = tuple(
        CaseFingerprint(
            dataset=name,
            case=f"c{i}",
            channels=channels,
            spacing=spacing[::-1],
            shape_after_crop=shape[::-1],
            relative_size=1.0,
            spacing_ras=spacing,
            shape_ras=shape,
            label_voxels={1: 5},
        )
        for i in range(count)
    )
    return DatasetFingerprint(dataset=name, cases=cases, channels=(CHANNEL,) * channels)


ABDOMEN = dataset("Dataset001_Abdomen", 400, (0.8, 0.8, 1.5), (400, 300, 300))


def test_a_large_dataset_does_not_decide_alone() -> None:
    small = [dataset(f"Dataset0{i}_Brain", 36, (1.0, 1.0, 1.0), (160, 200, 180)) for i in range(10, 16)]
    plan = plan_unified([ABDOMEN, *small])
    # 400 scans weigh 20 together, six times 36 weigh 36
    assert plan.spacing_mm == (1.0, 1.0, 1.0)
    assert plan_unified([ABDOMEN, *small[:3]]).spacing_mm == (0.8, 0.8, 1.5)
    assert plan.dataset_weights["Dataset001_Abdomen"] == pytest.approx(1 / 20)


def test_channels_are_scans() -> None:
    plan = plan_unified([dataset("Dataset001_BraTS", 25, (1, 1, 1), (140, 170, 140), channels=4)])
    assert plan.dataset_weights["Dataset001_BraTS"] == pytest.approx(0.1)


def test_anisotropic_data_take_nnunets_tenth_percentile() -> None:
    thick = [dataset(f"Dataset0{i}_Heart", 10, (1.2, 1.2, z), (200, 200, 12)) for i, z in enumerate((10, 10, 10, 6))]
    plan = plan_unified(thick)
    assert plan.spacing_mm == (1.2, 1.2, 6.0)
    assert "anisotropic" in plan.explanation["spacing"]


@pytest.mark.parametrize(("preset", "at_once"), [("nano", 2), ("pro", 1)])
def test_presets_are_sats(preset: str, at_once: int) -> None:
    plan = plan_unified([ABDOMEN], PlanOptions(preset=preset, text_encoder="minilm"))
    assert plan.spacing_mm == (1.0, 1.0, 3.0)
    assert plan.patch_size == (288, 288, 96)
    assert (plan.batch_size, plan.patches_at_once) == (16, at_once)  # 8 GPUs with 2 patches, 16 GPUs with 1
    assert (plan.patch_size, plan.crop_size) == ((288, 288, 96), (288, 288, 64))
    assert UnifiedPlan.from_nnunet(plan.to_nnunet()) == plan
    assert plan.network.features_per_stage[0] == {"nano": 64, "pro": 128}[preset]
    assert plan.network.adapter == "whitened_projection"  # minilm has other embeddings than SAT's encoder


def test_given_values_are_taken_and_said_to_be() -> None:
    plan = plan_unified(
        [ABDOMEN],
        PlanOptions(
            spacing_mm=(2, 2, 2),
            patch_size=(56, 64, 56),
            batch_size=3,
            base_features=12,
            max_features=40,
            queries_per_scan=7,
        ),
    )
    assert (plan.spacing_mm, plan.patch_size, plan.batch_size, plan.queries_per_scan) == ((2, 2, 2), (56, 64, 56), 3, 7)
    assert plan.network.features_per_stage == (12, 24, 40, 40)
    for key in ("spacing", "patch", "batch", "features"):
        assert "given" in plan.explanation[key], key


def test_a_plan_keeps_what_was_asked_for(tmp_path: Path) -> None:
    options = PlanOptions(spacing_mm=(2, 2, 2), base_features=12)
    plan_unified([ABDOMEN], options).save(tmp_path / "plan.json")
    assert from_plain(UnifiedPlan.load(tmp_path / "plan.json").options, PlanOptions, source="plan") == options
    with pytest.raises(PlanError, match="magic"):
        from_plain({"magic": 1}, PlanOptions, source="plan", error=PlanError)


def test_every_value_is_explained() -> None:
    explanation = plan_unified([ABDOMEN]).explanation
    assert {"spacing", "patch", "batch", "features", "network", "queries", "normalisation", "weights"} <= set(
        explanation
    )
    assert all(isinstance(sentence, str) and len(sentence) > 10 for sentence in explanation.values())


@pytest.mark.parametrize("memory", [0.5, 1.0, 2.0])
def test_a_small_budget_gives_a_small_network(memory: float) -> None:
    plan = plan_unified([ABDOMEN], PlanOptions(gpu_memory_gb=memory))
    assert plan.network.features_per_stage[0] == 16
    assert np.prod(plan.patch_size) <= 112**3 * memory
    assert plan.batch_size >= 2


def test_a_batch_holds_at_most_five_percent_of_the_data() -> None:
    plan = plan_unified([dataset("Dataset001_X", 30, (1, 1, 1), (32, 32, 32))], PlanOptions(gpu_memory_gb=80))
    assert plan.batch_size == 2
    plan = plan_unified([dataset("Dataset001_X", 200, (1, 1, 1), (32, 32, 32))], PlanOptions(gpu_memory_gb=80))
    assert plan.batch_size == 10
    assert "5%" in plan.explanation["batch"]


def test_sats_orientations_are_kept() -> None:
    plan = plan_unified(
        [ABDOMEN, dataset("Dataset002_VerSe", 5, (1, 1, 1), (200, 200, 300))], PlanOptions(preset="pro")
    )
    assert plan.orientation_of("Dataset002_VerSe") == "ASR"
    assert plan.orientation_of("Dataset001_Abdomen") == "RAS"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"preset": "huge"}, "preset"),
        ({"preset": "nano", "base_features": 8}, "auto"),
        ({"gpu_memory_gb": 0}, "memory"),
        ({"gpu_memory_gb": 0.0001}, "memory"),
        ({"spacing_mm": (1, 0, 1)}, "spacing"),
        ({"patch_size": (0, 8, 8)}, "patch"),
        ({"preset": "nano", "patch_size": (100, 96, 96)}, "divisible"),
        ({"base_features": 64, "max_features": 8}, "max_features"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_what_makes_no_plan_is_refused(values: dict[str, object], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        plan_unified([ABDOMEN], PlanOptions(**values))  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="at least one dataset"):
        plan_unified([])


def test_the_saved_plan_is_read_by_satunet_and_by_nnunetv2(nnunet_env: Path) -> None:
    fingerprints, _ = fingerprint_datasets(make_synthetic_datasets(nnunet_env / "raw", cases=2))
    plan = plan_unified(fingerprints, PlanOptions(gpu_memory_gb=1))
    file = save_unified_plan(plan, fingerprints)
    assert file == nnunet_env / "preprocessed" / "Dataset900_Unified" / "satunetPlans.json"
    assert UnifiedPlan.load(file) == plan
    assert plan.spacing_mm == (3.0, 3.0, 4.0)
    manager = PlansManager(str(file))
    configuration = manager.get_configuration("3d_fullres")
    assert tuple(configuration.patch_size) == plan.patch_size
    assert configuration.batch_size == plan.batch_size
    assert tuple(configuration.spacing) == plan.spacing_mm
    assert configuration.data_identifier == plan.data_identifier
    assert manager.dataset_name == "Dataset900_Unified"


def test_quantiles_go_by_weight() -> None:
    values, weights = np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 8.0])
    assert weighted_quantile(values, weights, 0.5) == 2.0
    assert weighted_quantile(values, weights, 0.05) == 1.0
    assert weighted_quantile(values, weights, 1.0) == 3.0
    rng = np.random.default_rng(0)
    values = rng.normal(size=1001)
    assert weighted_quantile(values, np.ones(1001), 0.5) == np.median(values)


def test_known_datasets_have_sats_factor_and_only_sats_networks_its_orientations() -> None:
    known = [
        dataset("Dataset070_VerSe", 100, (1.0, 1.0, 1.0), (100, 100, 200)),
        dataset("Dataset025_DAPAtlas", 400, (1.0, 1.0, 1.0), (100, 100, 200)),
    ]
    plan = plan_unified(known)
    assert plan.dataset_weights == pytest.approx({"Dataset070_VerSe": 1 / 10, "Dataset025_DAPAtlas": 3 / 20})
    assert plan.dataset_orientation == {}
    assert "Dataset025_DAPAtlas" in plan.explanation["weights"]
    nano = plan_unified(known, PlanOptions(preset="nano"))
    assert nano.dataset_orientation == {"Dataset070_VerSe": "ASR"}
    assert "VerSe ASR" in nano.explanation["orientation"]


def test_a_residual_encoder_is_planned_and_costs_patch(tmp_path: Path) -> None:
    plain, residual = (plan_unified([ABDOMEN], PlanOptions(backbone=b)) for b in ("plain", "residual"))
    assert residual.network.backbone == "residual"
    assert residual.network.n_conv_per_stage[:4] == (1, 3, 4, 6)
    assert "residual encoder" in residual.explanation["network"]
    assert np.prod(residual.patch_size) < np.prod(plain.patch_size)
    residual.save(tmp_path / "plan.json")
    assert UnifiedPlan.load(tmp_path / "plan.json") == residual
    with pytest.raises(PlanError, match="backbone 'residual' with the preset 'nano'"):
        plan_unified([ABDOMEN], PlanOptions(preset="nano", backbone="residual"))


def test_a_preset_with_sats_width_of_texts_learns_the_modality(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(unified._TEXT_DIM, "sat", 768)
    assert plan_unified([ABDOMEN], PlanOptions(preset="nano", text_encoder="sat")).network.adapter == "modality"
    assert plan_unified([ABDOMEN], PlanOptions(preset="nano")).network.adapter == "whitened_projection"


BUDGETS = (0.5, 1.0, 2.0, 3.0, 3.9, 4.0, 5.0, 8.0, 12.0, 16.0, 24.0, 39.9, 40.0, 48.0, 80.0)


@pytest.mark.parametrize(
    ("spacing", "shape"),
    [
        ((0.8, 0.8, 1.5), (400, 300, 300)),
        ((1.0, 1.0, 1.0), (160, 200, 180)),
        ((1.0, 1.0, 1.0), (60, 60, 60)),
        ((1.2, 1.2, 8.0), (200, 200, 12)),
        ((3.0, 3.0, 3.0), (24, 30, 20)),
        ((0.7, 0.7, 5.0), (512, 512, 90)),
    ],
)
def test_more_memory_never_plans_less(spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> None:
    data = [dataset("Dataset001_X", 40, spacing, shape)]
    contents = []
    for memory in BUDGETS:
        plan = plan_unified(data, PlanOptions(gpu_memory_gb=memory))
        contents.append(np.prod(plan.patch_size) * plan.network.features_per_stage[0])
        needed = memory_bytes(plan.network, plan.patch_size, plan.batch_size, plan.queries_per_scan) / GB
        assert needed <= memory
        assert plan.explanation["memory"].startswith(f"{needed:.1f} GB")
    assert contents == sorted(contents)


def test_more_features_wait_until_they_are_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    # a step in features that comes too early, where a patch of half the size would be planned for twice the features
    def topology(features: int, gpu_memory_gb: float) -> Topology:
        sizes = {16: 4 * gpu_memory_gb, 32: 2 * gpu_memory_gb - 3}
        return Topology(patch_size=(int(10 * sizes[features]), 1, 1), network=None)  # type: ignore[arg-type]

    why: dict[str, str] = {}
    assert unified._base_features(PlanOptions(gpu_memory_gb=8), topology, why) == 16
    assert "patch × features would shrink" in why["features"]


def test_a_given_patch_keeps_its_size_where_a_stage_less_allows_it() -> None:
    for patch in ((288, 288, 96), (96, 96, 96), (64, 64, 64), (160, 128, 112), (128, 128, 32)):
        assert plan_unified([ABDOMEN], PlanOptions(patch_size=patch, gpu_memory_gb=80)).patch_size == patch
    plan = plan_unified([ABDOMEN], PlanOptions(patch_size=(100, 96, 90)))
    assert plan.patch_size == (104, 96, 96)
    assert "(100, 96, 90) rounded up" in plan.explanation["patch"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"patch_size": (288, 288, 96)}, "--patch_size"),
        ({"preset": "pro"}, "--preset"),
        ({"preset": "pro", "batch_size": 8}, "--preset and --batch_size"),
        ({"batch_size": 64}, "--batch_size"),
    ],
)
def test_a_plan_that_needs_more_than_there_is_says_so(given: dict[str, object], named: str) -> None:
    plan = plan_unified([ABDOMEN], PlanOptions(gpu_memory_gb=8, **given))  # type: ignore[arg-type]
    needed = memory_bytes(plan.network, plan.patch_size, plan.batch_size, plan.queries_per_scan) / GB
    assert needed > 8
    said = (
        f"a training step needs {needed:.1f} GB by the planner's estimate, more than the 8 GB planned for, with {named}"
    )
    assert said in plan.explanation["remarks"]
    assert "more than the 8 GB" in plan.explanation["memory"]
    assert "as many as fit the memory" not in plan.explanation["batch"]


def test_a_spacing_at_which_little_is_left_is_remarked_on() -> None:
    many = dataset("Dataset001_Abdomen", 4000, (0.8, 0.8, 1.5), (400, 300, 300))
    plan = plan_unified([many], PlanOptions(spacing_mm=(50, 50, 50), gpu_memory_gb=80))
    remarks = plan.explanation["remarks"]
    assert "the median scan is (6, 5, 9) voxels, 62 times coarser than its own (0.8, 0.8, 1.5) mm" in remarks
    assert plan.batch_size > 128
    assert f"{plan.batch_size} patches per step" in remarks
    assert "remarks" not in plan_unified([ABDOMEN]).explanation
