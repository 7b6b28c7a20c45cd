"""8-bit networks: files for MXNet and ONNX Runtime that give the float network's answers."""

from __future__ import annotations

import json
from typing import NamedTuple

import mxnet as mx
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import randomize, run_tool
from onnx import numpy_helper

import gluon_resnest
from gluon_resnest.data.augment.transforms import EvaluationTransform
from gluon_resnest.data.images.decoding import decode
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.deploy.calibration import Observed, best_range, observe
from gluon_resnest.deploy.int8 import graph_for_int8, quantize_symbol
from gluon_resnest.deploy.mxnet_graph import fuse, symbol_from_pixels
from gluon_resnest.deploy.onnx_file import normalized
from gluon_resnest.deploy.onnx_graph import onnx_from_pixels, onnx_graph
from gluon_resnest.deploy.onnx_int8 import quantize_onnx
from gluon_resnest.deploy.symbol import import_symbol, save_symbol
from gluon_resnest.errors import InputError

SIZE, CLASSES = 32, 4
BATCH = 24
LARGEST_ERROR, USUAL_ERROR = 0.12, 0.08  # of logits, over the largest and root mean square


class Case(NamedTuple):
    """A network that tells digits apart, and the images it is quantized and tested with."""

    net: gluon_resnest.models.ResNeSt
    batches: list  # normalised, (N, 3, 32, 32)
    crops: np.ndarray  # held out, uint8
    images: np.ndarray  # the same, normalised


def read_digits(path):
    transform = EvaluationTransform(SIZE, 0.875)
    with RecordFile(path) as file:
        records = [file.read(number) for number in range(len(file))]
    crops = np.stack([transform(decode(record.payload)) for record in records])
    return crops


@pytest.fixture(scope="module")
def digit_case(digits) -> Case:
    """Random layers: the hardest case, as no channel is like another, and quick."""
    net = gluon_resnest.get_model("resnest26", classes=CLASSES)
    net.initialize()
    randomize(net, branch_gamma=(0.1, 0.3))
    net.hybridize()
    crops = read_digits(digits / "train.rec")
    images = normalized(crops)
    batches = [images[start:start + BATCH] for start in range(0, len(images), BATCH)]
    crops = read_digits(digits / "val.rec")
    return Case(net, batches[:3], crops[:24], normalized(crops[:24]))


@pytest.fixture(scope="module")
def quantized(digit_case):
    return quantize_symbol(*graph_for_int8(digit_case.net), digit_case.batches)


@pytest.fixture(scope="module")
def symbol_files(quantized, tmp_path_factory):
    return save_symbol(*quantized, tmp_path_factory.mktemp("int8") / "digits")


@pytest.fixture(scope="module")
def onnx_model(digit_case):
    return quantize_onnx(onnx_graph(digit_case.net), digit_case.batches)


def session(model, optimized: bool = True, written=None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if written is not None:
        options.optimized_model_filepath = str(written)
    return onnxruntime.InferenceSession(model.SerializeToString(), options,
                                        providers=["CPUExecutionProvider"])


def by_onnx_runtime(model, **kwargs):
    running = session(model, **kwargs)
    return lambda images: running.run(None, {running.get_inputs()[0].name: images})[0]


def by_mxnet(files, input_name="data"):
    block = fuse(import_symbol(*files, input_name=input_name))
    return lambda images: block(mx.nd.array(images, dtype=images.dtype)).asnumpy()


@pytest.fixture(params=["mxnet", "onnx"])
def forward(request):
    """The quantized network, from normalised images to logits."""
    if request.param == "mxnet":
        return by_mxnet(request.getfixturevalue("symbol_files"))
    return by_onnx_runtime(request.getfixturevalue("onnx_model"))


def float_logits(case):
    return case.net(mx.nd.array(case.images)).asnumpy()


def assert_near(found, expected, largest=LARGEST_ERROR, usual=USUAL_ERROR):
    error = np.abs(found - expected)
    print(f"largest error {error.max() / np.abs(expected).max():.4f}, "
          f"usual {np.sqrt((error ** 2).mean() / (expected ** 2).mean()):.4f}")
    assert error.max() <= largest * np.abs(expected).max()
    assert (error ** 2).mean() <= usual ** 2 * (expected ** 2).mean()


def test_gives_the_float_networks_answers(digit_case, forward):
    expected, found = float_logits(digit_case), forward(digit_case.images)
    # Random layers give one class to nearly all images: their mean is taken away.
    middle = expected.mean(axis=0)
    same = (found - middle).argmax(axis=1) == (expected - middle).argmax(axis=1)
    print(f"top-1 agreement {same.mean():.3f}")
    assert same.mean() >= 0.75  # 0.25 by chance
    assert_near(found, expected)
    assert np.abs(found - expected).max() > 1e-4 * np.abs(expected).max()  # it is not the same


def test_any_batch_and_the_same_every_time(digit_case, forward):
    images = digit_case.images[:7]
    together = forward(images)
    alone = np.concatenate([forward(image[None]) for image in images])
    np.testing.assert_allclose(alone, together, atol=1e-5 * np.abs(together).max())
    np.testing.assert_array_equal(forward(images), together)
    assert forward(np.tile(images[:3], (1, 1, 2, 1))[:, :, :49]).shape == (3, CLASSES)


def test_mxnet_alone_loads_the_files(digit_case, symbol_files, tmp_path):
    np.save(tmp_path / "images.npy", digit_case.images[:5])
    program = tmp_path / "client.py"
    program.write_text(f"""
import sys
import numpy as np
import mxnet as mx
symbol, params = {[str(path) for path in symbol_files]}
net = mx.gluon.SymbolBlock.imports(symbol, ["data"], params)
net.hybridize(static_alloc=True)
logits = net(mx.nd.array(np.load({str(tmp_path / "images.npy")!r}))).asnumpy()
np.save({str(tmp_path / "logits.npy")!r}, logits)
assert "gluon_resnest" not in sys.modules
""", encoding="utf-8")
    run_tool(program)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"),
                               by_mxnet(symbol_files)(digit_case.images[:5]), atol=1e-5)


def test_which_operators_of_the_symbol_are_8_bit(symbol_files):
    nodes = json.loads(symbol_files[0].read_text())["nodes"]
    convolutions = [node for node in nodes if node["op"] == "_sg_mkldnn_conv"]
    quantized = [node for node in convolutions if node["attrs"].get("quantized") == "true"]
    # 3 in the stem, 8 blocks of 7, 4 projections. Float are the first, and the sums behind the
    # projections.
    assert (len(convolutions), len(quantized)) == (63, 63 - 1 - 4)
    assert convolutions[0] not in quantized
    assert not any(node["op"] in ("Convolution", "FullyConnected", "Activation") for node in nodes)


def test_weights_of_the_onnx_file(digit_case, onnx_model):
    original = onnx_graph(digit_case.net)
    assert len(onnx_model.SerializeToString()) < 0.265 * len(original.SerializeToString())
    values = {value.name: numpy_helper.to_array(value) for value in onnx_model.graph.initializer}
    floats = {value.name: numpy_helper.to_array(value) for value in original.graph.initializer}
    names = [name for name in floats if name.endswith("_weight")]
    assert [values[name].dtype == np.int8 for name in names] == [False] + [True] * (len(names) - 1)
    for name in names[1:]:
        step = values[f"{name}_scale"].reshape(-1, *[1] * (floats[name].ndim - 1))
        assert step.size == len(floats[name])
        # Two products of uint8 and these fit into 16 bits, on CPUs that add them there.
        assert 2 * 255 * np.abs(values[name].astype(int)).max() < 2 ** 15
        assert (np.abs(values[name] * step - floats[name]) <= 0.5001 * step).all()


def test_interface_of_the_onnx_file_is_the_float_one(digit_case, onnx_model):
    original = onnx_graph(digit_case.net)
    assert onnx_model.graph.input == original.graph.input  # without weights
    assert onnx_model.graph.output == original.graph.output
    assert onnx_model.opset_import == original.opset_import
    assert onnx_model.ir_version == original.ir_version


def test_onnx_runtime_computes_on_integers(digit_case, onnx_model, tmp_path):
    session(onnx_model, written=tmp_path / "optimized.onnx")
    kinds = [node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node]
    convolutions = sum(node.op_type == "Conv" for node in onnx_model.graph.node)
    assert kinds.count("QLinearConv") == convolutions - 1
    assert kinds.count("Conv") == kinds.count("QGemm") == 1
    assert not {"Relu", "Add", "Gemm", "AveragePool", "GlobalAveragePool"} & set(kinds)


def test_onnx_file_means_the_same_without_fusion(digit_case, onnx_model):
    """Float operators between the roundings, as ONNX defines the file for any runtime."""
    images = digit_case.images[:16]
    assert_near(by_onnx_runtime(onnx_model, optimized=False)(images),
                by_onnx_runtime(onnx_model)(images), usual=0.02)


def test_images_as_pixels(digit_case, quantized, symbol_files, onnx_model, tmp_path):
    files = save_symbol(*symbol_from_pixels(*quantized), tmp_path / "pixels")
    crops, images = digit_case.crops[:9], digit_case.images[:9]
    np.testing.assert_allclose(by_mxnet(files, "pixels")(crops), by_mxnet(symbol_files)(images),
                               atol=1e-2)
    np.testing.assert_allclose(by_onnx_runtime(onnx_from_pixels(onnx_model))(crops),
                               by_onnx_runtime(onnx_model)(images), atol=1e-2)


def test_quantizing_again_gives_the_same(digit_case, onnx_model):
    again = quantize_onnx(onnx_graph(digit_case.net), digit_case.batches)
    assert again.SerializeToString() == onnx_model.SerializeToString()
    symbol, parameters = graph_for_int8(digit_case.net)
    one, other = (quantize_symbol(symbol, parameters, digit_case.batches) for _ in range(2))
    assert calibrated(one[0]) == calibrated(other[0])


def calibrated(symbol):
    """Thresholds in the order of the graph; names count on."""
    return [(node["op"], *(node.get("attrs", {}).get(f"{end}_calib_range")
                           for end in ("min", "max")))
            for node in json.loads(symbol.tojson())["nodes"] if node["op"] != "null"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kwargs"), [
    ("resnest14_1s4x24d", {}), ("resnest14_fast_4s2x40d", {}),
    ("resnest14", {"norm_layer": mx.gluon.nn.GroupNorm}),
])
def test_other_networks(name, kwargs, photos, tmp_path):
    net = gluon_resnest.get_model(name, classes=3, **kwargs)
    net.initialize()
    randomize(net, branch_gamma=(0.1, 0.3))
    images = normalized(np.stack([photo[top:top + 96, left:left + 96] for photo in photos
                                  for top in (0, 200) for left in (0, 150, 400)]))
    expected = net(mx.nd.array(images)).asnumpy()
    files = save_symbol(*quantize_symbol(*graph_for_int8(net), [images]), tmp_path / "net")
    assert_near(by_mxnet(files)(images), expected)
    if not kwargs:  # group normalisation cannot be exported to ONNX
        assert_near(by_onnx_runtime(quantize_onnx(onnx_graph(net), [images]))(images), expected)


# ---- calibration ----


def loss(values, low, high, steps):
    """Mean squared error of 8-bit values, by rounding them one by one."""
    step = (high - low) / steps
    lowest = np.round(low / step)
    return np.mean((step * np.clip(np.round(values / step), lowest, lowest + steps) - values) ** 2)


@pytest.mark.parametrize("symmetric", [True, False])
def test_range_loses_least(rng, symmetric):
    """Long tails are clipped, where that pays; the reference rounds the values themselves."""
    for values in (rng.laplace(size=40_000), np.maximum(rng.normal(1, 3, 40_000), 0) ** 2):
        seen = observe(lambda _, values=values: {"x": values}, [None])["x"]
        low, high = best_range(seen, symmetric)
        if symmetric and values.min() < 0:
            assert low == -high
            whole, steps = (-np.abs(values).max(), np.abs(values).max()), 254
        else:
            whole, steps = (min(values.min(), 0), values.max()), 255
        losses = [loss(values, *(share * end for end in whole), steps)
                  for share in np.linspace(0.2, 1, 81)]
        assert loss(values, low, high, steps) <= 1.05 * min(losses)
        assert high < whole[1]
    even = rng.uniform(0, 1, 40_000)
    assert best_range(observe(lambda _: {"x": even}, [None])["x"], symmetric)[1] > 0.97


def test_range_of_a_tensor_of_zeros():
    low, high = best_range(Observed(0.0, 0.0, np.eye(1, 2048)[0]), symmetric=False)
    assert low == 0
    assert high > 0


@pytest.mark.parametrize(("batches", "message"), [
    ([], "no calibration images: give"),
    ([np.zeros((2, 32, 32, 3), np.uint8)], r"uint8 of shape \(2, 32, 32, 3\): give normalised"),
    ([np.full((1, 3, 32, 32), np.nan, np.float32)], "not finite: normalise"),
])
def test_images_that_are_none(batches, message):
    with pytest.raises(InputError, match=message):
        quantize_symbol(mx.sym.var("data"), {}, batches)
    with pytest.raises(InputError, match=message):
        quantize_onnx(onnx.ModelProto(), batches)


def test_network_of_damaged_weights(digit_case):
    symbol, parameters = graph_for_int8(digit_case.net)
    parameters["conv1_0_weight"][0] = np.inf
    with pytest.raises(InputError, match="not finite on the calibration images"):
        quantize_symbol(symbol, parameters, digit_case.batches)
