"""Weight files of Gluon: whole or refused, for any number of classes."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest
from conftest import randomize, run_tool

import gluon_resnest
from gluon_resnest.errors import InputError
from gluon_resnest.models import load_weights, save_weights
from gluon_resnest.models.weights.files import classes_in, read_params


def small(classes: int = 3, **kwargs):
    net = gluon_resnest.get_model("resnest14", classes=classes, **kwargs)
    net.initialize()
    randomize(net)
    return net


def values(net) -> dict[str, np.ndarray]:
    return {key: parameter.data().asnumpy()
            for key, parameter in net._collect_params_with_prefix().items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnest14.params"
    save_weights(small(), path)
    return path


def test_round_trip(saved):
    net = gluon_resnest.get_model("resnest14", classes=3, pretrained=saved)
    stored = mx.nd.load(str(saved))
    for key, value in values(net).items():
        np.testing.assert_array_equal(value, stored[key].asnumpy())


@pytest.mark.parametrize(("make", "words"), [
    (lambda whole: whole[: len(whole) // 2], 
     "is not a .params file of MXNet 1.9 with names, or is damaged"),
    (lambda whole: b"", "is an empty file: weights are .params files of Gluon"),
    (lambda whole: b"<html><body>403 Forbidden</body></html>" * 9, "is a web page: weights are"),
    (lambda whole: bytes(100), "is no file of weights, or damaged"),
    (lambda whole: whole[:400] + b"\xff" * 600 + whole[1000:], "holds values that are no finite"),
])
def test_damaged_files_are_refused_whole(saved, tmp_path, make, words):
    broken = tmp_path / "broken.params"
    broken.write_bytes(make(saved.read_bytes()))
    net = small()
    before = values(net)
    with pytest.raises(InputError, match=words):
        load_weights(net, broken)
    for key, value in values(net).items():
        np.testing.assert_array_equal(value, before[key])


def test_weights_of_another_model_name_the_first_differences(saved):
    net = gluon_resnest.get_model("resnest26", classes=3)
    with pytest.raises(InputError, match=r"lacks 92 \(layer1.1.conv1.weight, .*check --model"):
        load_weights(net, saved)
    net = gluon_resnest.get_model("resnest14", classes=5)
    with pytest.raises(InputError, match=r"fc.weight is \(3, 2048\) in the file, \(5, 2048\)"):
        load_weights(net, saved)


def test_another_number_of_classes_keeps_all_but_the_classifier(saved):
    net = gluon_resnest.get_model("resnest14", classes=10)
    load_weights(net, saved, reset_classifier=True)
    stored = mx.nd.load(str(saved))
    found = values(net)
    for key in set(stored) - {"fc.weight", "fc.bias"}:
        np.testing.assert_array_equal(found[key], stored[key].asnumpy())
    assert found["fc.weight"].shape == (10, 2048)
    assert not found["fc.bias"].any()
    # Kaiming: 20,480 draws of N(0, sqrt(2 / 2048)); their spread is known to 0.5 %.
    assert found["fc.weight"].std() == pytest.approx(np.sqrt(2 / 2048), rel=0.03)

    net = small(classes=3)  # initialised already, and of the file's number of classes
    before = values(net)["fc.weight"]
    load_weights(net, saved, reset_classifier=True)
    found = values(net)["fc.weight"]
    assert not np.array_equal(found, before)
    assert not np.array_equal(found, stored["fc.weight"].asnumpy())
    with pytest.raises(InputError, match=r"lacks 92 \(layer1.1.conv1.weight"):
        load_weights(gluon_resnest.get_model("resnest26", classes=10), saved,
                     reset_classifier=True)


@pytest.mark.parametrize("prefix", ["resnest_", "other0_"])
def test_exported_parameters_are_read(saved, tmp_path, prefix):
    net = gluon_resnest.get_model("resnest14", classes=3, pretrained=saved, prefix=prefix)
    net.hybridize()
    net(mx.nd.zeros((1, 3, 32, 32)))
    net.export(str(tmp_path / "net"))
    exported = tmp_path / "net-0000.params"
    assert f"arg:{prefix}conv0_weight" in mx.nd.load(str(exported))
    assert classes_in(read_params(exported), exported) == 3
    other = gluon_resnest.get_model("resnest14", classes=3, pretrained=exported)
    expected = values(net)
    for key, value in values(other).items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)
    other = gluon_resnest.get_model("resnest14", classes=4)
    with pytest.raises(InputError, match=rf"{prefix}dense0_weight is \(3, 2048\) in the file"):
        load_weights(other, exported)
    load_weights(other, exported, reset_classifier=True)
    np.testing.assert_array_equal(values(other)["bn1.beta"], expected["bn1.beta"])


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no weights at .*nowhere.params"):
        gluon_resnest.get_model("resnest14", pretrained=tmp_path / "nowhere.params")


def test_a_full_disk_leaves_the_old_file(saved, tmp_path):
    """In a process whose files may not grow beyond 1 MiB, as MXNet meets a disk that is full."""
    path = tmp_path / "kept.params"
    path.write_bytes(b"old")
    program = tmp_path / "save.py"
    program.write_text(f"""
import resource, signal
import gluon_resnest
from gluon_resnest.errors import InputError
from gluon_resnest.models import save_weights
net = gluon_resnest.get_model("resnest14", classes=3, pretrained={str(saved)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    save_weights(net, {str(path)!r})
except InputError as error:
    print(error)
""")
    done = run_tool(program)
    assert f"cannot write {path}: is the disk full?" in done.stdout
    assert path.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.params", "save.py"]


def test_get_model_replaces_the_classifier_or_leaves_it_out(saved):
    net = gluon_resnest.get_model("resnest14", classes=7, pretrained=saved)
    stored = mx.nd.load(str(saved))
    for key, value in values(net).items():
        if not key.startswith("fc."):
            np.testing.assert_array_equal(value, stored[key].asnumpy())
    weight = net.fc.weight.data().asnumpy()
    assert weight.shape == (7, 2048)
    assert weight.std() == pytest.approx(np.sqrt(2 / 2048), rel=0.05)  # Kaiming
    features = gluon_resnest.get_model("resnest14", features_only=True, pretrained=saved)
    np.testing.assert_array_equal(features.conv1[0].weight.data().asnumpy(),
                                  stored["conv1.0.weight"].asnumpy())

