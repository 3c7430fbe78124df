"""A text encoder that learns, and how it is saved: a folder that satunet, transformers and sentence-transformers
load.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from satunet.compute.devices import Precision, autocast_for
from satunet.errors import ModelError
from satunet.jobs.files import make_readable, write_json
from satunet.jobs.leftovers import temporary_beside
from satunet.text.encoder import TextEncoder
from satunet.text.quantized import QuantizedEncoder
from satunet.text.transformer import TransformerEncoder, embed, quiet_transformers


class TextTower(nn.Module):
    """A transformer from an encoder, with its tokenizer and settings.

    Args:
        encoder: Encoder to start from.
        frozen_layers: Number of lowest layers that are not trained, together with the word embeddings.
        max_tokens: Number of tokens to which texts are cut in training.
        dropout: Whether the model's own dropout is on in training.
        precision: Precision of :meth:`encode`; in training, the caller decides.

    Raises:
        ModelError: The encoder is not a transformers model, or has fewer layers.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        frozen_layers: int = 0,
        max_tokens: int = 64,
        dropout: bool = True,
        precision: Precision = "auto",
    ) -> None:
        super().__init__()
        self.precision: Precision = precision
        if type(encoder) not in (TransformerEncoder, QuantizedEncoder):
            # SAT's encoder has its own projection and tokenisation, which a saved transformer would lose.
            raise ModelError(f"text encoder {encoder.name!r} cannot be trained; it is not a plain transformers model")
        assert isinstance(encoder, TransformerEncoder)
        self.tokenizer, self.model = encoder.load()
        self.settings = replace(encoder.settings, normalize=True)
        self.training_settings = replace(self.settings, max_tokens=min(max_tokens, self.settings.max_tokens))
        if not dropout:
            for module in self.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
            for name in ("attention_probs_dropout_prob", "hidden_dropout_prob", "attention_dropout"):
                if hasattr(self.model.config, name):
                    setattr(self.model.config, name, 0.0)
        _freeze(self.model, frozen_layers)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """(n, D) embeddings of unit length, in float32.

        Definitions are many times as long as names, so texts of similar length go through the model together, with
        little padding.
        """
        lengths = [len(t) for t in self.tokenizer(list(texts), truncation=True,
                                                  max_length=self.training_settings.max_tokens)["input_ids"]]  # fmt: skip
        order = sorted(range(len(texts)), key=lengths.__getitem__)
        chunks: list[list[int]] = [[]]
        for i in order:
            if chunks[-1] and lengths[i] > 1.25 * lengths[chunks[-1][0]] + 2:
                chunks.append([])
            chunks[-1].append(i)
        rows = [embed([texts[i] for i in c], self.tokenizer, self.model, self.training_settings) for c in chunks]
        back = torch.empty(len(texts), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(texts))
        return torch.cat(rows)[back.to(self.device)]

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        device: torch.device = self.model.device
        return device

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], batch: int = 256) -> NDArray[np.float32]:
        """(n, D) embeddings without gradients, like :meth:`TextEncoder.encode`."""
        was = self.training
        self.eval()
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: list[Tensor] = []
        with autocast_for(self.device, self.precision):
            for start in range(0, len(order), batch):
                chosen = [texts[i] for i in order[start : start + batch]]
                found.append(embed(chosen, self.tokenizer, self.model, self.settings).float().cpu())
        self.train(was)
        result = torch.cat(found).numpy()
        back = np.empty_like(result)
        back[order] = result
        return back

    def save(self, folder: Path, record: dict[str, Any]) -> None:
        """Write the folder under a temporary name, then move it into place; an older one is replaced."""
        temporary = temporary_beside(folder)
        temporary.mkdir(parents=True)
        with quiet_transformers():
            self.model.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)
        kinds = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}
        modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        write_json(
            temporary / "modules.json",
            [
                {"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{t}"}
                for i, (p, t) in enumerate(modules)
            ],
        )
        flags = {f"pooling_mode_{flag}": how == self.settings.pooling for how, flag in kinds.items()}
        width = int(self.model.config.hidden_size)
        write_json(temporary / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **flags})
        write_json(temporary / "sentence_bert_config.json", {"max_seq_length": self.settings.max_tokens})
        if self.settings.instruction:
            prompts = {"prompts": {"text": self.settings.instruction}, "default_prompt_name": "text"}
            write_json(temporary / "config_sentence_transformers.json", prompts)
        write_json(temporary / "training_record.json", record)
        make_readable(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)


def _freeze(model: Any, layers: int) -> None:
    if layers == 0:
        return
    stack = next((m for n, m in model.named_modules() if n.endswith(("layer", "layers", "h"))
                  and isinstance(m, nn.ModuleList)), None)  # fmt: skip
    if stack is None or len(stack) < layers:
        have = "no list of layers" if stack is None else f"{len(stack)} layers"
        raise ModelError(f"{layers} layers should be frozen; the model has {have}")
    frozen = [*stack[:layers]]
    frozen += [m for n, m in model.named_modules() if n.split(".")[-1] in ("embeddings", "embed_tokens", "wte", "wpe")]
    for module in frozen:
        for parameter in module.parameters():
            parameter.requires_grad_(False)
