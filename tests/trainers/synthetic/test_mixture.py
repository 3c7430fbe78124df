"""Several sources in one training."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from satunet.datasets.raw import Dataset
from satunet.labels import build_label_space, text_variants
from satunet.network.config import NetworkConfig
from satunet.text import TextBank
from satunet.trainers.config import TrainingConfig
from satunet.trainers.synthetic import painting, run
from satunet.trainers.synthetic.crops import Deformation
from satunet.trainers.synthetic.mixture import (
    Group,
    MixtureBatches,
    _cropped,
    class_patches,
    mirrored_classes,
    one_piece,
    swapped_ids,
)
from satunet.trainers.synthetic.starter import foreign_classes
from satunet.trainers.synthetic.subjects import make_subject
from satunet.trainers.unified.loss import IGNORED
from satunet.trainers.unified.voxels import voxel_loss

HEADS, ORGANS = "Dataset701_Heads", "Dataset702_Organs"


def dataset(name: str, modalities: tuple[str, ...], labels: dict[str, int]) -> Dataset:
    return Dataset(
        id=int(name[7:10]), name=name, folder=Path(name), channel_names=modalities, modalities=modalities,
        labels={n: (i,) for n, i in labels.items()},
    )  # fmt: skip


@pytest.fixture(scope="module")
def space():
    return build_label_space(
        [
            dataset(HEADS, ("mri",), {"left thalamus": 1, "right thalamus": 2, "third ventricle": 3}),
            dataset(ORGANS, ("ct",), {"liver": 1, "spleen": 2}),
        ]
    )


@pytest.fixture(scope="module")
def bank(space):
    texts = tuple(dict.fromkeys(t for info in space.classes for t in text_variants(info)))
    vectors = np.random.default_rng(0).normal(size=(len(texts), 8)).astype(np.float32)
    return TextBank(encoder_name="random", encoder_fingerprint="0", texts=texts, vectors=vectors)


@pytest.fixture(scope="module")
def groups():
    head = np.zeros((24, 28, 20), np.int64)
    head[4:10, 8:20, 6:14], head[14:20, 8:20, 6:14], head[10:14, 8:20, 6:14] = 1, 2, 3
    tissues = np.where(head > 0, head, 500)
    organs = np.zeros((20, 20, 20), np.int64)
    organs[3:9, 4:16, 4:16], organs[12:18, 4:16, 4:16] = 1, 2
    image = (organs * 0.5).astype(np.float32)
    mirror = Deformation(rotation_deg=5, stretch=0.05, warp=0.02, mirror=True)
    return [
        Group(
            name="heads", share=(1.0, 0.0), kind="brain", patch=(16, 32, 16), spacing_mm=(1.0, 2.0), batch=3,
            subjects=[make_subject(HEADS, "a", "mri", None, head, (1.0, 1.0, 1.0), tissues=tissues)],
            deformation=mirror, names={1: "thalamus", 2: "thalamus", 3: "third ventricle"}, foreign=("liver",),
            label_of=torch.arange(501) * (torch.arange(501) < 4),
        ),
        Group(
            name="organs", share=(0.0, 1.0), patch=(32, 16, 16), spacing_mm=(3.0, 3.0), batch=1,
            subjects=[make_subject(ORGANS, "b", "ct", image, organs, (2.0, 2.0, 2.0))], foreign=("third ventricle",),
        ),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def batches(groups, space, bank):
    return MixtureBatches(groups, space, bank, steps=100)


def test_a_batch_has_the_patch_and_the_number_of_its_group(batches):
    for step in (0, 99):
        batch = batches[step]
        group = batches.group_of(step)
        assert all(n.startswith("Dataset") for n in batch.scans)
        assert batch.image.shape == (group.batch, 1, *group.patch)
        assert batch.labels.shape == (group.batch, *group.patch)
        assert torch.isfinite(batch.image).all()


def test_shares_move_from_one_group_to_the_other(batches):
    assert all(batches.group_of(s).name == "heads" for s in range(3))
    assert all(batches.group_of(s).name == "organs" for s in range(97, 100))
    assert {batches.group_of(s).name for s in range(40, 60)} == {"heads", "organs"}


def test_a_batch_is_a_function_of_its_step(batches):
    first, again = batches[7], batches[7]
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.queries, again.queries)
    assert first.names == again.names
    assert not torch.equal(first.image, batches[8].image)


def test_a_class_of_another_dataset_is_asked_for_only_where_it_is_foreign(batches):
    for step in range(5):
        names = {n for several in batches[step].names for n in several}
        assert names <= {"left thalamus", "right thalamus", "thalamus", "third ventricle", "liver"}
        batch = batches[step]
        for b, several in enumerate(batch.names):
            if "liver" in several:
                assert not batch.membership[b, several.index("liver")].any()


def test_outside_of_a_real_scan_nobody_labelled(batches):
    labels = batches[99].labels
    assert (labels == IGNORED).any()
    assert (batches[99].image[:, 0][labels == IGNORED] == 0).all()


def test_a_mirrored_head_has_its_sides_swapped(groups, space, bank):
    batches = MixtureBatches([groups[0]], space, bank, steps=10)
    seen = 0
    for seed in range(12):
        _, labels, _ = batches.crop(
            groups[0], groups[0].subjects[0], np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        )
        left, right = ((labels == i).nonzero()[:, 0].float() for i in (1, 2))
        if len(left) and len(right):
            assert float(left.mean()) < float(right.mean())  # left has the smaller x in RAS, mirrored or not
            seen += 1
    assert seen > 5


def test_sides_are_swapped_by_name():
    table = swapped_ids({"left thalamus": (1,), "right thalamus": (4,), "brainstem": (2,)})
    assert table.tolist() == [0, 4, 2, 3, 1]


def test_classes_are_predicted_at_the_spacing_of_their_group_and_in_its_patch(groups, space):
    found = class_patches(groups, space)
    assert found["mri"]["left thalamus"] == {1.4: (16, 32, 16)}
    assert found["ct"]["liver"] == {3.0: (32, 16, 16)}
    assert "liver" not in found["mri"]
    finer = replace(groups[1], spacing_mm=(1.0, 1.0), patch=(16, 16, 16))
    larger = replace(groups[1], patch=(32, 32, 32))
    assert class_patches([groups[1], finer, larger], space)["ct"]["liver"] == {1.0: (16, 16, 16), 3.0: (32, 32, 32)}


def test_what_is_one_piece_in_every_label_map_is_said_to_be(groups, space):
    assert one_piece(groups, space) == ("left thalamus", "liver", "right thalamus", "spleen", "third ventricle")


def test_the_voxel_loss_is_small_where_features_tell_structures_apart():
    labels = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    labels[:, 0], labels[:, 1], labels[:, 3] = 1, 2, -1
    features = torch.zeros(1, 2, 4, 4, 4)
    features[:, 0][labels == 1] = 20.0
    features[:, 1][labels == 2] = 20.0
    membership = torch.tensor([[[False, True, False], [False, False, True], [False, True, True]]])
    shown = torch.ones(1, 3, dtype=torch.bool)
    right = torch.tensor([[[1.0, 0.0, -10.0], [0.0, 1.0, -10.0], [9.0, 9.0, 9.0]]])
    wrong = right[:, [1, 0, 2]]
    assert float(voxel_loss(features, right, labels, membership, shown, count=64)) < 0.01
    assert float(voxel_loss(features, wrong, labels, membership, shown, count=64)) > 5


def test_the_voxel_loss_of_a_crop_without_structures_is_zero():
    nothing = torch.zeros(1, 2, 2, 2, 2)
    membership, shown = torch.zeros(1, 1, 2, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)
    loss = voxel_loss(nothing, torch.zeros(1, 1, 3), torch.zeros(1, 2, 2, 2).long(), membership, shown)
    assert float(loss) == 0


@pytest.fixture
def network():
    return NetworkConfig.auto(
        features_per_stage=(4, 8), strides=((1, 1, 1), (2, 2, 2)), kernel_sizes=((3, 3, 3),) * 2, text_dim=8, query_dim=8,
    )  # fmt: skip


SHORT = TrainingConfig(steps=4, warmup_steps=0, learning_rate=1e-3, precision="float32")


def test_a_training_leaves_averaged_weights_and_goes_on_where_it_stopped(groups, space, bank, network, tmp_path):
    whole = run.train_mixture(groups, space, network, SHORT, tmp_path / "whole", bank)
    assert whole.steps == 4
    assert set(whole.losses) == {4}
    again = run.train_mixture(groups, space, network, SHORT, tmp_path / "whole", bank)
    assert all(torch.equal(whole.weights[name], again.weights[name]) for name in whole.weights)


def test_crops_of_workers_are_those_of_one_process(groups, space, bank, network, tmp_path):
    alone = run.train_mixture(groups, space, network, SHORT, tmp_path / "alone", bank)
    helped = run.train_mixture(groups, space, network, replace(SHORT, workers=2), tmp_path / "helped", bank)
    assert all(torch.equal(alone.weights[name], helped.weights[name]) for name in alone.weights)


def test_a_training_ends_with_its_time_and_at_a_small_rate(groups, space, bank, network, tmp_path, monkeypatch):
    rates = []
    take = run.MixtureStepper.take

    def watched(stepper, batch, step):
        rates.append((stepper.config.learning_rate_at(step), stepper.voxel_weight))
        return take(stepper, batch, step)

    monkeypatch.setattr(run.MixtureStepper, "take", watched)
    config = replace(SHORT, steps=10**6)
    trained = run.train_mixture(groups, space, network, config, tmp_path, bank, seconds=3.0)
    assert 3.0 <= trained.seconds < 30
    assert trained.steps == len(rates) < 10**6
    assert rates[0][0] > 0.99e-3
    assert rates[0][1] > 0
    assert rates[-1][0] < 0.3e-3
    assert rates[-1][1] == 0


def test_what_lies_beyond_the_end_of_a_scan_is_zero_and_not_asked_for():
    image, labels = torch.randn(20, 24, 28) * 3 + 7, torch.ones(20, 24, 28, dtype=torch.long)
    shown, known = _cropped(image, labels, np.random.default_rng(0))
    inside = known != IGNORED
    assert 0.09 < float(inside.float().mean()) < 1
    assert (shown[~inside] == 0).all()
    # The box has been normalised by itself, as a scan that ends there would have been.
    assert abs(float(shown[inside].mean())) < 1
    assert 0.4 < float(shown[inside].std()) < 2.5
    assert torch.equal(known[inside], labels[inside])


def test_a_region_is_not_asked_for_what_it_may_show():
    labels = {
        "liver": 1,
        "left hip": 2,
        "left hippocampus": 3,
        "larynx": 4,
        "soft tissue sarcoma": 5,
        "third ventricle": 6,
    }
    space = build_label_space([dataset("Dataset703_All", ("ct",), labels)])
    assert set(foreign_classes("hippocampus", space)) == {
        "liver",
        "left hip",
        "hip",
        "larynx",
        "soft tissue sarcoma",
    } & set(space.class_names)
    assert set(foreign_classes("sarcoma PET", space)) >= {"liver", "left hippocampus", "larynx", "third ventricle"}
    assert not set(foreign_classes("sarcoma PET", space)) & {"left hip", "soft tissue sarcoma"}
    assert foreign_classes("trunks", space) == ()


def test_a_painted_voxel_is_the_mean_of_finer_ones_and_keeps_the_label_at_its_middle(space, bank):
    # A wall that ends in the middle of a voxel of the crop: half the value, and nobody's label moves.
    head = np.zeros((24, 24, 24), np.int64)
    head[:9], head[9:] = 1, 2
    group = Group(
        name="walls", share=(1.0, 1.0), kind="brain", patch=(8, 8, 8), spacing_mm=(2.0, 2.0), fineness=2,
        subjects=[make_subject(HEADS, "wall", "mri", None, head, (1.0, 1.0, 1.0), tissues=head)],
        names={1: "left thalamus", 2: "right thalamus"}, label_of=torch.arange(501) * (torch.arange(501) < 4),
    )  # fmt: skip
    data = MixtureBatches([group], space, bank, steps=1)
    tissues = torch.ones((16, 16, 16), dtype=torch.long)
    tissues[5:] = 2
    means = np.zeros(501, np.float32)
    means[2] = 100
    look = painting.Look(means=means, spreads=np.zeros(501, np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(painting, "brain_look", lambda *_: look)
        patch.setattr(painting, "blur", lambda image, _: image)
        patch.setattr(painting, "spoil", lambda image, *_, **__: image)
        patch.setattr("satunet.trainers.synthetic.mixture._standard", lambda image, _: image)
        rng = np.random.default_rng(1)
        image = data._head(group, tissues, 2.0, rng, torch.Generator().manual_seed(0))
    assert image.shape == (8, 8, 8)
    assert image[:, 4, 4].tolist() == [0, 0, 50, 100, 100, 100, 100, 100]
    batch = data[0]
    assert batch.image.shape == (2, 1, 8, 8, 8)
    assert batch.labels.shape == (2, 8, 8, 8)
    assert set(batch.labels.unique().tolist()) <= {IGNORED, 1, 2}


def test_batches_made_beside_the_steps_are_the_same_and_an_error_ends_the_steps(batches):
    made = list(run._beside(batches, range(3, 8), torch.device("cpu")))
    assert [step for step, _ in made] == [3, 4, 5, 6, 7]
    assert all(torch.equal(batch.image, batches[step].image) for step, batch in made)

    class Broken:
        def __getitem__(self, step):
            if step == 2:
                raise MemoryError("no room for step 2")
            return batches[step]

    broken = run._beside(Broken(), range(5), torch.device("cpu"))
    assert [next(broken)[0], next(broken)[0]] == [0, 1]
    with pytest.raises(MemoryError, match="step 2"):
        next(broken)
    several = run._beside(batches, range(100), torch.device("cpu"))
    next(several)
    several.close()
    assert not [t for t in threading.enumerate() if "make" in t.name]


def test_half_of_the_ends_of_a_scan_lie_around_a_structure():
    labels = torch.zeros(40, 40, 40, dtype=torch.long)
    labels[2:4, 30:32, 5:7] = 3  # in a corner, where a box that is placed anywhere rarely has it
    shown = [
        bool((_cropped(torch.randn(40, 40, 40), labels, np.random.default_rng(k))[1] == 3).any()) for k in range(200)
    ]
    anywhere = 0.35  # share of the boxes placed anywhere that reach it, by the lengths that they have
    assert 0.5 < np.mean(shown) < 0.5 + anywhere
    nothing = torch.zeros_like(labels)
    assert (_cropped(torch.randn(40, 40, 40), nothing, np.random.default_rng(0))[1] != IGNORED).any()


def test_a_class_counts_as_mirrored_if_all_that_train_it_mirror_it(groups, space):
    assert mirrored_classes(groups, space) == {
        "mri": ("left thalamus", "right thalamus", "thalamus", "third ventricle"), "ct": (),
    }  # fmt: skip
    still = replace(groups[0], deformation=Deformation())
    assert mirrored_classes([*groups, still], space)["mri"] == ()
