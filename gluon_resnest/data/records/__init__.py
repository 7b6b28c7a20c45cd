"""Record files: their format, index, packing and verification."""
