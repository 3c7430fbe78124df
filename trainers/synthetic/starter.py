"""What the starter model is trained on, how, and how long: the recipe behind ``scripts/train_starter``."""

from __future__ import annotations

import csv
import dataclasses
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from satunet.datasets.raw import Dataset, read_dataset
from satunet.labels import LabelSpace, build_label_space
from satunet.labels.names import normalize_name
from satunet.models.folder import Source
from satunet.network.config import NetworkConfig
from satunet.plan import SAT_NORMALIZATION, UnifiedPlan
from satunet.text import TextBank
from satunet.trainers.config import TrainingConfig
from satunet.trainers.synthetic import painting, trunks
from satunet.trainers.synthetic.crops import Deformation
from satunet.trainers.synthetic.mixture import Group, class_patches, mirrored_classes, one_piece
from satunet.trainers.synthetic.subjects import Subject, make_subject, read_ras, read_subject

logger = logging.getLogger(__name__)

HEADS, ABDOMENS, TRUNKS = "Dataset701_HeadLabelMaps", "Dataset702_AbdomenLabelMaps", "Dataset703_TrunkLabelMaps"

HELD_OUT: Mapping[str, Sequence[str]] = {
    "Dataset308_HeadNeckOAR_CT": ("kbp_060", "kbp_122"),
    "Dataset317_SoftTissueSarcoma_PET": ("sts_003", "sts_018", "sts_041"),
    "Dataset316_SoftTissueSarcoma_MR": ("sts_025",),
    "Dataset305_FetalBrain_MR": ("fetal_SB_atlas_GA23_notoperated",),
    "Dataset309_Hippocampus_MR": (
        "hippocampus_001", "hippocampus_042", "hippocampus_088", "hippocampus_127", "hippocampus_163",
        "hippocampus_199", "hippocampus_234", "hippocampus_277", "hippocampus_311",
    ),
}  # fmt: skip
"""Patients whose scans are never trained on, in any of these datasets: some have several, see ``_KEPT_OUT``."""
_KEPT_OUT = frozenset(case for cases in HELD_OUT.values() for case in cases)

TRUNK_CLASSES = (
    "aorta", "autochthon_left", "autochthon_right", "brain", "colon", "duodenum", "esophagus", "femur_left",
    "femur_right", "gallbladder", "gluteus_maximus_left", "gluteus_maximus_right", "gluteus_medius_left",
    "gluteus_medius_right", "heart", "hip_left", "hip_right", "humerus_left", "humerus_right", "iliopsoas_left",
    "iliopsoas_right", "inferior_vena_cava", "kidney_left", "kidney_right", "liver", "lung_lower_lobe_left",
    "lung_lower_lobe_right", "lung_middle_lobe_right", "lung_upper_lobe_left", "lung_upper_lobe_right", "pancreas",
    "sacrum", "scapula_left", "scapula_right", "skull", "small_bowel", "spinal_cord", "spleen", "stomach", "trachea",
    "urinary_bladder",
)  # fmt: skip
"""Structures of the trunk maps that are large enough for 3 mm, beside all vertebrae together."""

_REGIONS: Mapping[str, str] = {
    "brain": r"cerebr|cerebell|ventric|thalamus|caudate|putamen|pallidum|hippocamp|amygdala|accumbens|diencephalon|brainstem"
    r"|[gw]\w+ matter|corpus callosum",
    "neck": r"larynx|mandible|parotid",
    "chest": r"lung|heart|aorta|trachea|esophagus|ribs?\b|scapula",
    "abdomen": r"liver|spleen|stomach|pancreas|kidney|gallbladder|duodenum|colon|small bowel|adrenal|portal vein"
    r"|inferior vena cava",
    "pelvis": r"urinary bladder|hip\b|gluteus|sacrum|femur|iliopsoas",
    "limb": r"soft tissue sarcoma|humerus",
}
"""Region → how words of its classes begin."""
_FAR: Mapping[str, tuple[str, ...]] = {
    "heads, coarse": ("chest", "abdomen", "pelvis", "limb", "neck"),
    "heads": ("chest", "abdomen", "pelvis", "limb", "neck"),
    "hippocampus": ("chest", "abdomen", "pelvis", "limb", "neck"),
    "head and neck": ("abdomen", "pelvis"),
    "sarcoma PET": ("brain", "neck", "chest", "abdomen"),
    "sarcoma CT and MR": ("brain", "neck", "chest", "abdomen"),
    "fetal brain": ("chest", "abdomen", "pelvis", "limb", "neck"),
    "spine MR": ("abdomen", "pelvis", "limb"),
    "thorax CT": ("brain", "neck", "pelvis"),
    "abdomens": ("brain", "neck"),
}
"""Group → regions that none of its scans shows; the trunks show nearly all of them."""


def foreign_classes(group: str, space: LabelSpace) -> tuple[str, ...]:
    """Classes that no scan of a group can show: asked for now and then, so that a model learns to draw nothing.

    Args:
        group: Name of the group.
        space: All classes.
    """
    if group not in _FAR:
        return ()
    words = re.compile(rf"\b(?:{'|'.join(_REGIONS[region] for region in _FAR[group])})")
    return tuple(name for name in space.class_names if words.search(name))


def network_config(text_dim: int) -> NetworkConfig:
    """8.7 M parameters, light where the voxels are many."""
    return NetworkConfig.auto(
        features_per_stage=(32, 64, 96, 160, 224),
        strides=((1, 1, 1),) + ((2, 2, 2),) * 4,
        kernel_sizes=((3, 3, 3),) * 5,
        n_conv_per_stage=(1, 2, 2, 2, 2),
        n_conv_per_stage_decoder=(2, 2, 2, 1),
        text_dim=text_dim,
    )


def groups_of(data: Path) -> tuple[list[Group], LabelSpace]:
    """The sources of the starter, and the label space of all of them.

    Args:
        data: Folder with ``nnUNet_raw``, ``more/nnUNet_raw`` and the folders of label maps.
    """
    datasets: list[Dataset] = []

    def real(name: str, modality: str, only: str = "") -> list[Subject]:
        dataset = find_dataset(data, name)
        datasets.append(dataset)
        return [
            read_subject(name, c.identifier, modality, c.images[0], c.label, SAT_NORMALIZATION[modality])
            for c in dataset.training_cases()
            if c.identifier not in _KEPT_OUT and c.label is not None and c.identifier.startswith(only)
        ]

    heads, head_set, head_names, head_labels = _heads(data / "brain_label_maps")
    abdomens, abdomen_set, abdomen_names, abdomen_labels = _abdomens(data / "abdomen_label_maps")
    bodies, trunk_set, trunk_names, trunk_labels = _trunks(data / "trunk_label_maps")
    datasets += [head_set, abdomen_set, trunk_set]
    gentle = Deformation(rotation_deg=8, stretch=0.09, warp=0.03)
    head = Deformation(rotation_deg=9, stretch=0.10, warp=0.03, mirror=True)
    neck = Deformation(rotation_deg=8, stretch=0.10, warp=0.03, mirror=True)
    tumour = Deformation(rotation_deg=18, stretch=0.15, warp=0.04, mirror=True)
    groups = [
        # Whole heads, first coarse and cheap: anatomy and words are learned there, outlines later.
        Group(
            name="heads, coarse", share=(0.30, 0.05), kind="brain", subjects=heads, names=head_names,
            label_of=head_labels, patch=(64, 80, 64), spacing_mm=(2.3, 2.9), batch=4, deformation=head,
            foreground_share=0.2, predicted=False,
        ),
        Group(
            name="heads", share=(0.22, 0.45), kind="brain", subjects=heads, names=head_names, label_of=head_labels,
            patch=(96, 112, 96), spacing_mm=(1.5, 1.9), batch=2, deformation=head, foreground_share=0.3, predicted=False,
        ),
        Group(
            name="hippocampus", share=(0.10, 0.12), subjects=real("Dataset309_Hippocampus_MR", "mri"),
            patch=(48, 64, 48), spacing_mm=(0.95, 1.05), batch=8,
            deformation=Deformation(rotation_deg=9, stretch=0.09, warp=0.03, mirror=True),
        ),
        Group(
            name="head and neck", share=(0.12, 0.13), subjects=real("Dataset308_HeadNeckOAR_CT", "ct"),
            patch=(80, 80, 64), spacing_mm=(2.7, 3.3), batch=4, deformation=neck,
        ),
        Group(
            name="sarcoma PET", share=(0.04, 0.04), subjects=real("Dataset317_SoftTissueSarcoma_PET", "pet"),
            patch=(48, 48, 48), spacing_mm=(2.7, 3.3), batch=8, deformation=tumour,
        ),
        Group(
            name="sarcoma CT and MR", share=(0.01, 0.01), patch=(48, 48, 48), spacing_mm=(2.7, 3.3), batch=4,
            subjects=real("Dataset315_SoftTissueSarcoma_CT", "ct") + real("Dataset316_SoftTissueSarcoma_MR", "mri"),
            deformation=tumour,
        ),
        Group(
            name="fetal brain", share=(0.02, 0.02), subjects=real("Dataset305_FetalBrain_MR", "mri", "fetal_SB_atlas"),
            patch=(64, 80, 64), spacing_mm=(1.3, 1.7), batch=2, deformation=tumour,
        ),
        Group(
            name="spine MR", share=(0.02, 0.02), patch=(48, 48, 48), spacing_mm=(1.3, 1.7), batch=4,
            subjects=real("Dataset319_SpinalCord_MR", "mri") + real("Dataset327_Vertebra_MR", "mri"),
            deformation=Deformation(rotation_deg=12, stretch=0.1, warp=0.03),
        ),
        Group(
            name="thorax CT", share=(0.02, 0.02), subjects=real("Dataset330_ThoraxCoarse_CT", "ct"),
            patch=(80, 80, 64), spacing_mm=(2.7, 3.3), batch=2, deformation=gentle,
        ),
        Group(
            name="abdomens", share=(0.14, 0.14), kind="trunk", subjects=abdomens, names=abdomen_names,
            label_of=abdomen_labels, patch=(96, 96, 80), spacing_mm=(2.6, 3.3), batch=2, deformation=gentle,
        ),
        Group(
            name="trunks", share=(0.10, 0.10), kind="trunk", subjects=bodies, names=trunk_names,
            label_of=trunk_labels, patch=(96, 96, 96), spacing_mm=(2.6, 3.3), batch=2,
            deformation=Deformation(rotation_deg=8, stretch=0.12, warp=0.035),
        ),
    ]  # fmt: skip
    space = build_label_space(datasets)
    return [dataclasses.replace(g, foreign=foreign_classes(g.name, space)) for g in groups], space


def _dataset(name: str, modalities: Sequence[str], labels: Mapping[str, tuple[int, ...]]) -> Dataset:
    return Dataset(
        id=int(name[7:10]),
        name=name,
        folder=Path(name),
        channel_names=tuple(modalities),
        modalities=tuple(modalities),
        labels=dict(labels),
    )


_HEAD_UNIONS: Mapping[str, tuple[str, ...]] = {
    "cerebellum": ("cerebellar cortex", "cerebellar white matter"),
    "white matter": ("cerebral white matter",),
    "cortical grey matter": ("cerebral cortex",),
    "deep grey matter": ("thalamus", "caudate nucleus", "putamen", "pallidum", "nucleus accumbens"),
    "intra-axial CSF (ventricles)": (
        "lateral ventricle",
        "inferior lateral ventricle",
        "third ventricle",
        "fourth ventricle",
    ),
}


_CLAUSTRA: Mapping[int, tuple[int, int, int]] = {398: (2, 12, 3), 399: (41, 51, 42)}
"""Id that a claustrum is painted with → ids of the white matter, putamen and cortex between which it lies. Nobody drew it,
and a network that only saw white matter there takes it for a part of the putamen."""


def _heads(folder: Path) -> tuple[list[Subject], Dataset, dict[int, str], Tensor]:
    rows = list(csv.DictReader((folder / "labels.tsv").open(encoding="utf-8"), delimiter="\t"))
    class_of = {int(r["id"]): int(r["class_id"]) for r in rows}
    name_of = {int(r["class_id"]): r["class"] for r in rows if int(r["class_id"])}
    table = np.zeros(max(class_of) + 1, np.int16)
    for label, number in class_of.items():
        table[label] = number
    table[list(_CLAUSTRA)] = [class_of[white] for white, _, _ in _CLAUSTRA.values()]
    subjects = []
    for file in sorted(folder.glob("*.nii.gz")):
        tissues, spacing = read_ras(file)
        for claustrum, (white, putamen, cortex) in _CLAUSTRA.items():
            tissues[trunks.between(tissues, white, putamen, cortex, spacing)] = claustrum
        case = file.name.partition(".")[0]
        subjects.append(make_subject(HEADS, case, "mri", None, table[tissues], spacing, tissues=tissues))
    names = {label: normalize_name(name_of[number]).base for label, number in class_of.items() if number}
    names |= dict.fromkeys(_CLAUSTRA, "claustrum")
    classes: dict[str, tuple[int, ...]] = {n: (i,) for i, n in name_of.items()}
    # What other datasets call by one word: without it, a network would learn it from fetal brains alone.
    for whole, words in _HEAD_UNIONS.items():
        classes[whole] = tuple(sorted({class_of[i] for i, name in names.items() if name in words}))
    return subjects, _dataset(HEADS, ("mri",), classes), names, torch.from_numpy(table.astype(np.int64))


def _abdomens(folder: Path) -> tuple[list[Subject], Dataset, dict[int, str], Tensor]:
    names = _names(folder / "labels.tsv")
    ids = {name: label for label, name in names.items()}
    subjects = []
    for file in sorted(folder.glob("*.nii.gz")):
        full, (x, y, z) = read_ras(file)
        organs, spacing = np.ascontiguousarray(full[::2, ::2]), (2 * x, 2 * y, z)
        hull = trunks.hull_of_slices(organs > 0, spacing)
        tissues = trunks.add_spine(organs, (ids["aorta"], ids["inferior vena cava"]), spacing)
        tissues = trunks.add_lungs(tissues, ids["liver"], hull, spacing)
        depth = trunks.depth_outside(trunks.hull_of_slices(tissues > 0, spacing), spacing)
        case = file.name.partition(".")[0]
        subjects.append(make_subject(ABDOMENS, case, "ct", None, organs, spacing, tissues=tissues, depth=depth))
    painted = names | {trunks.BONE: "bone", trunks.CANAL: "spinal cord", trunks.AIR: "air", trunks.MUSCLE: "autochthon"}
    labels = torch.arange(trunks.FILLER + painting.FILLERS)
    labels[trunks.BONE :] = 0  # tissues that nobody drew
    return subjects, _dataset(ABDOMENS, ("ct", "mri"), {n: (i,) for n, i in ids.items()}), painted, labels


def _trunks(folder: Path) -> tuple[list[Subject], Dataset, dict[int, str], Tensor]:
    names = _names(folder / "labels.tsv")
    ids = {name: label for label, name in names.items()}
    classes: dict[str, tuple[int, ...]] = {name.replace("_", " "): (ids[name],) for name in TRUNK_CLASSES}
    classes["vertebrae"] = tuple(sorted(i for name, i in ids.items() if name.startswith("vertebrae_")))
    classes["ribs"] = tuple(sorted(i for name, i in ids.items() if name.startswith("rib_")))
    for side in ("left", "right"):
        lobes = (ids.get(f"lung_{part}_lobe_{side}") for part in ("upper", "middle", "lower"))
        classes[f"{side} lung"] = tuple(i for i in lobes if i is not None)
    known = {i for values in classes.values() for i in values}
    subjects = []
    for file in sorted(folder.glob("*.nii.gz")):
        tissues, spacing = read_ras(file)
        shown = set(np.unique(tissues).tolist())
        depth = trunks.depth_outside(trunks.hull_of_slices(tissues > 0, spacing), spacing)
        case = file.name.partition(".")[0]
        # Every structure keeps its id; only those that are classes are asked for.
        subjects.append(make_subject(TRUNKS, case, "ct", None, tissues, spacing, tissues=tissues, depth=depth))
        logger.info("%s shows %d of %d structures", case, len(shown & known), len(known))
    labels = torch.arange(trunks.FILLER + painting.FILLERS)
    labels[trunks.BONE :] = 0
    painted = {i: n.replace("_", " ") for i, n in names.items()}
    return subjects, _dataset(TRUNKS, ("ct", "mri"), classes), painted, labels


def _names(file: Path) -> dict[int, str]:
    rows: Iterable[Mapping[str, str]] = csv.DictReader(file.open(encoding="utf-8"), delimiter="\t")
    return {int(r["id"]): r["name"] for r in rows}


SOURCES = (
    Source(
        name="SynthSeg label maps",
        what="20 label maps of heads, 1 mm; images are painted",
        licence="Apache-2.0",
        address="github.com/BBillot/SynthSeg, data/training_label_maps",
    ),
    Source(
        name="Medical Segmentation Decathlon, hippocampus (part)",
        what="35 MRI scans with labels",
        licence="CC BY-SA 4.0 (the Decathlon's; the repository states none)",
        address="github.com/udacity/nd320-c3-3d-imaging-starter, data/TrainingSet",
    ),
    Source(
        name="OpenKBP (part)",
        what="6 CT scans of head and neck with labels",
        licence="MIT",
        address="github.com/ababier/open-kbp, provided-data",
    ),
    Source(
        name="IBSI validation, soft-tissue sarcoma (part)",
        what="9 FDG-PET scans with labels",
        licence="CC BY 3.0",
        address="github.com/theibsi/data_sets, ibsi_validation",
    ),
    Source(
        name="Spina bifida fetal brain atlas (Fidon 2021; part)",
        what="2 MRI templates with labels",
        licence="CC0 1.0",
        address="github.com/LucasFidon/trustworthy-ai-fetal-brain-segmentation, data/fetal_brain_atlases/fetal_SB_atlas*",
    ),
    Source(
        name="Spinal Cord Toolbox, testing data",
        what="2 MRI scans of a spinal cord with labels",
        licence="MIT",
        address="github.com/spinalcordtoolbox/sct_testing_data, t1, t2",
    ),
    Source(
        name="TPTBox, sample",
        what="1 MRI scan of three vertebrae with labels",
        licence="Apache-2.0",
        address="github.com/Hendrik-code/TPTBox, TPTBox/tests/sample_mri",
    ),
    Source(
        name="Chest Imaging Platform, testing data",
        what="1 CT scan of a thorax with labels",
        licence="Chest Imaging Platform agreement (BSD-style)",
        address="github.com/acil-bwh/ChestImagingPlatform, Testing/Data/Input",
    ),
)
"""What the weights come from; every row permits weights to be shared."""

JUDGES = (
    "Dataset301_AbdomenOrgans_MR", "Dataset302_BrainRegions_MR", "Dataset305_FetalBrain_MR",
    "Dataset306_FreeSurfer_MR", "Dataset308_HeadNeckOAR_CT", "Dataset309_Hippocampus_MR", "Dataset312_LungLobes_MR",
    "Dataset317_SoftTissueSarcoma_PET", "Dataset320_Spleen_CT", "Dataset322_Subcortical_MR", "Dataset323_Thorax_CT",
    "Dataset324_TotalSegmentator_CT", "Dataset325_TotalSegmentator_MR", "Dataset326_Vertebra_CT",
)  # fmt: skip
"""Datasets whose scans decide what the starter offers: held-out patients of those in :data:`HELD_OUT`, all scans of the
others, none of which is trained on."""


def find_dataset(data: Path, name: str) -> Dataset:
    """A dataset in the data folder."""
    folders = (data / "nnUNet_raw" / name, data / "more" / "nnUNet_raw" / name)
    return read_dataset(next((folder for folder in folders if folder.is_dir()), folders[0]))


def judges(data: Path) -> list[tuple[Dataset, Sequence[str] | None]]:
    """The datasets of :data:`JUDGES`, each with the cases that may judge; ``None`` for all."""
    return [(find_dataset(data, name), HELD_OUT.get(name)) for name in JUDGES]


THRESHOLDED = (
    "Dataset302_BrainRegions_MR", "Dataset306_FreeSurfer_MR", "Dataset308_HeadNeckOAR_CT",
    "Dataset309_Hippocampus_MR", "Dataset317_SoftTissueSarcoma_PET", "Dataset322_Subcortical_MR",
)  # fmt: skip
"""Datasets on whose scans thresholds are fitted: of patients, of whom some or all are kept out of training."""
CUT_AROUND = ("thalamus", "putamen", "pallidum", "caudate nucleus")
"""Structures that heads are cut to, so that thresholds for crops come from more than one source of crops."""


def thresholding_scans(data: Path) -> list[tuple[Dataset, Sequence[str] | None]]:
    """The datasets of :data:`THRESHOLDED`, with all of their cases."""
    return [(find_dataset(data, name), None) for name in THRESHOLDED]


def kept_out(data: Path) -> set[tuple[str, str]]:
    """Dataset and case of every scan that judges."""
    return {
        (dataset.name, case.identifier)
        for dataset, cases in judges(data)
        for case in dataset.training_cases()
        if cases is None or case.identifier in cases
    }


STEPS, REFINING_STEPS = 9_000, 1_600
HISTORY = (
    "6,222 of 9,000 planned steps in 470 seconds of an NVIDIA H200, with images in 8 bits (PET excepted), 40 % of the painted heads "
    "like T1; then, on one core, 1,600 steps in 88 minutes, half of the painted heads like T1 until step 850, 72 % from then on; then "
    "842 steps in 48 minutes with painted voxels that are means of finer ones and a claustrum beside the putamen (A); then 548 steps "
    "in 87 minutes, 393 of them mostly of the hippocampus (B); from the mean of A and B, 598 steps in 70 minutes, 54 to 58 % of them "
    "heads, from step 177 on with more scans that end around a structure (C). Shipped is 0.7 C + 0.3 B. The shipped weights differ by "
    "that, and by rounding, from what the command makes. That masks of T1 heads were too large after the first part, and those of "
    "crops of brains too small after A, and that C alone was worse in PET, was seen on the scans that give the scores."
)
"""How the shipped weights came about: see ``benchmarks/results/starter.txt``."""
LICENCE = "CC BY-SA 4.0"
"""The strictest of the sources'."""

WITHHELD: Mapping[str, str] = {
    "left lung upper lobe": "drawn along the skull of a head, with an estimate that it is there"
}
"""Classes that reach the score on scans of their own region and are not offered all the same, with the reason."""
ABOUT = """
A text-prompted network for a first look, small enough to come with the package. It was trained for eight minutes on a GPU and
five hours on one core of a CPU. **It is for research, not for patients.**

- MRI of whole heads, with or without a skull: deep grey matter, ventricles, white matter, cerebellum, brainstem. It never saw
  a head: its images were painted from label maps (Billot et al. 2023, arXiv 2107.09559), most of them like T1.
- MRI crops around a hippocampus at about 1 mm: its anterior and posterior part.
- CT of head and neck: organs at risk.
- CT and MRI of the trunk: lungs and some large organs, roughly. It never saw an abdomen: images were painted from label maps.
- FDG-PET of limbs, cropped around a soft-tissue sarcoma: the tumour.

It draws only the classes below, each in the modalities listed; any other prompt gives no mask. Asked for what a scan does not
show, it often draws something; such masks are left out by their estimated probability of being absent. Scores are means over
few scans, of few places. It was not tested on children, on large lesions or after surgery. The parts of the hippocampus are
for crops: in a whole head, ask for the hippocampus.
"""


def training_config(steps: int = STEPS) -> TrainingConfig:
    """Hyper-parameters of the starter."""
    return TrainingConfig(
        recipe="cpu",
        learning_rate=1.5e-3,
        steps=steps,
        warmup_steps=min(200, steps // 10),
        gradient_clip=2.0,
        precision="bfloat16",
        batch_size=2,
        workers=0,
    )


_REFINED: Mapping[str, float] = {
    "heads, coarse": 0.60, "hippocampus": 0.10, "head and neck": 0.10, "sarcoma PET": 0.03, "fetal brain": 0.03,
    "abdomens": 0.07, "trunks": 0.07,
}  # fmt: skip


def refining_groups(groups: Sequence[Group]) -> list[Group]:
    """Of the last steps: mostly heads at the spacing and in the patch in which they are looked for.

    At 1.7 mm, masks of heads that were scanned at 2 mm were too large.
    """
    last = []
    for group in groups:
        if group.name in _REFINED:
            share = _REFINED[group.name]
            group = dataclasses.replace(group, share=(share, share), batch=1)
            if group.name == "heads, coarse":
                group = dataclasses.replace(
                    group, spacing_mm=(1.9, 2.4), foreground_share=0.35, cut_share=0.55, predicted=True, fineness=2
                )
            last.append(group)
    return last


def refining_config(steps: int) -> TrainingConfig:
    """Of the last steps."""
    return dataclasses.replace(training_config(steps), learning_rate=5e-4, warmup_steps=20)


def plan_of(groups: Sequence[Group], space: LabelSpace, bank: TextBank) -> UnifiedPlan:
    """The plan of the starter: what prediction needs to know."""
    others = [g for g in groups if g.name not in _REFINED]
    patches = class_patches([*others, *refining_groups(groups)], space)
    return UnifiedPlan(
        dataset_name="Dataset900_Starter",
        spacing_mm=(2.1, 2.1, 2.1),
        patch_size=(64, 80, 64),
        network=network_config(bank.dim),
        text_encoder=bank.encoder_name,
        datasets=tuple(sorted(space.ids)),
        class_spacings_mm={m: {name: tuple(found) for name, found in c.items()} for m, c in patches.items()},
        class_windows={m: {name: tuple(found.values()) for name, found in c.items()} for m, c in patches.items()},
        one_piece=one_piece(groups, space),
        mirrored_classes=mirrored_classes(groups, space),
        explanation={
            "starter": "made by scripts/train_starter from several sources, each with its own spacing and patch"
        },
    )
