"""Weights of RGB networks for images of another number of channels."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np

from gluon_resnest.errors import InputError

# Key of the only weight that sees the image: the first convolution of the stem.
INPUT_WEIGHT = "conv1.0.weight"
RGB = 3

_log = logging.getLogger(__name__)


def adapt_input_weight(weight: np.ndarray, channels: int) -> np.ndarray:
    """The first convolution of an RGB network for images of `channels` channels.

    The rule is that of timm's ``adapt_input_conv``. For one channel the weights of red, green and
    blue are added: a grey image gives what the same image in all three channels gave. For another
    number they are repeated (R, G, B, R, G, ...) and multiplied by 3 / `channels`: the sum over
    the channels, and with it the scale of the output, stays about the same.

    Parameters
    ----------
    weight
        (O, 3, H, W).
    channels
        At least 1; 3 changes nothing.

    Returns
    -------
    np.ndarray
        (O, channels, H, W), of the type of `weight`.
    """
    if channels == RGB:
        return weight
    if channels == 1:
        return weight.sum(axis=1, keepdims=True)
    repeated = np.tile(weight, (1, math.ceil(channels / RGB), 1, 1))[:, :channels]
    return repeated * weight.dtype.type(RGB / channels)


def held_channels(found: tuple[int, ...], expected: tuple[int, ...]) -> int | None:
    """Input channels of a weight of shape `found`; None if more than these is not as expected."""
    same = len(found) == len(expected) == 4 and found[0] == expected[0] and (
        found[2:] == expected[2:])
    return found[1] if same else None


def check_adaptable(origin: str | Path, held: int, channels: int, adapt: bool) -> None:
    """Refuse weights for `held` input channels in a network that takes another number, `channels`.

    `adapt`: weights for three channels are welcome, and the log says what becomes of them.

    Raises
    ------
    InputError
        The weights may not be adapted, or cannot be.
    """
    if held != RGB:
        raise InputError(
            f"{origin} has weights for {_images(held)}, and the network takes {_images(channels)}: "
            f"weights for {RGB} channels alone can be adapted to another number. In Python make "
            f"the network with in_channels={held}; the command-line tools take RGB images only")
    if not adapt:
        raise InputError(
            f"{origin} has weights for {_images(held)}, and the network takes {_images(channels)}: "
            f"adapt them with get_model(..., in_channels={channels}, pretrained=FILE) or "
            "load_weights(..., adapt_input=True)")
    # A warning, since Python shows nothing below that unless it is asked to.
    _log.warning("%s: the first convolution's weights for RGB were %s", origin,
                 "added up for images of 1 channel" if channels == 1 else
                 f"repeated over {channels} channels and multiplied by {RGB}/{channels}")


def _images(channels: int) -> str:
    return {1: "images of 1 channel", RGB: "RGB images (3 channels)"}.get(
        channels, f"images of {channels} channels")
