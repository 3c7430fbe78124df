"""Any ``transformers`` model as a text encoder, with the pooling, instruction and length that it expects."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from satunet.errors import ModelError
from satunet.jobs.records import load_json, understanding
from satunet.text.cache import EmbeddingCache
from satunet.text.encoder import TextEncoder

if TYPE_CHECKING:
    from torch import Tensor

Pooling = Literal["mean", "cls", "last"]
MAX_TOKENS = 256

# Causal models: only the last token has attended to the whole text.
_LEFT_TO_RIGHT = ("qwen", "llama", "mistral", "gemma", "gpt", "phi", "opt", "bloom")
_CLS_MODELS = ("medcpt", "sapbert", "bge-", "pubmedbert", "biomednlp")
_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """Settings that turn a model's token features into an embedding.

    Attributes:
        pooling: Pooling of tokens: their mean (``mean``), the first token (``cls``) or the last token (``last``).
        instruction: Text to put before every text.
        normalize: Whether to scale embeddings to unit length.
        max_tokens: Number of tokens after which texts are cut off.
    """

    pooling: Pooling = "mean"
    instruction: str = ""
    normalize: bool = True
    max_tokens: int = MAX_TOKENS

    def __post_init__(self) -> None:
        if self.pooling not in get_args(Pooling):
            raise ModelError(f"pooling {self.pooling!r}; allowed are {', '.join(get_args(Pooling))}")
        if self.max_tokens < 3:
            raise ModelError(f"max_tokens {self.max_tokens}; a text needs at least 3")


class TransformerEncoder(TextEncoder):
    """A model from a folder or a hub.

    Args:
        name: Name by which the encoder was requested.
        source: Folder or hub name.
        options: Options after the ``?`` in the name; they override those in the model's files.
        cache: Cache of embeddings.
    """

    def __init__(
        self, name: str, source: str, options: dict[str, Any] | None = None, cache: EmbeddingCache | None = None
    ) -> None:
        super().__init__(name, cache)
        self.source = source
        self.fetch = True
        """Whether missing files may be fetched from a hub."""
        self._options = options or {}
        self._loaded: tuple[Any, Any] | None = None
        self._settings: EncoderSettings | None = None
        self._fingerprint: str | None = None
        if Path(source).is_dir():
            check_folder(Path(source))

    @property
    def fingerprint(self) -> str:
        """Hash of the model's files (its hub name if they cannot be found) and of the settings."""
        if self._fingerprint is None:
            folder = self._folder()
            if folder is None:  # not downloaded yet
                self.load()
                folder = self._folder()
            model = folder_hash(folder) if folder is not None else f"hub:{self.source}"
            settings = hashlib.sha256(repr(self.settings).encode()).hexdigest()[:8]
            self._fingerprint = model if self.settings == EncoderSettings() else f"{model}-{settings}"
        return self._fingerprint

    @property
    def settings(self) -> EncoderSettings:
        """Pooling, instruction and length."""
        if self._settings is None:
            self._settings = read_settings(self.source, self._folder(), self._options)
        return self._settings

    def load(self) -> tuple[Any, Any]:
        """Tokenizer and model, on the CPU, in float32 and evaluation mode.

        Raises:
            ModelError: The model cannot be loaded.
        """
        if self._loaded is None:
            self._loaded = load_model(self.source, self.name, fetch=self.fetch)
        return self._loaded

    def _embed(self, texts: list[str], modality: str | None) -> NDArray[np.float32]:
        import torch

        tokenizer, model = self.load()
        with torch.inference_mode():
            pooled = embed(texts, tokenizer, model, self.settings)
        return cast("NDArray[np.float32]", pooled.float().cpu().numpy())

    def _folder(self) -> Path | None:
        """Folder of the model's files; ``None`` if they are not on this machine."""
        folder = Path(self.source)
        if folder.is_dir():
            return folder
        with contextlib.suppress(Exception):  # a broken hub cache must not stop us: the model is then loaded first
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(self.source, "config.json")
            return Path(found).parent if isinstance(found, str) else None
        return None


def embed(texts: list[str], tokenizer: Any, model: Any, settings: EncoderSettings) -> Tensor:
    """Embed one batch, with gradients if they are enabled.

    Returns:
        (n, D), on the model's device.
    """
    import torch

    tokens = tokenizer(
        [settings.instruction + t for t in texts],
        padding=True,
        truncation=True,
        max_length=settings.max_tokens,
        return_tensors="pt",
    ).to(model.device)
    hidden = model(**tokens).last_hidden_state.float()  # (n, tokens, D)
    pooled = pool(hidden, tokens["attention_mask"], settings.pooling)
    return torch.nn.functional.normalize(pooled, dim=1) if settings.normalize else pooled


def pool(hidden: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """(n, tokens, D) features and (n, tokens) attention mask → (n, D); padding may be on either side."""
    import torch

    rows = torch.arange(len(hidden), device=hidden.device)
    if how == "cls":
        return hidden[rows, mask.argmax(1)]
    if how == "last":
        return hidden[rows, mask.shape[1] - 1 - mask.flip(1).argmax(1)]
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1e-9)


def parse_name(name: str) -> tuple[str, dict[str, Any]]:
    """Split ``MODEL?pooling=last&instruction=…`` into the model and its options.

    Raises:
        ModelError: An option does not exist, or has an invalid value.
    """
    source, _, query = name.partition("?")
    options: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - set(EncoderSettings.__dataclass_fields__))
    if unknown:
        raise ModelError(
            f"text encoder {name!r}: unknown option {unknown[0]!r}; allowed are "
            f"{', '.join(EncoderSettings.__dataclass_fields__)}"
        )
    try:
        if "normalize" in options:
            options["normalize"] = {"true": True, "1": True, "false": False, "0": False}[options["normalize"].lower()]
        if "max_tokens" in options:
            options["max_tokens"] = int(options["max_tokens"])
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"text encoder {name!r}: normalize must be true or false, and max_tokens a number (got {error})"
        ) from error
    EncoderSettings(**options)
    return source, options


def read_settings(source: str, folder: Path | None, options: dict[str, Any]) -> EncoderSettings:
    """Settings of a model: from the options, else its sentence-transformers files, else as usual for its kind."""
    found: dict[str, Any] = {"pooling": _usual_pooling(source, folder)}
    with understanding(folder or source, "a sentence-transformers model", ModelError):
        found |= _settings_in(folder)
        return EncoderSettings(**{**found, **options})


def _settings_in(folder: Path | None) -> dict[str, Any]:
    """Settings in a model's sentence-transformers files."""
    found: dict[str, Any] = {}
    if folder is not None and (folder / "modules.json").is_file():
        modules = load_json(folder / "modules.json", error=ModelError)
        found["normalize"] = any(str(m.get("type", "")).endswith("Normalize") for m in modules)
        file = next((folder / m["path"] / "config.json" for m in modules if "Pooling" in str(m.get("type"))), None)
        if file is not None and file.is_file():
            flags = load_json(file, error=ModelError)
            names = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last"}
            chosen = [how for flag, how in names.items() if flags.get(f"pooling_mode_{flag}")]
            found["pooling"] = flags.get("pooling_mode") or (chosen or ["mean"])[0]
    if folder is not None and (folder / "config_sentence_transformers.json").is_file():
        ours = load_json(folder / "config_sentence_transformers.json", error=ModelError)
        found["instruction"] = (ours.get("prompts") or {}).get(ours.get("default_prompt_name") or "", "")
    return found


def check_folder(folder: Path) -> None:
    """Check that a folder holds a model with a tokenizer and weights.

    Raises:
        ModelError: A file is missing.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no transformers model in this folder (config.json is missing)")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"{folder}: the model has no tokenizer (one of {', '.join(_TOKENIZER_FILES)}); save it with "
            "tokenizer.save_pretrained(folder)"
        )
    if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        raise ModelError(f"{folder}: the model has no weights; expected one of {', '.join(_WEIGHTS)}")


def load_model(source: str, name: str, *, fetch: bool = True) -> tuple[Any, Any]:
    """Tokenizer and model from a folder or hub, in float32 and evaluation mode; code from there is never run.

    Args:
        source: Folder or hub name.
        name: Name by which the encoder was requested.
        fetch: Whether missing files may be fetched from a hub.

    Raises:
        ModelError: Tokenizer or model cannot be loaded.
    """
    import torch

    tokenizer = load_tokenizer(source, name, fetch=fetch)
    with quiet_transformers():
        from transformers import AutoModel

        try:
            return tokenizer, AutoModel.from_pretrained(
                source, dtype=torch.float32, trust_remote_code=False, local_files_only=not fetch
            ).eval()
        except Exception as error:  # damaged files raise whatever their parser does
            raise _cannot_be_loaded(name, error) from error


def load_tokenizer(source: str, name: str, *, fetch: bool = True) -> Any:
    """Tokenizer from a folder or hub; arguments as for :func:`load_model`.

    Raises:
        ModelError: The tokenizer cannot be loaded.
    """
    with quiet_transformers():
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=not fetch)
        except Exception as error:  # damaged files raise whatever their parser does
            raise _cannot_be_loaded(name, error) from error
    tokenizer.padding_side = "right"  # padding on the left would shift absolute positions
    return tokenizer


def _cannot_be_loaded(name: str, error: Exception) -> ModelError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(
        f"text encoder {name!r} cannot be loaded ({reason}); allowed are 'minilm' and 'anatomy' (they work offline), the "
        "folder of a transformers model, or a hub name while the hub can be reached"
    )


def folder_hash(folder: Path) -> str:
    """Hash of a model's files.

    Files are hashed completely: fine-tuned models often share their first megabytes, the word embeddings.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        digest.update(f"{path.relative_to(folder).as_posix()}:{path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def _usual_pooling(source: str, folder: Path | None) -> Pooling:
    kind = ""
    if folder is not None and (folder / "config.json").is_file():
        config = load_json(folder / "config.json", what="the configuration of a model", error=ModelError)
        if not isinstance(config, dict):
            raise ModelError(f"{folder / 'config.json'}: expected a JSON object")
        kind = str(config.get("model_type", ""))
    words = f"{Path(source).name} {kind}".lower()
    if any(word in words for word in _LEFT_TO_RIGHT):
        return "last"
    return "cls" if any(word in words for word in _CLS_MODELS) else "mean"


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' messages and progress bars; satunet shows its own."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as noise

    level = noise.get_verbosity()
    noise.set_verbosity_error()
    noise.disable_progress_bar()
    try:
        yield
    finally:
        noise.set_verbosity(level)
