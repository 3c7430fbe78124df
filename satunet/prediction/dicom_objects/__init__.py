"""Masks as DICOM objects that refer to their series: Segmentation, RT Structure Set, and a Structured Report of
measures (extra ``dicom``).
"""

from satunet.prediction.dicom_objects.outlines import outlines
from satunet.prediction.dicom_objects.report import Reported, write_report
from satunet.prediction.dicom_objects.segmentation import Kind, write_segmentations
from satunet.prediction.dicom_objects.source import read_source
from satunet.prediction.dicom_objects.structure_set import write_structure_set

__all__ = ["Kind", "Reported", "outlines", "read_source", "write_report", "write_segmentations", "write_structure_set"]
