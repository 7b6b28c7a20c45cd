"""Fuzzers of what exports hold: model.json, -symbol.json and .onnx."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from fuzzing import fuzz, inputs, mutate, mutate_json, mutations

import gluon_resnest
from gluon_resnest.classifier import load_classifier
from gluon_resnest.deploy import Description, export
from gluon_resnest.deploy.card import sha256

SIZE, CLASSES = 32, 3
CARD, SYMBOL, MODEL = "model.json", "net-symbol.json", "net.onnx"
VALUES = (None, True, False, -1, 0, 1, 2, 7, 255, 10**6, 2**31, 2**63, 10**40, 0.5, -1e-9, 1e308,
          float("nan"), float("inf"), "", "0", "-1", "(0, 0)", "(99999, 1)", "\0", "é", "../x",
          "a" * 5000, [], {}, [[[]]], [0, 0, 0], {"op": "null"})
OPERATORS = ("_Native", "_NDArray", "Custom", "_foreach", "_while_loop", "Pooling", "Convolution",
             "Reshape", "null", "BatchNorm", "_sg_mkldnn_conv", "Deconvolution", "_contrib_TVMOp")
ONNX_OPERATORS = ("Loop", "If", "ConstantOfShape", "Tile", "Expand", "Pad", "Resize", "Range",
                  "Conv", "Relu", "Nothing")
NODES = 40_000  # bytes; a model's nodes come first, then megabytes of numbers


# ---- changes ----


def change_card(content: bytes, rng: random.Random) -> bytes:
    return mutate_json(content, rng, VALUES)


def change_symbol(content: bytes, rng: random.Random) -> bytes:
    """As any JSON; or numbers in attributes, operators and references changed."""
    if rng.random() < 0.5:
        return mutate_json(content, rng, VALUES)
    graph = json.loads(content)
    for _ in range(rng.choice((1, 1, 2))):
        change_node(graph, rng)
    return json.dumps(graph).encode()


def change_node(graph: dict, rng: random.Random) -> None:
    node = rng.choice(graph["nodes"])
    while node["op"] == "null" and rng.random() < 0.7:
        node = rng.choice(graph["nodes"])
    inner = node["subgraphs"][0]["nodes"] if "subgraphs" in node else []
    if inner and rng.random() < 0.5:
        node = rng.choice(inner)
    attributes, kind = node.get("attrs", {}), rng.random()
    if kind < 0.45 and attributes:
        number = rng.choice(("0", "1", "2", "3", "-1", "16", "64", "99999999", "2147483648",
                             "1e30", "nan"))
        attributes[rng.choice(list(attributes))] = rng.choice(
            (number, f"({number}, {number})", f"({number}, 1)", "True", "False", "", "max", "x"))
    elif kind < 0.6:
        node["op"] = rng.choice((*OPERATORS, rng.choice(graph["nodes"])["op"]))
    elif kind < 0.8 and node["inputs"]:
        rng.choice(node["inputs"])[rng.randrange(3)] = rng.choice(
            (0, 1, 2, 5, 50, -1, len(graph["nodes"]), 2**31, 2**32 + 1))
    elif kind < 0.9:
        rng.choice(graph["heads"])[rng.randrange(3)] = rng.choice(
            (0, 1, 7, 99, -1, len(graph["nodes"]) - 2, 2**31))
    else:
        node["inputs"] = node["inputs"][:-1] if rng.random() < 0.5 else node["inputs"] * 2


def change_model(content: bytes, rng: random.Random) -> bytes:
    """As any file; or attributes, operators, shapes and names changed."""
    kind = rng.random()
    if kind < 0.1:
        return mutate(content, rng, [content])
    if kind < 0.4:
        return mutate(content[:NODES], rng, [content[:NODES]]) + content[NODES:]
    model = onnx.load_model_from_string(content)
    for _ in range(rng.choice((1, 1, 2))):
        change_onnx_node(model, rng)
    return model.SerializeToString()


def change_onnx_node(model: onnx.ModelProto, rng: random.Random) -> None:
    graph, kind = model.graph, rng.random()
    node, array = rng.choice(graph.node), rng.choice(graph.initializer)
    if kind < 0.4 and node.attribute:
        attribute = rng.choice(node.attribute)
        number = rng.choice((0, 1, -1, 2, 7, 99, 2**31, 2**62))
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = number
        else:
            attribute.i = number
    elif kind < 0.55:
        node.op_type = rng.choice(ONNX_OPERATORS)
    elif kind < 0.7 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(
            (*rng.choice(graph.node).output, "data", "", "none"))
    elif kind < 0.85 and array.dims:
        array.dims[rng.randrange(len(array.dims))] = rng.choice((0, 1, -1, 2**31, 2**62))
    elif kind < 0.9:
        array.data_location = onnx.TensorProto.EXTERNAL
        array.external_data.add(
            key="location", value=rng.choice(("../model.json", "model.json", "/etc/passwd")))
    elif kind < 0.95:
        model.opset_import[0].version = rng.choice((0, 1, 7, 23, 99, -1))
    else:
        side = rng.choice(graph.input[0].type.tensor_type.shape.dim)
        side.dim_value = rng.choice((0, 1, -1, 2**40))


# ---- readers ----


def read_card(path: Path) -> None:
    classify(path, CARD)


def read_symbol(path: Path) -> None:
    classify(path, SYMBOL)


def read_model(path: Path) -> None:
    classify(path, MODEL)


def classify(path: Path, name: str) -> None:
    """Classify an image with the export beside `path`, which has `path` in place of a file."""
    folder = path.with_name("changed")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in path.with_name("export").iterdir():
        os.link(path if file.name == name else file, folder / file.name)
    if name != CARD:  # a digest guards against damage, and not against malice
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        card["files"][name] = sha256(path)
        (folder / CARD).unlink()
        (folder / CARD).write_text(json.dumps(card), encoding="utf-8")
    load_classifier(str(folder))(np.zeros((1, SIZE, SIZE, 3), np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize(("target", "name", "change", "form"), [
    (read_card, CARD, change_card, "symbol"), (read_card, CARD, change_card, "onnx"),
    (read_symbol, SYMBOL, change_symbol, "symbol"), (read_symbol, SYMBOL, change_symbol, "int8"),
    (read_model, MODEL, change_model, "onnx"), (read_model, MODEL, change_model, "onnx-int8")])
def test_exports(target, name, change, form, tmp_path, seed):
    net = gluon_resnest.get_model("resnest14", classes=CLASSES)
    net.initialize()
    crops = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    export(net, tmp_path / "export", Description("net", SIZE, 0.875, ("a", "b", "é")), crops, form,
           calibration=crops, least_agreement=0)
    content = (tmp_path / "export" / name).read_bytes()
    counts = fuzz(target, mutations([content], inputs(), seed, change), tmp_path,
                  f"-{name}")
    assert counts["refused"] > inputs() / 2  # else the changes would not reach the reader
    assert counts["accepted"] > 0
