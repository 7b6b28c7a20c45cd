"""Parameters, multiply-adds and activations: published tables, counts by hand and by hooks."""

from __future__ import annotations

import json
import time

import mxnet as mx
import numpy as np
import pytest
from conftest import ROOT, run_tool
from mxnet.gluon import nn

from gluon_resnest.errors import InputError
from gluon_resnest.layers import GroupNorm
from gluon_resnest.models import get_model, list_models
from gluon_resnest.planning.cost import summary

# Counted on GluonCV's and the ResNeSt repository's networks: model, size, trainable parameters,
# running statistics, 1e9 multiply-adds.
COUNTED = [
    ("resnest14", 224, 10_611_688, 22_336, 2.749),
    ("resnest26", 224, 17_069_448, 36_736, 3.623),
    ("resnest50", 224, 27_483_240, 64_576, 5.371),
    ("resnest101", 224, 48_275_016, 130_112, 10.201),
    ("resnest101", 256, 48_275_016, 130_112, 13.321),
    ("resnest200", 224, 70_201_544, 218_432, 17.408),
    ("resnest200", 320, 70_201_544, 218_432, 35.520),
    ("resnest269", 224, 110_929_480, 314_432, 22.434),
    ("resnest269", 416, 110_929_480, 314_432, 77.349),
    ("resnest50_fast_1s1x64d", 224, 26_217_896, 55_232, 4.329),
    ("resnest50_fast_2s1x64d", 224, 27_483_240, 64_576, 4.331),
    ("resnest50_fast_4s1x64d", 224, 31_912_712, 83_456, 4.335),
    ("resnest50_fast_1s2x40d", 224, 25_946_680, 59_456, 4.365),
    ("resnest50_fast_2s2x40d", 224, 26_943_792, 71_184, 4.366),
    ("resnest50_fast_4s2x40d", 224, 30_417_592, 94_784, 4.369),
    ("resnest50_fast_1s4x24d", 224, 25_677_000, 63_680, 4.400),
]

# timm's table for its ports of the same networks (results/benchmark-infer-amp-nchw-pt113-cu117-
# rtx3090.csv): activations in millions.
TIMM_ACTIVATIONS = {
    "resnest14": 7.33, "resnest26": 9.97, "resnest50": 14.36, "resnest101": 28.66,
    "resnest200": 82.78, "resnest269": 171.98, "resnest50_fast_1s4x24d": 13.57,
    "resnest50_fast_4s2x40d": 17.94,
}


@pytest.mark.parametrize("row", COUNTED, ids=lambda row: f"{row[0]}-{row[1]}")
def test_totals_are_those_of_the_published_networks(row):
    model, size, parameters, statistics, gmacs = row
    found = summary(model, size)
    assert (found.parameters, found.statistics) == (parameters, statistics)
    assert found.multiply_adds / 1e9 == pytest.approx(gmacs, rel=1e-3)


def test_every_model_of_the_table_was_counted():
    assert {model for model, *_ in COUNTED} == set(list_models())


@pytest.mark.parametrize("model", TIMM_ACTIVATIONS)
def test_activations_are_timms(model):
    assert summary(model).activations / 1e6 == pytest.approx(TIMM_ACTIVATIONS[model], abs=0.005)


def multiply_adds_while_running(net, shape: tuple[int, ...]) -> tuple[int, int]:
    """Multiply-adds and activations by hooks on a real forward pass."""
    counts = []

    def count(layer, inputs, output):
        weight = layer.weight.shape
        places = output.shape[0] * int(np.prod(output.shape[2:]))
        counts.append((places * int(np.prod(weight)), output.size))

    def hook(layer):
        if isinstance(layer, (nn.Conv2D, nn.Dense)):
            layer.register_forward_hook(count)

    net.initialize()
    net.apply(hook)
    net(mx.nd.zeros(shape)).wait_to_read()
    return tuple(map(sum, zip(*counts)))


@pytest.mark.parametrize(("model", "shape", "keywords"), [
    ("resnest14", (1, 3, 64, 64), {}),
    ("resnest14", (3, 3, 75, 97), {"classes": 7}),
    ("resnest26", (2, 3, 33, 65), {"radix": 4, "cardinality": 2, "width": 40}),
    ("resnest50_fast_0s1x64d", (1, 3, 64, 64), {}),
    ("resnest14", (1, 5, 64, 64), {"in_channels": 5}),
    ("resnest14", (1, 3, 64, 64), {"output_stride": 8}),
])
def test_totals_are_those_of_a_real_forward_pass(model, shape, keywords):
    net = get_model(model, **keywords)
    found = summary(net, shape[2:], batch=shape[0])
    assert found.input_shape == shape
    assert (found.multiply_adds, found.activations) == multiply_adds_while_running(net, shape)
    trainable = [parameter for parameter in net.collect_params().values()
                 if parameter.grad_req != "null"]
    assert found.parameters == sum(parameter.data().size for parameter in trainable)


def test_layers_by_hand():
    net = nn.HybridSequential()
    net.add(
        nn.Conv2D(8, 3, strides=2, padding=1, groups=2, in_channels=4, use_bias=False),
        nn.BatchNorm(in_channels=8),
        nn.Activation("relu"),
        nn.Conv2DTranspose(6, 4, strides=2, padding=1, in_channels=8),
        nn.Flatten(),
        nn.Dense(5),
    )
    found = summary(net, (16, 12), batch=2)
    assert found.input_shape == (2, 4, 16, 12)
    assert [(layer.name, layer.output_shape, layer.parameters, layer.statistics,
             layer.multiply_adds, layer.activations) for layer in found.layers] == [
        ("0", (2, 8, 8, 6), 8 * 2 * 9, 0, 2 * 8 * 6 * 8 * 2 * 9, 2 * 8 * 8 * 6),
        ("1", (2, 8, 8, 6), 16, 16, 0, 0),
        ("2", (2, 8, 8, 6), 0, 0, 0, 0),
        ("3", (2, 6, 16, 12), 8 * 6 * 16 + 6, 0, 2 * 8 * 6 * 8 * 6 * 16, 2 * 6 * 16 * 12),
        ("4", (2, 6 * 16 * 12), 0, 0, 0, 0),
        ("5", (2, 5), 5 * 6 * 16 * 12 + 5, 0, 2 * 5 * 6 * 16 * 12, 10),
    ]
    assert [layer.type for layer in found.layers] == [
        "Conv2D", "BatchNorm", "Activation", "Conv2DTranspose", "Flatten", "Dense"]


def test_a_layer_used_twice_works_twice_and_is_stored_once():
    class Twice(nn.HybridSequential):
        def hybrid_forward(self, F, x):
            return self[1](self[0](self[0](x)))

    net = Twice()
    net.add(nn.Conv2D(3, 3, strides=2, padding=1, in_channels=3, use_bias=False), nn.Dense(2))
    found = summary(net, 8)
    weights = 3 * 3 * 9
    assert [layer.output_shape for layer in found.layers] == [(1, 3, 4, 4), (1, 3, 2, 2), (1, 2)]
    assert found.parameters == weights + 3 * 2 * 2 * 2 + 2
    assert found.multiply_adds == weights * (16 + 4) + 3 * 2 * 2 * 2


@pytest.mark.parametrize(("norm_layer", "norm_kwargs"), [
    (mx.gluon.contrib.nn.SyncBatchNorm, {"num_devices": 1}),
    (GroupNorm, {"num_groups": 8}),
])
def test_other_normalisation_has_the_same_names(norm_layer, norm_kwargs):
    net = get_model("resnest14", norm_layer=norm_layer, norm_kwargs=norm_kwargs)
    usual, found = summary("resnest14", 64), summary(net, 64)
    assert [layer.name for layer in found.layers if layer.parameters] == [
        layer.name for layer in usual.layers if layer.parameters]
    assert found.parameters == usual.parameters
    assert found.statistics == (0 if norm_layer is GroupNorm else usual.statistics)


def test_features_have_no_classifier():
    net = get_model("resnest14", features_only=True)
    whole, found = summary("resnest14", 64), summary(net, 64)
    classifier = 2048 * 1000
    assert found.multiply_adds == whole.multiply_adds - classifier
    assert found.parameters == whole.parameters - classifier - 1000


def test_largest_network_needs_neither_time_nor_weights():
    net = get_model("resnest269")
    started = time.process_time()
    summary(net, 416)
    assert time.process_time() - started < 1
    assert all(parameter._data is None for parameter in net.collect_params().values())


def test_table_and_dictionary_hold_the_same():
    cost = summary("resnest14", 64)
    lines = str(cost).splitlines()
    assert len(lines) == len(cost.layers) + 4
    assert lines[-1].split()[-3:] == ["10,611,688", f"{cost.multiply_adds:,}",
                                      f"{cost.activations:,}"]
    assert all(len(line) == len(lines[0]) for line in lines)
    found = json.loads(json.dumps(cost.as_dict()))
    assert found["input_shape"] == [1, 3, 64, 64]
    assert sum(layer["parameters"] for layer in found["layers"]) == found["parameters"]
    names = {layer["name"] for layer in found["layers"]}
    weights = {name.rpartition(".")[0] for name in get_model("resnest14")
               ._collect_params_with_prefix()}
    assert weights <= names


@pytest.mark.parametrize(("arguments", "words"), [
    (("resnest15",), "unknown model 'resnest15'"),
    (("resnest14", 16), "input_size 16 is too small"),
    (("resnest14", (64, 64, 3)), "must be a side or "),
    (("resnest14", 64, 0), "batch 0 must be at least 1"),
    ((nn.HybridSequential(),), "no test size of its own: give input_size"),
    ((mx.gluon.nn.Sequential(), 64), "Sequential is no hybridizable network"),
])
def test_bad_input_is_named(arguments, words):
    with pytest.raises(InputError, match=words):
        summary(*arguments)


def between_markers(path, command: str) -> str:
    start, end = f"<!-- written by: {command} -->\n", "\n<!-- end -->"
    return path.read_text(encoding="utf-8").split(start)[1].split(end)[0]


@pytest.mark.parametrize("command", [
    "scripts/benchmark.py cost --markdown",
    "train_imagenet.py --recipe list",
])
def test_tables_of_the_documentation_are_what_the_commands_print(command):
    printed = run_tool(*command.split()).stdout.strip("\n")
    assert between_markers(ROOT / "docs" / "models.md", f"python {command}") == printed


def test_command_line_prints_json_and_layers():
    done = run_tool("scripts/benchmark.py", "cost", "--model", "resnest14", "resnest50",
                    "--input-size", "64", "--json", "--layers")
    small, large = json.loads(done.stdout)
    assert (small["model"], small["parameters"]) == ("resnest14", 10_611_688)
    assert large["parameters"] == sum(layer["parameters"] for layer in large["layers"])
    assert small["published_top1"] is None  # published for 224 px, not for 64


def test_command_line_refuses_a_tiny_input():
    done = run_tool("scripts/benchmark.py", "cost", "--input-size", "16", code=2)
    assert "--input-size 16 is too small" in done.stderr
