from __future__ import annotations

import numpy as np
import pytest

from satunet.plan import UnifiedPlan
from satunet.planners.fingerprint.dataset import CaseFingerprint, DatasetFingerprint
from satunet.planners.fingerprint.intensities import CaseIntensities, ChannelStatistics
from satunet.planners.unified.impact import impact_of, summarize
from satunet.planners.unified.topology import Width, plan_topology

CHANNEL = ChannelStatistics.of([CaseIntensities.of(np.arange(10.0), 10)], "ct")


def dataset(name: str, spacing: tuple[float, float, float], extents: list[dict[int, tuple[float, ...]]]):
    cases = tuple(
        CaseFingerprint(
            dataset=name, case=f"c{i}", channels=1, spacing=spacing[::-1], shape_after_crop=(9, 9, 9),
            relative_size=1.0, spacing_ras=spacing, shape_ras=(9, 9, 9), label_voxels=dict.fromkeys(extent, 1),
            label_extents_mm=extent,
        )
        for i, extent in enumerate(extents)
    )  # fmt: skip
    return DatasetFingerprint(dataset=name, cases=cases, channels=(CHANNEL,))


def plan(orientations: dict[str, str] | None = None) -> UnifiedPlan:
    topology = plan_topology(
        (1, 1, 3), (32, 32, 16), width=Width(base_features=4, text_dim=8), gpu_memory_gb=4, patch_size=(32, 32, 16)
    )
    return UnifiedPlan(
        spacing_mm=(1.0, 1.0, 3.0), patch_size=topology.patch_size, network=topology.network,
        dataset_orientation=orientations or {},
    )  # fmt: skip


def test_what_a_plan_costs() -> None:
    fine = dataset("Dataset001_Fine", (0.5, 0.5, 0.6), [{1: (20, 20, 2.0), 2: (30, 30, 30)}, {1: (20, 20, 2.5)}])
    coarse = dataset("Dataset002_Coarse", (2.0, 2.0, 5.0), [{1: (60, 20, 20), 2: (40, 10, 10)}])
    unknown = dataset("Dataset003_Unknown", (1.0, 1.0, 3.0), [{}])
    labels = {
        "Dataset001_Fine": {"nerve": (1,), "organ": (2,)},
        "Dataset002_Coarse": {"body": (1, 2), "never there": (7,)},
        "Dataset003_Unknown": {"anything": (1,)},
    }
    first, *others = impact_of(plan(), [coarse, unknown, fine], labels)
    assert first.dataset == "Dataset001_Fine"
    assert first.coarsening == (2.0, 2.0, 5.0)
    assert first.lost_resolution == pytest.approx(20)
    assert first.thin == (("nerve", 2.25),)
    assert first.large == ()
    by_name = {i.dataset: i for i in others}
    assert by_name["Dataset002_Coarse"].coarsening == (1, 1, 1)
    assert by_name["Dataset002_Coarse"].large == (("body", round(32 / 60, 3)),)
    assert by_name["Dataset003_Unknown"].thin == ()
    sentences = summarize([first, *others])
    assert "Dataset001_Fine" in sentences["coarser"]
    assert "nerve 2.25 mm" in sentences["thin"]
    assert "body (Dataset002_Coarse: 53% of it)" in sentences["large"]


def test_spacings_follow_the_datasets_own_orientation() -> None:
    sagittal = dataset("Dataset001_Spine", (3.0, 0.5, 0.5), [{1: (2.0, 20, 20)}])
    (impact,) = impact_of(plan({"Dataset001_Spine": "ASR"}), [sagittal], {"Dataset001_Spine": {"cord": (1,)}})
    assert impact.coarsening == (1.0, 2.0, 2.0)
    assert impact.thin == (("cord", 2.0),)


def test_nothing_suffers() -> None:
    same = dataset("Dataset001_Same", (1.0, 1.0, 3.0), [{1: (20, 20, 20)}])
    assert summarize(impact_of(plan(), [same], {"Dataset001_Same": {"organ": (1,)}})) == {}
