"""Checkpoints in the exact form of SAT's published ones, from random weights, as small as wanted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from satunet.network import NetworkConfig
from satunet.network.model import PromptedUNet

WIDTH = 24
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "liver", "left", "right", "kidney", "lung", "tumor", "##s"]
TINY = dataclasses.replace(
    NetworkConfig.nano(),
    features_per_stage=(4, 6, 8),
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    kernel_sizes=((3, 3, 3),) * 3,
    n_conv_per_stage=(2,) * 3,
    n_conv_per_stage_decoder=(2,) * 2,
    query_dim=WIDTH,
    text_dim=WIDTH,
    num_query_layers=2,
    num_heads=4,
    feedforward_dim=32,
    memory_hidden_dim=16,
    mask_heads=((8, 4), (8, 6)),
)


def published_state(config: NetworkConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """``module.`` before every name, each convolution block twice, copies sharing their memory."""
    torch.manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    for name, value in PromptedUNet(config).state_dict().items():
        state[f"module.{name}"] = value
        for index, layer in enumerate(("conv", "norm")):
            if ".convs." in name and f".{layer}." in name:
                state[f"module.{name.replace(f'.{layer}.', f'.all_modules.{index}.')}"] = value
    return state


def network_checkpoint(path: Path, config: NetworkConfig = TINY, **changes: Any) -> Path:
    """``{"step", "model_state_dict", "optimizer_state_dict"}``; changes replace tensors, ``None`` removes one."""
    state = published_state(config)
    optimizer = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(10)}}, "param_groups": [{"lr": 1e-4}]}
    torch.save({"step": 200000, "model_state_dict": _changed(state, changes), "optimizer_state_dict": optimizer}, path)
    return path


def bert_folder(folder: Path, width: int = WIDTH) -> Path:
    """Configuration and tokenizer of a tiny BERT, as a hub would give them."""
    from transformers import BertConfig, BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    _bert_config(BertConfig, width).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def text_checkpoint(path: Path, rows: int = 4, width: int = WIDTH, **changes: Any) -> Path:
    """Text tower, projection, modality embedding, and the parts of pre-training that are not needed."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    tower = BertModel(_bert_config(BertConfig, width)).state_dict()
    state = {f"module.text_tower.biolord.{name}": value for name, value in tower.items()}
    state["module.text_tower.biolord.embeddings.position_ids"] = torch.arange(40)[None]
    for layer in (0, 2):
        state[f"module.projection_layer.{layer}.weight"] = torch.randn(width, width) / width**0.5
        state[f"module.projection_layer.{layer}.bias"] = torch.randn(width)
    state["module.modality_embed.weight"] = torch.randn(rows, width)
    state["module.atlas_tower.conv.weight"] = torch.randn(3, 3)
    state["module.temperature"] = torch.tensor(0.07)
    torch.save({"step": 1, "model_state_dict": _changed(state, changes), "optimizer_state_dict": {}}, path)
    return path


def _bert_config(kind: Any, width: int) -> Any:
    return kind(
        vocab_size=len(WORDS),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
    )


def _changed(state: dict[str, torch.Tensor], changes: dict[str, Any]) -> dict[str, torch.Tensor]:
    state = state | changes
    return {name: value for name, value in state.items() if value is not None}
