"""Image files and their bytes: decoding to uint8 pixels, limits, files from anywhere."""
