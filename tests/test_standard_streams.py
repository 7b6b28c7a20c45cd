"""Nothing that a tool prints ends it: other encodings, readers that have gone, full disks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from jobs import run_to_end

import gluon_resnest
from gluon_resnest.models import save_weights

TOOLS = sorted(str(path.relative_to(ROOT)) for path in (
    ROOT / "train_imagenet.py", *ROOT.glob("scripts/*.py"), *ROOT.glob("demo/*.py")))
# As a service or an old server has it; Python may not take UTF-8 in its stead.
PLAIN_C = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
NAMES = ("Gr\xf6\xdfe", b"caf\xe9".decode("utf-8", "surrogateescape"), "\u86c7 \U0001f40d")


def run(*command, stdout=subprocess.PIPE, **variables: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("LC_", "PYTHONIO", "PYTHONUNBUFFERED"))}
    return subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=stdout,
                          stderr=subprocess.PIPE, timeout=120,
                          env={**environment, "OMP_NUM_THREADS": "1", **variables})


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    net = gluon_resnest.get_model("resnest14", classes=2)
    net.initialize()
    save_weights(net, folder / "small.params")
    (folder / "classes.txt").write_text("\u732b\nd\xf6g\n", encoding="utf-8")
    return folder / "small.params"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of images, each in a folder of a name that some terminal lacks."""
    folder = tmp_path_factory.mktemp("photos")
    content = cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))[1].tobytes()
    for name in NAMES:
        (folder / name).mkdir()
        (folder / name / "x.png").write_bytes(content)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, PLAIN_C],
                         ids=["ascii", "C locale"])
@pytest.mark.parametrize("command", [
    ("train_imagenet.py", "--model", "resnest14", "--rec-train"),
    ("scripts/pack_records.py", "out", "--root"),
    ("scripts/predict.py", "--model", "resnest14", "x.png", "--params"),
    ("scripts/plot_run.py",), ("scripts/run_resilient.py", "--hostfile"),
    ("scripts/convert_weights.py", "--model", "resnest14", "out.params"),
    ("demo/picture.py", "run", "photos"),
], ids=lambda command: command[0])
def test_an_error_with_any_letters_is_one_line(command, variables):
    tail = ("--", "true") if "run_resilient" in command[0] else ()
    done = run(*command, "".join(NAMES), *tail, **variables)
    assert done.returncode == 2, done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_a_reader_that_has_gone_ends_a_tool_without_a_word(tool):
    """As `| head -c 0` does, but sure to have ended before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run(tool, "--help", stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0 if tool == "train_imagenet.py" else 141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_standard_output_is_one_line():
    with open("/dev/full", "wb") as full:
        done = run("scripts/benchmark.py", "cost", "--model", "resnest14", stdout=full)
    assert done.returncode == 2
    assert done.stderr == b"error: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize(("variables", "shown"), [
    ({"PYTHONIOENCODING": "ascii"},
     (rb"Gr\xf6\xdfe", rb"caf\udce9", rb"\u86c7 \U0001f40d")),
    ({"PYTHONIOENCODING": "latin-1"}, (b"Gr\xf6\xdfe", rb"caf\udce9", rb"\u86c7 \U0001f40d")),
    # Python does not know what the bytes of a name mean there.
    (PLAIN_C, (rb"Gr\udcc3\udcb6\udcc3\udc9fe", rb"caf\udce9", rb"\udce8\udc9b\udc87 \udcf0")),
], ids=["ascii", "Latin-1", "C locale"])
def test_prediction_prints_any_names(variables, shown, weights, photos):
    command = ("scripts/predict.py", "--model", "resnest14", "--params", weights,
               "--test-size", 32, photos)
    done = run(*command, **variables)
    assert done.returncode == 0, done.stderr
    for name in shown:
        assert name in done.stdout
    assert done.stdout.count(b"/x.png ") == 3
    assert len(json.loads(run(*command, "--json", **variables).stdout)) == 3


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, PLAIN_C],
                         ids=["ascii", "C locale"])
def test_tables_in_files_are_utf_8(variables, weights, photos, tmp_path):
    with open(tmp_path / "a.csv", "wb") as file:
        run("scripts/predict.py", "--model", "resnest14", "--params", weights, "--csv",
            "--test-size", 32, photos, stdout=file, **variables)
    text = (tmp_path / "a.csv").read_bytes().decode("utf-8")
    assert text.count("\u732b") == text.count("d\xf6g") == 3
    if variables != PLAIN_C:  # where file names are bytes that Python cannot tell the letters of
        assert "Gr\xf6\xdfe/x.png,1," in text


def test_a_run_outlives_whoever_reads_what_it_says(digits, tmp_path):
    """Its directory, with a name that the locale lacks, is written to the end."""
    reader, writer = os.pipe()
    os.close(reader)
    directory = tmp_path / NAMES[0]
    command = ("train_imagenet.py", "--model", "resnest14", "--no-cuda", "--input-size", "32",
               "--rec-train", digits / "train.rec", "--rec-val", digits / "val.rec",
               "--batch-size", "32", "--num-epochs", "1", "--warmup-epochs", "0",
               "--steps", "2", "--save-dir", directory)
    try:
        done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=writer,
                              stderr=writer, timeout=120,
                              env={**os.environ, "OMP_NUM_THREADS": "1", **PLAIN_C})
    finally:
        os.close(writer)
    assert done.returncode == 0
    assert json.loads((directory / "result.json").read_text())["step"] == 2
    job = run_to_end(*command, **PLAIN_C)  # goes on, and can say so
    assert "result" not in job.output
