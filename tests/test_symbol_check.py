"""A hostile -symbol.json is refused before MXNet's parser, which trusts it, sees it."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import cv2
import mxnet as mx
import numpy as np
import pytest
from conftest import randomize, run_tool

import gluon_resnest
from gluon_resnest.deploy import Description, export
from gluon_resnest.deploy.card import sha256
from gluon_resnest.deploy.int8 import graph_for_int8, quantize_symbol
from gluon_resnest.deploy.mxnet_graph import symbol_from_pixels
from gluon_resnest.deploy.symbol import import_symbol, save_symbol, write_symbol
from gluon_resnest.errors import InputError

SIZE, CLASSES = 64, 4
SYMBOL, PARAMS = "resnest14-symbol.json", "resnest14-0000.params"


def network(name="resnest14", **kwargs):
    net = gluon_resnest.get_model(name, classes=CLASSES, **kwargs)
    net.initialize()
    randomize(net, branch_gamma=(0.1, 0.3))
    return net


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folders symbol/ and int8/."""
    folder, net = tmp_path_factory.mktemp("exported"), network()
    crops = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    for form in ("symbol", "int8"):
        export(net, folder / form, Description("resnest14", SIZE, 0.875), crops, form,
               calibration=crops, least_agreement=0)
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    return Path(shutil.copytree(exported / "symbol", tmp_path / "out"))


def load(folder: Path):
    return import_symbol(folder / SYMBOL, folder / PARAMS, image_shape=(3, SIZE, SIZE),
                         classes=CLASSES)


def edit(folder: Path, change) -> None:
    """Change the symbol, and its digest in the card too."""
    graph = json.loads((folder / SYMBOL).read_text())
    text = change(graph)
    (folder / SYMBOL).write_text(text if isinstance(text, str) else json.dumps(graph))
    card = json.loads((folder / "model.json").read_text())
    card["files"] = {name: sha256(folder / name) for name in card["files"]}
    (folder / "model.json").write_text(json.dumps(card))


def first(graph, op):
    return next(node for node in graph["nodes"] if node["op"] == op)


def attribute(op, **values):
    return lambda graph: first(graph, op)["attrs"].update(values)


def native(graph):
    graph["nodes"][-1].update(op="_Native", attrs={"info": "0x41414141"})


def custom(graph):
    graph["nodes"][-1].update(op="Custom", attrs={"op_type": "x"})


def subgraph_of_a_convolution(graph):
    first(graph, "Convolution")["subgraphs"] = [{"nodes": []}]


def insert_reshape(graph, shape, whole=False):
    """Instead of the flattening, or of the pooling before it, as only some images fit."""
    flatten = first(graph, "Flatten")
    flatten.update(op="Reshape", attrs={"shape": shape})
    if whole:
        graph["nodes"][flatten["inputs"][0][0]].update(op="sigmoid", attrs={})


def deep(graph):
    return json.dumps(graph).replace('"heads":', '"heads": ' + "[" * 50_000, 1)


HOSTILE = {
    # The first five ended the process.
    "an address": (native, r"\(_Native\) is an operator that no exported network has"),
    "a head beyond": (lambda g: g["heads"][0].__setitem__(0, 9999), "heads refers to a list of 3"),
    "an output beyond": (lambda g: g["heads"][0].__setitem__(1, 99), "refers to output 99 of node"),
    "an input beyond": (lambda g: g["nodes"][-1]["inputs"][0].__setitem__(0, 10 ** 6),
                        "which is no output of a node before it"),
    "no group": (attribute("Convolution", num_group="0"), "attribute 'num_group' = '0', which no"),
    "Python's code": (custom, "is an operator that no exported network has"),
    "many groups": (attribute("Convolution", num_group="7"), "into 7 groups"),
    "a kernel": (attribute("Convolution", kernel="(99999, 99999)"), "'kernel' = '"),
    "another kernel": (attribute("Convolution", kernel="(5, 5)"), "filters of .* do not fit"),
    "a stride": (attribute("Convolution", stride="(0, 0)"), "'stride' = "),
    "pads": (attribute("Convolution", pad="(16, 16)"), "pads by 16, as far as"),
    "dilation": (attribute("Convolution", dilate="(-1, 1)"), "'dilate' = "),
    "filters": (attribute("Convolution", num_filter="1000000000"), "'num_filter' = "),
    "fewer filters": (attribute("Convolution", num_filter="31"), "has 31 filters"),
    "a workspace": (attribute("Convolution", workspace="99999999"), "'workspace' = "),
    "a pooling": (attribute("Pooling", pool_type="lp"), "'pool_type' = 'lp'"),
    "a split": (attribute("SliceChannel", num_outputs="3"), "cannot be split into 3"),
    "classes": (attribute("FullyConnected", num_hidden="1000"), "has 1000 outputs, which do not"),
    "a shape": (lambda g: g["nodes"][1]["attrs"].update(__shape__="(9,)"), r"says it is \(9,\)"),
    "a type": (lambda g: g["nodes"][1]["attrs"].update(__dtype__="2"), "numbers of kind 2"),
    "an unknown array": (lambda g: g["nodes"][1].update(name="mine"), "has no array"),
    "a later node": (lambda g: g["nodes"][3]["inputs"][0].__setitem__(0, 3), "node 3 refers to"),
    "a negative place": (lambda g: g["nodes"][3]["inputs"][0].__setitem__(0, -1), "node 3 refers"),
    "a subgraph": (subgraph_of_a_convolution, "must have a subgraph, or must have none"),
    "variables": (lambda g: g["arg_nodes"].append(3), "arg_nodes does not list the variables"),
    "pointers": (lambda g: g["node_row_ptr"].pop(), "node_row_ptr does not fit"),
    "true": (lambda g: g["nodes"][3]["inputs"][0].__setitem__(0, True), "holds the value True"),
    "no output": (lambda g: g["heads"].clear(), "it has no output"),
    "one image": (lambda g: insert_reshape(g, "(1, -1)"), "has 4 outputs, which do not fit"),
    "one size": (lambda g: insert_reshape(g, "(0, 2048)", whole=True), "cannot become"),
    "an early output": (lambda g: g["heads"][0].__setitem__(0, 3), "where 4 classes are expected"),
    "an old version": (lambda g: g["attrs"].update(mxnet_version=["int", 800]), "not of MXNet 1.x"),
    "a name": (lambda g: g["nodes"][3].update(name='a"b'), "node 3 has the name"),
    "a key": (lambda g: g["nodes"][3].update(control_deps=[0]), "unknown field 'control_deps'"),
    "a key twice": (lambda g: json.dumps(g).replace('"op":', '"op": "x", "op":', 1), "a key twice"),
    "depth": (deep, "it is nested too deeply"),
    "digits": (lambda g: json.dumps(g).replace("[[0, 0, 0]", "[[" + "1" * 5000 + ", 0, 0]", 1),
               "a number of 5000 digits"),
    "a list": (lambda g: "[]", "the symbol is a list of 0"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_is_refused_in_one_line(case, folder):
    change, words = HOSTILE[case]
    edit(folder, change)
    with pytest.raises(InputError, match=words) as refused:
        load(folder)
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 900


def test_size(folder):
    (folder / SYMBOL).write_text(" " * (9 << 20) + "{}")
    with pytest.raises(InputError, match="more than 8388608 bytes"):
        load(folder)


def test_by_the_tools(folder, tmp_path):
    """MXNet followed the address: a segmentation fault, exit code -11."""
    edit(folder, native)
    cv2.imwrite(str(tmp_path / "photo.png"), np.zeros((80, 90, 3), np.uint8))
    for command in (["scripts/predict.py", "--model", folder], ["clients/classify.py", folder]):
        done = run_tool(*command, tmp_path / "photo.png", code=2)
        line, = (one for one in done.stderr.splitlines() if one.startswith("error: "))
        assert "(_Native) is an operator that no exported network has" in line
        assert "Traceback" not in done.stderr


def fused(graph):
    return next(node for node in graph["nodes"] if node["op"] == "_sg_mkldnn_conv"
                and "quantized" in node["attrs"])


INT8 = {
    "an address inside": (lambda g: fused(g)["subgraphs"][0]["nodes"][-1].update(op="_Native"),
                          "another subgraph than its attributes say"),
    "a place inside": (lambda g: fused(g)["subgraphs"][0]["nodes"][3]["inputs"][0]
                       .__setitem__(0, 99), "another subgraph than"),
    "a head inside": (lambda g: fused(g)["subgraphs"][0]["heads"][0].__setitem__(0, 99),
                      "another subgraph than"),
    "groups inside": (lambda g: fused(g)["subgraphs"][0]["nodes"][3]["attrs"]
                      .update(num_group="0"), "'num_group' = '0'"),
    "no subgraph": (lambda g: fused(g).pop("subgraphs"), "must have a subgraph"),
    "two subgraphs": (lambda g: fused(g)["subgraphs"].append({}), "has 2 subgraphs"),
    "flags": (lambda g: fused(g)["attrs"].update(with_sum="true"), "contradict each other"),
    "range below 0": (lambda g: fused(g)["attrs"].update(min_calib_range="-1"),
                      "has a range below 0 after ReLU"),
    "sum below 0": (lambda g: next(node for node in g["nodes"] if node["op"]
                                   == "_contrib_quantized_elemwise_add")["attrs"]
                    .update(min_calib_range="-1"), "has a range below 0 after ReLU"),
    "ranges": (lambda g: fused(g)["attrs"].update(max_calib_range="nan"), "'max_calib_range' ="),
    "float as 8 bits": (lambda g: fused(g)["inputs"][0].__setitem__(0, 0), "takes 8-bit"),
}


@pytest.mark.parametrize("case", INT8)
def test_8_bit_graphs_are_refused(case, exported, tmp_path):
    folder = Path(shutil.copytree(exported / "int8", tmp_path / "out"))
    load(folder)
    change, words = INT8[case]
    edit(folder, change)
    with pytest.raises(InputError, match=words):
        load(folder)


@pytest.mark.parametrize(("name", "kwargs"), [
    ("resnest14", {}), ("resnest26", {"output_stride": 8}),
    ("resnest14", {"final_drop": 0.2, "dropblock_prob": 0.1}), ("resnest14_fast_4s2x40d", {}),
    ("resnest14_1s4x24d", {}), ("resnest14_fast_0s1x64d", {}),
    ("resnest14", {"norm_layer": mx.gluon.nn.GroupNorm}),
    ("resnest14", {"norm_kwargs": {"gamma_initializer": mx.init.Constant(0.5)}})])
def test_what_is_written_is_read(name, kwargs, tmp_path):
    """Every kind of graph, with the same output as by MXNet's own reader."""
    net = network(name, **kwargs)
    batch = np.random.default_rng(0).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)
    quantized = quantize_symbol(*graph_for_int8(net), [batch])
    files = {"deployed": write_symbol(net, tmp_path / "deployed"),
             "pixels": write_symbol(net, tmp_path / "pixels", pixels=True),
             "plain": write_symbol(net, tmp_path / "plain", "plain"),
             "int8": save_symbol(*quantized, tmp_path / "int8"),
             "int8 pixels": save_symbol(*symbol_from_pixels(*quantized), tmp_path / "int8_pixels")}
    for kind, (symbol, params) in files.items():
        pixels = "pixels" in kind
        given, shape = ("pixels", (SIZE, SIZE, 3)) if pixels else ("data", (3, SIZE, SIZE))
        found = import_symbol(symbol, params, input_name=given, image_shape=shape,
                              classes=CLASSES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of MXNet, that it does not know the input's type
            theirs = mx.gluon.SymbolBlock.imports(str(symbol), [given], str(params))
        images = mx.nd.array(np.random.default_rng(1).integers(0, 255, (3, *shape)),
                             dtype="uint8" if pixels else "float32")
        np.testing.assert_array_equal(found(images).asnumpy(), theirs(images).asnumpy())


def test_parameters_that_are_hostile(folder):
    """A dimension of -1 ended the process in MXNet's reader."""
    content = bytearray((folder / PARAMS).read_bytes())
    content[32:36] = (-1).to_bytes(4, "little", signed=True)
    (folder / PARAMS).write_bytes(content)
    with pytest.raises(InputError, match=r"0000.params is not a .params file"):
        load(folder)


def test_a_symbol_that_is_no_file(folder):
    (folder / SYMBOL).unlink()
    (folder / SYMBOL).mkdir()
    with pytest.raises(InputError, match="is missing"):
        load(folder)
