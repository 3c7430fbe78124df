"""The unified label space: the label ids of every class in every dataset."""

from satunet.labels.build import build_label_space, catalogue_space
from satunet.labels.names import NormalizedName, normalize_name
from satunet.labels.space import ClassInfo, LabelSpace, text_variants

__all__ = [
    "ClassInfo",
    "LabelSpace",
    "NormalizedName",
    "build_label_space",
    "catalogue_space",
    "normalize_name",
    "text_variants",
]
