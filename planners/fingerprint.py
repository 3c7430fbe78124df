"""What a dataset looks like, in numbers that can be merged.

``dataset_fingerprint.json`` is nnU-Net's (spacings, shapes after cropping, foreground intensities; axes z, y, x of
the file) and stays readable by nnunetv2; under the key ``"satunet"`` it holds what a union of datasets needs: for
every scan its spacing and shape in RAS and the voxels of each label, for every channel moments and a KLL quantile
sketch (Karnin, Lang, Liberty 2016; Apache DataSketches) of its foreground. The fingerprint of a union is computed
from these without opening a scan again.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.datasets import Case, Dataset, load_dataset
from satunet.errors import DatasetError
from satunet.files import read_json, write_json
from satunet.geometry import reorient
from satunet.imageio import read_image, read_label_map
from satunet.paths import preprocessed_dir
from satunet.progress import JobSummary, run_parallel

logger = logging.getLogger(__name__)

FINGERPRINT_VERSION = 1
SKETCH_K = 1024
"""Size of the sketch: the rank error of a percentile is below 0.3 %."""
_SAMPLES_PER_CASE = 100_000


@dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """Foreground intensities of one channel.

    Attributes:
        modality: Modality of the channel.
        count: Sampled voxels.
        total: Their sum.
        squares: Sum of their squares.
        minimum: Smallest.
        maximum: Largest.
        sketch: KLL sketch, serialised.
    """

    modality: str
    count: int
    total: float
    squares: float
    minimum: float
    maximum: float
    sketch: bytes

    def percentiles(self, ranks: Sequence[float]) -> list[float]:
        """Approximate percentiles; ``ranks`` in [0, 100]."""
        if self.count == 0:
            return [float("nan")] * len(ranks)
        return [float(v) for v in _sketch(self.sketch).get_quantiles([r / 100 for r in ranks])]

    @classmethod
    def of(cls, values: NDArray[Any], modality: str) -> ChannelStatistics:
        """Statistics of an array of intensities."""
        sketch = _sketch()
        exact = values.astype(np.float64)
        if values.size:
            sketch.update(values.astype(np.float32))
        return cls(
            modality=modality,
            count=int(values.size),
            total=float(exact.sum()),
            squares=float(np.square(exact).sum()),
            minimum=float(exact.min()) if values.size else float("inf"),
            maximum=float(exact.max()) if values.size else float("-inf"),
            sketch=sketch.serialize(),
        )

    def merge(self, other: ChannelStatistics) -> ChannelStatistics:
        """Statistics of both together."""
        sketch = _sketch(self.sketch)
        sketch.merge(_sketch(other.sketch))
        return ChannelStatistics(
            modality=self.modality if self.modality == other.modality else "other",
            count=self.count + other.count,
            total=self.total + other.total,
            squares=self.squares + other.squares,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            sketch=sketch.serialize(),
        )

    def to_nnunet(self) -> dict[str, float]:
        """Entry of nnU-Net's ``foreground_intensity_properties_per_channel``."""
        low, median, high = self.percentiles([0.5, 50.0, 99.5])
        mean = self.total / self.count if self.count else float("nan")
        variance = max(0.0, self.squares / self.count - mean**2) if self.count else float("nan")
        return {
            "mean": mean,
            "median": median,
            "std": variance**0.5,
            "min": self.minimum,
            "max": self.maximum,
            "percentile_99_5": high,
            "percentile_00_5": low,
        }


@dataclass(frozen=True, kw_only=True)
class CaseFingerprint:
    """One case.

    Attributes:
        case: Identifier.
        spacing: Spacing in mm, (z, y, x) of the file, as nnU-Net has it.
        shape_after_crop: Voxels inside the nonzero box, (z, y, x) of the file.
        relative_size: Share of the volume that the crop keeps.
        spacing_ras: Spacing along right, anterior, superior.
        shape_ras: Voxels inside the nonzero box along right, anterior, superior.
        label_voxels: Label id → voxels in the file.
        source: Size and time of its files: what the cache goes by.
    """

    case: str
    spacing: tuple[float, float, float]
    shape_after_crop: tuple[int, int, int]
    relative_size: float
    spacing_ras: tuple[float, float, float]
    shape_ras: tuple[int, int, int]
    label_voxels: dict[int, int]
    source: str


@dataclass(frozen=True, kw_only=True)
class DatasetFingerprint:
    """A dataset, or a union of datasets.

    Attributes:
        dataset: Name.
        cases: Its cases.
        channels: Statistics a channel.
    """

    dataset: str
    cases: tuple[CaseFingerprint, ...]
    channels: tuple[ChannelStatistics, ...]

    @property
    def scans(self) -> int:
        """Scans: cases times channels."""
        return len(self.cases) * len(self.channels)

    def to_json(self) -> dict[str, Any]:
        """nnU-Net's content, and ours under ``"satunet"``."""
        return {
            "spacings": [list(c.spacing) for c in self.cases],
            "shapes_after_crop": [list(c.shape_after_crop) for c in self.cases],
            "foreground_intensity_properties_per_channel": {
                str(i): channel.to_nnunet() for i, channel in enumerate(self.channels)
            },
            "median_relative_size_after_cropping": float(np.median([c.relative_size for c in self.cases])),
            "satunet": {
                "version": FINGERPRINT_VERSION,
                "dataset": self.dataset,
                "cases": [{k: getattr(c, k) for k in CaseFingerprint.__dataclass_fields__} for c in self.cases],
                "channels": [
                    {k: getattr(c, k) for k in ChannelStatistics.__dataclass_fields__ if k != "sketch"}
                    | {"sketch": base64.b64encode(c.sketch).decode()}
                    for c in self.channels
                ],
            },
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> DatasetFingerprint:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: Not ours, or of another version.
        """
        ours = content.get("satunet") or {}
        if ours.get("version") != FINGERPRINT_VERSION:
            raise ValueError(f"fingerprint version {ours.get('version')!r}; this satunet reads {FINGERPRINT_VERSION}")
        cases = tuple(
            CaseFingerprint(
                **{k: tuple(v) if isinstance(v, list) else v for k, v in c.items() if k != "label_voxels"},
                label_voxels={int(k): int(v) for k, v in c["label_voxels"].items()},
            )
            for c in ours["cases"]
        )
        channels = tuple(ChannelStatistics(**(c | {"sketch": base64.b64decode(c["sketch"])})) for c in ours["channels"])
        return cls(dataset=ours["dataset"], cases=cases, channels=channels)


def fingerprint_dataset(name: str, *, processes: int = 1) -> tuple[DatasetFingerprint, JobSummary]:
    """Extract a dataset's fingerprint, or take it from the cache if no file of the dataset has changed.

    Args:
        name: Dataset in ``nnUNet_raw``.
        processes: Worker processes.

    Returns:
        The fingerprint of the cases that could be read, and what became of each case.

    Raises:
        DatasetError: No case could be read.
    """
    dataset = load_dataset(name)
    cases = dataset.training_cases()
    file = preprocessed_dir() / name / "dataset_fingerprint.json"
    summary = JobSummary(f"fingerprint of {name}")
    cached = _cached(file)
    if cached is not None and {c.case: c.source for c in cached.cases} == {c.identifier: _source(c) for c in cases}:
        summary.skipped(name)
        return cached, summary
    found: dict[str, tuple[CaseFingerprint, list[ChannelStatistics]]] = {}
    jobs = [(dataset, case) for case in cases]
    for outcome in run_parallel(
        _analyze, jobs, description=f"Fingerprint of {name}", processes=processes if len(jobs) > 3 else 1,
        key=lambda job: job[1].identifier,
    ):  # fmt: skip
        case = outcome.item[1].identifier
        if outcome.error is not None:
            summary.failed(f"{name}/{case}", outcome.error)
        elif outcome.result is not None:
            found[case] = outcome.result
            summary.done(f"{name}/{case}")
    if not found:
        raise DatasetError(f"{name}: none of its {len(cases)} cases can be read; first reason: "
                           f"{next(iter(summary.failures.values()))}")  # fmt: skip
    ordered = [found[case] for case in sorted(found)]
    channels = list(ordered[0][1])
    for _, more in ordered[1:]:
        channels = [a.merge(b) for a, b in zip(channels, more, strict=True)]
    fingerprint = DatasetFingerprint(dataset=name, cases=tuple(c for c, _ in ordered), channels=tuple(channels))
    write_json(file, fingerprint.to_json())
    return fingerprint, summary


def merge_fingerprints(fingerprints: Sequence[DatasetFingerprint], name: str = "union") -> DatasetFingerprint:
    """The fingerprint of a union: every channel becomes scans of one channel.

    Raises:
        ValueError: Nothing to merge.
    """
    channels = [c for f in fingerprints for c in f.channels]
    if not channels:
        raise ValueError("there is nothing to merge")
    merged = channels[0]
    for channel in channels[1:]:
        merged = merged.merge(channel)
    return DatasetFingerprint(dataset=name, cases=tuple(c for f in fingerprints for c in f.cases), channels=(merged,))


def _cached(file: Any) -> DatasetFingerprint | None:
    try:
        return DatasetFingerprint.from_json(read_json(file))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _analyze(job: tuple[Dataset, Case]) -> tuple[CaseFingerprint, list[ChannelStatistics]]:
    dataset, case = job
    assert case.label is not None
    images = [read_image(path) for path in case.images]
    grid = images[0].grid
    labels = read_label_map(case.label, allowed_ids=dataset.label_ids, grid=grid)
    nonzero = np.zeros(grid.shape, dtype=bool)
    for image in images:
        nonzero |= image.array != 0
    box = tuple(
        slice(int(hits[0]), int(hits[-1]) + 1)
        if (hits := np.flatnonzero(nonzero.any(axis=others))).size
        else slice(None)
        for others in ((1, 2), (0, 2), (0, 1))
    )
    cropped = labels.array[box]
    foreground = cropped > 0
    channels = []
    for image, modality in zip(images, dataset.modalities, strict=True):
        values = image.array[box][foreground]
        if values.size:
            # As nnU-Net: as many voxels of every case, drawn with replacement, so that small structures count too.
            values = np.random.RandomState(1234).choice(values, _SAMPLES_PER_CASE, replace=True)
        channels.append(ChannelStatistics.of(values, modality))
    turned, ras = reorient(cropped, _shifted(grid, cropped.shape), "RAS")
    x, y, z = turned.shape
    i, j, k = grid.spacing_mm
    counts = np.bincount(labels.array.ravel()) if labels.array.size else np.zeros(1, dtype=int)
    fingerprint = CaseFingerprint(
        case=case.identifier,
        spacing=(k, j, i),
        shape_after_crop=(cropped.shape[2], cropped.shape[1], cropped.shape[0]),
        relative_size=float(np.prod(cropped.shape) / np.prod(grid.shape)),
        spacing_ras=ras.spacing_mm,
        shape_ras=(x, y, z),
        label_voxels={int(n): int(counts[n]) for n in np.flatnonzero(counts) if n},
        source=_source(case),
    )
    return fingerprint, channels


def _shifted(grid: Any, shape: Any) -> Any:
    from satunet.geometry import Grid

    return Grid(shape=shape, affine=grid.affine)


def _source(case: Case) -> str:
    parts = []
    for path in (*case.images, case.label):
        stat = path.stat() if path is not None and path.is_file() else None
        parts.append(f"{stat.st_size}:{stat.st_mtime_ns}" if stat else "missing")
    return ",".join(parts)


def _sketch(content: bytes | None = None) -> Any:
    import datasketches

    return (
        datasketches.kll_floats_sketch(SKETCH_K)
        if content is None
        else datasketches.kll_floats_sketch.deserialize(content)
    )
