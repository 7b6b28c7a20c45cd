"""Pixels to the network's input, on the device and in the graph."""

from __future__ import annotations

from gluon_resnest.layers.one_at_a_time import OneAtATime

# Of ImageNet's training images, RGB, in units of 255 (paper: "RGB-normalized via
# mean/standard-deviation rescaling"; the figures are those of the published weights).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalize(OneAtATime):
    """RGB pixels to zero mean and unit variance a channel.

    Shapes
    ------
    Input (N, H, W, 3), uint8. Output (N, 3, H, W), float32.
    """

    def hybrid_forward(self, F, x):
        return F.image.normalize(F.image.to_tensor(x), mean=IMAGENET_MEAN, std=IMAGENET_STD)
