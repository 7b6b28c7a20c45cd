"""What a run writes: its directory, metrics, TensorBoard's events, and how they are read."""
