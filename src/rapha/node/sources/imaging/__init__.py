"""Images: what a mount of DICOM files and a PACS have in common."""
