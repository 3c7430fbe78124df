"""Scans, label maps and their grids; file formats; DICOM."""
