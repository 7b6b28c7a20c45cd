"""Weight files: whole or refused, and fetched from a store by name and checksum."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
import zipfile
from dataclasses import replace

import mxnet as mx
import numpy as np
import pytest
from conftest import randomize

import gluon_resnest
from gluon_resnest.errors import InputError
from gluon_resnest.models import VARIANTS, load_weights, save_weights
from gluon_resnest.models.weights import published_weights


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
    (lambda whole: whole[: len(whole) // 2], "is not a .params file, or is damaged"),
    (lambda whole: b"", "is not a .params file, or is damaged"),
    (lambda whole: b"<html><body>403 Forbidden</body></html>" * 9, "is not a .params file"),
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


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no weights at .*nowhere.params"):
        gluon_resnest.get_model("resnest14", pretrained=tmp_path / "nowhere.params")


def test_a_failed_write_leaves_the_old_file(saved, tmp_path, monkeypatch):
    path = tmp_path / "kept.params"
    path.write_bytes(b"old")
    net = small()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(net, "save_parameters", fail)
    with pytest.raises(InputError, match=r"cannot write .*kept.params: No space left"):
        save_weights(net, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def store(tmp_path):
    """A model store on this machine: `store(variant, content)` publishes; returns its address."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def publish(variant, content: bytes) -> str:
        folder = tmp_path / "gluon" / "models"
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{variant.name}-{variant.sha1[:8]}"
        with zipfile.ZipFile(folder / f"{stem}.zip", "w") as archive:
            archive.writestr(f"{stem}.params", content)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield publish
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_published_weights_come_from_the_store_once(saved, store, tmp_path, monkeypatch):
    content = saved.read_bytes()
    variant = replace(VARIANTS["resnest14"], sha1=hashlib.sha1(content).hexdigest())
    monkeypatch.setitem(VARIANTS, "resnest14", variant)
    monkeypatch.setenv("MXNET_GLUON_REPO", store(variant, content))
    root = tmp_path / "cache"
    net = gluon_resnest.get_model("resnest14", pretrained=True, classes=3, root=root)
    assert np.array_equal(net.fc.bias.data().asnumpy(),
                          mx.nd.load(str(saved))["fc.bias"].asnumpy())
    monkeypatch.setenv("MXNET_GLUON_REPO", "http://127.0.0.1:9")  # gone; the cache suffices
    assert published_weights(variant, root).read_bytes() == content
    assert [path.name for path in root.iterdir()] == [f"resnest14-{variant.sha1[:8]}.params"]


def test_a_wrong_checksum_and_a_dead_store_are_errors(store, tmp_path, monkeypatch):
    variant = VARIANTS["resnest14"]
    monkeypatch.setenv("MXNET_GLUON_REPO", store(variant, b"something else"))
    with pytest.raises(InputError, match=r"is damaged: SHA-1 .*, published 7e0b0cae"):
        published_weights(variant, tmp_path / "cache")
    monkeypatch.setenv("MXNET_GLUON_REPO", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"cannot get http://127.0.0.1:9/gluon/models/resnest14-"):
        published_weights(variant, tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())
