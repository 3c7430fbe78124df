"""SAT's text encoder (arXiv 2312.17183): a BioLORD sentence encoder tuned on anatomy, and a projection.

Output = projection(mean over tokens). SAT's embedding of the scan's modality is left to the network
(:class:`~satunet.network.adapter.ModalityAdapter`), so that embeddings depend on the text alone.

Texts are tokenised as in SAT, which differs from the tokenizer's default: lower case, the literal strings ``[CLS]`` and
``[SEP]`` around the tokens, padding with id 0, attention to every id above 0, and at most 256 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from satunet.errors import ModelError
from satunet.jobs.files import write_json
from satunet.jobs.records import load_json
from satunet.text.transformer import MAX_TOKENS, TransformerEncoder, pool, quiet_transformers

SAT_ENCODER_FILE = "sat_text_encoder.json"
"""File that marks a folder as SAT's text encoder."""
SAT_ARCHITECTURE = "FremyCompany/BioLORD-2023-C"
"""Model on the hub with the architecture and tokenizer of SAT's text encoder."""
_PROJECTION_FILE = "projection.safetensors"
_TOWER = "text_tower.biolord."
_PROJECTION = "projection_layer."
_MODALITY = "modality_embed.weight"
_NOT_NEEDED = ("atlas_tower.", "temperature")


class SatTextEncoder(TransformerEncoder):
    """SAT's text encoder in a folder written by :func:`save_sat_encoder`. Its embeddings are not of unit length."""

    _projection: Any = None

    def load(self) -> tuple[Any, Any]:
        """Tokenizer and model; the projection is loaded as well.

        Raises:
            ModelError: Tokenizer, model or projection cannot be loaded.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if self._projection is None:
            file = Path(self.source) / _PROJECTION_FILE
            try:
                self._projection = _projection(load_file(file))
            except (OSError, SafetensorError, KeyError, RuntimeError) as error:
                raise ModelError(f"{file}: the projection of SAT's text encoder cannot be read ({error})") from error
        return super().load()

    def _embed(self, texts: list[str], modality: str | None) -> NDArray[np.float32]:
        import torch

        tokenizer, model = self.load()
        with torch.inference_mode():
            ids = torch.from_numpy(token_ids(tokenizer, texts))
            mask = (ids > 0).long()
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()  # (n, tokens, D)
            embedded = self._projection(pool(hidden, mask, "mean"))
        return cast("NDArray[np.float32]", embedded.numpy())


def token_ids(tokenizer: Any, texts: Sequence[str]) -> NDArray[np.int64]:
    """(n, longest) token ids as SAT makes them."""
    rows = []
    for text in texts:
        tokens = ["[CLS]", *tokenizer.tokenize(text.lower()), "[SEP]"]
        rows.append(tokenizer.convert_tokens_to_ids(tokens)[:MAX_TOKENS])
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = values
    return ids


def save_sat_encoder(
    state: Mapping[str, Any],
    folder: Path,
    *,
    source: Path | str,
    architecture: str = SAT_ARCHITECTURE,
    architecture_name: str | None = None,
) -> Any:
    """Turn the tensors of a published text encoder into a folder that :func:`~satunet.text.load_text_encoder` takes.

    Args:
        state: Name without ``module.`` → tensor: ``text_tower.biolord.*``, ``projection_layer.*``,
            ``modality_embed.weight``; the atlas tower and the temperature of pre-training are left out.
        folder: Folder to write to.
        source: File that the tensors come from, for messages.
        architecture: Hub name or folder of the model whose configuration and tokenizer to take.
        architecture_name: Name of the architecture to record in the folder; ``architecture`` if not given.

    Returns:
        The modality embedding, a (4 or 5, D) tensor.

    Raises:
        ModelError: The architecture cannot be loaded, or tensors are missing, unknown or of another shape; the message
            lists them.
    """
    from safetensors.torch import save_file

    config, tokenizer = _architecture(architecture)
    tower = {k.removeprefix(_TOWER): v for k, v in state.items() if k.startswith(_TOWER)}
    projection = {k.removeprefix(_PROJECTION): v for k, v in state.items() if k.startswith(_PROJECTION)}
    other = [key for key in state if not key.startswith((_TOWER, _PROJECTION, *_NOT_NEEDED)) and key != _MODALITY]
    model, faults = _tower(config, tower)
    width = int(config.hidden_size)
    shapes = {
        f"{i}.{kind}": ((width, width) if kind == "weight" else (width,)) for i in (0, 2) for kind in ("weight", "bias")
    }
    faults += [f"missing {_PROJECTION}{key}" for key in shapes.keys() - projection.keys()]
    faults += [f"unknown {key}" for key in other]
    faults += [f"unknown {_PROJECTION}{key}" for key in projection.keys() - shapes.keys()]
    faults += [
        f"{_PROJECTION}{key} has shape {tuple(value.shape)}, needed {shapes[key]}"
        for key, value in projection.items()
        if key in shapes and tuple(value.shape) != shapes[key]
    ]
    modality = state.get(_MODALITY)
    if modality is None:
        faults.append(f"missing {_MODALITY}")
    elif modality.ndim != 2 or modality.shape[0] not in (4, 5) or modality.shape[1] != width:
        faults.append(f"{_MODALITY} has shape {tuple(modality.shape)}, needed (4 or 5, {width})")
    if faults:
        raise ModelError(
            f"{source}: not SAT's text encoder with the architecture {architecture!r}: "
            + "; ".join(sorted(faults)[:20])
            + (f" and {len(faults) - 20} more" if len(faults) > 20 else "")
        )
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    save_file({key: value.float().contiguous() for key, value in projection.items()}, folder / _PROJECTION_FILE)
    write_json(
        folder / SAT_ENCODER_FILE, {"kind": "sat", "version": 1, "architecture": architecture_name or architecture}
    )
    return modality


def is_sat_encoder(folder: Path) -> bool:
    """Whether a folder holds SAT's text encoder.

    Raises:
        ModelError: The folder holds one, but of a version that this satunet does not read.
    """
    file = folder / SAT_ENCODER_FILE
    if not file.is_file():
        return False
    content = load_json(file, what="the description of a text encoder", error=ModelError)
    if not isinstance(content, dict):
        raise ModelError(f"{file}: expected a JSON object")
    if content.get("version") != 1:
        raise ModelError(f"{file}: version {content.get('version')!r}; this satunet reads version 1")
    return True


def _architecture(name: str) -> tuple[Any, Any]:
    with quiet_transformers():
        from transformers import AutoConfig, AutoTokenizer

        try:
            return (
                AutoConfig.from_pretrained(name, trust_remote_code=False),
                AutoTokenizer.from_pretrained(name, trust_remote_code=False),
            )
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(
                f"the configuration and tokenizer of {name!r} cannot be loaded ({reason}); without access to the hub, "
                "give a folder with config.json and the tokenizer's files"
            ) from error


def _tower(config: Any, weights: dict[str, Any]) -> tuple[Any, list[str]]:
    """The transformer with these weights, and the list of tensors that do not fit."""
    import torch

    with quiet_transformers():
        from transformers import AutoModel

        model = AutoModel.from_config(config)
    expected = model.state_dict()
    weights = dict(weights)
    for key in [k for k in weights if k.endswith("position_ids") and k not in expected]:
        # Older transformers stored the numbers 0, 1, 2, … with the weights.
        if torch.equal(weights[key].flatten(), torch.arange(weights[key].numel())):
            del weights[key]
    if not any(key.startswith("pooler.") for key in weights):
        # The pooler of the first token is not used here; a checkpoint may lack all of it.
        weights |= {key: value for key, value in expected.items() if key.startswith("pooler.")}
    faults = [f"missing {_TOWER}{key}" for key in expected.keys() - weights.keys()]
    faults += [f"unknown {_TOWER}{key}" for key in weights.keys() - expected.keys()]
    faults += [
        f"{_TOWER}{key} has shape {tuple(value.shape)}, needed {tuple(expected[key].shape)}"
        for key, value in weights.items()
        if key in expected and value.shape != expected[key].shape
    ]
    if not faults:
        model.load_state_dict(weights, strict=True)
    return model, faults


def _projection(weights: Mapping[str, Any]) -> Any:
    import torch

    width_in, width_out = weights["0.weight"].shape[::-1]
    projection = torch.nn.Sequential(
        torch.nn.Linear(width_in, width_out), torch.nn.GELU(), torch.nn.Linear(width_out, weights["2.weight"].shape[0])
    )
    projection.load_state_dict(dict(weights), strict=True)
    return projection.eval()
