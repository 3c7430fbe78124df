"""The engine against a plain sliding window, and against itself with less memory."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from satunet.network.config import NetworkConfig
from satunet.network.model import ImageFeatures, PromptedUNet
from satunet.windows.blocks import BLOCK, BLOCK_BYTES, VOXELS, Layer, Structures, Tiling
from satunet.windows.engine import WindowedScan
from satunet.windows.logits import largest_logits, vector_lengths
from satunet.windows.starts import gaussian_weights, window_starts

PATCH = (16, 16, 16)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> PromptedUNet:
    torch.manual_seed(0)
    config = NetworkConfig.auto(
        features_per_stage=(4, 8),
        strides=((1, 1, 1), (2, 2, 2)),
        kernel_sizes=((3, 3, 3),) * 2,
        text_dim=6,
        query_dim=24,
    )
    network = PromptedUNet(config).eval()
    with torch.no_grad():
        network.logit_bias.fill_(0.0)  # else a fresh network finds nothing
        network.logit_scale.fill_(20.0)
    return network


def plain(network: PromptedUNet, volume: torch.Tensor, queries: torch.Tensor, overlap: float) -> torch.Tensor:
    """(N, X, Y, Z) probabilities, everything at once, as one would write it down."""
    sums = torch.zeros(len(queries), *volume.shape)
    weight = torch.zeros(volume.shape)
    gauss = torch.from_numpy(gaussian_weights(PATCH))
    with torch.no_grad():
        for start in window_starts(volume.shape, PATCH, overlap):
            place = tuple(slice(s, s + p) for s, p in zip(start, PATCH, strict=True))
            logits = network(volume[place][None, None], queries[None], torch.tensor([1]))[0][0]
            sums[(slice(None), *place)] += logits.sigmoid() * gauss
            weight[place] += gauss
    return sums / weight


def found(network: PromptedUNet, volume: torch.Tensor, queries: torch.Tensor, **options: object) -> list[torch.Tensor]:
    scan = WindowedScan(
        network=network, volume=volume, queries=queries, modality=1, patch=PATCH, device=CPU, precision="float32",
        **options,  # type: ignore[arg-type]
    )  # fmt: skip
    masks = {}
    for number, probability in scan.probabilities():
        masks[number] = torch.zeros(volume.shape)
        if probability.values is not None:
            masks[number][probability.box] = probability.values
    return [masks[number] for number in range(len(queries))]


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
def test_every_voxel_above_one_half_is_the_plain_answer(network: PromptedUNet, overlap: float) -> None:
    torch.manual_seed(1)
    volume, queries = torch.randn(30, 16, 25), torch.randn(11, 6)
    expected = plain(network, volume, queries, overlap)
    got = torch.stack(found(network, volume, queries, overlap=overlap))
    assert 0.01 < (expected > 0.5).float().mean() < 0.99
    decided = (expected - 0.5).abs() > 1e-5
    assert torch.equal((got > 0.5)[decided], (expected > 0.5)[decided])
    inside = got > 0
    torch.testing.assert_close(got[inside], expected[inside], atol=1e-5, rtol=0)


def test_a_window_that_is_fairly_sure_of_nothing_counts_in_the_mean(network: PromptedUNet) -> None:
    """Slabs of one value each: a window may give a whole block small probabilities, and another window large ones."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        network.logit_bias.fill_(-3.0)
        network.logit_scale.fill_(10.0)
    torch.manual_seed(5)
    volume = 3 * torch.randn(8, 1, 1).repeat_interleave(4, 0).expand(32, 16, 16)
    queries = torch.randn(40, 6)
    expected = plain(network, volume, queries, 0.5)
    got = torch.stack(found(network, volume, queries, overlap=0.5))
    inside = got > 0
    assert inside.any()
    assert (expected[inside] - got[inside]).abs().max() <= 1.1e-3, "only what is less than a thousandth is left out"


def test_memory_changes_no_bit(network: PromptedUNet) -> None:
    torch.manual_seed(2)
    volume, queries = torch.randn(30, 16, 25), torch.randn(11, 6)
    enough = found(network, volume, queries)
    for memory_bytes in (1, 300_000):
        for a, b in zip(enough, found(network, volume, queries, memory_bytes=memory_bytes), strict=True):
            assert torch.equal(a, b)


def test_an_unsure_network_puts_prompts_off_and_loses_nothing(network: PromptedUNet) -> None:
    torch.manual_seed(2)
    volume, queries = torch.randn(30, 16, 40), torch.randn(9, 6)
    seen: list[tuple[int, int]] = []
    enough = found(network, volume, queries, on_progress=lambda *s: seen.append(s))
    windows = seen[-1][1]
    seen.clear()
    tight = found(network, volume, queries, memory_bytes=40 * BLOCK_BYTES, on_progress=lambda *s: seen.append(s))
    assert seen[-1][1] > 2 * windows  # several groups
    assert all(torch.equal(a, b) for a, b in zip(enough, tight, strict=True))


class Corner(torch.nn.Module):
    """A prompt is there where the image has its number, and nowhere else."""

    def encode_image(self, image: torch.Tensor) -> ImageFeatures:
        maps = torch.nn.functional.one_hot(image[:, 0].long(), 64).movedim(-1, 1).float()
        return ImageFeatures(memory=image.new_zeros(len(image), 1, 1), grid=(1, 1, 1), maps=(maps,))

    def decode(
        self, features: ImageFeatures, queries: torch.Tensor, modality: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        codes = torch.nn.functional.one_hot(queries[..., 0].long(), 64).float()
        return (torch.cat((60 * codes, torch.full_like(codes[..., :1], -30)), -1),)


def test_blocks_exist_only_where_prompts_are(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = torch.zeros(64, 64, 64)
    for k in range(1, 9):
        volume[4 * k : 4 * k + 3, 5:9, 7 * k : 7 * k + 5] = k
    queries = torch.arange(1, 64.0)[:, None]
    most = 0
    add = Layer.add

    def counted(self: Layer, *arguments: torch.Tensor) -> int:
        nonlocal most
        count = add(self, *arguments)
        most = max(most, self.used)
        return count

    monkeypatch.setattr(Layer, "add", counted)
    scan = WindowedScan(
        network=Corner(), volume=volume, queries=queries, modality=1, patch=(32, 32, 32), device=CPU
    )  # fmt: skip
    for k, probability in scan.probabilities():
        expected = volume == k + 1
        if not expected.any():
            assert probability.values is None
            continue
        mask = torch.zeros(volume.shape, dtype=torch.bool)
        mask[probability.box] = probability.values > 0.5
        assert torch.equal(mask, expected)
    assert most <= 8 * 2  # of 63 · 16 blocks of a layer


@given(
    shape=st.tuples(*[st.integers(16, 45)] * 3),
    sweep=st.integers(0, 2),
    start=st.tuples(*[st.integers(0, 20)] * 3),
    seed=st.integers(0, 5),
)
@settings(max_examples=30, deadline=None)
def test_blocks_of_a_window_lie_where_its_voxels_lie(shape, sweep: int, start, seed: int) -> None:
    torch.manual_seed(seed)
    start = tuple(min(s, n - 16) for s, n in zip(start, shape, strict=True))
    tiling = Tiling(shape=shape, sweep=sweep)
    window = torch.rand(1, 16, 16, 16)
    structures = Structures(tiling=tiling, active=torch.ones(1, dtype=torch.bool))
    for number in range(tiling.layers):
        layer = Layer.empty(1, tiling.places, CPU)
        if number in tiling.layers_of(start, PATCH):
            places = tiling.places_of(start, PATCH)
            values = tiling.cut(window, start, number, repeat_edges=False)[:, 0]
            layer.add(torch.zeros_like(places), places, values)
        structures.append(layer.means(torch.ones(tiling.places, VOXELS)))
    structures.close()
    dense, first = structures.dense(0)
    whole = torch.zeros([c * b for c, b in zip(tiling.counts, BLOCK, strict=True)])
    whole[tuple(slice(f, f + n) for f, n in zip(first, dense.shape, strict=True))] = dense
    place = tuple(slice(s, s + 16) for s in start)
    assert torch.equal(whole[place], window[0])
    whole[place] = 0
    assert not whole.any()


def test_a_prompt_gives_the_same_whatever_is_asked_beside_it(network: PromptedUNet) -> None:
    torch.manual_seed(3)
    volume, queries = torch.randn(20, 20, 20), torch.randn(13, 6)
    together = found(network, volume, queries)
    for k in (0, 7, 12):
        (alone,) = found(network, volume, queries[k : k + 1])
        torch.testing.assert_close(alone, together[k], atol=1e-5, rtol=0)


def test_a_scan_smaller_than_the_patch_keeps_its_shape(network: PromptedUNet) -> None:
    torch.manual_seed(4)
    volume = torch.randn(7, 16, 5)
    scan = WindowedScan(
        network=network, volume=volume, queries=torch.randn(3, 6), modality=0, patch=PATCH, device=CPU
    )  # fmt: skip
    for _, probability in scan.probabilities():
        for place, size in zip(probability.box, volume.shape, strict=True):
            assert 0 <= place.start <= place.stop <= size


@pytest.mark.parametrize("memory_bytes", [1, 1 << 30])
def test_progress_ends_with_all_windows_done(network: PromptedUNet, memory_bytes: int) -> None:
    volume, queries = torch.randn(30, 20, 25), torch.randn(9, 6)
    seen: list[tuple[int, int]] = []
    found(network, volume, queries, memory_bytes=memory_bytes, on_progress=lambda *s: seen.append(s))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert all(done <= total for done, total in seen)


def test_boxes_hold_a_voxel_more_than_what_exceeds_one_half(network: PromptedUNet) -> None:
    torch.manual_seed(5)
    volume, queries = torch.randn(20, 24, 20), torch.randn(5, 6)
    expected = plain(network, volume, queries, 0.5).numpy() > 0.5
    scan = WindowedScan(network=network, volume=volume, queries=queries, modality=1, patch=PATCH, device=CPU)
    for number, probability in scan.probabilities():
        mask = expected[number]
        places = np.argwhere(mask)
        if probability.values is None or len(places) == 0:
            continue
        for axis, (place, size) in enumerate(zip(probability.box, mask.shape, strict=True)):
            assert place.start <= max(0, places[:, axis].min() - 1)
            assert place.stop >= min(size, places[:, axis].max() + 2)


def test_several_windows_at_once_give_the_same_masks(network: PromptedUNet) -> None:
    torch.manual_seed(3)
    volume, queries = torch.randn(30, 21, 40), torch.randn(5, 6)
    alone = found(network, volume, queries)
    for batch, memory in ((3, 1 << 30), (4, 4 * 2000)):
        together = found(network, volume, queries, batch=batch, memory_bytes=memory)
        for one, other in zip(alone, together, strict=True):
            assert torch.allclose(one, other, atol=1e-5) or ((one > 0.5) != (other > 0.5)).sum() == 0


def test_windows_of_nothing_but_air_cost_nothing_and_count_as_zero(network: PromptedUNet) -> None:
    """Half of the scan is air, as it is after clipping; the plain answer with zeros for the windows that hold no more."""
    torch.manual_seed(4)
    volume, queries = torch.randn(48, 16, 16).clamp_min(-1), torch.randn(5, 6)
    volume[26:] = -1 + 1e-5 * torch.rand(22, 16, 16)  # resampled, it is not exactly constant
    looked = []

    class Counting(torch.nn.Module):
        def encode_image(self, image: torch.Tensor) -> object:
            looked.append(image)
            return network.encode_image(image)

        def decode(self, *given: torch.Tensor) -> object:
            return network.decode(*given)

    got = torch.stack(found(Counting(), volume, queries))  # type: ignore[arg-type]
    starts = window_starts(volume.shape, PATCH, 0.5)
    places = [tuple(slice(s, s + p) for s, p in zip(start, PATCH, strict=True)) for start in starts]
    full = [place for place in places if place[0].start < 26]
    assert 0 < len(full) == len(looked) < len(places)
    gauss = torch.from_numpy(gaussian_weights(PATCH))
    sums, weight = torch.zeros(5, *volume.shape), torch.zeros(volume.shape)
    with torch.no_grad():
        for place in places:
            weight[place] += gauss
            if place in full:
                logits = network(volume[place][None, None], queries[None], torch.tensor([1]))[0][0]
                sums[(slice(None), *place)] += logits.sigmoid() * gauss
    expected = sums / weight
    assert (expected > 0.5).any()
    decided = (expected - 0.5).abs() > 1e-5
    assert torch.equal((got > 0.5)[decided], (expected > 0.5)[decided])
    done: list[tuple[int, int]] = []
    assert not any(
        mask.any() for mask in found(network, torch.zeros(48, 16, 16), queries, on_progress=lambda *p: done.append(p))
    )
    assert done[-1] == (len(places), len(places))


@pytest.mark.parametrize("memory_bytes", [1 << 30, 4 * 3000])
def test_mirrored_looks_are_averaged(network: PromptedUNet, memory_bytes: int) -> None:
    torch.manual_seed(4)
    volume, queries = torch.randn(18, 25, 16), torch.randn(4, 6)
    flips = ((), (1,), (2,), (1, 2))
    sums, weight = torch.zeros(4, *volume.shape), torch.zeros(volume.shape)
    gauss = torch.from_numpy(gaussian_weights(PATCH))
    with torch.no_grad():
        for start in window_starts(volume.shape, PATCH, 0.5):
            place = tuple(slice(s, s + p) for s, p in zip(start, PATCH, strict=True))
            looks = []
            for flip in flips:
                crop = volume[place][None, None].flip([a + 2 for a in flip])
                logits = network(crop, queries[None], torch.tensor([1]))[0][0]
                looks.append(logits.flip([a + 1 for a in flip]).sigmoid())
            sums[(slice(None), *place)] += torch.stack(looks).mean(0) * gauss
            weight[place] += gauss
    expected = sums / weight
    for one, other in zip(
        expected, found(network, volume, queries, flips=flips, memory_bytes=memory_bytes), strict=True
    ):
        assert one.max() > 0.5
        inside = other > 0
        assert torch.allclose(one[inside], other[inside], atol=1e-5)
        assert (one[~inside] <= 0.5 + 1e-5).all()


def test_peaks_and_agreement_are_those_of_the_windows(network: PromptedUNet) -> None:
    """Against every window's own probabilities, block by block; less memory changes neither."""
    torch.manual_seed(3)
    volume, queries = torch.randn(40, 24, 24), torch.randn(5, 6)
    network = copy.deepcopy(network)
    with torch.no_grad():
        network.logit_bias.fill_(-14.0)  # a mask here and there, which not every window sees
    few = {
        "network": network, "volume": volume, "queries": queries, "modality": 1, "patch": PATCH, "device": CPU,
        "precision": "float32",
    }  # fmt: skip
    scan = WindowedScan(**few, overlap=0.5)  # type: ignore[arg-type]
    told = dict(scan.probabilities())
    gauss = torch.from_numpy(gaussian_weights(PATCH))
    yes: dict[tuple[int, tuple[int, ...]], float] = {}
    every: dict[tuple[int, ...], float] = {}
    peaks = torch.zeros(5)
    with torch.no_grad():
        for start in window_starts(volume.shape, PATCH, 0.5):
            place = tuple(slice(s, s + p) for s, p in zip(start, PATCH, strict=True))
            p = network(volume[place][None, None], queries[None], torch.tensor([1]))[0][0].sigmoid()
            peaks = torch.maximum(peaks, p.amax((1, 2, 3)))
            blocks = [range(s // b, -(-(s + n) // b)) for s, n, b in zip(start, PATCH, BLOCK, strict=True)]
            for block in ((i, j, k) for i in blocks[0] for j in blocks[1] for k in blocks[2]):
                inside = tuple(
                    slice(max(0, c * b - s), min(n, (c + 1) * b - s))
                    for c, b, s, n in zip(block, BLOCK, start, PATCH, strict=True)
                )
                weight = float(gauss[inside].max())
                every[block] = every.get(block, 0) + weight
                for q in range(5):
                    if (p[q][inside] > 0.5).any():
                        yes[q, block] = yes.get((q, block), 0) + weight
    for q in range(5):
        voted = [block for number, block in yes if number == q]
        expected = sum(yes[q, b] for b in voted) / sum(every[b] for b in voted) if voted else 0
        assert told[q].agreement == pytest.approx(expected, abs=1e-5)
        assert told[q].peak == pytest.approx(float(peaks[q]), abs=1e-5)
    assert {round(t.agreement, 3) for t in told.values()} - {0.0, 1.0}
    poor = dict(WindowedScan(**few, overlap=0.5, memory_bytes=4 * BLOCK_BYTES).probabilities())  # type: ignore[arg-type]
    assert all(poor[q].agreement == told[q].agreement and poor[q].peak == told[q].peak for q in range(5))


@pytest.mark.parametrize("sweep", [0, 1, 2])
def test_blocks_do_not_depend_on_the_layout_of_the_maps(sweep: int) -> None:
    """Channels last, as the CPU engine's maps are, are cut another way: the blocks are the same, at every edge."""
    patch, rng = (20, 13, 22), np.random.default_rng(sweep)
    features = torch.randn(5, *patch)
    last = features.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    tiling = Tiling(shape=(60, 50, 41), sweep=sweep)
    for _ in range(5):
        start = tuple(int(rng.integers(0, n - p + 1)) for n, p in zip(tiling.shape, patch, strict=True))
        for layer in tiling.layers_of(start, patch):
            blocks = tiling.cut(features, start, layer, repeat_edges=True)
            assert len(blocks) == len(tiling.places_of(start, patch))
            assert torch.equal(tiling.cut(last, start, layer, repeat_edges=True), blocks)
            for i, place in enumerate(tiling.coordinates(layer, tiling.places_of(start, patch)).tolist()):
                first = [p * b - s for p, b, s in zip(place, BLOCK, start, strict=True)]  # of the block, in the window
                where = [torch.arange(f, f + b).clamp(0, p - 1) for f, b, p in zip(first, BLOCK, patch, strict=True)]
                assert torch.equal(blocks[i].view(5, *BLOCK), features[:, where[0]][:, :, where[1]][..., where[2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
def test_the_largest_logits_and_their_error(dtype: torch.dtype, last: bool) -> None:
    """Against float64: no logit is farther off than said, and the bound is that of the longest voxel."""
    blocks = torch.randn(7, 12, VOXELS)
    if last:
        blocks = blocks.transpose(1, 2).contiguous().transpose(1, 2)
    blocks, embeddings = blocks.to(dtype), torch.randn(5, 13)
    lengths = blocks.double().norm(dim=1).amax(1)
    largest, error = largest_logits(blocks, lengths.float(), embeddings)
    exact = torch.einsum("nc,bcv->nbv", embeddings[:, :12].double(), blocks.double()).amax(2) + embeddings[:, 12:]
    assert ((largest - exact).abs() <= error).all()
    bound = (torch.finfo(dtype).eps + 1e-5) * embeddings[:, :12].double().norm(dim=1)[:, None] * lengths + 1e-5
    torch.testing.assert_close(error.double(), bound, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("last", [False, True])
def test_lengths_of_feature_vectors(dtype: torch.dtype, last: bool) -> None:
    """Every voxel's, in its place, whatever the precision and the order in memory; more voxels than a piece has."""
    features = 30 * torch.randn(12, 24, 20, 18)
    if last:
        features = features.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    features = features.to(dtype)
    found = vector_lengths(features)
    assert found.dtype == torch.float32 and found.shape == (24, 20, 18)
    torch.testing.assert_close(found.double(), features.double().norm(dim=0), rtol=1e-6, atol=0)
