"""Exported files compute what the network computes, or are not written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import mxnet as mx
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import randomize

import gluon_resnest
from gluon_resnest.classifier import load_classifier
from gluon_resnest.deploy import exporting
from gluon_resnest.deploy.card import sha256
from gluon_resnest.deploy.comparison import Comparison, DisagreementError, compare
from gluon_resnest.deploy.exporting import Description, export, run_exported
from gluon_resnest.errors import InputError
from gluon_resnest.layers import Normalize, portable_operators
from gluon_resnest.models import save_weights

FORMS = {"symbol": {}, "plain": {"graph": "plain"}, "symbol of pixels": {"pixels": True},
         "onnx": {"form": "onnx"}, "onnx of pixels": {"form": "onnx", "pixels": True}}
NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def net():
    net = gluon_resnest.get_model("resnest14", classes=4)
    net.initialize()
    randomize(net, branch_gamma=(0.1, 0.3))
    return net


@pytest.fixture(scope="module")
def weights(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "net.params"
    save_weights(net, path)
    return path


@pytest.fixture(scope="module")
def crops(photos):
    return np.stack([photo[y:y + 64, x:x + 64] for photo in photos
                     for y, x in ((0, 0), (100, 200), (300, 500), (200, 50), (363, 576))])


@pytest.fixture(scope="module")
def description(weights):
    return Description("resnest14", 64, 0.875, NAMES, weights, "10 crops of photographs")


@pytest.fixture(scope="module")
def exported(net, crops, description, tmp_path_factory):
    """A folder for each of FORMS."""
    folder = tmp_path_factory.mktemp("exported")
    for name, settings in FORMS.items():
        export(net, folder / name, description, crops, **settings)
    return folder


def networks_logits(net, pixels: np.ndarray) -> np.ndarray:
    return net(Normalize()(mx.nd.array(pixels, dtype=np.uint8))).asnumpy()


@pytest.mark.parametrize("form", FORMS)
def test_files_and_card(form, exported, weights):
    folder = exported / form
    card = json.loads((folder / "model.json").read_text())
    kind = "onnx" if "onnx" in form else "symbol"
    files = {"onnx": ["resnest14.onnx"],
             "symbol": ["resnest14-symbol.json", "resnest14-0000.params"]}[kind]
    assert sorted(path.name for path in folder.iterdir()) == sorted(["model.json", *files])
    assert card["files"] == {name: sha256(folder / name) for name in files}
    assert (card["format"], card["class_names"]) == (kind, list(NAMES))
    assert card["weights"] == {"file": "net.params", "sha256": sha256(weights)}
    assert card["preprocessing"]["resize"]["shorter_side"] == 74  # 64 / 0.875, rounded up
    assert card["input"]["shape"] == (["N", 64, 64, 3] if "pixels" in form else ["N", 3, 64, 64])
    assert card["agreement"]["images"] == 10
    assert card["agreement"]["checked_with"] == "10 crops of photographs"
    assert 0 <= card["agreement"]["largest_relative_difference"] <= 1e-5
    assert card["agreement"]["top1_agreement"] == 1


@pytest.mark.parametrize("shape", [(1, 64, 64, 3), (5, 64, 64, 3), (2, 97, 80, 3)])
@pytest.mark.parametrize("form", FORMS)
def test_logits_are_the_networks(form, shape, net, exported, rng):
    """Any batch; of a symbol any size."""
    if "onnx" in form and shape[1:3] != (64, 64):
        with pytest.raises(InputError, match="Got: 97 Expected: 64"):
            run_exported(exported / form)[1](np.zeros(shape, np.uint8))
        return
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    _, forward = run_exported(exported / form)
    expected = networks_logits(net, pixels)
    np.testing.assert_allclose(forward(pixels), expected, rtol=0,
                               atol=1e-5 * np.abs(expected).max())


def test_by_mxnet_alone(net, exported, rng):
    """As a user of the files would, without this package."""
    images = rng.standard_normal((3, 3, 64, 64)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MXNet itself, about operators that are not here
        symbol = mx.gluon.SymbolBlock.imports(
            str(exported / "symbol/resnest14-symbol.json"), ["data"],
            str(exported / "symbol/resnest14-0000.params"))
    np.testing.assert_allclose(symbol(mx.nd.array(images)).asnumpy(),
                               net(mx.nd.array(images)).asnumpy(), atol=1e-5, rtol=0)


def test_onnx_by_onnx_runtime_alone(net, exported, rng):
    images = rng.standard_normal((3, 3, 64, 64)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(exported / "onnx/resnest14.onnx"),
                                           providers=["CPUExecutionProvider"])
    found, = session.run(["logits"], {"data": images})
    np.testing.assert_allclose(found, net(mx.nd.array(images)).asnumpy(), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_mxnets_own_exporter_stamps_an_opset_that_onnx_runtime_refuses(net, tmp_path):
    """As docs/deployment.md says, with what helps: its operators are those of opset 13."""
    with portable_operators(net):
        net.hybridize()
        net(mx.nd.zeros((1, 3, 64, 64)))
        net.export(str(tmp_path / "net"))
    file = mx.onnx.export_model(f"{tmp_path}/net-symbol.json", f"{tmp_path}/net-0000.params",
                                [(1, 3, 64, 64)], onnx_file_path=f"{tmp_path}/net.onnx")
    model = onnx.load(file)
    assert [one.version for one in model.opset_import] == [onnx.defs.onnx_opset_version()]
    with pytest.raises(Exception, match="Neither 'split' input nor 'num_outputs' attribute"):
        onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    model.opset_import[0].version = 13
    session = onnxruntime.InferenceSession(model.SerializeToString(),
                                           providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    found, = session.run(None, {"data": image})
    np.testing.assert_allclose(found, net(mx.nd.array(image)).asnumpy(), atol=1e-4)


def test_what_is_in_an_onnx_file(exported):
    model = onnx.load(str(exported / "onnx/resnest14.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 13)]
    assert [value.name for value in model.graph.input] == ["data"]  # no weights
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Shape", "ScatterND", "GatherND", "BatchNormalization", "Dropout"}
    assert [dim.dim_param or dim.dim_value for dim
            in model.graph.input[0].type.tensor_type.shape.dim] == ["N", 3, 64, 64]


@pytest.mark.parametrize("form", FORMS)
def test_classifier_equals_the_one_from_the_checkpoint(form, exported, photos, weights):
    from_checkpoint = load_classifier("resnest14", weights, input_size=64)
    from_files = load_classifier(str(exported / form))
    crops = np.stack([from_files.transform(photo) for photo in photos])
    assert crops.shape == (2, 64, 64, 3)
    found = from_files.probabilities(crops)
    np.testing.assert_allclose(found, from_checkpoint.probabilities(crops), atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert from_files.class_names == NAMES
    assert from_files.net is None
    assert from_checkpoint.class_names is None
    assert from_checkpoint.class_name(3) == "class 3"


def test_any_of_the_files_names_the_export(exported):
    for name in ("", "model.json", "resnest14-symbol.json", "resnest14-0000.params"):
        assert load_classifier(str(exported / "symbol" / name)).name == "resnest14"


def test_the_size_of_a_file_that_takes_one(exported):
    assert load_classifier(str(exported / "symbol"), input_size=96).input_size == 96
    with pytest.raises(InputError, match="--test-size 96 is not the 64 px that"):
        load_classifier(str(exported / "onnx"), input_size=96)


def test_another_export_wants_a_folder_of_its_own(net, crops, description, exported):
    other = Description("resnest26", 64, 0.875)
    with pytest.raises(InputError, match="describes an export of resnest14 as symbol: give"):
        export(net, exported / "symbol", other, crops)
    with pytest.raises(InputError, match="give resnest14 as onnx a folder of its own"):
        export(net, exported / "symbol", description, crops, form="onnx")


@pytest.mark.parametrize("form", ["symbol", "onnx"])
def test_a_disagreement_leaves_no_file(form, net, crops, description, tmp_path, monkeypatch):
    right = exporting.run_exported
    monkeypatch.setattr(exporting, "run_exported", lambda path: (
        None, lambda pixels: right(path)[1](pixels) * np.float32(1.01)))
    with pytest.raises(DisagreementError, match="nothing was written"):
        export(net, tmp_path / "out", description, crops, form=form)
    assert list((tmp_path / "out").iterdir()) == []


def test_agreement_is_measured(crops):
    def first(pixels):
        return pixels.astype(np.float64).mean(axis=(1, 2))

    def second(pixels):
        logits = first(pixels)
        logits[0, logits[0].argmax()] -= 300  # of the first of each batch
        return logits

    found = compare(first, second, crops)
    expected = 300 / max(first(crops).max(), first(np.tile(crops[:3], (1, 2, 2, 1))).max())
    assert found.images == 10
    assert found.top1_agreement == pytest.approx(0.7)  # batches of 1, 8 and 1
    assert found.largest_relative_difference == pytest.approx(expected, rel=0.2)
    assert found.median_relative_difference == 0
    assert compare(first, first, crops) == Comparison(10, 0.0, 0.0, 1.0)
    assert compare(first, lambda pixels: first(pixels) * np.nan,
                   crops).largest_relative_difference == float("inf")
    with pytest.raises(DisagreementError, match=r"give \(1, 2\) for"):
        compare(first, lambda pixels: first(pixels)[:, :2], crops)


@pytest.mark.parametrize(("flags", "words"), [
    (("--format", "int8"), "--format int8 needs real images to take its ranges from"),
    (("--format", "onnx", "--calibration", "x.rec"), "--calibration is for --format int8"),
    (("--format", "onnx", "--graph", "plain"), "--graph plain is for --format symbol, not onnx"),
    (("--graph", "plain", "--pixels"), "--graph plain takes normalised images"),
    (("--images", "none"), "none"),
])
def test_flags_that_contradict(flags, words, weights, tmp_path, tool):
    code, stderr = tool("scripts/export_model.py", "--model", "resnest14", "--params", weights,
                        "--test-size", 64, "--image-count", 2, "--output", tmp_path / "out",
                        *flags)
    assert code == 2
    assert words in stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("form", ["int8", "onnx-int8"])
def test_8_bits_that_change_the_classes_are_refused(form, net, crops, description, tmp_path,
                                                    monkeypatch):
    right = exporting.run_exported
    monkeypatch.setattr(exporting, "run_exported", lambda path: (
        None, lambda pixels: -right(path)[1](pixels)))
    with pytest.raises(DisagreementError, match=r"of 10 images \(at least 90.0% are asked for\)"):
        export(net, tmp_path / "out", description, crops, form=form, calibration=crops)
    assert list((tmp_path / "out").iterdir()) == []


# ---- files that cannot be trusted ----

def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def without_digest(folder: Path) -> dict:
    """The card as its files are now: what remains is for the runtimes to refuse."""
    card = json.loads((folder / "model.json").read_text())
    card["files"] = {name: sha256(folder / name) for name in card["files"]}
    (folder / "model.json").write_text(json.dumps(card))
    return card


def changed(folder: Path, **fields) -> None:
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**card, **fields}))


FAULTS = {
    "no card": ("symbol", lambda f: (f / "model.json").unlink(),
                r"model.json, the card .* cannot be read \(No such file"),
    "no JSON": ("onnx", lambda f: (f / "model.json").write_text("{"), "cannot be read"),
    "deep JSON": ("onnx", lambda f: (f / "model.json").write_text("[" * 100_000), "cannot be read"),
    "a list": ("onnx", lambda f: (f / "model.json").write_text("[]"),
               "model.json holds a list of 0 instead of an object: export"),
    "empty card": ("symbol", lambda f: (f / "model.json").write_text("{}"),
                   "model.json lacks model, which must be a model's name: export the model again"),
    "another format": ("onnx", lambda f: changed(f, format="tflite"), "has the format 'tflite'"),
    "a file elsewhere": ("onnx", lambda f: changed(f, files={"../other.onnx": "0" * 64}),
                         "names the file '../other.onnx', which is not beside it"),
    "a missing file": ("symbol", lambda f: (f / "resnest14-0000.params").unlink(),
                       "resnest14-0000.params is missing"),
    "a cut ONNX": ("onnx", lambda f: cut(f / "resnest14.onnx"),
                   "resnest14.onnx is not the file that was exported: its SHA-256"),
    "a cut ONNX, card too": ("onnx", lambda f: (cut(f / "resnest14.onnx"), without_digest(f)),
                             "ONNX Runtime cannot load .*resnest14.onnx"),
    "an empty ONNX": ("onnx", lambda f: ((f / "resnest14.onnx").write_bytes(b""),
                                         without_digest(f)), "ONNX Runtime cannot load"),
    "broken symbol": ("symbol", lambda f: ((f / "resnest14-symbol.json").write_text("{"),
                                           without_digest(f)),
                      r"symbol.json is not a symbol of this package .*\(it is not JSON"),
    "cut parameters": ("symbol", lambda f: (cut(f / "resnest14-0000.params"), without_digest(f)),
                       "0000.params is not a .params file .*ends within"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_untrusted_files_are_one_line(fault, exported, tmp_path):
    form, damage, words = FAULTS[fault]
    folder = tmp_path / "out"
    shutil.copytree(exported / form, folder)
    damage(folder)
    with pytest.raises(InputError, match=words):
        load_classifier(str(folder))


def test_parameters_of_another_model(exported, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(exported / "symbol", folder)
    other = gluon_resnest.get_model("resnest26", classes=4)
    other.initialize()
    save_weights(other, folder / "resnest14-0000.params")
    with pytest.raises(InputError, match="is not the file that was exported"):
        load_classifier(str(folder))
    without_digest(folder)
    with pytest.raises(InputError, match="not of an exported symbol: it holds 'conv1"):
        load_classifier(str(folder))


def test_a_damaged_export_does_not_end_the_process(exported, tmp_path):
    """Symbols cut at many places, in a process of their own: MXNet can abort."""
    folder = tmp_path / "out"
    shutil.copytree(exported / "symbol", folder)
    code = f"""
import json, pathlib
from gluon_resnest.deploy.exporting import run_exported
from gluon_resnest.deploy.card import sha256
from gluon_resnest.errors import InputError
folder = pathlib.Path({str(folder)!r})
whole = (folder / "resnest14-symbol.json").read_bytes()
refused = 0
for number in range(25):
    (folder / "resnest14-symbol.json").write_bytes(whole[:len(whole) * number // 25])
    card = json.loads((folder / "model.json").read_text())
    card["files"]["resnest14-symbol.json"] = sha256(folder / "resnest14-symbol.json")
    (folder / "model.json").write_text(json.dumps(card))
    try:
        run_exported(folder)
    except InputError:
        refused += 1
print(refused)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "25"


def test_normalisation_by_its_formula(rng):
    pixels = rng.integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    found = Normalize()(mx.nd.array(pixels, dtype=np.uint8)).asnumpy()
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), atol=1e-5)
