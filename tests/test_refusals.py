"""One-line errors for what a user of the network may do wrong, and what must go on to work."""

from __future__ import annotations

from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from conftest import run_tool

import gluon_resnest
from gluon_resnest.deploy.symbol import import_symbol
from gluon_resnest.errors import InputError
from gluon_resnest.models import save_weights


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "hybridized"])
def net(request):
    net = gluon_resnest.get_model("resnest14", classes=3)
    net.initialize()
    if request.param:
        net.hybridize()
    return net


WRONG = {
    "4 channels": (mx.nd.zeros((1, 4, 64, 64)),
                   r"images of shape \(N, 3, H, W\), not \(1, 4, 64, 64\): make it with "
                   r"get_model\(..., in_channels=4\) for such images"),
    "NHWC": (mx.nd.zeros((2, 64, 48, 3)),
             r"not \(2, 64, 48, 3\): give x.transpose\(\(0, 3, 1, 2\)\)"),
    "one image": (mx.nd.zeros((3, 64, 64)),
                  r"not \(3, 64, 64\); give x.expand_dims\(0\) for one image"),
    "5 dimensions": (mx.nd.zeros((1, 1, 3, 64, 64)), r"not \(1, 1, 3, 64, 64\)$"),
    "uint8": (mx.nd.zeros((1, 3, 64, 64), dtype="uint8"),
              r"resnest14 is in float32 and its input in uint8: gluon_resnest.layers.Normalize\("),
    "float16": (mx.nd.zeros((1, 3, 64, 64), dtype="float16"),
                r"in float32 and its input in float16: give x.astype\('float32'\)"),
    "float64": (mx.nd.zeros((1, 3, 64, 64), dtype="float64"), "its input in float64"),
    "NumPy": (np.zeros((1, 3, 64, 64), np.float32),
              r"mx.nd.array of shape \(N, 3, H, W\), and this is of type ndarray: give "
              r"mx.nd.array\(images\)"),
    "nothing": (None, "of type NoneType"),
    "16 pixels": (mx.nd.zeros((1, 3, 64, 16)),
                  "an image of 64x16 pixels is too small for resnest14: height and width must be "
                  "at least 17"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_inputs(net, fault: str) -> None:
    x, words = WRONG[fault]
    with pytest.raises(InputError, match=words) as caught:
        net(x)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert net(mx.nd.ones((1, 3, 17, 40))).shape == (1, 3)  # the network still works


@pytest.mark.parametrize(("name", "keywords", "least"), [
    ("resnest14", {}, 17),
    ("resnest14", {"features_only": True}, 17),
    ("resnest14_fast_0s1x64d", {}, 17),
    ("resnest14_fast_2s1x64d", {"output_stride": 16}, 9),
    ("resnest14", {"output_stride": 16, "in_channels": 1}, 9),
    ("resnest14", {"dilated": True, "features_only": True}, 5),
    ("resnest14_4s2x40d", {"output_stride": 8}, 5),
])
def test_the_least_size_is_the_true_one(name: str, keywords: dict, least: int) -> None:
    net = gluon_resnest.get_model(name, classes=3, **keywords)
    net.initialize()
    channels = net.variant.in_channels
    for shape in ((least, 40), (40, least), (least, least)):
        found = net(mx.nd.ones((1, channels, *shape)))
        found = found[-1] if net.features_only else found
        assert np.isfinite(found.asnumpy()).all()
    for shape in ((least - 1, 40), (40, least - 1), (1, 1)):
        with pytest.raises(InputError, match=f"must be at least {least}$"):
            net(mx.nd.ones((1, channels, *shape)))


@pytest.mark.parametrize("hybridize", [False, True])
def test_a_network_without_weights(hybridize: bool) -> None:
    net = gluon_resnest.get_model("resnest14", classes=3)
    if hybridize:
        net.hybridize()
    with pytest.raises(InputError, match=r"resnest14 has no weights yet: call net.initialize\(\)"):
        net(mx.nd.zeros((1, 3, 64, 64)))
    net.initialize()
    assert net(mx.nd.zeros((1, 3, 64, 64))).shape == (1, 3)
    assert net(mx.sym.var("data")).list_arguments()[0] == "data"


def test_a_failure_of_something_else_stays_what_it_is(net, monkeypatch) -> None:
    def broken(*_):
        raise ValueError("a bug")

    monkeypatch.setattr(net, "hybrid_forward", broken)
    net.hybridize(False)
    with pytest.raises(ValueError, match="a bug") as caught:
        net(mx.nd.zeros((1, 3, 64, 64)))
    assert not isinstance(caught.value, InputError)


class TestFloat16:
    @pytest.fixture
    def half(self):
        net = gluon_resnest.get_model("resnest14", classes=3)
        net.initialize(mx.init.Xavier())
        net.cast("float16")
        return net

    @pytest.mark.parametrize("hybridize", [False, True])
    def test_is_refused_on_a_cpu_before_it_runs(self, half, tmp_path: Path, hybridize) -> None:
        if hybridize:
            half.hybridize()
        for dtype in ("float16", "float32"):
            with pytest.raises(InputError, match="MXNet computes float16 on GPUs only, and this "
                               r"input is on the CPU: net.cast\('float32'\) to run it here"):
                half(mx.nd.ones((1, 3, 64, 64), dtype=dtype))
        # MXNet's own failure had left statistics behind that could not be read any more.
        save_weights(half, tmp_path / "half.params")
        stored = mx.nd.load(str(tmp_path / "half.params"))
        assert stored["fc.weight"].dtype == np.float16
        half.cast("float32")
        assert np.isfinite(half(mx.nd.ones((1, 3, 64, 64))).asnumpy()).all()

    def test_is_saved_loaded_and_exported(self, half, tmp_path: Path) -> None:
        save_weights(half, tmp_path / "half.params")
        again = gluon_resnest.get_model("resnest14", classes=3,
                                        pretrained=tmp_path / "half.params")
        assert again.fc.weight.data().dtype == np.float32
        half.hybridize()
        half.export(str(tmp_path / "half"))
        exported = mx.nd.load(str(tmp_path / "half-0000.params"))
        assert exported["arg:resnest_conv0_weight"].dtype == np.float16
        assert half(mx.sym.var("data")).list_arguments()[0] == "data"

    def test_other_types(self, half) -> None:
        for dtype in ("int8", "uint8", "int32", bool, "float15", None.__class__):
            with pytest.raises(InputError, match=r"a network cannot be cast to .*: give float16, "
                               "float32 or float64; 8-bit files come from"):
                half.cast(dtype)
        half.cast(np.float64)
        assert half(mx.nd.ones((1, 3, 64, 64), dtype="float64")).dtype == np.float64


def test_export_writes_what_the_network_computes(tmp_path: Path, rng) -> None:
    net = gluon_resnest.get_model("resnest14", classes=3)
    net.initialize()
    x = mx.nd.array(rng.normal(0, 1, (2, 3, 64, 48)))
    expected = net(x).asnumpy()
    net.export(str(tmp_path / "net"))  # neither hybridized nor traced before
    again = import_symbol(tmp_path / "net-symbol.json", tmp_path / "net-0000.params")
    np.testing.assert_allclose(again(x).asnumpy(), expected, rtol=0,
                               atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("classes", [0, -1, 2.5, "3", None])
def test_classes_that_are_no_number(classes) -> None:
    with pytest.raises(InputError, match=f"classes {classes} must be a whole number of at least 1"):
        gluon_resnest.get_model("resnest14", classes=classes)


def test_at_the_first_call_of_a_process(tmp_path: Path) -> None:
    """In a process of its own: nothing has been traced before, and MXNet ends in peace."""
    program = tmp_path / "program.py"
    program.write_text("""
import mxnet as mx
import gluon_resnest
net = gluon_resnest.get_model("resnest14", classes=3)
net.initialize()
net.hybridize(static_alloc=True, static_shape=True)
for x in mx.nd.zeros((1, 4, 64, 64)), mx.nd.zeros((1, 3, 16, 16)), mx.nd.zeros((1, 3, 64, 64)):
    try:
        print(net(x).shape)
    except gluon_resnest.errors.InputError as error:
        print(error)
net.cast("float16")
try:
    net(x.astype("float16"))
except gluon_resnest.errors.InputError as error:
    print(error)
""")
    lines = run_tool(program).stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "resnest14 takes images of shape (N, 3, H, W), not (1, 4, 64, 64)",
        "an image of 16x16 pixels is too small for resnest14", "(1, 3)",
        "MXNet computes float16 on GPUs only, and this input is on the CPU"]
