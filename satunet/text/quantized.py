"""Text encoders with 8-bit weights: a quarter of the size, with embeddings that agree to about three digits.

Matrices are stored as int8 with one scale per row, and converted to float32 for computation; vectors (biases, norms)
are stored as float32.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from satunet.errors import ModelError
from satunet.jobs.files import atomic_path
from satunet.text.transformer import TransformerEncoder, load_tokenizer, quiet_transformers

WEIGHTS_FILE = "weights.int8.safetensors"
"""File that marks a folder as an encoder with 8-bit weights."""
_SCALE = ".scale"


class QuantizedEncoder(TransformerEncoder):
    """An encoder in a folder written by :func:`save_quantized`."""

    def load(self) -> tuple[Any, Any]:
        """Tokenizer and model, in float32 and evaluation mode.

        Raises:
            ModelError: The folder is damaged.
        """
        if self._loaded is None:
            self._loaded = load_tokenizer(self.source, self.name), _load_model(Path(self.source))
        return self._loaded


def save_quantized(source: Path, target: Path) -> Path:
    """Convert a transformers folder to 8-bit weights.

    Args:
        source: Folder of a model with ``model.safetensors``.
        target: Folder to write; it must not exist.

    Raises:
        ModelError: There are no such weights, or the target exists.
    """
    import torch
    from safetensors.torch import load_file, save

    weights = source / "model.safetensors"
    if target.exists():
        raise ModelError(f"{target}: already exists")
    if not weights.is_file():
        raise ModelError(f"{source}: no model.safetensors to convert")
    small: dict[str, Any] = {}
    for name, value in load_file(weights).items():
        value = value.float()
        if name.endswith("position_ids"):  # 0, 1, 2, …: stored by older versions of transformers
            continue
        if value.ndim != 2:
            small[name] = value.contiguous()
            continue
        scale = value.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        small[name] = torch.round(value / scale).to(torch.int8)
        small[name + _SCALE] = scale[:, 0].contiguous()
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_dir():
            shutil.copytree(file, target / file.name)
        elif file.name != weights.name:
            shutil.copyfile(file, target / file.name)
    with atomic_path(target / WEIGHTS_FILE) as temporary:
        temporary.write_bytes(save(small))
    return target


def _load_model(folder: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with quiet_transformers():
        from transformers import AutoConfig, AutoModel

        try:
            model = AutoModel.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
            stored = load_file(folder / WEIGHTS_FILE)
            weights = {n: v.float() * stored[n + _SCALE][:, None] if n + _SCALE in stored else v
                       for n, v in stored.items() if not n.endswith(_SCALE)}  # fmt: skip
            missing, unexpected = model.load_state_dict(weights, strict=False)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{folder}: not a text encoder with 8-bit weights ({error})") from error
    if missing or unexpected:
        raise ModelError(f"{folder / WEIGHTS_FILE}: weights {[*missing, *unexpected][:5]} are missing or unexpected")
    return model.eval()
