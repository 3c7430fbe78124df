"""The unified plan: all settings that turn raw scans into the input of one network, and the network itself.

On disk it is an nnU-Net plan file, which nnunetv2's ``PlansManager`` reads, with satunet's own settings under the key
``"satunet"``. The axes of ``spacing_mm`` and ``patch_size`` are those of the plan's orientation (R, A, S by default),
not nnU-Net's (z, y, x).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from satunet.datasets.paths import UNIFIED_DATASET
from satunet.datasets.unified import PLANS_NAME, UnifiedFolder
from satunet.errors import PlanError
from satunet.jobs.files import write_json
from satunet.jobs.records import from_plain, load_json, to_plain
from satunet.network.config import NetworkConfig
from satunet.types import Axes

PLAN_VERSION = 1
_SAID_BY_NNUNET = frozenset({"dataset_name", "plans_name", "configuration", "spacing_mm", "patch_size", "batch_size"})
_ONLY_IN_SOME = frozenset(
    {
        "class_spacings_mm",
        "class_windows",
        "patches_at_once",
        "training_patch_size",
        "fit_windows",
        "one_piece",
        "class_thresholds",
        "held_thresholds",
        "mirrored_classes",
    }
)


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """Normalisation of intensities: clip, then z-score with the volume's own mean and standard deviation.

    Attributes:
        clip: Absolute lower and upper bound (CT, in HU), or ``None``.
        percentiles: Lower and upper percentile of the volume to clip to, or ``None``.
        mean: Subtracted instead of the volume's own mean; given together with ``std``.
        std: Divided by instead of the volume's own standard deviation.
        nonzero: Whether mean and std are computed over nonzero voxels, with the holes they enclose; all others stay
            zero. For scans with a masked background, such as skull-stripped brains.
        unit_range: Whether to scale the range of the volume to [0, 1] instead.
    """

    clip: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None
    mean: float | None = None
    std: float | None = None
    nonzero: bool = False
    unit_range: bool = False

    def __post_init__(self) -> None:
        if self.clip is not None and self.percentiles is not None:
            raise PlanError("a normalisation clips either to absolute values or to percentiles, not to both")
        for name, bounds in (("clip", self.clip), ("percentiles", self.percentiles)):
            if bounds is not None and not bounds[0] < bounds[1]:
                raise PlanError(f"normalisation: {name} must be (lower, upper), got {bounds}")
        if (self.mean is None) != (self.std is None) or (self.std is not None and self.std <= 0):
            raise PlanError(f"normalisation: mean and positive std go together, got {self.mean} and {self.std}")
        if self.unit_range and (self.mean is not None or self.nonzero):
            raise PlanError("normalisation: unit_range goes with neither mean and std nor nonzero")

    @classmethod
    def of_nnunet(
        cls, scheme: str, *, use_mask: bool = False, intensities: Mapping[str, float] | None = None
    ) -> Normalization:
        """The equivalent of one of nnU-Net's schemes.

        Args:
            scheme: ``"CTNormalization"``, ``"ZScoreNormalization"``, ``"NoNormalization"``,
                ``"RescaleTo01Normalization"`` or ``"RGBTo01Normalization"``.
            use_mask: Value of ``use_mask_for_norm``, which only the z-score uses.
            intensities: A channel of ``foreground_intensity_properties_per_channel``; CT needs it.

        Raises:
            PlanError: The scheme is unknown, or the one for CT has no intensities.
        """
        if scheme == "CTNormalization":
            try:
                given = {
                    k: float((intensities or {})[k]) for k in ("percentile_00_5", "percentile_99_5", "mean", "std")
                }
            except KeyError as error:
                raise PlanError(f"CTNormalization needs the foreground intensities; {error} is missing") from error
            return cls(
                clip=(given["percentile_00_5"], given["percentile_99_5"]),
                mean=given["mean"],
                std=max(given["std"], 1e-8),
            )
        if scheme == "ZScoreNormalization":
            return cls(nonzero=use_mask)
        if scheme == "NoNormalization":
            return cls(mean=0.0, std=1.0)
        if scheme == "RescaleTo01Normalization":
            return cls(unit_range=True)
        if scheme == "RGBTo01Normalization":
            return cls(mean=0.0, std=255.0)
        raise PlanError(
            f"normalisation scheme {scheme!r}; allowed are CTNormalization, ZScoreNormalization, NoNormalization, "
            "RescaleTo01Normalization, RGBTo01Normalization"
        )


SAT_NORMALIZATION = {
    "ct": Normalization(clip=(-500.0, 1000.0)),
    "mri": Normalization(percentiles=(0.5, 99.5)),
    "us": Normalization(percentiles=(0.5, 99.5)),
    "pet": Normalization(percentiles=(0.5, 99.5)),
    "other": Normalization(percentiles=(0.5, 99.5)),
}
"""SAT's scheme, by modality (arXiv 2312.17183)."""


@dataclass(frozen=True, kw_only=True)
class UnifiedPlan:
    """One plan for all datasets; a record, some of whose fields are stored in nnU-Net's part of the file.

    Attributes:
        dataset_name: Folder of the unified dataset in ``nnUNet_preprocessed``.
        plans_name: Name of the plan; file name and part of folder names.
        configuration: nnU-Net's name of the configuration.
        orientation: Orientation of preprocessed scans.
        spacing_mm: Target spacing along the axes of ``orientation``.
        patch_size: Voxels of a training patch and of a window in prediction, divisible by the network's strides.
        batch_size: Patches per training step.
        patches_at_once: Patches that a process works on at once, if it has more in a step; gradients are accumulated.
            All of the process's patches if ``None``.
        training_patch_size: Voxels of a training patch, if different from ``patch_size``.
        queries_per_scan: Largest number of queries per patch.
        normalization: Modality → normalisation.
        channel_normalization: ``"<dataset>:<channel>"`` → normalisation, if different from the modality's.
        network: The network.
        text_encoder: Name or folder of the text encoder.
        datasets: Names of the datasets the plan was made for.
        dataset_weights: Dataset → sampling weight.
        dataset_orientation: Dataset → orientation, if different from ``orientation``.
        explanation: Value → one sentence that says why it was chosen.
        class_spacings_mm: Modality → class → isotropic spacings it was trained at, finest first, if different from
            ``spacing_mm``; see :meth:`spacing_for`.
        class_windows: Modality → class → voxels of the patches it was trained in, one per spacing of
            ``class_spacings_mm``. A network that was trained on a class in patches of one size may fail in windows of
            another size, because norms and positions differ.
        fit_windows: Whether a window is no larger than the scan (rounded up to the strides), for networks that were
            trained with patches that fit.
        one_piece: Classes that are one connected component in the training labels; of their masks, only the largest
            component is kept.
        class_thresholds: Modality → class → probability above which a voxel is the class's, if not one half. Prediction
            moves the class's logits by so much that the threshold becomes one half, so that everything after it
            (means over windows and networks, confidence) speaks of the same probability.
        held_thresholds: As ``class_thresholds``, for scans that one window holds (crops around an organ); a class that it
            does not name has its threshold of ``class_thresholds`` there, too.
        mirrored_classes: Modality → classes that the network was trained on in scans mirrored left to right as well, with
            the sides of their classes exchanged. Prediction may look at a mirrored window and ask for the other side.
        options: Options of the plan, as :class:`satunet.planners.options.PlanOptions` writes them; empty in older
            plans.
    """

    RECORD_VERSION: ClassVar[int] = PLAN_VERSION

    dataset_name: str = UNIFIED_DATASET
    plans_name: str = PLANS_NAME
    configuration: str = "3d_fullres"
    orientation: str = "RAS"
    spacing_mm: tuple[float, float, float]
    patch_size: tuple[int, int, int]
    batch_size: int = 2
    patches_at_once: int | None = None
    training_patch_size: tuple[int, int, int] | None = None
    queries_per_scan: int = 32
    normalization: dict[str, Normalization] = field(default_factory=lambda: dict(SAT_NORMALIZATION))
    channel_normalization: dict[str, Normalization] = field(default_factory=dict)
    network: NetworkConfig
    text_encoder: str = "minilm"
    datasets: tuple[str, ...] = ()
    dataset_weights: dict[str, float] = field(default_factory=dict)
    dataset_orientation: dict[str, str] = field(default_factory=dict)
    explanation: dict[str, str] = field(default_factory=dict)
    class_spacings_mm: dict[str, dict[str, tuple[float, ...]]] = field(default_factory=dict)
    class_windows: dict[str, dict[str, tuple[Axes, ...]]] = field(default_factory=dict)
    fit_windows: bool = False
    one_piece: tuple[str, ...] = ()
    class_thresholds: dict[str, dict[str, float]] = field(default_factory=dict)
    held_thresholds: dict[str, dict[str, float]] = field(default_factory=dict)
    mirrored_classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.spacing_mm) != 3 or min(self.spacing_mm) <= 0:
            raise PlanError(f"spacing_mm must be three positive numbers, got {self.spacing_mm}")
        if len(self.patch_size) != 3 or min(self.patch_size) < 1:
            raise PlanError(f"patch_size must be three positive integers, got {self.patch_size}")
        if any(p % d for p, d in zip(self.patch_size, self.network.divisor, strict=True)):
            raise PlanError(
                f"patch_size {self.patch_size} must be divisible by the network's strides {self.network.divisor}"
            )
        if self.training_patch_size is not None and any(
            p < 1 or p % d for p, d in zip(self.training_patch_size, self.network.divisor, strict=True)
        ):
            raise PlanError(
                f"training_patch_size {self.training_patch_size} must be divisible by the network's strides "
                f"{self.network.divisor}"
            )
        if self.patches_at_once is not None and self.patches_at_once < 1:
            raise PlanError(f"patches_at_once must be at least 1, got {self.patches_at_once}")
        if self.batch_size < 1 or self.queries_per_scan < 1:
            raise PlanError(
                f"batch_size and queries_per_scan must be at least 1, got {self.batch_size}, {self.queries_per_scan}"
            )
        for name, spacings in (pair for found in self.class_spacings_mm.values() for pair in found.items()):
            if not spacings or min(spacings) <= 0 or list(spacings) != sorted(set(spacings)):
                raise PlanError(f"the spacings of {name!r} must be positive and rising, got {spacings}")
        for modality, windows in self.class_windows.items():
            for name, sizes in windows.items():
                count = len(self.class_spacings_mm.get(modality, {}).get(name, ()))
                if len(sizes) != count or any(
                    n < 1 or n % d for s in sizes for n, d in zip(s, self.network.divisor, strict=True)
                ):
                    raise PlanError(
                        f"the windows of {name!r} must be {count}, one per spacing, and divisible by the network's strides "
                        f"{self.network.divisor}, got {sizes}"
                    )
        given = [*self.class_thresholds.values(), *self.held_thresholds.values()]
        for name, threshold in (pair for found in given for pair in found.items()):
            if not 0 < threshold < 1:
                raise PlanError(f"the threshold of {name!r} must be between 0 and 1, got {threshold}")
        if "other" not in self.normalization:
            raise PlanError("normalization must have an entry 'other' for modalities it does not name")

    def spacing_for(
        self, class_name: str | None, modality: str, extent_mm: tuple[float, float, float]
    ) -> tuple[float, float, float]:
        """Spacing at which a class is segmented in a scan.

        Of several spacings that a class was trained at, this is the finest at which a single window contains the scan,
        or
        else the coarsest: a crop around an organ is segmented in detail, a whole head in one piece.

        Args:
            class_name: The class; ``None`` for words that name none.
            modality: Modality of the scan.
            extent_mm: Size of the scan along the plan's axes.
        """
        spacings = self.class_spacings_mm.get(modality, {}).get(class_name or "")
        if not spacings:
            return self.spacing_mm
        holds = [
            s
            for s in spacings
            if all(e <= p * s for e, p in zip(extent_mm, self.window_of(class_name, modality, s), strict=True))
        ]
        chosen = min(holds, default=max(spacings))
        return chosen, chosen, chosen

    def window_of(self, class_name: str | None, modality: str, spacing_mm: float) -> Axes:
        """Voxels of the window for a class at a spacing, before :meth:`window_for` fits it to a scan."""
        spacings = self.class_spacings_mm.get(modality, {}).get(class_name or "", ())
        windows = self.class_windows.get(modality, {}).get(class_name or "", ())
        return dict(zip(spacings, windows, strict=False)).get(spacing_mm, self.patch_size)

    def logit_offset(self, class_name: str | None, modality: str, *, held: bool = False) -> float:
        """What is added to a class's logits so that its threshold becomes one half; see ``class_thresholds``.

        Args:
            class_name: The class; ``None`` for words that name none.
            modality: Modality of the scan.
            held: Whether one window holds the scan.
        """
        threshold = self.class_thresholds.get(modality, {}).get(class_name or "", 0.5)
        if held:
            threshold = self.held_thresholds.get(modality, {}).get(class_name or "", threshold)
        return math.log(1 - threshold) - math.log(threshold)

    def window_for(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Voxels of a window in a preprocessed scan of this shape."""
        if not self.fit_windows:
            return self.patch_size
        x, y, z = (min(p, -(-n // d) * d) for n, p, d in zip(shape, self.patch_size, self.network.divisor, strict=True))
        return x, y, z

    def normalization_of(
        self, modality: str, dataset_name: str | None = None, channel: int | None = None
    ) -> Normalization:
        """Normalisation of a modality, that of ``other`` if the plan does not name it; or that of a dataset's
        channel.
        """
        if own := self.channel_normalization.get(f"{dataset_name}:{channel}"):
            return own
        return self.normalization.get(modality, self.normalization["other"])

    def orientation_of(self, dataset_name: str | None) -> str:
        """Orientation of a dataset's preprocessed scans."""
        return self.dataset_orientation.get(dataset_name or "", self.orientation)

    @property
    def unified_folder(self) -> UnifiedFolder:
        """Folder of everything that is made with this plan."""
        return UnifiedFolder(name=self.dataset_name, plans_name=self.plans_name, configuration=self.configuration)

    @property
    def crop_size(self) -> tuple[int, int, int]:
        """Voxels of a training patch."""
        return self.training_patch_size or self.patch_size

    @property
    def data_identifier(self) -> str:
        """Name of the folder of the preprocessed scans, beside the plan."""
        return self.unified_folder.store_name

    def preprocessing_of(self, dataset_name: str | None, modality: str, channel: int | None = None) -> dict[str, Any]:
        """Every value that the preprocessed scans of a dataset and modality depend on: a change makes them stale."""
        return {
            "orientation": self.orientation_of(dataset_name),
            "spacing_mm": [float(s) for s in self.spacing_mm],
            "normalization": dataclasses.asdict(self.normalization_of(modality, dataset_name, channel)),
        }

    def preprocessing(self) -> dict[str, Any]:
        """Every value that any preprocessed scan depends on."""
        channels = {where: dataclasses.asdict(n) for where, n in sorted(self.channel_normalization.items())}
        return {
            "version": PLAN_VERSION,
            "orientation": self.orientation,
            "dataset_orientation": dict(sorted(self.dataset_orientation.items())),
            "spacing_mm": [float(s) for s in self.spacing_mm],
            "normalization": {m: dataclasses.asdict(n) for m, n in sorted(self.normalization.items())},
            **({"channel_normalization": channels} if channels else {}),
        }

    def content_hash(self) -> str:
        """Hash of :meth:`preprocessing`."""
        return hashlib.sha256(json.dumps(self.preprocessing(), sort_keys=True).encode()).hexdigest()[:16]

    def to_nnunet(self) -> dict[str, Any]:
        """The plan in nnU-Net's format, for its ``PlansManager``."""
        network = self.network
        stages = len(network.features_per_stage)
        resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
        configuration = {
            "data_identifier": self.data_identifier,
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": self.batch_size,
            "patch_size": list(self.patch_size),
            "median_image_size_in_voxels": list(self.patch_size),
            "spacing": list(self.spacing_mm),
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_seg": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": resampling,
            "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
            "architecture": {
                "network_class_name": "satunet.network.model.PromptedUNet",
                "arch_kwargs": {
                    "n_stages": stages,
                    "features_per_stage": list(network.features_per_stage),
                    "kernel_sizes": [list(k) for k in network.kernel_sizes],
                    "strides": [list(s) for s in network.strides],
                    "n_conv_per_stage": list(network.n_conv_per_stage),
                    "n_conv_per_stage_decoder": list(network.n_conv_per_stage_decoder),
                },
                "_kw_requires_import": [],
            },
            "batch_dice": False,
        }
        return {
            "dataset_name": self.dataset_name,
            "plans_name": self.plans_name,
            "original_median_spacing_after_transp": list(self.spacing_mm),
            "original_median_shape_after_transp": list(self.patch_size),
            "image_reader_writer": "NibabelIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {self.configuration: configuration},
            "experiment_planner_used": "satunet",
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {},
            "satunet": self._own_part(),
        }

    def _own_part(self) -> dict[str, Any]:
        """The record, without fields that nnU-Net's part of the file has and without optional fields that are empty."""
        fields = {name: value for name, value in to_plain(self).items() if name not in _SAID_BY_NNUNET}
        return {name: value for name, value in fields.items() if value or name not in _ONLY_IN_SOME}

    @classmethod
    def from_nnunet(cls, content: dict[str, Any], *, source: Path | str = "plan") -> UnifiedPlan:
        """The inverse of :meth:`to_nnunet`.

        Raises:
            PlanError: The content is no unified plan, has another version, or has invalid values.
        """
        ours = content.get("satunet") if isinstance(content, Mapping) else None
        if not isinstance(ours, dict):
            raise PlanError(f"{source}: no unified plan of satunet (the key 'satunet' is missing)")
        try:
            (name, configuration), *others = content["configurations"].items()
            said = {
                "dataset_name": content["dataset_name"],
                "plans_name": content["plans_name"],
                "configuration": name,
                "spacing_mm": configuration["spacing"],
                "patch_size": configuration["patch_size"],
                "batch_size": configuration["batch_size"],
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"{source}: not a valid unified plan ({type(error).__name__}: {error})") from error
        if others:
            raise PlanError(f"{source}: one configuration is allowed, got {list(content['configurations'])}")
        return from_plain(ours | said, cls, source=source, error=PlanError)

    def save(self, path: Path) -> None:
        """Write the plan file, whole."""
        write_json(path, self.to_nnunet())

    @classmethod
    def load(cls, path: Path) -> UnifiedPlan:
        """Read a plan file.

        Raises:
            PlanError: The file does not exist, or is no unified plan.
        """
        if not path.exists():
            raise PlanError(f"{path}: no such plan; make one with 'satunet plan_and_preprocess'")
        return cls.from_nnunet(load_json(path, what="a plan", error=PlanError), source=path)
