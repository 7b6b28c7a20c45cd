"""Augmentation of uint8 images: what is drawn, and what is done with it."""
