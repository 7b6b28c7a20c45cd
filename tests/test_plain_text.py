"""Text files as editors write them: byte-order marks, Windows' line ends, other encodings."""

from __future__ import annotations

import codecs
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import run_tool

from gluon_resnest.classifier import load_classifier
from gluon_resnest.data.records.image_list import list_images
from gluon_resnest.data.records.record_file import RecordFile, read_class_names
from gluon_resnest.deploy.card import (
    describe_input,
    describe_preprocessing,
    read_card,
    refuse_other_exports,
    sha256,
)
from gluon_resnest.errors import InputError
from gluon_resnest.jobs.hosts import read_hostfile
from gluon_resnest.models import get_model, save_weights
from gluon_resnest.plain_text import printable, read_lines, read_text
from gluon_resnest.tasks.classification.flags import parse_arguments
from gluon_resnest.tasks.classification.history import read_run

# What Notepad, Excel, PowerShell and Vim make of "UTF-8" and "Unicode", with either line end.
ENCODINGS = {
    "UTF-8": lambda text: text.encode(),
    "UTF-8 with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "mark and CRLF": lambda text: codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
    "CR": lambda text: text.replace("\n", "\r").encode(),
    "UTF-16, little-endian": lambda text: codecs.BOM_UTF16_LE + text.replace(
        "\n", "\r\n").encode("utf-16-le"),
    "UTF-16, big-endian": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "UTF-32": lambda text: codecs.BOM_UTF32_LE + text.encode("utf-32-le"),
}


@pytest.fixture(params=ENCODINGS)
def encode(request):
    return ENCODINGS[request.param]


def test_text_is_the_same_in_every_encoding(encode, tmp_path):
    (tmp_path / "a").write_bytes(encode("caf\xe9\n\u732b \u2028 x\x85y\n"))
    assert read_text(tmp_path / "a", "list") == "caf\xe9\n\u732b \u2028 x\x85y\n"
    assert read_lines(tmp_path / "a", "list") == ["caf\xe9", "\u732b \u2028 x\x85y"]


def test_lines_without_an_end_and_empty_files(tmp_path):
    for content, lines in (("", []), ("a", ["a"]), ("a\n\n", ["a", ""]), ("\na", ["", "a"])):
        (tmp_path / "a").write_text(content)
        assert read_lines(tmp_path / "a", "list") == lines


@pytest.mark.parametrize(("content", "words"), [
    (b"caf\xe9\n", "it is not UTF-8 text (byte 3 is 0xe9); save it as UTF-8"),
    ("ant\n".encode("utf-16-le"), "UTF-16 without a byte-order mark; save it as UTF-8"),
    (codecs.BOM_UTF16_LE + b"a", "it is not UTF-16 text"),
    (bytes(range(256)), "it is not UTF-8 text (byte 128 is 0x80)"),
    (b"x" * 101, "it has more than 100 bytes"),
])
def test_what_is_no_text_is_said(content, words, tmp_path):
    (tmp_path / "names").write_bytes(content)
    with pytest.raises(InputError) as error:
        read_text(tmp_path / "names", "--class-names",
                  most_bytes=100 if content[:2] == b"xx" else 1000)
    assert str(error.value).startswith(f"cannot read --class-names {tmp_path / 'names'}: ")
    assert words in str(error.value)


def test_what_is_no_file_is_said_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in ((tmp_path / "pipe", "it is not a regular file"),
                        (Path("/dev/zero"), "it is not a regular file"),
                        (tmp_path, "Is a directory"),
                        (tmp_path / "none", "No such file or directory")):
        with pytest.raises(InputError, match=words):
            read_text(path, "list")


# ---- each kind of file ----


def test_lists(encode, tmp_path):
    (tmp_path / "a.lst").write_bytes(encode("0\t1\tcaf\xe9/b.jpg\n1\t0\td/e.jpg\n"))
    listed = list_images(tmp_path / "a.lst")
    assert [image.path for image in listed.images] == ["caf\xe9/b.jpg", "d/e.jpg"]
    assert listed.class_names == ["d", "caf\xe9"]


def test_class_lists_beside_records(encode, tmp_path):
    (tmp_path / "a.classes.txt").write_bytes(encode("ant\nb\xeate\n"))
    assert read_class_names(tmp_path / "a.rec") == ["ant", "b\xeate"]


def test_indexes(digits, tmp_path):
    shutil.copy(digits / "val.rec", tmp_path)
    content = (digits / "val.idx").read_bytes()
    (tmp_path / "val.idx").write_bytes(codecs.BOM_UTF8 + content.replace(b"\n", b"\r\n"))
    with RecordFile(tmp_path / "val.rec") as records, RecordFile(digits / "val.rec") as expected:
        assert len(records) == len(expected) == 61
        assert records.read(60).payload == expected.read(60).payload


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    net = get_model("resnest14", classes=2)
    net.initialize()
    path = tmp_path_factory.mktemp("weights") / "a.params"
    save_weights(net, path)
    return path


def test_class_names_given_and_beside(encode, weights, tmp_path):
    (tmp_path / "names").write_bytes(encode("ant\nb\xeate\n"))
    classifier = load_classifier("resnest14", weights, class_names=tmp_path / "names")
    assert classifier.class_names == ("ant", "b\xeate")
    shutil.copy(weights, tmp_path)
    (tmp_path / "classes.txt").write_bytes(encode("ant\nb\xeate\n"))
    assert load_classifier("resnest14", tmp_path / "a.params").class_names == ("ant", "b\xeate")


def test_settings(encode, tmp_path):
    (tmp_path / "a.yaml").write_bytes(encode("# gew\xe4hlt\nbase-lr: 0.2\nkeep: 3\n"))
    args = parse_arguments(["-c", str(tmp_path / "a.yaml")])
    assert (args.base_lr, args.keep) == (0.2, 3)


def test_hostfiles(encode, tmp_path):
    (tmp_path / "hosts").write_bytes(encode("node1 slots=8\n# caf\xe9\nnode2:4\n"))
    assert [str(host) for host in read_hostfile(tmp_path / "hosts")] == ["node1:8", "node2:4"]


def test_cards(encode, tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"weights")
    card = {"model": "resnest14", "format": "onnx",
            "files": {"a.onnx": sha256(tmp_path / "a.onnx")}, "classes": 1, "input_size": 64,
            "crop_ratio": 0.875, "class_names": ["b\xeate"],
            "input": describe_input(64, pixels=False, any_size=False),
            "preprocessing": describe_preprocessing(64, 0.875),
            "output": {"shape": ["N", 1], "values": "logits"}}
    text = json.dumps(card, indent=2, ensure_ascii=False)
    (tmp_path / "model.json").write_bytes(encode(text))
    assert read_card(tmp_path)[0] == card
    with pytest.raises(InputError, match="describes an export of resnest14 as onnx"):
        refuse_other_exports(tmp_path, "resnest14", "symbol")


def test_metrics_and_settings_of_a_run(tmp_path):
    """The error about a damaged line says to delete it, which is done in an editor."""
    (tmp_path / "metrics.jsonl").write_bytes(
        codecs.BOM_UTF8 + b'{"event": "epoch", "epoch": 1, "step": 3, "loss": 2.5}\r\n'
        b'{"event": "epoch", "epoch": 2, "step": 6, "loss": 1.5}\r\n')
    (tmp_path / "config.yaml").write_bytes(codecs.BOM_UTF8 + b"recipe: {model: resnest14}\r\n")
    history = read_run(tmp_path)
    assert [record["loss"] for record in history.epochs] == [2.5, 1.5]
    assert history.reference is not None


# ---- names ----


def test_names_are_printable_in_tables_and_pictures(tmp_path):
    name = b"caf\xe9 $x$".decode("utf-8", "surrogateescape")
    assert printable(name + "\n\t\u0007") == r"caf\udce9 $x$" + r"\n\t\x07"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(
        '{"event": "epoch", "epoch": 1, "step": 3, "loss": 2.5}\n')
    content = cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))[1].tobytes()
    (folder / f"{name}.png").write_bytes(content)
    for command, output in (
            (["scripts/plot_run.py", folder], folder / "run.png"),
            (["scripts/show_augmentation.py", "samples", "--image", folder / f"{name}.png",
              "--output", folder / "sheet.png", "--count", 1], folder / "sheet.png")):
        run_tool(*command)
        assert output.read_bytes().startswith(b"\x89PNG")
