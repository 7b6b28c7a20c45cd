"""PyTorch's networks and files: equal logits, every name, and nothing that a pickle asks for."""

from __future__ import annotations

import collections
import gzip
import io
import json
import os
import pickle
import re
import runpy
import zipfile
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from conftest import ROOT, randomize, run_tool
from programs.torch_random_weights import images, random_state

import gluon_resnest
from gluon_resnest.errors import InputError
from gluon_resnest.models import load_weights, save_weights
from gluon_resnest.models.weights.files import load_arrays, read_params
from gluon_resnest.models.weights.torch_names import torch_name, write_state_dict

DATA = ROOT / "tests" / "data"
# Names and shapes of timm's state dicts, and the logits of those networks for images() with the
# weights of random_state(), by the name of the model here. tests/programs/make_torch_golden.py
# wrote them, and found names and logits of the authors' networks to be the same.
NAMES = json.loads(gzip.decompress((DATA / "torch_names.json.gz").read_bytes()))
LOGITS = np.load(DATA / "torch_logits.npz")


def peer_state(name: str) -> dict[str, np.ndarray]:
    """What timm's network of this name had for weights, less what MXNet has no use for."""
    state = random_state({key: tuple(shape) for key, shape in NAMES[name].items()})
    return {key: value for key, value in state.items() if not key.endswith("tracked")}


def logits_with(name: str, state: dict[str, np.ndarray]) -> np.ndarray:
    net = gluon_resnest.get_model(name)
    load_arrays(net, state, "timm")
    net.hybridize()
    return net(mx.nd.array(images())).asnumpy()


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_pytorch(name):
    found, expected = logits_with(name, peer_state(name)), LOGITS[name]
    assert found.shape == expected.shape == (2, 1000)
    assert 1 < expected.std() < 4  # not so small that 1e-4 would be a wide margin
    assert np.abs(found - expected).max() < 1e-4


def test_the_order_of_attention_over_groups_and_splits_matters():
    """Were fc2's rows splits of groups instead of groups of splits, logits would tell."""
    name = "resnest50_fast_2s2x40d"
    state = peer_state(name)
    for key, value in state.items():
        if ".fc2." in key:
            rows = value.reshape(2, 2, -1, *value.shape[1:])
            state[key] = np.ascontiguousarray(rows.swapaxes(0, 1)).reshape(value.shape)
    assert np.abs(logits_with(name, state) - LOGITS[name]).max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_pytorch_has_its_key(name):
    expected = gluon_resnest.get_model(name)._collect_params_with_prefix()
    shapes = {key: tuple(shape) for key, shape in NAMES[name].items()
              if not key.endswith("num_batches_tracked")}
    assert {torch_name(key): value.shape for key, value in expected.items()} == shapes


@pytest.mark.parametrize("file", [
    "torch_checkpoint.pth", "torch_legacy.pth", "torch_tiny.safetensors"])
def test_what_pytorch_wrote_is_read_exactly(file):
    expected = np.load(DATA / "torch_tiny.npz")
    arrays = read_params(DATA / file)
    assert set(arrays) == set(expected)  # no `module.`, no counters of batches
    for name, value in arrays.items():
        assert value.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


class PlainUnpickler(pickle.Unpickler):
    """Python's own reading of a state dict's pickle: globals and calls as tuples."""

    def find_class(self, module, name):
        if module == "collections":
            return collections.OrderedDict
        return (lambda *args: (name, *args)) if name.startswith("_") else f"{module}.{name}"

    def persistent_load(self, pid):
        return pid


def test_a_written_state_dict_has_the_structure_of_torch_save(tmp_path):
    weight = np.arange(24, dtype=np.float32).reshape(2, 3, 4, 1)
    arrays = {"layer1.0.conv2.conv.weight": weight, "layer1.0.conv2.bn.gamma": weight[0, :, 0, 0],
              "layer1.0.conv2.bn.running_var": weight[1, :, 0, 0]}
    write_state_dict(tmp_path / "a.pth", arrays)
    write_state_dict(tmp_path / "b.pth", arrays)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        tree = PlainUnpickler(io.BytesIO(archive.read("archive/data.pkl"))).load()
        assert archive.read("archive/version") == b"3\n"
        assert archive.read("archive/data/0") == weight.tobytes()
        assert archive.read("archive/data/3") == bytes(8)
    make, empty = "_rebuild_tensor_v2", collections.OrderedDict()
    assert type(tree) is collections.OrderedDict
    assert dict(tree) == {
        "layer1.0.conv2.conv.weight": (
            make, ("storage", "torch.FloatStorage", "0", "cpu", 24), 0, (2, 3, 4, 1),
            (12, 4, 1, 1), False, empty),
        "layer1.0.conv2.bn0.weight": (
            make, ("storage", "torch.FloatStorage", "1", "cpu", 3), 0, (3,), (1,), False, empty),
        "layer1.0.conv2.bn0.running_var": (
            make, ("storage", "torch.FloatStorage", "2", "cpu", 3), 0, (3,), (1,), False, empty),
        "layer1.0.conv2.bn0.num_batches_tracked": (
            make, ("storage", "torch.LongStorage", "3", "cpu", 1), 0, (), (), False, empty),
    }


class MakeFolder:
    """A pickle that would make a folder if it were loaded."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def torch_zip(path: Path, pickled: bytes, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    return path


def test_no_pickled_code_runs(tmp_path):
    target = tmp_path / "made"
    for protocol, words in ((2, f"wants to load {os.mkdir.__module__}.mkdir"), (4, "opcode FRAME")):
        attack = pickle.dumps({"state_dict": MakeFolder(target)}, protocol)
        (tmp_path / "bare.pth").write_bytes(attack)
        for path in (tmp_path / "bare.pth", torch_zip(tmp_path / "zip.pth", attack)):
            with pytest.raises(InputError, match=words):
                read_params(path)
    assert not target.exists()
    with pytest.raises(InputError, match=r"wants to load torch.nn.modules.linear.Linear, which"):
        read_params(DATA / "torch_module.pth")
    # It would take 32 GB of memory.
    with pytest.raises(InputError, match="opcode LONG_BINPUT"):
        read_params(torch_zip(tmp_path / "memo.pth", b"\x80\x02Nr\xff\xff\xff\x7f."))


def edited(tmp_path: Path, old: bytes, new: bytes, **members: bytes) -> Path:
    """A file of one (2, 3) array whose pickle is changed, and its members if given."""
    write_state_dict(tmp_path / "whole.pth", {"conv.weight": np.zeros((2, 3), np.float32)})
    with zipfile.ZipFile(tmp_path / "whole.pth") as archive:
        pickled = archive.read("archive/data.pkl")
        assert old in pickled
        contents = {name[len("archive/"):]: archive.read(name) for name in archive.namelist()[1:]}
    return torch_zip(tmp_path / "edited.pth", pickled.replace(old, new), **{**contents, **members})


def number(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


@pytest.mark.parametrize(("old", "new", "members", "words"), [
    (number(2) + number(3), number(2) + number(4), {}, "ends at 6 in a storage of 6 values"),
    (number(3) + number(1), number(1 << 30) + number(1), {}, "ends at 1073741826 in a storage"),
    (number(3) + number(1), number(-3) + number(1), {}, r"strides \(-3, 1\)"),
    (number(6), number(7), {}, "has 24 of 28 bytes"),
    (number(6), number(-6), {}, "unknown storage"),
    (b"FloatStorage", b"CrazyStorage", {}, "wants to load torch.CrazyStorage, which weights do"),
    (b"OrderedDict", b"defaultdict", {}, "wants to load collections.defaultdict, which"),
    (b"", b"", {"byteorder": b"big"}, "was written on a big-endian machine"),
    (b"", b"", {"data/0": b"\0" * 20}, "has 20 of 24 bytes"),
    (b"", b"", {"data/0": b"\0" * 28}, "data/0 is compressed or too large"),
])
def test_a_file_that_contradicts_itself_is_refused(tmp_path, old, new, members, words):
    with pytest.raises(InputError, match=words) as caught:
        read_params(edited(tmp_path, old, new, **members))
    assert "\n" not in str(caught.value)


def test_other_pickles_and_archives_are_told_apart(tmp_path):
    (tmp_path / "numbers.pth").write_bytes(pickle.dumps([1, 2], 2))
    with pytest.raises(InputError, match=r"is a pickle, not a state dict that torch.save"):
        read_params(tmp_path / "numbers.pth")
    with pytest.raises(InputError, match="holds a list, not a state dict"):
        read_params(torch_zip(tmp_path / "list.pth", pickle.dumps([1, 2], 2)))
    with pytest.raises(InputError, match=r"'epoch' is no tensor in it; save model.state"):
        read_params(torch_zip(tmp_path / "epoch.pth", pickle.dumps({"epoch": 2}, 2)))
    with zipfile.ZipFile(tmp_path / "store.zip", "w") as archive:
        archive.writestr("resnest50.params", b"")
    with pytest.raises(InputError, match=r"is a zip archive of resnest50.params, not of PyTorch"):
        read_params(tmp_path / "store.zip")


@pytest.mark.parametrize("file", [
    "torch_checkpoint.pth", "torch_legacy.pth", "torch_tiny.safetensors"])
def test_a_truncated_file_is_refused(tmp_path, file):
    whole = (DATA / file).read_bytes()
    for length in range(20, len(whole) - 1, 97):
        (tmp_path / file).write_bytes(whole[:length])
        with pytest.raises(InputError, match="is not a PyTorch state dict, or is damaged"):
            read_params(tmp_path / file)


@pytest.fixture
def convert(monkeypatch, capsys):
    """Run scripts/convert_weights.py in this process; its exit code and what it printed."""
    def run(*arguments) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["convert_weights.py", *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(ROOT / "scripts" / "convert_weights.py"), run_name="__main__")
        except SystemExit as error:
            code = error.code
        return code, "".join(capsys.readouterr())

    return run


def test_there_and_back_by_the_command_line(tmp_path, convert):
    net = gluon_resnest.get_model("resnest14", classes=7)
    net.initialize()
    randomize(net)
    start, middle, end = (tmp_path / name for name in ("start.params", "middle.pth", "end.params"))
    save_weights(net, start)
    said = run_tool("scripts/convert_weights.py", start, middle, "--model", "resnest14").stdout
    assert re.search(r"middle.pth: 129 arrays \([\d,]+ values\) of resnest14 with 7 classes", said)
    code, _ = convert(middle, end, "--model", "resnest14", "--classes", 7)
    assert code == 0
    assert end.read_bytes() == start.read_bytes()

    again = gluon_resnest.get_model("resnest14", classes=7, pretrained=middle)
    data = mx.nd.array(images())
    assert np.array_equal(again(data).asnumpy(), net(data).asnumpy())


def test_what_cannot_be_converted_is_one_line_and_leaves_the_old_file(tmp_path, convert):
    net = gluon_resnest.get_model("resnest14", classes=2)
    net.initialize()
    source, target = tmp_path / "source.pth", tmp_path / "target.params"
    write_state_dict(source, {key: value.data().asnumpy()
                              for key, value in net._collect_params_with_prefix().items()})
    target.write_bytes(b"old")
    for arguments, words in (
        ((target, "--model", "resnest26"), r"source.pth is not of this model: of 221 arrays it "
         r"lacks 92 \(layer1.1.conv1.weight, layer1.1.bn1.weight, layer1.1.bn1.bias\)"),
        ((target, "--model", "resnest14", "--classes", 3), r"fc.weight is \(2, 2048\) in the file"),
        ((target, "--model", "resnest15"), "unknown model 'resnest15'|resnest15"),
        ((tmp_path / "x.bin", "--model", "resnest14"), "x.bin ends in none of .params, .pth, .pt"),
        ((tmp_path, "--model", "resnest14", "--to", "pytorch"), "cannot write .*Is a directory"),
    ):
        code, said = convert(source, *arguments)
        assert code == 2
        assert re.search(f"^error: .*({words})", said), said
        assert said.count("\n") == 1
        assert target.read_bytes() == b"old"
        assert sorted(tmp_path.iterdir()) == [source, target]


def test_weights_that_are_no_finite_float32_are_refused(tmp_path):
    state = peer_state("resnest14")
    state["bn1.bias"] = state["bn1.bias"].astype(np.float64) * 1e300
    net = gluon_resnest.get_model("resnest14")
    with pytest.raises(InputError, match=r"timm is damaged: bn1.bias holds values that are no"):
        load_arrays(net, state, "timm")
    del state["bn1.bias"]
    with pytest.raises(InputError, match=r"lacks 1 \(bn1.bias\); check --model"):
        load_arrays(net, state, "timm")
    (tmp_path / "page.pth").write_bytes(b"\n<!DOCTYPE html><title>Sign in</title>")
    with pytest.raises(InputError, match=r"page.pth is a web page: weights are .params files"):
        load_weights(net, tmp_path / "page.pth")
