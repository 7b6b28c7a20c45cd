"""What can be trained: a room for each task, on the engine in training/."""
