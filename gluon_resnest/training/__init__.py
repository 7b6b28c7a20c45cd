"""The engine: the training loop and what it survives."""
