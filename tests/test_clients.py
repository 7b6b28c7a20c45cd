"""clients/: copied away, without gluon_resnest, they say what the network says."""

from __future__ import annotations

import codecs
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, randomize

import gluon_resnest
from gluon_resnest.classifier import load_classifier
from gluon_resnest.data.images.image_files import read_image
from gluon_resnest.deploy import FORMATS, Description, export

CLIENTS = ROOT / "clients"
NAMES = ("Quelle 1", "été", "pâté \"chaud\"", "日本")
# Modules that a client must do without: this package, and the other runtime.
HIDDEN = {"mxnet": ("gluon_resnest", "onnxruntime"), "onnxruntime": ("gluon_resnest", "mxnet")}
ALONE = """
import runpy, sys
for name in {hidden!r}:
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    """Photograph-like JPEGs: reduced and enlarged, upright and turned, very long."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(3)
    paths = []
    for name, (height, width) in {"a": (300, 400), "b": (90, 100), "c": (50, 61), "d": (70, 900),
                                  "e é": (73, 73)}.items():
        coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
        paths.append(folder / f"{name}.jpg")
        cv2.imwrite(str(paths[-1]), cv2.resize(coarse, (width, height),
                                               interpolation=cv2.INTER_CUBIC))
    return paths


@pytest.fixture(scope="module")
def net():
    net = gluon_resnest.get_model("resnest14", classes=len(NAMES))
    net.initialize()
    randomize(net, 5, branch_gamma=(0.1, 0.3))
    return net


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The C++ client, built as its Makefile says."""
    output = tmp_path_factory.mktemp("built") / "classify"
    done = subprocess.run(["make", "-C", str(CLIENTS), f"PYTHON={sys.executable}",
                           f"OUTPUT={output}"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    return output


def exported(net, images, folder: Path, form: str, pixels: bool, size: int = 64) -> Path:
    crops = np.stack([cv2.resize(read_image(path), (size, size)) for path in images])
    export(net, folder, Description("resnest14", size, 0.875, NAMES), crops, form=form,
           pixels=pixels, calibration=crops, least_agreement=0.5)
    return folder


def expected(folder: Path, images: list[Path]) -> np.ndarray:
    classifier = load_classifier(str(folder))
    return classifier.probabilities(np.stack([classifier.transform(read_image(path))
                                              for path in images]))


def run(*words, hidden: tuple[str, ...] = (), cwd: Path) -> subprocess.CompletedProcess:
    """A client, in a folder of its own."""
    words = [str(word) for word in words]
    if words[0].endswith(".py"):
        words = [sys.executable, "-c", ALONE.format(hidden=hidden), *words]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=cwd,
                          env=environment)


def check(done: subprocess.CompletedProcess, folder: Path, images: list[Path],
          tolerance: float) -> None:
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(images)
    for line, path, row in zip(lines, images, expected(folder, images)):
        name, *found = line.split("\t")
        assert name == str(path)
        shares = {words.rpartition(" ")[0]: float(words.rpartition(" ")[2].rstrip("%")) / 100
                  for words in found}
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        assert [shares[name] for name in NAMES] == pytest.approx(row, abs=tolerance), line


@pytest.mark.parametrize(("form", "pixels"), [
    ("symbol", False), ("symbol", True), ("onnx", False), ("onnx", True), ("int8", True),
    ("onnx-int8", False)])
def test_the_python_client_says_what_the_network_says(form, pixels, net, images, tmp_path):
    folder = exported(net, images, tmp_path / "exported", form, pixels)
    client = shutil.copy(CLIENTS / "classify.py", tmp_path)
    hidden = HIDDEN[FORMATS[form].runtime]
    if "onnx" not in form:  # without the package nothing checks a symbol
        done = run(client, folder, *images, hidden=hidden, cwd=tmp_path)
        assert done.returncode == 2
        assert "gluon_resnest, which checks it, is not installed: give --trusted" in done.stderr
    done = run(client, "--trusted", folder, *images, hidden=hidden, cwd=tmp_path)
    # A last bit of the normalisation can change a value of 8 bits.
    check(done, folder, images, tolerance=0.03 if "int8" in form else 1e-4)


def test_the_python_client_prepares_large_networks_images_as_pillow_does(net, images, tmp_path):
    folder = exported(net, images, tmp_path / "exported", "onnx", True, size=288)
    done = run(CLIENTS / "classify.py", folder, *images, hidden=HIDDEN["onnxruntime"], cwd=tmp_path)
    check(done, folder, images, tolerance=1e-4)


@pytest.mark.parametrize(("form", "pixels"), [
    ("symbol", False), ("symbol", True), ("int8", False), ("int8", True)])
def test_the_c_plus_plus_client_says_what_the_network_says(form, pixels, program, net, images,
                                                           tmp_path):
    folder = exported(net, images, tmp_path / "exported", form, pixels)
    # MXNet's OpenCV is older than Python's: decoded pixels differ by a level here and there.
    tolerance = 0.03 if form == "int8" else 0.01
    check(run(program, folder, *images, cwd=tmp_path), folder, images, tolerance)


def strange(tmp_path: Path, folder: Path, images: list[Path]) -> dict[str, tuple[list, str]]:
    """Command lines, and words of the answer."""
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "model.json").write_text('{"files": {')
    return {
        "no image": ([folder, text], f"{text} is no image that"),
        "no file": ([folder, tmp_path / "none.jpg"], f"{tmp_path / 'none.jpg'}"),
        "no card": ([tmp_path, images[0]], str(tmp_path / "model.json")),
        "a broken card": ([broken, images[0]], str(broken / "model.json")),
        "nothing": ([], "usage: "),
    }


@pytest.mark.parametrize("case", ["no image", "no file", "no card", "a broken card", "nothing"])
@pytest.mark.parametrize("client", ["C++", "Python"])
def test_clients_answer_bad_input_in_one_line(client, case, program, net, images, tmp_path):
    folder = exported(net, images, tmp_path / "exported", "symbol", True)
    words, answer = strange(tmp_path, folder, images)[case]
    done = run(*([program] if client == "C++" else [CLIENTS / "classify.py", "--trusted"]), *words,
               hidden=HIDDEN["mxnet"], cwd=tmp_path)
    said = [line for line in done.stderr.splitlines()
            if "Subgraph backend" not in line]  # MXNet tells C++ programs that oneDNN is used
    assert (done.returncode, len(said)) == (2, 1), done.stderr
    assert answer in said[0]


def test_the_python_client_prints_any_names(net, images, tmp_path):
    folder = exported(net, images, tmp_path / "exported", "onnx", True)
    command = [sys.executable, CLIENTS / "classify.py", folder, images[-1]]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": ""}
    done = subprocess.run(command, capture_output=True, timeout=120, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"e \xe9.jpg" in done.stdout
    assert rb"\u65e5\u672c" in done.stdout
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=120,
                          env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("client", ["C++", "Python"])
def test_clients_read_cards_that_an_editor_saved(client, program, net, images, tmp_path):
    folder = exported(net, images, tmp_path / "exported", "symbol", True)
    content = (folder / "model.json").read_bytes().replace(b"\n", b"\r\n")
    (folder / "model.json").write_bytes(codecs.BOM_UTF8 + content)
    done = run(program if client == "C++" else CLIENTS / "classify.py",
               *([] if client == "C++" else ["--trusted"]), folder, *images,
               hidden=HIDDEN["mxnet"], cwd=tmp_path)
    check(done, folder, images, tolerance=0.01)


def test_cards_say_what_clients_read(net, images, tmp_path):
    folder = exported(net, images, tmp_path / "exported", "onnx", False)
    text = (folder / "model.json").read_text(encoding="utf-8")
    assert "日本" in text  # not \u65e5: C++ readers of JSON often do not know these
    assert json.loads(text)["preprocessing"]["resize"]["longest_sides_ratio"] == 4
