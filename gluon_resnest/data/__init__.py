"""Record files, sampling, augmentation and batches; knows no network."""
