"""DICOM: the series of a folder as volumes, put together from their headers.

``headers`` reads the headers of files, ``series`` groups files into series, ``stack`` makes a volume of slices or says
why they do not form one, and ``pixels`` and ``unpack`` read the values. Headers are read by pydicom, in Python, and
compressed pixels are unpacked in a process of their own, so that a damaged file is an error of its series and never a
crash.

Rejected: GDCM through SimpleITK. It writes tilted stacks as rotated boxes, keeps the frames of multi-frame files in
their stored order, silently drops files that it cannot read, and applies the first slice's data type to all.
"""

from satunet.images.dicom.pixels import read_series
from satunet.images.dicom.series import Found, Series, find_series, search
from satunet.images.dicom.stack import Slice

__all__ = ["Found", "Series", "Slice", "find_series", "read_series", "search"]
