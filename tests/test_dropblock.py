"""DropBlock against its formulas: shares, blocks, scales and gradients, in every mode of MXNet."""

from __future__ import annotations

import json
import warnings

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon
from mxnet.gluon import nn

from gluon_resnest.deploy.symbol import import_symbol
from gluon_resnest.layers import dropblock
from gluon_resnest.layers.dropblock import DropBlock, scheduled_drop_prob, without_dropblock

SIGMAS = 5.5  # of a share measured in independent maps
MODES = [None, {}, {"static_alloc": True}, {"static_alloc": True, "static_shape": True}]


def hybridize(block: nn.HybridBlock, mode: dict | None) -> nn.HybridBlock:
    if mode is not None:
        block.hybridize(**mode)
    return block


def train(block, x: mx.nd.NDArray) -> mx.nd.NDArray:
    with autograd.record():
        return block(x)


def dropped_cells(block, shape: tuple[int, ...]) -> np.ndarray:
    """Where a training step drops, boolean."""
    return train(block, mx.nd.ones(shape)).asnumpy() == 0


def assert_share(values: np.ndarray, expected: float) -> None:
    """The mean over maps (N, C, ...) is `expected`, within their own scatter."""
    maps = values.mean(axis=(2, 3)).ravel()
    error = maps.std() / np.sqrt(len(maps))
    assert abs(maps.mean() - expected) < SIGMAS * error, f"{maps.mean()} +- {error}: {expected}"


def small_net(drop_prob: float | None = 0.3, in_channels: int = 3) -> nn.HybridSequential:
    """Dilated convolution and batch normalisation, with DropBlock unless `drop_prob` is None."""
    net = nn.HybridSequential(prefix="net_")
    with net.name_scope():
        net.add(nn.Conv2D(16, 3, padding=2, dilation=2, in_channels=in_channels),
                nn.BatchNorm(in_channels=16 if in_channels else 0))
        if drop_prob is not None:
            net.add(DropBlock(drop_prob), DropBlock(drop_prob))
    net.initialize(mx.init.Normal(1))
    return net


def noise(rng, *shape: int) -> mx.nd.NDArray:
    return mx.nd.array(rng.standard_normal(shape))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", ["training", "inference"])
def test_one_graph_for_training_and_inference(mode, first, rng):
    block = hybridize(DropBlock(0.3), mode)
    if first == "training":
        train(block, noise(rng, 1, 3, 6, 6))
    for shape in [(2, 8, 14, 14), (3, 8, 7, 7), (2, 8, 14, 14), (2, 8, 5, 9), (1, 400, 1, 1)]:
        x = noise(rng, *shape)
        x[0, 0, 0, 0] = np.inf
        np.testing.assert_array_equal(block(x).asnumpy(), x.asnumpy())
        first_mask, second_mask = (train(block, x).asnumpy() == 0 for _ in range(2))
        assert first_mask.any()
        assert (first_mask != second_mask).any()
        with autograd.record(train_mode=False):
            np.testing.assert_array_equal(block(x).asnumpy(), x.asnumpy())


@pytest.mark.parametrize("size", [(14, 14), (7, 7), (5, 9), (2, 2), (1, 1)])
@pytest.mark.parametrize(("drop_prob", "block_size"),
                         [(0.1, 3), (0.02, 3), (0.6, 2), (0.1, 5), (0.2, 1)])
def test_drops_the_requested_share_of_every_cell(size, drop_prob, block_size):
    dropped = dropped_cells(DropBlock(drop_prob, block_size), (16, 256, *size))
    assert_share(dropped, drop_prob)
    error = np.sqrt(drop_prob * (1 - drop_prob) / (16 * 256))  # of one cell: corner or middle
    assert np.abs(dropped.mean(axis=(0, 1)) - drop_prob).max() < SIGMAS * error


@pytest.mark.parametrize("block_size", [2, 3, 4])
def test_drops_blocks(block_size):
    """Each dropped cell lies in a block dropped as a whole; blocks are clipped by the border."""
    dropped = dropped_cells(DropBlock(0.1, block_size), (4, 64, 9, 12))
    side = block_size - 1
    wide = np.pad(dropped, ((0, 0), (0, 0), (side, side), (side, side)), constant_values=True)
    offsets = [(i, j) for i in range(block_size) for j in range(block_size)]
    rows, columns = 9 + side, 12 + side
    whole = np.all([wide[:, :, i:i + rows, j:j + columns] for i, j in offsets], axis=0)
    covered = np.any([whole[:, :, i:i + 9, j:j + 12] for i, j in offsets], axis=0)
    np.testing.assert_array_equal(covered, dropped)
    assert 0 < dropped.mean() < 0.5


@pytest.mark.parametrize(("down", "right"), [(0, 1), (1, 1), (2, 1), (0, 3), (5, 5)])
def test_neighbours_share_seeds(down, right):
    """Both of two cells stay if the union of their blocks has no seed."""
    drop_prob = 0.2
    kept = ~dropped_cells(DropBlock(drop_prob), (16, 256, 14, 14))
    both = kept[:, :, down:, right:] & kept[:, :, :14 - down, :14 - right]
    common = max(0, 3 - down) * max(0, 3 - right)
    assert_share(both, (1 - drop_prob) ** ((9 + 9 - common) / 9))


@pytest.mark.parametrize("axis", [0, 1])
def test_images_and_channels_have_masks_of_their_own(axis):
    dropped = dropped_cells(DropBlock(0.3), (64, 64, 7, 7))
    both = np.take(dropped, range(0, 64, 2), axis) & np.take(dropped, range(1, 64, 2), axis)
    assert_share(both, 0.3**2)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_kept_is_scaled_by_image_and_so_is_the_gradient(mode, rng):
    block = hybridize(DropBlock(0.3), mode)
    x = noise(rng, 5, 4, 7, 6)
    x.attach_grad()
    head = noise(rng, *x.shape)
    output = train(block, x)
    block.set_drop_prob(0.9)  # too late for this step
    output.backward(head)
    kept = output.asnumpy() != 0
    scale = 4 * 7 * 6 / kept.sum(axis=(1, 2, 3), keepdims=True)
    assert len(np.unique(scale)) > 1
    np.testing.assert_allclose(output.asnumpy(), x.asnumpy() * kept * scale, rtol=1e-6)
    np.testing.assert_allclose(x.grad.asnumpy(), head.asnumpy() * kept * scale, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_the_probability_changes_without_a_new_trace(mode):
    net = nn.HybridSequential()
    net.add(DropBlock(0), DropBlock(0))
    hybridize(net, mode)
    ones = mx.nd.ones((16, 64, 14, 14))
    np.testing.assert_array_equal(train(net, ones).asnumpy(), 1)
    graph = net._cached_op
    assert (graph is None) == (mode is None)
    for drop_prob in (0.1, 0.4, 0.0, 0.05):
        dropblock.set_drop_prob(net, drop_prob)
        assert [layer.drop_prob for layer in net] == [drop_prob] * 2
        output = train(net, ones)
        if drop_prob == 0:
            np.testing.assert_array_equal(output.asnumpy(), 1)
        else:
            assert_share(output.asnumpy() == 0, 1 - (1 - drop_prob) ** 2)
        assert net._cached_op is graph
    with autograd.record():
        dropblock.set_drop_prob(net, 0.3)
        assert (net(ones).asnumpy() == 0).any()


@pytest.mark.parametrize("mode", MODES[::2])
def test_nearly_everything_dropped_is_finite(mode, rng):
    block = hybridize(DropBlock(1 - 1e-12), mode)
    x = noise(rng, 8, 3, 4, 4)
    x.attach_grad()
    output = train(block, x)
    output.backward()
    np.testing.assert_array_equal(output.asnumpy(), 0)
    np.testing.assert_array_equal(x.grad.asnumpy(), 0)
    block.set_drop_prob(0.99)
    for shape in [(64, 64, 1, 1), (64, 16, 2, 2), (16, 64, 14, 14)]:
        output = train(block, mx.nd.ones(shape)).asnumpy()
        assert np.isfinite(output).all()
        assert_share(output == 0, 0.99)


@pytest.mark.parametrize("mode", MODES[::2])
def test_float16(mode):
    block = hybridize(DropBlock(0.1), mode)
    block.cast("float16")
    x = mx.nd.ones((16, 256, 7, 7), dtype="float16")
    output = train(block, x)
    assert output.dtype == block(x).dtype == np.float16
    np.testing.assert_array_equal(block(x).asnumpy(), 1)
    assert_share(output.asnumpy() == 0, 0.1)


@pytest.mark.parametrize("in_channels", [3, 0])  # 0: shapes are inferred by the first call
@pytest.mark.parametrize("mode", MODES[::2])
def test_no_one_sees_a_parameter(in_channels, mode, rng, tmp_path):
    net = hybridize(small_net(in_channels=in_channels), mode)
    plain = small_net(None, in_channels)
    x = noise(rng, 2, 3, 8, 8)
    if in_channels == 0:
        plain(x)
        net.infer_shape(x)  # traces net, too
    trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1})
    train(net, x).backward()
    before = net[1].beta.data().asnumpy()
    trainer.step(2)
    assert (net[1].beta.data().asnumpy() != before).any()
    assert list(net.collect_params()) == list(plain.collect_params())
    assert list(net.collect_params(".*rate|.*weight")) == ["net_conv0_weight"]

    net.save_parameters(str(tmp_path / "net.params"))
    plain.save_parameters(str(tmp_path / "plain.params"))
    assert set(mx.nd.load(str(tmp_path / "net.params"))) == {
        "0.weight", "0.bias", "1.gamma", "1.beta", "1.running_mean", "1.running_var"}
    net.load_parameters(str(tmp_path / "plain.params"))
    np.testing.assert_allclose(net(x).asnumpy(), plain(x).asnumpy(), rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_several_devices_follow_the_probability(mode, rng):
    net = hybridize(small_net(), mode)
    devices = [mx.cpu(1), mx.cpu(2)]
    x = noise(rng, 2, 3, 8, 8)
    train(net, x)
    net.collect_params().reset_ctx(devices)
    for drop_prob in (0.5, 0.0):
        dropblock.set_drop_prob(net, drop_prob)
        outputs = [train(net, x.as_in_context(device)) for device in devices]
        assert [output.context for output in outputs] == devices
        assert np.array_equal(*(output.asnumpy() for output in outputs)) == (drop_prob == 0)


def test_as_a_symbol_it_needs_no_more_than_data(rng):
    block = DropBlock(0.2)
    symbol = block(mx.sym.var("data"))
    assert symbol.list_inputs() == ["data"]
    x = mx.nd.ones((16, 64, 7, 7))
    # MXNet takes an executor without gradients for inference.
    executor = symbol.bind(mx.cpu(), {"data": x}, args_grad={"data": mx.nd.zeros_like(x)})
    assert_share(executor.forward(is_train=True)[0].asnumpy() == 0, 0.2)
    np.testing.assert_array_equal(executor.forward(is_train=False)[0].asnumpy(), 1)

    net = small_net()  # the way of GluonCV's feature extractors
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MXNet cannot tell the type of `data`
        features = gluon.SymbolBlock(net(mx.sym.var("data")), [mx.sym.var("data")],
                                     params=net.collect_params())
    features.hybridize()
    x = noise(rng, 2, 3, 8, 8)
    np.testing.assert_allclose(features(x).asnumpy(), net(x).asnumpy(), rtol=1e-6)
    assert (train(features, x).asnumpy() != train(features, x).asnumpy()).any()

    block.set_drop_prob(0)
    assert block(mx.sym.var("data")).get_internals().list_outputs() == ["data"]


def exported(net, path) -> list[str]:
    """Operators and variables of the exported graph; checks that it holds them and no more."""
    net.export(str(path))
    nodes = json.loads(path.with_name(f"{path.name}-symbol.json").read_text())["nodes"]
    variables = {node["name"] for node in nodes if node["op"] == "null"} - {"data"}
    values = mx.nd.load(f"{path}-0000.params")
    assert {name.split(":")[1] for name in values} == variables
    return [node["op"] for node in nodes] + sorted(variables)


@pytest.mark.parametrize("mode", MODES[1:])
def test_nothing_is_left_of_it_in_an_exported_graph(mode, rng, tmp_path):
    net, plain = hybridize(small_net(), mode), hybridize(small_net(None), mode)
    x = noise(rng, 2, 3, 8, 8)
    train(net, x)
    plain(x)
    with without_dropblock(net):
        net(x)
        assert exported(net, tmp_path / "net") == exported(plain, tmp_path / "plain")
    again = import_symbol(tmp_path / "net-symbol.json", tmp_path / "net-0000.params")
    np.testing.assert_array_equal(again(x).asnumpy(), net(x).asnumpy())
    assert (train(net, x).asnumpy() != train(net, x).asnumpy()).any()
    net(x)
    assert "_random_uniform_like" in exported(net, tmp_path / "full")  # so the test can fail


def test_an_error_inside_brings_it_back():
    block = hybridize(DropBlock(0.5), {})
    with without_dropblock(block):
        with pytest.raises(KeyError), without_dropblock(block):
            raise KeyError
        assert not dropped_cells(block, (8, 8, 4, 4)).any()
    assert dropped_cells(block, (8, 8, 4, 4)).any()


def test_schedule_is_linear_from_zero():
    for epoch in (0, 100, 269):  # the published scripts: final (epoch + 1) / epochs
        value = scheduled_drop_prob(40 * (epoch + 1), 40 * 270, 0.1)
        assert value == pytest.approx(0.1 * (epoch + 1) / 270)
    assert [scheduled_drop_prob(step, 10, 0.25) for step in (0, 4, 10)] == [0, 0.1, 0.25]
    for step, total in [(-1, 10), (11, 10), (0, 0)]:
        with pytest.raises(ValueError, match=f"step {step} .* total_steps {total}"):
            scheduled_drop_prob(step, total, 0.1)


@pytest.mark.parametrize(("arguments", "words"), [
    ((1.0,), r"drop_prob 1\.0 must be"), ((-0.1,), "drop_prob -0.1 must be"),
    ((float("nan"),), "drop_prob nan"), ((0.1, 0), "block_size 0"), ((0.1, 2.5), "block_size 2.5"),
])
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        DropBlock(*arguments)
