"""DICOM: series of a folder as volumes, by what their headers say.

``headers`` reads files, ``stack`` makes a volume of slices or says why there is none, ``series`` finds what belongs
together, ``pixels`` and ``unpack`` read the values. Headers are read by pydicom, in Python, and compressed pixels are
unpacked in a process of their own: a damaged file is that series' error.

Rejected: GDCM through SimpleITK. It writes tilted stacks as rotated boxes, keeps the frames of multi-frame files in
their stored order, drops files that it cannot read without a word, and takes the first slice's type for all.
"""

from satunet.images.dicom.pixels import read_series
from satunet.images.dicom.series import Found, Series, find_series, search
from satunet.images.dicom.stack import Slice

__all__ = ["Found", "Series", "Slice", "find_series", "read_series", "search"]
