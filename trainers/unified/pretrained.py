"""Weights to start from: of a result folder, a model folder, a checkpoint, or of the image encoder alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from satunet.errors import ModelError, UserError
from satunet.models.checkpoints import load_checkpoint, load_weights, network_weights
from satunet.models.trained_scans import TrainedScans
from satunet.network.published import network_state, state_dict_of
from satunet.plan import UnifiedPlan
from satunet.text import TEXT_ENCODER_FOLDER

logger = logging.getLogger(__name__)

_ENCODER = "backbone.encoder."


def read_weights(path: Path) -> tuple[dict[str, Tensor], Path]:
    """The weights that a path stands for.

    Args:
        path: A checkpoint (``.pth``: satunet's, nnU-Net's layout, or SAT's published one), a ``.safetensors`` file, a
            fold of a result folder, a result folder with one fold, or a model folder.

    Returns:
        Name → tensor, without prefixes of DDP and ``torch.compile``, and the file they came from.

    Raises:
        UserError: No such path, or a folder without weights.
        ModelError: A file that cannot be read.
    """
    file = weights_file(path)
    if file.suffix == ".safetensors":
        return _plain_names(_read_safetensors(file)), file
    content = load_checkpoint(file)
    if "network_weights" not in content and isinstance(content.get("model_state_dict"), Mapping):
        return network_state(state_dict_of(content, source=file), source=file), file  # SAT's published checkpoints
    return network_weights(content, source=file), file


def weights_file(path: Path) -> Path:
    """The file that a path of weights stands for.

    Raises:
        UserError: No such path, or a folder without weights.
    """
    path = Path(path)
    file = _file_in(path) if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path}: no such file or folder of weights")
    return file


def scans_seen(path: Path) -> TrainedScans:
    """Scans that the network of a path of weights has seen; if they are not known, a warning is logged."""
    file = weights_file(path)
    seen = TrainedScans.of_weights(file)
    if seen is None:
        logger.warning(
            "nothing beside %s says which scans it was trained on, so that no benchmark can tell whether it scores them",
            file,
        )
    return seen or TrainedScans()


def plan_beside(path: Path) -> UnifiedPlan | None:
    """The plan of the model that a path of weights belongs to; ``None`` if they come without one."""
    folder = _model_of(path)
    return UnifiedPlan.load(folder / "plans.json") if folder is not None else None


def text_encoder_beside(path: Path) -> Path | None:
    """Folder of the text encoder that the model of a path of weights carries; ``None`` if it has none."""
    folder = _model_of(path)
    return folder / TEXT_ENCODER_FOLDER if folder is not None and (folder / TEXT_ENCODER_FOLDER).is_dir() else None


def _model_of(path: Path) -> Path | None:
    path = Path(path)
    folders = [path, path.parent] if path.is_dir() else [path.parent, path.parent.parent]
    return next((f for f in folders if (f / "plans.json").is_file()), None)


def start_from(network: nn.Module, path: Path) -> str:
    """Copy pre-trained weights into a network: all of them, or the image encoder's if the file has nothing else.

    Returns:
        One sentence on what was loaded.

    Raises:
        UserError: No such path.
        ModelError: The weights are not this network's; nothing is changed then.
    """
    weights, file = read_weights(path)
    encoder = {k: v for k, v in weights.items() if k.startswith(_ENCODER)}
    if not encoder and weights and all(k.startswith(("encoder.", "stages.")) for k in weights):
        encoder = {f"backbone.{'' if k.startswith('encoder.') else 'encoder.'}{k}": v for k, v in weights.items()}
        weights = encoder
    if encoder and len(encoder) == len(weights):
        load_weights(_part(network, _ENCODER), {k.removeprefix(_ENCODER): v for k, v in encoder.items()}, source=file)
        message = f"the image encoder starts from {file}, everything else from scratch"
    else:
        load_weights(network, weights, source=file)
        message = f"all weights start from {file}"
    logger.info("%s", message)
    return message


def _part(network: nn.Module, prefix: str) -> nn.Module:
    part = network
    for name in prefix.rstrip(".").split("."):
        part = getattr(part, name)
    return part


def _file_in(folder: Path) -> Path:
    """The checkpoint of a folder: of the fold itself, of the only fold, or a model folder's weights."""
    for name in ("checkpoint_final.pth", "model.safetensors", "weights.safetensors"):
        if (folder / name).is_file():
            return folder / name
    folds = sorted(folder.glob("fold_*/checkpoint_final.pth"))
    if len(folds) == 1:
        return folds[0]
    if folds:
        raise UserError(f"{folder} has several folds: give one, such as {folds[0].parent}")
    inside = sorted(folder.glob("*.safetensors"))
    inside = [f for f in inside if "text" not in f.name]
    if len(inside) == 1:
        return inside[0]
    raise UserError(f"{folder}: no weights here; expected checkpoint_final.pth, fold_*/ or one .safetensors file")


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: cannot be read as safetensors ({error})") from error


def _plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("_orig_mod.").removeprefix("module."): value for key, value in weights.items()}
