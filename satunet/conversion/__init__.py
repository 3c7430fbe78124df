"""Conversion to nnU-Net raw datasets from SAT-DS's jsonl files, the Medical Segmentation Decathlon and DICOM series."""

from satunet.conversion.msd import is_msd, read_msd
from satunet.conversion.run import LINKS, convert
from satunet.conversion.sat_ds import SEQUENCES, read_sat_ds
from satunet.conversion.series import read_dicom
from satunet.conversion.sources import NumberNeededError, SourceDataset

__all__ = [
    "LINKS",
    "SEQUENCES",
    "NumberNeededError",
    "SourceDataset",
    "convert",
    "is_msd",
    "read_dicom",
    "read_msd",
    "read_sat_ds",
]
