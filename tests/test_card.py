"""model.json: a wrong value is one line from every reader, in this package and the clients."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
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
from gluon_resnest.deploy import Description, export
from gluon_resnest.errors import InputError

CLIENTS = ROOT / "clients"
SIZE, NAMES = 64, ("poly", "mono")
DIGEST = "0" * 64


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "symbol"
    net = gluon_resnest.get_model("resnest14", classes=2)
    net.initialize()
    randomize(net, branch_gamma=(0.1, 0.3))
    crops = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    export(net, folder, Description("resnest14", SIZE, 0.875, NAMES), crops)
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    cv2.imwrite(str(path), np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("built") / "classify"
    subprocess.run(["make", "-C", str(CLIENTS), f"PYTHON={sys.executable}", f"OUTPUT={output}"],
                   check=True, capture_output=True, timeout=300)
    return output


def put(card: dict, field: str, value) -> None:
    *outer, last = field.split(".")
    for key in outer:
        card = card[key]
    if value is Ellipsis:
        del card[last]
    else:
        card[last] = value


# Fields and values that no reader takes.
WRONG = [
    ("class_names", True), ("class_names", "ab"), ("class_names", ["a"]), ("class_names", [1, 2]),
    ("class_names", ...), ("classes", 2.5), ("classes", True), ("classes", "2"), ("classes", -1),
    ("classes", 10 ** 12), ("classes", None), ("format", "tflite"), ("format", ["onnx"]),
    ("format", {}), ("files", []), ("files", {}), ("files", {"a-symbol.json": DIGEST}),
    ("files", {"/etc/x-symbol.json": DIGEST, "a-0000.params": DIGEST}),
    ("files", {"../x-symbol.json": DIGEST, "a-0000.params": DIGEST}),
    ("files", {"..\\x-symbol.json": DIGEST, "a-0000.params": DIGEST}),
    ("input", None), ("input.name", "softmax"), ("input.dtype", "float16"),
    ("input.dtype", "uint8"), ("input.shape", ["N", 3, SIZE, 2 * SIZE]), ("input.shape", 3),
    ("input.color", "BGR"), ("input.normalization", 0), ("input.normalization.mean", 0.5),
    ("input.normalization.mean", [1e9, 0.4, 0.4]), ("input.normalization.std", [0, 1, 1]),
    ("input.normalization.std", [True, 1, 1]), ("input.normalization.std", ["1", "1", "1"]),
    ("input.normalization.mean", ...), ("input.normalization.in_the_graph", True),
    ("input_size", 0), ("input_size", "64"), ("input_size", 10 ** 9), ("preprocessing", ...),
    ("preprocessing.crop.size", 63), ("preprocessing.crop.where", "corner"),
    ("preprocessing.resize.shorter_side", 10), ("preprocessing.resize.shorter_side", 10 ** 9),
    ("preprocessing.resize.longest_sides_ratio", 0), ("preprocessing.resize", []),
    ("preprocessing.resize.interpolation", "nearest"), ("output.shape", ["N", 3]),
    ("output.values", "probabilities"),
]
# Values that other readers obey, and this package, which computes with its own, refuses.
OBEYED = [("input.normalization.mean", [0.5, 0.5, 0.5]), ("preprocessing.resize.shorter_side", 80),
          ("preprocessing.resize.interpolation", "bicubic"),
          ("preprocessing.resize.longest_sides_ratio", 2)]
TEXTS = {"NaN": ('"input_size": 64', '"input_size": NaN'),
         "infinity": ("0.485", "1e999"),
         "digits": ('"classes": 2', '"classes": ' + "2" * 5000),
         "a key twice": ('"classes": 2', '"classes": 3, "classes": 2'),
         "an object twice": ('"input": {', '"input": {"other": 1}, "input": {'),
         "depth": ('"classes": 2', '"x": ' + "[" * 3000 + "]" * 3000 + ', "classes": 2')}


def edited(exported: Path, folder: Path, field: str, value) -> Path:
    shutil.copytree(exported, folder)
    card = json.loads((folder / "model.json").read_text())
    put(card, field, value)
    (folder / "model.json").write_text(json.dumps(card, indent=2))
    return folder


def run(*words) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([str(word) for word in words], capture_output=True, text=True,
                          timeout=120, env=environment)


def said(done: subprocess.CompletedProcess) -> str:
    """The one line of a program that ended with 2."""
    lines = [line for line in done.stderr.splitlines() if "Subgraph backend" not in line]
    assert (done.returncode, len(lines)) == (2, 1), done.stderr
    return lines[0]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_wrong_value(field, value, exported, photo, program, tmp_path):
    folder = edited(exported, tmp_path / "out", field, value)
    with pytest.raises(InputError, match=r"model\.json .*export the model again") as refused:
        load_classifier(str(folder))
    assert field.split(".")[0] in str(refused.value) or "file" in str(refused.value)
    client = runpy.run_path(str(CLIENTS / "classify.py"))
    with pytest.raises(client["Problem"], match=r"model\.json (lacks|cannot be read)"):
        client["read_card"](folder)
    assert "model.json is not the card of an exported symbol (" in said(run(program, folder, photo))


@pytest.mark.parametrize("case", TEXTS)
def test_a_wrong_text(case, exported, photo, program, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "out")
    text = (folder / "model.json").read_text()
    assert TEXTS[case][0] in text
    (folder / "model.json").write_text(text.replace(*TEXTS[case], 1))
    with pytest.raises(InputError, match=r"model\.json"):
        load_classifier(str(folder))
    assert "model.json is not the card of" in said(run(program, folder, photo))
    if case != "depth":  # Python takes any
        client = runpy.run_path(str(CLIENTS / "classify.py"))
        with pytest.raises(client["Problem"], match=r"model\.json"):
            client["read_card"](folder)


@pytest.mark.parametrize(("field", "value"), OBEYED)
def test_another_meaning_is_obeyed_or_refused(field, value, exported, photo, program, tmp_path):
    """Prediction ignored it and the clients obeyed it: 80 % of one class, 100 % of the other."""
    folder = edited(exported, tmp_path / "out", field, value)
    with pytest.raises(InputError, match=rf"has {field} = .*, where this version computes with"):
        load_classifier(str(folder))
    one = run(sys.executable, CLIENTS / "classify.py", folder, photo)
    other = run(program, folder, photo)
    before = run(program, exported, photo)
    assert (one.returncode, other.returncode, before.returncode) == (0, 0, 0), one.stderr
    shares = [{name: float(share.rstrip("%")) for name, share in
               (found.split(" ") for found in done.stdout.strip().split("\t")[1:])}
              for done in (one, other, before)]
    # The C++ client has no bicubic filter and takes averages instead.
    assert shares[0] == pytest.approx(shares[1], abs=5 if value == "bicubic" else 1)
    if field == "input.normalization.mean":
        assert shares[1] != shares[2]


@pytest.mark.parametrize("file", ["resnest14-symbol.json", "resnest14-0000.params"])
def test_clients_compare_the_digest(file, exported, photo, program, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "out")
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(content)
    for command in ([sys.executable, CLIENTS / "classify.py"], [program]):
        line = said(run(*command, folder, photo))
        assert f"{folder / file} is not the file that was exported: its SHA-256 is" in line


def test_sha256_of_the_cpp_client(tmp_path):
    """Against Python's, around the ends of its blocks."""
    (tmp_path / "main.cpp").write_text(f"""
#include <iostream>
#include <iterator>
#include "{CLIENTS / 'sha256.h'}"
int main() {{
  std::cout << sha256(std::string(std::istreambuf_iterator<char>(std::cin), {{}}));
}}
""")
    subprocess.run(["g++", "-std=c++14", "-Wall", "-Werror", str(tmp_path / "main.cpp"), "-o",
                    str(tmp_path / "main")], check=True, timeout=120)
    for size in (0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 100_000):
        content = np.random.default_rng(size).bytes(size)
        done = subprocess.run([str(tmp_path / "main")], input=content, capture_output=True,
                              check=True, timeout=60)
        assert done.stdout.decode() == hashlib.sha256(content).hexdigest()


def test_a_pipe_in_place_of_a_file(exported, photo, program, tmp_path):
    """Reading it would wait for ever."""
    folder = shutil.copytree(exported, tmp_path / "out")
    for name in ("resnest14-symbol.json", "model.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(InputError, match=name):
            load_classifier(str(folder))
        for command in ([sys.executable, CLIENTS / "classify.py"], [program]):
            assert name in said(run(*command, folder, photo))
