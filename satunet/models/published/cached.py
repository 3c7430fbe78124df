"""Published models as folders in the cache: fetched and imported once, then used without a connection.

If the hub cannot be reached, files that a person has put into the cache are imported instead.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from satunet.errors import ModelError
from satunet.jobs.files import atomic_folder
from satunet.models.folder import MODEL_FILE, ModelCard, ModelFolder
from satunet.models.import_sat import SAT_PATCH, import_sat
from satunet.models.published.hub import HubFile, HubUnreachableError, Listing, endpoint, fetch_files, list_repository
from satunet.models.published.known import Published, fetched_dir
from satunet.network.config import NetworkConfig
from satunet.text.sat import SAT_ARCHITECTURE

logger = logging.getLogger(__name__)

_MODEL_ENDINGS = (".json", ".safetensors", ".md", ".txt", ".model")
"""Endings of a model folder's files; nothing else in a repository is fetched."""
_ARCHITECTURE_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model",
)  # fmt: skip
"""Configuration and tokenizer files of any kind of text encoder."""


def published_folder(
    model: Published,
    *,
    presets: Sequence[NetworkConfig] | None = None,
    patch_size: tuple[int, int, int] = SAT_PATCH,
) -> Path:
    """A model's folder in the cache; it is fetched and imported if it is not there yet.

    Args:
        model: The model.
        presets: Network configurations to try for a SAT checkpoint; SAT's two if not given.
        patch_size: Size of the windows in prediction, for an imported SAT checkpoint.

    Raises:
        ModelError: The model cannot be fetched (the message says which files to get elsewhere and where to put them),
            or the fetched files are not a model.
    """
    place = model.place
    if (place / MODEL_FILE).is_file():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if (place / MODEL_FILE).is_file():  # another process has made it in the meantime
            return place
        try:
            listing = list_repository(model.repository, model.revision)
        except HubUnreachableError as error:
            _import_what_is_there(model, error, presets, patch_size)
            return place
        found = _files_of(model, listing)
        _announce(model, listing, found)
        try:
            fetch_files(listing, found, model.fetched)
        except HubUnreachableError as error:
            raise HubUnreachableError(
                f"{model.name}: {error}; what arrived is kept, and the same command continues"
            ) from error
        origin = {"repository": model.repository, "revision": listing.commit, "hashes": "those of the hub's list"}
        if any(f.name == MODEL_FILE for f in found):
            _take_model_folder(model.fetched / model.folder, place, found, model.folder)
        else:
            _import_checkpoints(model, found, listing.licence, origin, presets, patch_size)
        for file in found:  # not the whole folder: it may hold parts of another model of the repository
            (model.fetched / file.path).unlink(missing_ok=True)
        return place


def _files_of(model: Published, listing: Listing) -> list[HubFile]:
    """Files of a model folder, or the two SAT checkpoints, whatever their names.

    Raises:
        ModelError: The folder holds neither; the message names folders that do.
    """
    direct = listing.directly_in(model.folder)
    if any(f.name == MODEL_FILE for f in direct):
        return [f for f in listing.inside(model.folder) if PurePosixPath(f.path).suffix in _MODEL_ENDINGS]
    try:
        return list(_checkpoints([f.path for f in direct], {f.path: f for f in direct}))
    except ValueError as error:
        others = sorted({str(PurePosixPath(f.path).parent) for f in listing.files
                         if f.name == MODEL_FILE or f.path.endswith(".pth")} - {model.folder or "."})  # fmt: skip
        hint = f"; there are models in {', '.join(others)}" if others else ""
        raise ModelError(
            f"{model.name}: {endpoint()}/{model.repository} at {listing.commit[:12]} has no model in "
            f"{model.folder or 'its top folder'} ({error}); expected {MODEL_FILE}, or a checkpoint of a network and one of a "
            f"text encoder{hint}"
        ) from error


def _checkpoints(paths: Sequence[str], known: dict[str, Any]) -> tuple[Any, Any]:
    """The checkpoints of the network and of the text encoder; raises ValueError if they cannot be told apart."""
    files = sorted(p for p in paths if p.endswith((".pth", ".pt")))
    texts = [p for p in files if "text" in PurePosixPath(p).name.lower()]
    networks = [p for p in files if p not in texts]
    if len(texts) != 1 or len(networks) != 1:
        names = ", ".join(PurePosixPath(p).name for p in files) or "none"
        raise ValueError(f"checkpoints there: {names}")
    return known[networks[0]], known[texts[0]]


def _announce(model: Published, listing: Listing, files: Sequence[HubFile]) -> None:
    """Show the size, licence and citation before anything is fetched."""
    size = sum(f.size for f in files)
    amount = f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
    logger.info("%s: fetching %d files, %s, from %s at %s", model.name, len(files), amount,
                f"{endpoint()}/{model.repository}", listing.commit[:12])  # fmt: skip
    logger.info("%s: licence: %s", model.name, listing.licence or "none is stated on its page")
    logger.info("%s: please cite: %s", model.name, model.citation or f"what {endpoint()}/{model.repository} asks for")


def _take_model_folder(source: Path, place: Path, files: Sequence[HubFile], folder: str) -> None:
    """Copy a fetched model folder into the cache after loading it as a test; only listed files are copied."""
    ModelFolder.load(source)
    card = ModelCard.load(source / MODEL_FILE)
    if card.licence:
        logger.info("%s: licence of the weights: %s", card.name, card.licence)
    with atomic_folder(place) as target:
        for file in files:
            path = PurePosixPath(file.path).relative_to(folder) if folder else PurePosixPath(file.path)
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, target / path)


def _import_checkpoints(
    model: Published,
    files: Sequence[HubFile],
    licence: str | None,
    origin: dict[str, Any],
    presets: Sequence[NetworkConfig] | None,
    patch_size: tuple[int, int, int],
) -> None:
    network, text = (model.fetched / f.path for f in files)
    folder, commit = _architecture(model)
    import_sat(
        network, text, model.place, text_architecture=str(folder),
        architecture_name=f"{SAT_ARCHITECTURE}{commit}", licence=licence, presets=presets, patch_size=patch_size,
        origin=origin,
    )  # fmt: skip


def _architecture(model: Published) -> tuple[Path, str]:
    """Folder with the configuration and tokenizer of SAT's text encoder, and their commit as ``"@commit"``."""
    folder = fetched_dir(SAT_ARCHITECTURE)
    try:
        listing = list_repository(SAT_ARCHITECTURE)
        fetch_files(listing, [f for f in listing.directly_in("") if f.name in _ARCHITECTURE_FILES], folder)
    except HubUnreachableError as error:
        if (folder / "config.json").is_file():
            logger.info("%s: the hub cannot be reached; using the files in %s", SAT_ARCHITECTURE, folder)
            return folder, ""
        raise HubUnreachableError(
            f"{model.name}: {error}; put config.json and the tokenizer's files of {endpoint()}/{SAT_ARCHITECTURE} into "
            f"{folder}, and run the same command again: the checkpoints are already there"
        ) from error
    return folder, f"@{listing.commit}"


def _import_what_is_there(
    model: Published,
    error: HubUnreachableError,
    presets: Sequence[NetworkConfig] | None,
    patch_size: tuple[int, int, int],
) -> None:
    """Import files that a person has put into the cache.

    Raises:
        HubUnreachableError: Files are missing; the message says which ones, and where to put them.
    """
    folder, architecture = model.fetched / model.folder, fetched_dir(SAT_ARCHITECTURE)
    if (folder / MODEL_FILE).is_file():
        ModelFolder.load(folder)
        with atomic_folder(model.place) as target:
            shutil.copytree(folder, target, dirs_exist_ok=True)
        return
    files = {str(f): f for f in folder.glob("*")}
    try:
        network, text = _checkpoints(list(files), files)
        ready = (architecture / "config.json").is_file()
    except ValueError:
        ready = False
    if not ready:
        where = f"{endpoint()}/{model.repository}" + (f" (folder {model.folder})" if model.folder else "")
        revision = f" at revision {model.revision}" if model.revision else ""
        also = (
            f" (for SAT checkpoints, also config.json and the tokenizer's files of {endpoint()}/{SAT_ARCHITECTURE} into "
            f"{architecture})"
        )
        raise HubUnreachableError(
            f"{model.name}: {error}; fetch the model's files from {where}{revision} on another machine, put them into "
            f"{folder}{also}, and run the same command again"
        ) from error
    logger.info("%s: the hub cannot be reached; importing the files in %s", model.name, folder)
    logger.info("%s: please cite: %s", model.name, model.citation or f"what {endpoint()}/{model.repository} asks for")
    import_sat(
        network, text, model.place, text_architecture=str(architecture), architecture_name=SAT_ARCHITECTURE,
        presets=presets, patch_size=patch_size,
        origin={"repository": model.repository, "revision": None, "hashes": "not checked: files were put there by hand"},
    )  # fmt: skip
