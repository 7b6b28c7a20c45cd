"""Weights in files of any kind, and where they come from."""
