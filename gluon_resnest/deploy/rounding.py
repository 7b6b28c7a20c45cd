"""What rounding does to a network itself, which no exported file can do without.

A trained network changes its logits by about 1e-6 of the largest if its input changes by one unit
in the last place. Fresh weights have no statistics to normalise by, so activations grow from block
to block and saturate the attention: there the same change grows to 1e-4, in deep networks to 0.1.
Files that compute in another order cannot agree better than that.
"""

from __future__ import annotations

import mxnet as mx
import numpy as np

from gluon_resnest.deploy.comparison import Comparison, Forward, compare
from gluon_resnest.deploy.symbol import on_device
from gluon_resnest.layers import Normalize
from gluon_resnest.models.resnest import ResNeSt

#: Exported files may differ by so many times what rounding of the input does. In 25 exports of
#: seven networks, untrained or trained for a few steps, they differed by 0.4 to 3.3 times as much.
ROUNDING_MULTIPLE = 10
_DRAWS = 4  # of a few images, one rounding alone can hit or miss a saturated attention


def rounding_of(net: ResNeSt, images: np.ndarray, any_size: bool = True) -> Comparison:
    """How far `net` agrees with itself where each input value is moved to a neighbouring float32.

    Parameters
    ----------
    images, any_size
        As for :func:`~.agreement.compare`.

    Returns
    -------
    Comparison
        The worst of a few random roundings.
    """
    found = [compare(on_device(net, mx.cpu()), _rounded_otherwise(net, seed), images, any_size)
             for seed in range(_DRAWS)]
    return Comparison(len(images), max(one.largest_relative_difference for one in found),
                     max(one.median_relative_difference for one in found),
                     min(one.top1_agreement for one in found))


def _rounded_otherwise(net: ResNeSt, seed: int) -> Forward:
    """Logits of `net` with each normalised input one unit in the last place higher or lower."""
    normalize, rng = Normalize(), np.random.default_rng(seed)

    def forward(pixels: np.ndarray) -> np.ndarray:
        images = normalize(mx.nd.array(pixels, dtype=np.uint8)).asnumpy()
        towards = rng.choice(np.array([-np.inf, np.inf], np.float32), images.shape)
        return net(mx.nd.array(np.nextafter(images, towards))).asnumpy()

    return forward
