"""Explanations: attention against equations 1 and 2 in NumPy, class maps by their property."""

from __future__ import annotations

import functools

import cv2
import mxnet as mx
import numpy as np
import pytest
from conftest import randomize
from mxnet.gluon import HybridBlock

import gluon_resnest
from gluon_resnest.drawing.explanation_picture import draw_explanation, picture_paths
from gluon_resnest.errors import InputError
from gluon_resnest.explaining import attention_by_stage, explain
from gluon_resnest.explaining.explanation import split_attention_layers
from gluon_resnest.layers import Normalize, SplitAttention

CLASSES = 7
# radix 0, 1, 2 and 4; several cardinal groups; pooling before the convolution.
VARIANTS = ["resnest14", "resnest14_0s1x64d", "resnest14_1s1x64d", "resnest14_fast_1s4x24d",
            "resnest14_fast_2s2x40d", "resnest14_fast_4s2x40d", "resnest26_2s4x16d"]


def network(name: str, rng, **settings):
    settings = {"classes": CLASSES, **settings}
    net = gluon_resnest.get_model(name, **settings)
    net.initialize()
    randomize(net, rng, branch_gamma=(0.1, 0.3))
    return net


@functools.lru_cache(maxsize=None)
def shared(name: str):
    """A network of this name for tests that only look at it: initialising takes longer."""
    return network(name, 7)


@pytest.fixture(scope="module")
def crop(photos):
    return photos[0][100:164, 200:264]


def logits_of(net, crop):
    return net(Normalize()(mx.nd.array(crop[None], dtype=np.uint8))).asnumpy()[0]


# ---- attention ----


def normalized(x, norm):
    """Batch normalisation by running statistics of x (C, ...), and ReLU."""
    gamma, beta, mean, var = (getattr(norm, name).data().asnumpy().astype(np.float64) for name in
                              ("gamma", "beta", "running_mean", "running_var"))
    shape = (-1,) + (1,) * (x.ndim - 1)
    y = (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + 1e-5)
    return np.maximum(y * gamma.reshape(shape) + beta.reshape(shape), 0)


def by_the_equations(layer: SplitAttention, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Attention (R, C) and output V (C, H, W) of one image x (C, H, W), group by group."""
    groups, radix, width = layer.cardinality, layer.radix, layer.channels // layer.cardinality
    values = {name: parameter.data().asnumpy().astype(np.float64)
              for name, parameter in layer._collect_params_with_prefix().items()}
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, ((0, 0), (1, 1), (1, 1))), (3, 3), axis=(1, 2))
    # The groups of the convolution, radix-major: all cardinal groups of the first split first.
    parts = [np.einsum("chwij,dcij->dhw", windows[part * (size := len(x) // (radix * groups)):
                                                  (part + 1) * size], weight)
             for part, weight in enumerate(np.split(values["conv.weight"], radix * groups))]
    splits = normalized(np.concatenate(parts), layer.bn)
    splits = splits.reshape(radix, groups, width, *splits.shape[1:])
    pooled = splits.sum(axis=0).mean(axis=(2, 3))  # equation 1: s^k
    hidden = np.concatenate([weight[:, :, 0, 0] @ pooled[k] for k, weight in enumerate(
        np.split(values["fc1.weight"], groups))]) + values["fc1.bias"]
    hidden = np.split(normalized(hidden, layer.bn1), groups)
    attention = np.empty((radix, groups, width))
    for k in range(groups):
        weight, bias = (np.split(values[name], groups)[k] for name in ("fc2.weight", "fc2.bias"))
        of_group = (weight[:, :, 0, 0] @ hidden[k] + bias).reshape(radix, width)
        # Equation 2.
        attention[:, k] = (1 / (1 + np.exp(-of_group)) if radix == 1
                           else np.exp(of_group) / np.exp(of_group).sum(axis=0))
    output = (attention[..., None, None] * splits).sum(axis=0)
    return attention.reshape(radix, -1), output.reshape(-1, *output.shape[2:])


@pytest.mark.parametrize("name", VARIANTS)
def test_attention_by_the_equations(name, crop):
    net = shared(name)
    seen, hooks = {}, []
    for _, _, layer in split_attention_layers(net):
        hooks.append(layer.register_forward_hook(
            lambda layer, inputs, output: seen.update(
                {layer: (inputs[0].asnumpy()[0].astype(np.float64), output.asnumpy()[0])})))
    logits_of(net, crop)
    for hook in hooks:
        hook.detach()
    found = explain(net, crop).attention
    layers = list(split_attention_layers(net))
    radix = net.variant.radix
    assert len(found) == len(layers) == (sum(net.variant.layers) if radix else 0)
    for one, (stage, block, layer) in zip(found, layers):
        assert (one.stage, one.block) == (stage, block)
        expected, output = by_the_equations(layer, seen[layer][0])
        assert one.weights.shape == (radix, layer.channels)
        np.testing.assert_allclose(one.weights, expected, atol=2e-5)
        # And the equations are what the layer computes.
        np.testing.assert_allclose(output, seen[layer][1], rtol=1e-3,
                                   atol=1e-5 * np.abs(output).max())
        if radix > 1:
            np.testing.assert_allclose(one.weights.sum(axis=0), 1, rtol=1e-12)


def test_shares_of_stages(crop):
    net = shared("resnest26_2s4x16d")
    attention = explain(net, crop).attention
    stages = attention_by_stage(attention)
    assert [stage.stage for stage in stages] == [1, 2, 3, 4]
    for stage, blocks in zip(stages, net.variant.layers):
        weights = [one.weights for one in attention if one.stage == stage.stage]
        assert len(weights) == blocks
        np.testing.assert_allclose(stage.share, np.mean(weights, axis=(0, 2)))
        np.testing.assert_allclose(stage.spread, np.std(weights, axis=(0, 2)))
        assert stage.share.sum() == pytest.approx(1)


# ---- class activation map ----


@pytest.mark.parametrize(("name", "size"), [*zip(VARIANTS, 4 * [64, 97])])
def test_map_and_bias_are_the_logit(name, size, photos):
    net = shared(name)
    crop = photos[1][:size, :size]
    logits = logits_of(net, crop)
    scale = np.abs(logits).max()
    top = explain(net, crop)
    assert top.label == logits.argmax()
    assert top.class_map.shape == (-(-size // 32),) * 2
    assert top.map_on_crop.shape == (size, size)
    for label in (top.label, 0, CLASSES - 1):
        found = explain(net, crop, label)
        np.testing.assert_allclose(found.logits, logits, atol=1e-5 * scale)
        assert found.class_map.mean() + found.bias == pytest.approx(logits[label], abs=1e-5 * scale)
        assert found.probabilities.sum() == pytest.approx(1)


def test_map_is_of_its_place(crop):
    """Where nothing but one corner differs between two crops, their maps differ most there."""
    net = shared("resnest14_0s1x64d")
    wide = np.full((256, 256, 3), 128, np.uint8)
    other = wide.copy()
    other[192:, :64] = crop
    difference = np.abs(explain(net, other, 0).class_map - explain(net, wide, 0).class_map)
    assert difference.shape == (8, 8)
    row, column = np.unravel_index(difference.argmax(), difference.shape)
    assert row >= 5
    assert column <= 2


# ---- the network afterwards ----


def state(net):
    """Hooks, whether hybridized, and the graph, of every block; and all parameters."""
    blocks = []
    net.apply(lambda block: blocks.append((
        dict(block._forward_hooks), dict(block._forward_pre_hooks),
        getattr(block, "_active", None), getattr(block, "_cached_op", None),
        list(getattr(block, "_flags", [])))))
    return blocks, [value.data().asnumpy() for value in net.collect_params().values()]


@pytest.mark.parametrize("hybridized", [False, True])
def test_the_network_is_left_alone(hybridized, crop, rng, monkeypatch):
    net = network("resnest14", rng)
    if hybridized:
        net.hybridize(static_alloc=True)
    before = logits_of(net, crop)
    blocks, values = state(net)
    assert (net._cached_op is not None) == hybridized
    with mx.autograd.record():  # in training mode, which must not reach the statistics
        explain(net, crop)

    def fail(*_):
        raise RuntimeError("in the middle")

    monkeypatch.setattr(net.layer3, "forward", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        explain(net, crop)
    monkeypatch.undo()
    found_blocks, found_values = state(net)
    assert found_blocks == blocks
    assert isinstance(net, HybridBlock)
    for found, expected in zip(found_values, values):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(logits_of(net, crop), before)


def test_what_cannot_be_explained(crop, rng):
    net = network("resnest14", rng)
    with pytest.raises(InputError, match=r"class 7 cannot be explained: .* 0 to 6"):
        explain(net, crop, CLASSES)
    with pytest.raises(InputError, match=r"shape \(64, 64\) and uint8"):
        explain(net, crop[..., 0])
    net.fc.bias.set_data(mx.nd.array([np.nan] * CLASSES))
    with pytest.raises(InputError, match="logits that are no numbers"):
        explain(net, crop)
    net.cast("float16")
    with pytest.raises(InputError, match=r"is in float16: net.cast\('float32'\)"):
        explain(net, crop)
    with pytest.raises(InputError, match="features_only=True"):
        explain(gluon_resnest.get_model("resnest14", features_only=True), crop)
    with pytest.raises(InputError, match="images of 1 channels"):
        explain(gluon_resnest.get_model("resnest14", in_channels=1), crop)


# ---- the picture ----


@pytest.mark.parametrize("name", ["resnest14_0s1x64d", "resnest14_fast_1s4x24d",
                                  "resnest14_fast_4s2x40d"])
def test_picture(name, crop, tmp_path):
    """Long and strange names change their own lines and nothing else of the page."""
    net = shared(name)
    explanation = explain(net, crop)
    pages = []
    for number, (title, names) in enumerate([
            ("a.jpg", "abcdefg"),
            ("写真 $x$ \udc80\n" + 50 * "long ",
             [f"{letter} $Siberian$ husky, " * 20 for letter in "abcdefg"]),
    ]):
        path = tmp_path / f"{number}.png"
        draw_explanation(explanation, path, title, net.variant, lambda label: names[label])  # noqa: B023
        pages.append(cv2.imread(str(path))[..., ::-1])
        assert pages[-1].shape == (500, 1300, 3)
    one, other = pages
    # The crop as it is, enlarged, within its frame.
    shown = one[140:410, 30:318].reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(shown, crop.mean(axis=(0, 1)), atol=6)
    for left, right in ((0, 735), (985, 1300)):  # panels without names
        np.testing.assert_array_equal(one[115:, left:right], other[115:, left:right])
    assert (one[:, 985:1025] == other[:, 985:1025])[70:].all()  # no name has left its column
    assert (one != other).any()


def test_paths_of_pictures(tmp_path):
    images = [tmp_path / name for name in ("a.jpg", "b/a.png", "A.gif", "x\ny.png", "犬.jpg",
                                           "é" * 120 + ".jpg", "é" * 119 + "e.jpg")]
    names = [path.name for path in picture_paths(images, tmp_path / "why")]
    assert names[:5] == ["a.png", "a-2.png", "A-3.png", "x_y.png", "犬.png"]
    assert names[5:] == ["é" * 90 + ".png", "é" * 90 + "-2.png"]
    assert len(set(names)) == len(names)
