"""satunet: text-prompted 3D medical segmentation that configures itself the way nnU-Net does.

The stages live in their own top-level folders of the source tree (``planners``, ``preprocessing``, ``trainers``,
``evaluation``) and are imported as ``satunet.planners`` and so on. An installed package has them as real
sub-packages; in a source checkout the parent folder joins the package's search path below, so the same imports
work without an install.
"""

from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from satunet.prediction import Predictor as Predictor

__version__ = "0.1.0"

_root = _Path(__file__).resolve().parent.parent
if not (_Path(__file__).resolve().parent / "planners").is_dir() and (_root / "planners" / "__init__.py").is_file():
    __path__.append(str(_root))


def __getattr__(name: str) -> object:
    """Import ``satunet.Predictor`` on first use, because it imports torch."""
    if name == "Predictor":
        from satunet.prediction import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
