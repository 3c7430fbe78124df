"""``satunet datasets | labels | plan_and_preprocess | fingerprint | plan | preprocess``: from raw scans to a store."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, arg

from satunet.cli.options import (
    DatasetIds,
    Memory,
    Modalities,
    Processes,
    Scheduler,
    TrustShape,
    Verbose,
    VerifyIntegrity,
    dataset_names,
    default_processes,
)
from satunet.cli.printing import print_rows
from satunet.jobs.wording import counted
from satunet.planners.options import PlanOptions, SpecialistPlanner

if TYPE_CHECKING:
    from satunet.jobs.workers import Workers

logger = logging.getLogger(__name__)

Json = Annotated[bool, arg(help="Print JSON instead of a table.")]
Specialists = Annotated[bool, arg(help="Plan and preprocess one nnU-Net per dataset as well.")]


@dataclass(frozen=True, kw_only=True)
class Datasets:
    """List the datasets in nnUNet_raw with their problems, and the missing datasets of SAT-DS with their sources."""

    datasets: DatasetIds = ()
    present: Annotated[bool, arg(help="List only the datasets that are there.")] = False
    json: Json = False
    verbose: Verbose = False

    def run(self) -> int:
        """Print one row per dataset; returns 1 if one cannot be read. Without ids, every dataset is listed."""
        from satunet.datasets.catalogue import load_catalogue
        from satunet.datasets.paths import all_dataset_names, other_folders

        catalogue = load_catalogue()
        if self.datasets and "all" not in self.datasets:
            rows = [_present(name) for name in dataset_names(self.datasets)]
            return self._print(rows, [])
        rows = [_present(name) for name in all_dataset_names()]
        rows += [
            {
                "dataset": name,
                "problem": "not named like a dataset, so no command reads it; the name must be DatasetNNN_Name",
            }
            for name in other_folders()
        ]
        here = {str(row.get("catalogue")) for row in rows}
        missing: list[dict[str, object]] = [
            {
                "catalogue": record.name,
                "folder": record.folder,
                "modality": record.modality,
                "region": record.region,
                "scans": record.scans,
                "classes": len(record.classes),
                "licence": record.licence or "see its web page",
                "where to get it": record.link,
            }
            for record in catalogue.records
            if record.name not in here and not self.present
        ]
        of = f"of the {counted(len(catalogue.records), 'dataset')} of {catalogue.name}"
        return self._print(rows, missing, f"{len(missing)} {of} {'is' if len(missing) == 1 else 'are'} not there")

    def _print(self, rows: list[dict[str, object]], missing: list[dict[str, object]], title: str = "") -> int:
        if self.json:
            listed = [row | {"present": True} for row in rows] + [row | {"present": False} for row in missing]
            sys.stdout.write(json.dumps(listed, indent=1) + "\n")
        else:
            print_rows(rows, "Datasets in nnUNet_raw")
            if missing:
                print_rows(missing, title)
        return 1 if any("problem" in row for row in rows) else 0


def _present(name: str) -> dict[str, object]:
    """Row of a dataset."""
    from satunet.datasets.catalogue import load_catalogue
    from satunet.datasets.raw import load_dataset
    from satunet.errors import UserError
    from satunet.labels.build import catalogue_record
    from satunet.planners.fingerprint.headers import SAMPLE, dataset_doubts

    row: dict[str, object] = {"dataset": name, "catalogue": ""}
    try:
        dataset = load_dataset(name)
        record, problem = catalogue_record(dataset, load_catalogue())
        row |= {
            "catalogue": record.name if record else "",
            "modalities": sorted(set(dataset.modalities)),
            "channels": len(dataset.channel_names),
            "classes": len(dataset.labels),
            "training_cases": len(dataset.training_cases()) if dataset.has_scans else 0,
            "test_cases": len(dataset.test_cases()),
        }
        cases = dataset.training_cases()[:SAMPLE] if dataset.has_scans else ()
        if notes := [*([problem] if problem else []), *dataset.remarks, *dataset_doubts(dataset, cases)]:
            row["note"] = "; ".join(notes)
    except UserError as error:
        row["problem"] = str(error)
    except Exception as error:  # whatever is wrong with one dataset, the others are still listed
        row["problem"] = f"{type(error).__name__}: {error}"
    return row


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Show the unified label space of datasets: which ones annotate a class, what was inferred, and what looks
    wrong.
    """

    datasets: DatasetIds
    json: Json = False
    verbose: Verbose = False

    def run(self) -> int:
        """Print one row per class, notes about each dataset, and what a person should check."""
        from satunet.datasets.paths import dataset_number
        from satunet.datasets.people import find_people
        from satunet.datasets.raw import load_dataset
        from satunet.jobs.records import fields_of, to_plain
        from satunet.labels import build_label_space
        from satunet.planners.run import known_fingerprints, scans_of
        from satunet.planners.unified.review import review_label_space

        names = dataset_names(self.datasets)
        datasets = [load_dataset(name) for name in names]
        space = build_label_space(datasets)
        fingerprints = known_fingerprints(names)
        findings = review_label_space(space, fingerprints)
        if self.json:
            found = [fields_of(finding) for finding in findings]
            sys.stdout.write(json.dumps(to_plain(space) | {"findings": found}, indent=1) + "\n")
            return 0
        rows: list[dict[str, object]] = [
            {
                "class": info.name + (" (lesion)" if info.lesion else ""),
                "datasets": sorted(dataset_number(name) for name in info.datasets),
                "modalities": info.modalities,
                "regions": info.regions,
                "names in the datasets": info.source_names,
                "inferred": info.inferred or "",
            }
            for info in space.classes
        ]
        print_rows(rows, f"{counted(len(rows), 'class', 'classes')} of {counted(len(space.ids), 'dataset')}")
        notes: list[dict[str, object]] = [{"dataset": d, "note": n} for d, ns in space.notes.items() for n in ns]
        if notes:
            print_rows(notes, "Notes about the labels")
        looks: list[dict[str, object]] = [{"what": f.kind, "look at": f.message} for f in findings]
        if looks:
            print_rows(looks, "1 thing looks wrong" if len(looks) == 1 else f"{len(looks)} things look wrong")
        cases = {d.name: [c.identifier for c in d.training_cases()] for d in datasets if d.has_scans}
        people = find_people(datasets, cases, scans_of(fingerprints))
        if people.findings:
            print_rows([{"cases of one person": finding} for finding in people.findings], "People with several cases")
        unknown = len(names) - len(fingerprints)
        if unknown:
            sys.stdout.write(
                f"Volumes and sides of {counted(unknown, 'dataset')} are not known yet: run satunet fingerprint -d …\n"
            )
        return 0


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Extract the fingerprints of datasets; cases that were read before and did not change are not read again."""

    datasets: DatasetIds
    modality: Modalities = ()
    trust_shape: TrustShape = False
    verify_dataset_integrity: VerifyIntegrity = False
    processes: Processes = field(default_factory=default_processes)
    memory: Memory = None
    scheduler: Scheduler = None
    verbose: Verbose = False

    def run(self) -> int:
        """Write ``dataset_fingerprint.json`` of each dataset."""
        from satunet.datasets.paths import preprocessed_dir
        from satunet.datasets.raw import override_modalities, trust_shapes
        from satunet.jobs.progress import setup_logging
        from satunet.jobs.workers import Workers
        from satunet.planners.run import fingerprint_datasets

        names = dataset_names(self.datasets)
        setup_logging(preprocessed_dir() / "fingerprint.log", verbose=self.verbose)
        override_modalities(self.modality)
        trust_shapes(names if self.trust_shape else ())
        workers = Workers(processes=self.processes, memory_gb=self.memory, scheduler=self.scheduler)
        if self.verify_dataset_integrity and not _are_whole(names, workers):
            return 1
        _, summary = fingerprint_datasets(names, processes=workers)
        summary.show()
        return summary.exit_code


@dataclass(frozen=True, kw_only=True)
class _Planning:
    """Options of all commands that plan."""

    datasets: DatasetIds
    plan: OmitArgPrefixes[PlanOptions] = field(default_factory=PlanOptions)
    modality: Modalities = ()
    trust_shape: TrustShape = False
    verify_dataset_integrity: VerifyIntegrity = False
    processes: Processes = field(default_factory=default_processes)
    memory: Memory = None
    scheduler: Scheduler = None
    verbose: Verbose = False

    def _prepared(self) -> tuple[tuple[str, ...], Workers] | None:
        """Names of the datasets, and the workers; ``None`` if a check was requested and found faulty files."""
        from satunet.datasets.paths import preprocessed_dir
        from satunet.datasets.raw import override_modalities, trust_shapes
        from satunet.jobs.progress import setup_logging
        from satunet.jobs.workers import Workers
        from satunet.planners.run import require_apart

        names = dataset_names(self.datasets)
        require_apart(self.plan.name, names)
        setup_logging(preprocessed_dir() / self.plan.name / "plan_and_preprocess.log", verbose=self.verbose)
        override_modalities(self.modality)
        trust_shapes(names if self.trust_shape else ())
        workers = Workers(processes=self.processes, memory_gb=self.memory, scheduler=self.scheduler)
        if self.verify_dataset_integrity and not _are_whole(names, workers):
            return None
        return names, workers


@dataclass(frozen=True, kw_only=True)
class Plan(_Planning):
    """Make the unified plan of datasets and say why each value was chosen; it needs fingerprints, but no scans."""

    specialists: Annotated[bool, arg(help="Plan one nnU-Net per dataset as well.")] = False
    specialist_planner: Annotated[
        SpecialistPlanner,
        arg(
            help="nnU-Net's planner for the specialists; give 'satunet train' the same option, or nnUNetv2_train the plan."
        ),
    ] = "default"

    def run(self) -> int:
        """Write ``satunetPlans.json``, and nnU-Net's plans files."""
        from satunet.planners.run import plan_datasets, plan_specialists

        if (prepared := self._prepared()) is None:
            return 1
        names, workers = prepared
        planned = plan_datasets(names, self.plan, processes=workers)
        if self.specialists:
            planned.summary.include(plan_specialists(planned.plan, self.plan, planner=self.specialist_planner))
        planned.summary.show()
        return planned.summary.exit_code


@dataclass(frozen=True, kw_only=True)
class PlanAndPreprocess(_Planning):
    """From raw datasets to one unified plan and preprocessed scans: fingerprint, plan, preprocess."""

    specialists: Specialists = False

    def run(self) -> int:
        """Do all steps; results that are up to date are not made again."""
        from satunet.preprocessing.pipeline import plan_and_preprocess

        if (prepared := self._prepared()) is None:
            return 1
        names, workers = prepared
        summary = plan_and_preprocess(names, self.plan, specialists=self.specialists, processes=workers)
        summary.show()
        return summary.exit_code


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Preprocess the scans of a unified plan; scans that are up to date are not preprocessed again."""

    dataset: Annotated[str, arg(aliases=["-d"], metavar="ID", help="Id or name of the unified dataset.")] = "900"
    verify: Annotated[bool, arg(help="Only check every file of the store against its manifest.")] = False
    modality: Modalities = ()
    trust_shape: TrustShape = False
    processes: Processes = field(default_factory=default_processes)
    memory: Memory = None
    scheduler: Scheduler = None
    verbose: Verbose = False

    def run(self) -> int:
        """Write the store of preprocessed scans, or check it."""
        from satunet.datasets.raw import override_modalities, trust_shapes
        from satunet.datasets.unified import UnifiedFolder
        from satunet.jobs.progress import setup_logging
        from satunet.jobs.workers import Workers
        from satunet.plan import UnifiedPlan
        from satunet.preprocessing.run import preprocess_datasets
        from satunet.preprocessing.store.verify import verify_store

        unified = UnifiedFolder.find(self.dataset)
        plan = UnifiedPlan.load(unified.plan)
        setup_logging(unified.folder / "plan_and_preprocess.log", verbose=self.verbose)
        workers = Workers(processes=self.processes, memory_gb=self.memory, scheduler=self.scheduler)
        if self.verify:
            summary = verify_store(unified.store, plan=plan, processes=workers)
        else:
            override_modalities(self.modality)
            trust_shapes(plan.datasets if self.trust_shape else ())
            summary = preprocess_datasets(plan, plan.datasets, processes=workers)
        summary.show()
        return summary.exit_code


def _are_whole(names: tuple[str, ...], workers: Workers) -> bool:
    """Whether all files of the datasets can be used; shows those that cannot."""
    from satunet.preprocessing.store.verify import verify_datasets

    summary = verify_datasets(names, processes=workers)
    summary.show()
    if summary.failures:
        logger.error("without --verify_dataset_integrity, faulty cases are left out and the others are used")
    return not summary.failures
