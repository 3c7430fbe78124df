"""The residual encoder is nnU-Net's: names, numbers, memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn

from satunet.jobs.records import from_plain, to_plain
from satunet.network import NetworkConfig
from satunet.network.backbone import UNet
from satunet.planners.unified.topology import backbone_parameters, feature_map_elements

CONFIG = NetworkConfig.auto(
    features_per_stage=(6, 8, 8, 12),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 1)),
    kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    text_dim=8,
    backbone="residual",
)


def peer() -> ResidualEncoderUNet:
    return ResidualEncoderUNet(
        1, 4, CONFIG.features_per_stage, nn.Conv3d, CONFIG.kernel_sizes, CONFIG.strides, CONFIG.n_conv_per_stage, 2,
        CONFIG.n_conv_per_stage_decoder, True, nn.InstanceNorm3d, {"eps": 1e-5, "affine": True}, None, None,
        nn.LeakyReLU, {"inplace": True},
    )  # fmt: skip


@torch.no_grad()
def test_it_computes_what_nnunets_network_library_computes() -> None:
    torch.manual_seed(0)
    theirs, ours = peer().eval(), UNet(CONFIG).eval()
    for parameter in theirs.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    state = {k: v for k, v in theirs.state_dict().items() if "seg_layers" not in k and "decoder.encoder" not in k}
    ours.load_state_dict(state)
    image = torch.randn(2, 1, 8, 16, 16)
    skips, maps = ours(image)
    for a, b in zip(skips, theirs.encoder(image), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    (logits,) = [theirs(image)]
    torch.testing.assert_close(theirs.decoder.seg_layers[-1](maps[0]), logits, rtol=1e-4, atol=1e-4)


def test_blocks_start_as_short_cuts() -> None:
    net = UNet(CONFIG)
    assert all((p == 0).all() for n, p in net.named_parameters() if n.endswith("conv2.norm.weight"))
    assert CONFIG.n_conv_per_stage == (1, 3, 4, 6)
    assert CONFIG.n_conv_per_stage_decoder == (1, 1, 1)


def test_the_planner_counts_it() -> None:
    patch = (8, 16, 16)
    assert backbone_parameters(CONFIG) == sum(p.numel() for p in UNet(CONFIG).parameters())
    heads = np.prod(patch) * 2  # nnU-Net counts its segmentation layer, which a text-prompted network has not
    assert feature_map_elements(CONFIG, patch) == peer().compute_conv_feature_map_size(patch) - heads


def test_json_round_trip_and_older_plans() -> None:
    assert from_plain(to_plain(CONFIG), NetworkConfig, source="f") == CONFIG
    content = to_plain(NetworkConfig.nano())
    del content["backbone"]
    assert from_plain(content, NetworkConfig, source="f") == NetworkConfig.nano()


def test_presets_stay_plain() -> None:
    with pytest.raises(ValueError, match="plain backbone"):
        from_plain(to_plain(NetworkConfig.nano()) | {"backbone": "residual"}, NetworkConfig, source="f")
