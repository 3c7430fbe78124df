"""The text-prompted network: image → feature maps and memory tokens; text queries → masks.

Shapes: B batch, N queries, T memory tokens, D query width, C_s features at scale s, X Y Z voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from satunet.network.adapter import build_adapter
from satunet.network.backbone import UNet
from satunet.network.config import NetworkConfig
from satunet.network.decoder import QueryDecoder, position_encoding
from satunet.network.gpu import average_to


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageFeatures:
    """Features of an image that queries attend to; computed once for any number of prompts.

    Attributes:
        memory: (B, T, D) tokens of the whole patch.
        grid: Shape of the tokens' grid; T is its product.
        maps: Decoder feature maps (B, C_s, X_s, Y_s, Z_s) of each supervised scale, full resolution first.
    """

    memory: Tensor
    grid: tuple[int, int, int]
    maps: tuple[Tensor, ...]


class PromptedUNet(nn.Module):
    """A U-Net whose masks are selected by text (SAT, arXiv 2312.17183).

    With the presets ``nano`` and ``pro``, parameters have the names and shapes of SAT's published checkpoints.

    Attributes:
        config: Configuration of the network.
        deep_supervision: Whether ``forward`` returns all scales; nnU-Net's trainer switches it on and off.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.deep_supervision = True
        published = config.preset != "auto"
        self.backbone = UNet(config)
        self.projection_layer = nn.Sequential(
            nn.Linear(sum(config.features_per_stage), config.memory_hidden_dim),
            nn.GELU(),
            nn.Linear(config.memory_hidden_dim, config.query_dim),
            nn.GELU(),
        )
        self.transformer_decoder = QueryDecoder(config)
        # The published network ends its mask heads with a GELU, which leaves mask embeddings almost no negative values;
        # planned networks have no GELU there and learn faster.
        full, *lower = (_mask_head(config.query_dim, hidden, out, gelu=published) for hidden, out in config.mask_heads)
        self.mid_mask_embed_proj = nn.ModuleList(lower)
        self.mask_embed_proj = full
        self.adapter = build_adapter(config)
        if published:
            self.logit_bias = None
            self.logit_scale = None
        else:
            # Most classes fill about a thousandth of a patch. A network that starts at a probability of one half spends
            # hundreds of steps learning that. The scale compensates for the small dot products of fresh mask heads.
            self.logit_bias = nn.Parameter(torch.full((len(config.mask_heads),), -4.0))
            self.logit_scale = nn.Parameter(torch.full((len(config.mask_heads),), 3.0))

    def encode_image(self, image: Float[Tensor, "b 1 x y z"]) -> ImageFeatures:
        """Run the backbone.

        Args:
            image: (B, 1, X, Y, Z) normalised intensities; every size is divisible by ``config.divisor``.

        Raises:
            ValueError: The number of channels is not 1, or a size is not divisible.
        """
        if image.ndim != 5 or image.shape[1] != 1:
            raise ValueError(f"an image batch is (B, 1, X, Y, Z), got {tuple(image.shape)}")
        if any(n % d for n, d in zip(image.shape[2:], self.config.divisor, strict=True)):
            raise ValueError(f"sizes {tuple(image.shape[2:])} must be divisible by the strides {self.config.divisor}")
        skips, maps = self.backbone(image.expand(-1, self.config.in_channels, -1, -1, -1))
        x, y, z = skips[-1].shape[2:]
        grid = (int(x), int(y), int(z))
        pooled = [_average_to(skip, grid) for skip in skips]
        tokens = torch.cat(pooled, dim=1).flatten(2).transpose(1, 2)  # (B, T, sum of features)
        # A backbone that computes in bfloat16 without autocast returns bfloat16; autocast makes the type irrelevant.
        memory = self.projection_layer(tokens.to(next(self.projection_layer.parameters()).dtype))
        return ImageFeatures(memory=memory, grid=grid, maps=tuple(maps[: len(self.config.mask_heads)]))

    def decode(
        self,
        features: ImageFeatures,
        queries: Float[Tensor, "b n d"],
        modality: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b n _"], ...]:
        """Turn text embeddings into mask embeddings of every scale, full resolution first.

        Queries are independent: decoding them in chunks gives the same result as decoding all at once.

        Args:
            features: Features from :meth:`encode_image`.
            queries: (B, N, text_dim) text embeddings.
            modality: (B,) indices into :data:`satunet.datasets.raw.MODALITIES`; used by the adapter only.

        Returns:
            One embedding per scale: (B, N, C_s + 1) for planned networks, where the last entry is the bias of the
            logits, and (B, N, C_s) for the published networks.

        Raises:
            ValueError: The width of the queries is not ``config.text_dim``.
        """
        if queries.ndim != 3 or queries.shape[-1] != self.config.text_dim:
            raise ValueError(f"queries are (B, N, {self.config.text_dim}), got {tuple(queries.shape)}")
        if self.adapter is not None:
            queries = self.adapter(queries, modality)
        position = position_encoding(features.grid, self.config.query_dim, device=queries.device)
        decoded = self.transformer_decoder(queries, features.memory, position.to(features.memory.dtype))
        embeddings = []
        for scale, head in enumerate([self.mask_embed_proj, *self.mid_mask_embed_proj]):
            embedding = head(decoded)
            if self.logit_bias is not None and self.logit_scale is not None:
                width = embedding.shape[-1]
                embedding = embedding * (self.logit_scale[scale] / width**0.5)
                bias = self.logit_bias[scale].to(embedding.dtype).expand(*embedding.shape[:2], 1)
                embedding = torch.cat((embedding, bias), dim=-1)
            embeddings.append(embedding)
        return tuple(embeddings)

    def mask_logits(
        self, feature_map: Float[Tensor, "b c x y z"], embedding: Float[Tensor, "b n e"]
    ) -> Float[Tensor, "b n x y z"]:
        """Dot product of every voxel's features with every query's mask embedding."""
        return mask_logits(feature_map, embedding)

    def forward(
        self,
        image: Float[Tensor, "b 1 x y z"],
        queries: Float[Tensor, "b n d"],
        modality: Int[Tensor, " b"] | None = None,
    ) -> list[Float[Tensor, "b n _ _ _"]]:
        """Mask logits (B, N, X, Y, Z) per scale, full resolution first; lower scales only with ``deep_supervision``."""
        features = self.encode_image(image)
        embeddings = self.decode(features, queries, modality)
        scales = len(embeddings) if self.deep_supervision else 1
        return [mask_logits(features.maps[s], embeddings[s]) for s in range(scales)]


def mask_logits(feature_map: Tensor, embedding: Tensor) -> Tensor:
    """Dot product of (B, C, X, Y, Z) features with (B, N, C) or (B, N, C + 1) embeddings (the last is a bias)."""
    channels = feature_map.shape[1]
    weights = embedding.to(feature_map.dtype)
    voxels = feature_map.flatten(2)
    if embedding.shape[-1] > channels:
        logits = torch.baddbmm(weights[..., channels:], weights[..., :channels], voxels)
    else:
        logits = torch.bmm(weights, voxels)
    return logits.reshape(*logits.shape[:2], *feature_map.shape[2:])


def _average_to(feature_map: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Mean over equal boxes, (B, C, X, Y, Z) → (B, C, *grid); the strides may differ from axis to axis.

    Torch's own pooling gives the same result, but its backward pass on a GPU is not deterministic. The mean is taken
    axis by axis: the first axis leaves little to read, and its inner loop is long in any memory layout.
    """
    if feature_map.is_contiguous(memory_format=torch.channels_last_3d):
        return average_to(feature_map, grid) if feature_map.is_cuda else _average_rows(feature_map, grid)
    for axis, cells in enumerate(grid):
        dim = 2 + axis
        size = feature_map.shape[dim]
        if size != cells:
            feature_map = feature_map.unflatten(dim, (cells, size // cells)).mean(dim + 1)
    return feature_map


def _average_rows(feature_map: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """:func:`_average_to` for maps with channels last in memory.

    The means are taken from the last axis to the first, so that all channels of neighbouring voxels are read in one
    piece, ten times as fast as from the first axis to the last.
    """
    batch, channels, *shape = feature_map.shape
    means, inner = feature_map.permute(0, 2, 3, 4, 1), channels  # (B, X, Y, Z, C), contiguous
    for size, cells in zip(reversed(shape), reversed(grid), strict=True):
        means = means.reshape(-1, size // cells, inner).mean(1)
        inner *= cells
    return means.view(batch, *grid, channels).permute(0, 4, 1, 2, 3)


def _mask_head(width: int, hidden: int, out: int, *, gelu: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out)]
    return nn.Sequential(*layers, nn.GELU()) if gelu else nn.Sequential(*layers)
