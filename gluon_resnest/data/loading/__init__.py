"""Which image comes when, and batches of them made ahead by threads."""
