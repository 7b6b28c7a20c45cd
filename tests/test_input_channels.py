"""RGB weights in networks for other numbers of channels, against timm's; and where they are not."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from conftest import ROOT, run_tool
from programs.torch_random_weights import images
from test_torch_weights import peer_state

import gluon_resnest
from gluon_resnest.classifier import load_classifier
from gluon_resnest.deploy.exporting import Description, export
from gluon_resnest.errors import InputError
from gluon_resnest.models import find_variant, load_weights, save_weights
from gluon_resnest.models.weights.files import load_arrays, read_params
from gluon_resnest.models.weights.input_channels import adapt_input_weight
from gluon_resnest.models.weights.torch_names import write_state_dict
from gluon_resnest.tasks.classification.distillation import teacher_network

# What timm's resnest14d makes of the weights of random_state() for other numbers of channels, and
# its logits for images(channels): written by tests/programs/make_torch_golden.py.
TIMM = np.load(ROOT / "tests/data/torch_channels.npz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of resnest14: rgb.params, rgb-0000.params, rgb.pth; gray.params and four.params."""
    folder = tmp_path_factory.mktemp("channels")
    net = gluon_resnest.get_model("resnest14")
    load_arrays(net, peer_state("resnest14"), "timm")
    save_weights(net, folder / "rgb.params")
    net.hybridize()
    net.export(str(folder / "rgb"))
    write_state_dict(folder / "rgb.pth", read_params(folder / "rgb.params"))
    for name, channels in (("gray", 1), ("four", 4)):
        net = gluon_resnest.get_model("resnest14", in_channels=channels,
                                      pretrained=folder / "rgb.params")
        save_weights(net, folder / f"{name}.params")
    return folder


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_weights_and_logits_are_those_of_timm(folder: Path, channels: int) -> None:
    net = gluon_resnest.get_model("resnest14", in_channels=channels,
                                  pretrained=folder / "rgb.params")
    weight = net.conv1[0].weight.data().asnumpy()
    np.testing.assert_allclose(weight, TIMM[f"weight{channels}"], rtol=0, atol=2e-7)
    logits = net(mx.nd.array(images(channels))).asnumpy()
    expected = TIMM[f"logits{channels}"]
    assert 1 < expected.std() < 4
    assert np.abs(logits - expected).max() < 1e-4


@pytest.mark.parametrize("file", ["rgb.params", "rgb-0000.params", "rgb.pth"])
def test_every_kind_of_file(folder: Path, file: str) -> None:
    net = gluon_resnest.get_model("resnest14", in_channels=4, classes=3, pretrained=folder / file)
    np.testing.assert_allclose(net.conv1[0].weight.data().asnumpy(), TIMM["weight4"],
                               rtol=0, atol=2e-7)
    features = gluon_resnest.get_model("resnest14", in_channels=1, features_only=True,
                                       pretrained=folder / file)
    np.testing.assert_allclose(features.conv1[0].weight.data().asnumpy(), TIMM["weight1"],
                               rtol=0, atol=2e-7)


def test_what_the_rule_keeps(folder: Path, rng) -> None:
    """Grey as one channel is grey in three; an image twice, in six channels, is the image."""
    rgb = gluon_resnest.get_model("resnest14", pretrained=folder / "rgb.params")
    gray = gluon_resnest.get_model("resnest14", in_channels=1, pretrained=folder / "rgb.params")
    six = gluon_resnest.get_model("resnest14", in_channels=6, pretrained=folder / "rgb.params")
    image = rng.normal(0, 1, (2, 1, 64, 64)).astype(np.float32)
    np.testing.assert_allclose(gray(mx.nd.array(image)).asnumpy(),
                               rgb(mx.nd.array(image.repeat(3, axis=1))).asnumpy(), atol=2e-5)
    image = rng.normal(0, 1, (2, 3, 64, 64)).astype(np.float32)
    np.testing.assert_allclose(six(mx.nd.array(np.tile(image, (1, 2, 1, 1)))).asnumpy(),
                               rgb(mx.nd.array(image)).asnumpy(), atol=2e-5)


def test_the_rule_by_hand() -> None:
    weight = np.array([1, 2, 4], np.float16).reshape(1, 3, 1, 1)
    for channels, expected in ((1, [7]), (2, [1.5, 3]), (3, [1, 2, 4]), (4, [.75, 1.5, 3, .75]),
                               (6, [.5, 1, 2, .5, 1, 2])):
        found = adapt_input_weight(weight, channels)
        assert found.dtype == np.float16
        assert found.ravel().tolist() == expected


@pytest.mark.parametrize(("channels", "words"), [
    (1, "the first convolution's weights for RGB were added up for images of 1 channel"),
    (4, "the first convolution's weights for RGB were repeated over 4 channels and multiplied by "
        "3/4"),
])
def test_the_log_says_so_once(
    folder: Path, caplog: pytest.LogCaptureFixture, channels: int, words: str
) -> None:
    path = folder / "rgb.params"
    with caplog.at_level(logging.INFO):
        gluon_resnest.get_model("resnest14", pretrained=path)
        assert not caplog.messages
        net = gluon_resnest.get_model("resnest14", in_channels=channels, pretrained=path)
        assert caplog.messages == [f"{path}: {words}"]
        # Weights of such a network are loaded as they are, without a word.
        expected = net.conv1[0].weight.data().asnumpy()
        load_weights(net, folder / ("gray.params" if channels == 1 else "four.params"))
        np.testing.assert_array_equal(net.conv1[0].weight.data().asnumpy(), expected)
        assert len(caplog.messages) == 1


def test_load_weights_adapts_where_it_is_asked_to(folder: Path) -> None:
    net = gluon_resnest.get_model("resnest14", in_channels=4)
    net.initialize()
    with pytest.raises(InputError, match=r"rgb.params has weights for RGB images \(3 channels\), "
                       r"and the network takes images of 4 channels: adapt them with get_model\("
                       r"..., in_channels=4, pretrained=FILE\) or load_weights\(..., "):
        load_weights(net, folder / "rgb.params")
    load_weights(net, folder / "rgb.params", adapt_input=True)
    np.testing.assert_allclose(net.conv1[0].weight.data().asnumpy(), TIMM["weight4"],
                               rtol=0, atol=2e-7)
    # Another model is another model, whatever its channels.
    with pytest.raises(InputError, match=r"rgb.params is not of this model: .*lacks 92"):
        gluon_resnest.get_model("resnest26", in_channels=1, pretrained=folder / "rgb.params")


@pytest.mark.parametrize(("file", "channels", "words"), [
    ("four.params", 3, "weights for images of 4 channels, and the network takes RGB images"),
    ("gray.params", 3, "weights for images of 1 channel, and the network takes RGB images"),
    ("four.params", 1, "weights for images of 4 channels, and the network takes images of 1 chan"),
])
def test_weights_of_other_images_are_refused(
    folder: Path, file: str, channels: int, words: str
) -> None:
    held = 4 if file == "four.params" else 1
    with pytest.raises(InputError, match=rf"{file} has {words}.*: weights for 3 channels alone "
                       rf"can be adapted.*in_channels={held}; the command-line tools take RGB"):
        gluon_resnest.get_model("resnest14", in_channels=channels, pretrained=folder / file)


def test_published_weights_are_offered_for_any_channels() -> None:
    published = find_variant("resnest14").published
    for channels in (1, 3, 8):
        variant = find_variant("resnest14", in_channels=channels)
        assert variant.published.sha1 == published.sha1
        assert variant.published.top1 == (published.top1 if channels == 3 else None)
    assert find_variant("resnest14", stem_width=64).published.sha1 is None


def test_a_teacher_is_never_adapted(folder: Path) -> None:
    with pytest.raises(InputError, match=r"gray.params has weights for images of 1 channel"):
        teacher_network("resnest14", folder / "gray.params", 1000, mx.cpu())
    with pytest.raises(InputError, match=r"teacher's weights .*rgb.params know 1000 classes, the "
                       "run has 5: give --teacher-params"):
        teacher_network("resnest14", folder / "rgb.params", 5, mx.cpu())


def test_tools_take_rgb_and_say_so(folder: Path) -> None:
    with pytest.raises(InputError, match=r"four.params has weights for images of 4 channels.*the "
                       "command-line tools take RGB images only"):
        load_classifier("resnest14", folder / "four.params")
    net = gluon_resnest.get_model("resnest14", in_channels=4, pretrained=folder / "four.params")
    with pytest.raises(InputError, match=r"resnest14 takes images of 4 channels, and exported "
                       r"files are for RGB photographs: .*net.export"):
        export(net, folder / "exported", Description("resnest14", 64, 0.875),
               np.zeros((1, 64, 64, 3), np.uint8))
    assert not (folder / "exported").exists()
    net.hybridize()
    net.export(str(folder / "other"))
    with warnings.catch_warnings():  # about operators of MXNet's NumPy interface
        warnings.simplefilter("ignore")
        again = mx.gluon.SymbolBlock.imports(
            str(folder / "other-symbol.json"), ["data"], str(folder / "other-0000.params"))
    image = mx.nd.array(images(4))
    np.testing.assert_allclose(again(image).asnumpy(), TIMM["logits4"], atol=1e-4)


def test_weights_are_converted_with_the_channels_they_have(folder: Path, tmp_path: Path) -> None:
    run_tool("scripts/convert_weights.py", folder / "four.params", tmp_path / "four.pth",
             "--model", "resnest14")
    state = read_params(tmp_path / "four.pth")
    assert state["conv1.0.weight"].shape == (32, 4, 3, 3)
    np.testing.assert_array_equal(state["conv1.0.weight"],
                                  read_params(folder / "four.params")["conv1.0.weight"])
