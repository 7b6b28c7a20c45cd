"""The radix-major block against the paper's equations, cardinal group by cardinal group."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest
from conftest import randomize

from gluon_resnest.layers import SplitAttention

EPSILON = 1e-5  # of the batch normalisation
IMAGES, SIDE = 3, 5


class CardinalityMajor:
    """Plain NumPy, float64 or complex: one cardinal group after the other, as in the equations.

    The radix-major convolution numbers its groups r K + k; here split r of cardinal group k picks
    its own slice of input and weights by that number, and everything else is written by k.
    """

    def __init__(self, block: SplitAttention, channels: int, radix: int, cardinality: int):
        self.values = {name: parameter.data().asnumpy().astype(np.float64)
                       for name, parameter in block._collect_params_with_prefix().items()}
        self.channels, self.radix, self.cardinality = channels, radix, cardinality

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate([self.group(x, k) for k in range(self.cardinality)], axis=1)

    def group(self, x: np.ndarray, k: int) -> np.ndarray:
        """V^k (N, C / K, H, W)."""
        splits = [self.split(x, k, r) for r in range(self.radix)]
        s = sum(split.mean(axis=(2, 3)) for split in splits)  # (N, C / K)
        hidden = len(self.values["fc1.weight"]) // self.cardinality
        rows = slice(k * hidden, (k + 1) * hidden)
        z = s @ self.values["fc1.weight"][rows, :, 0, 0].T + self.values["fc1.bias"][rows]
        z = relu(self.normalize(z, "bn1", rows))
        width = self.channels // self.cardinality
        logits = []
        for r in range(self.radix):
            start = (k * self.radix + r) * width
            rows = slice(start, start + width)
            logits.append(z @ self.values["fc2.weight"][rows, :, 0, 0].T
                          + self.values["fc2.bias"][rows])
        if self.radix == 1:
            attention = [1 / (1 + np.exp(-logits[0]))]
        else:
            total = sum(np.exp(logit) for logit in logits)
            attention = [np.exp(logit) / total for logit in logits]
        return sum(a[:, :, None, None] * split for a, split in zip(attention, splits))

    def split(self, x: np.ndarray, k: int, r: int) -> np.ndarray:
        """U_{k,r} (N, C / K, H, W)."""
        group = r * self.cardinality + k
        inputs = self.channels // (self.cardinality * self.radix)
        outputs = self.channels // self.cardinality
        x = x[:, group * inputs:(group + 1) * inputs]
        rows = slice(group * outputs, (group + 1) * outputs)
        return relu(self.normalize(convolve(x, self.values["conv.weight"][rows]), "bn", rows))

    def normalize(self, x: np.ndarray, layer: str, rows: slice) -> np.ndarray:
        shape = (1, -1) + (1,) * (x.ndim - 2)
        gamma, beta, mean, var = (self.values[f"{layer}.{name}"][rows].reshape(shape)
                                  for name in ("gamma", "beta", "running_mean", "running_var"))
        return gamma * (x - mean) / np.sqrt(var + EPSILON) + beta


def relu(x: np.ndarray) -> np.ndarray:
    return np.where(x.real > 0, x, 0)


def convolve(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """3x3 convolution, padding 1, of (N, c, H, W) with (o, c, 3, 3)."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = x.shape[2:]
    windows = ((i, j, padded[:, :, i:i + height, j:j + width]) for i in range(3) for j in range(3))
    return sum(np.einsum("nchw,oc->nohw", part, weight[:, :, i, j]) for i, j, part in windows)


@pytest.mark.parametrize("radix", [1, 2, 4])
@pytest.mark.parametrize("cardinality", [1, 2, 4])
@pytest.mark.parametrize("hybridized", [False, True])
def test_equals_the_papers_equations(radix, cardinality, hybridized, rng):
    channels = 16
    # Not record(train_mode=False): MXNet 1.9.1 with oneDNN then gives wrong gradients of BN.
    block = SplitAttention(channels, radix, cardinality, norm_kwargs={"use_global_stats": True})
    block.initialize()
    randomize(block, rng)
    if hybridized:
        block.hybridize(static_alloc=True)
    reference = CardinalityMajor(block, channels, radix, cardinality)
    x = rng.standard_normal((IMAGES, channels, SIDE, SIDE))
    weights = rng.standard_normal(x.shape)  # of a scalar function of the output

    data = mx.nd.array(x)
    data.attach_grad()
    with mx.autograd.record():
        output = block(data)
        loss = (output * mx.nd.array(weights)).sum()
    loss.backward()

    np.testing.assert_allclose(output.asnumpy(), reference(x), atol=1e-5, rtol=0)
    expected = gradient(reference, x, weights)
    assert np.abs(expected).max() > 0.1  # something to compare
    np.testing.assert_allclose(data.grad.asnumpy(), expected, atol=1e-5, rtol=0)


def gradient(function, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Gradient of sum(weights * function(x)) by complex steps, exact to rounding.

    Images do not see each other in inference mode, so one batch holds all steps of an image.
    """
    step = 1e-30
    result = np.empty_like(x)
    for image in range(len(x)):
        size = x[image].size
        batch = np.repeat(x[image:image + 1].astype(complex), size, axis=0).reshape(size, -1)
        batch[np.arange(size), np.arange(size)] += step * 1j
        output = function(batch.reshape(size, *x.shape[1:]))
        result[image] = ((output.imag / step * weights[image]).sum(axis=(1, 2, 3))
                         .reshape(x.shape[1:]))
    return result


def test_layout_matters_where_the_test_looks(rng):
    """With R > 1 and K > 1, attention in the wrong order gives other values: the test can fail."""
    block = SplitAttention(16, radix=2, cardinality=2)
    block.initialize()
    randomize(block, rng)
    reference = CardinalityMajor(block, 16, 2, 2)
    weight = reference.values["fc2.weight"]
    wrong = weight.reshape(2, 2, 8, *weight.shape[1:]).swapaxes(0, 1).reshape(weight.shape)
    x = rng.standard_normal((2, 16, 5, 5))
    right = reference(x)
    reference.values["fc2.weight"] = wrong
    assert np.abs(reference(x) - right).max() > 1e-2


@pytest.mark.parametrize(("arguments", "words"), [
    ({"radix": 0}, "radix 0"),
    ({"cardinality": 0}, "cardinality 0"),
    ({"radix": 2, "cardinality": 5}, "channels 16 must be divisible"),
    ({"channels": 21, "radix": 1, "cardinality": 3}, "must be divisible by cardinality 3"),
])
def test_impossible_groups_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        SplitAttention(**{"channels": 16, **arguments})


def test_one_pixel_and_one_image():
    block = SplitAttention(4, radix=1, cardinality=1)
    block.initialize()
    assert block(mx.nd.ones((1, 4, 1, 1))).shape == (1, 4, 1, 1)
