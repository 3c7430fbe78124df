"""Images made of label maps."""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, zoom

from satunet.trainers.synthetic import painting

IDS = torch.arange(4).repeat_interleave(512).reshape(4, 16, 32).permute(1, 0, 2).repeat_interleave(4, 1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_structure_has_the_mean_and_spread_of_its_look():
    look = painting.Look(means=np.array([0, 50, 100, 150], np.float32), spreads=np.array([0, 1, 2, 3], np.float32))
    image = painting.paint(IDS, look, generator())
    for label in range(4):
        values = image[label == IDS]
        assert abs(float(values.mean()) - 50 * label) < 0.3
        assert abs(float(values.std()) - label) < 0.2


def test_an_image_is_a_function_of_its_seeds():
    def make(seed):
        rng, noise = np.random.default_rng(seed), generator(seed)
        look = painting.brain_look({1: "thalamus", 2: "putamen"}, 4, rng)
        return painting.spoil(painting.paint(IDS, look, noise), rng, noise)

    assert torch.equal(make(5), make(5))
    assert not torch.equal(make(5), make(6))


def test_both_sides_of_a_structure_look_alike_and_different_structures_do_not():
    names = {1: "thalamus", 2: "thalamus", 3: "lateral ventricle"}
    apart, together = [], []
    for seed in range(50):
        means = painting.brain_look(names, 4, np.random.default_rng(seed)).means
        together.append(abs(means[1] - means[2]))
        apart.append(abs(means[1] - means[3]))
    assert np.mean(together) < 4
    assert np.median(apart) > 25


def test_many_heads_have_the_order_of_t1_and_those_are_not_taken_in_slices():
    names = {1: "cerebral white matter", 2: "cerebral cortex", 3: "csf"}
    looks = [painting.brain_look(names, 4, np.random.default_rng(s)) for s in range(200)]
    like_t1 = [look.means[1] > look.means[2] > look.means[3] for look in looks]
    assert 0.55 < np.mean(like_t1) < 0.8
    whole = [not look.in_slices for look in looks]
    assert np.mean([a for a, b in zip(like_t1, whole, strict=True) if b]) > 0.9


def test_a_trunk_in_ct_is_in_hounsfield_units():
    names = {1: "liver", 2: "left lung", 3: "vertebrae"}
    for seed in range(20):
        look = painting.ct_look(names, 6, (4, 5), np.random.default_rng(seed))
        assert look.means[0] == -1000
        assert 50 <= look.means[1] <= 140
        assert look.means[2] < -700
        assert look.means[3] >= 120
        assert -120 < look.means[4] < -75  # the fat around everything


def test_air_is_dark_in_every_contrast_of_a_trunk():
    look = painting.mr_look({1: "liver", 2: "left lung"}, 5, (3, 4), np.random.default_rng(0))
    assert look.means[2] <= 20


def test_blur_keeps_the_mean_and_no_blur_changes_nothing():
    image = torch.randn(12, 12, 12)
    assert torch.equal(painting.blur(image, (0, 0, 0)), image)
    smooth = painting.blur(image, (1, 1, 1))
    assert float(smooth.std()) < 0.5 * float(image.std())
    expected = gaussian_filter(image.numpy(), (0.7, 0, 1.3), mode="nearest", radius=(2, 0, 4))
    assert np.allclose(painting.blur(image, (0.7, 0, 1.3)), expected, atol=1e-5)
    constant = torch.full((6, 6, 6), 3.0)
    assert torch.allclose(painting.blur(constant, (1, 2, 0.5)), constant, atol=1e-5)


def test_thick_slices_average_along_one_axis():
    image = torch.zeros(8, 8, 8)
    image[4] = 1
    thick = painting.thick_slices(image, 0, 4)
    assert thick.shape == image.shape
    assert 0 < float(thick.max()) < 0.5
    assert torch.allclose(thick[:, 0, 0], thick[:, 5, 3])


def test_effects_of_no_strength_change_nothing():
    image = torch.randn(8, 8, 8)
    assert painting.spoil(image, np.random.default_rng(0), generator(), strength=0) is image


def test_regions_fill_the_box():
    regions = painting.smooth_regions((16, 16, 16), 5, 6, generator())
    assert set(regions.unique().tolist()) == set(range(5))
    knots = torch.randn((1, 5, 6, 6, 6), generator=generator())
    fields = zoom(knots[0].numpy(), (1, 16 / 6, 16 / 6, 16 / 6), order=1)
    assert np.mean(regions.numpy() == fields.argmax(0)) > 0.99
