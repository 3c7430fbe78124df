"""One scan or label map and its grid; file formats; DICOM."""
