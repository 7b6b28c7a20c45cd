"""Every kind of image file: packed, verified, read for training, predicted, and by the clients."""

from __future__ import annotations

import io
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, randomize, run_tool
from image_kinds import ImageKind, write_kinds
from PIL import Image

import gluon_resnest
from gluon_resnest.data.augment.transforms import EvaluationTransform
from gluon_resnest.data.images.decoding import check_header, decode
from gluon_resnest.data.images.image_files import find_images, read_image
from gluon_resnest.data.loading.labelled_images import EvaluationLoader
from gluon_resnest.data.records.packing import PackOptions, pack
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.data.records.verification import verify
from gluon_resnest.deploy import Description, export

CLIENTS = ROOT / "clients"
SIZE = 64
COPIED = (".jpg", ".png", ".bmp")  # kinds that a record may hold as they are


@pytest.fixture(scope="module")
def kinds(photos, tmp_path_factory) -> list[ImageKind]:
    folder = tmp_path_factory.mktemp("kinds") / "one class"
    folder.mkdir()
    return write_kinds(folder, np.ascontiguousarray(photos[0][100:190, 200:331]))


@pytest.fixture(scope="module")
def exported(kinds, tmp_path_factory) -> Path:
    """A network of five classes, as MXNet's files."""
    folder = tmp_path_factory.mktemp("exported")
    net = gluon_resnest.get_model("resnest14", classes=5)
    net.initialize()
    randomize(net, 5, branch_gamma=(0.1, 0.3))
    crops = np.stack([EvaluationTransform(SIZE)(pixels) for _, pixels in kinds[:8]])
    export(net, folder, Description("resnest14", SIZE, 0.875, tuple("abcde")), crops,
           form="symbol", pixels=True)
    return folder


def differences(kinds: list[ImageKind], read) -> dict[str, object]:
    """What is read otherwise than the file's pixels, by name."""
    wrong = {}
    for path, pixels in kinds:
        found = read(path)
        if found.dtype != np.uint8 or found.shape != pixels.shape:
            wrong[path.name] = (found.dtype, found.shape)
        elif not np.array_equal(found, pixels):
            wrong[path.name] = np.abs(found.astype(int) - pixels).max()
    return wrong


def test_the_set_has_every_kind(kinds):
    assert len(kinds) == 83
    by_name = {path.name: pixels for path, pixels in kinds}
    height, width = by_name["exif1.jpg"].shape[:2]
    for name, pixels in by_name.items():
        turned = name.startswith(("exif5", "exif6", "exif7", "exif8"))
        assert pixels.shape == ((width, height, 3) if turned else (height, width, 3)), name
        assert 100 < pixels.mean() < 240, name  # nothing is black, nor white
    assert sorted(file.path.name for file in find_images([kinds[0].path.parent])) == sorted(by_name)


def test_the_decoder_gives_pillows_pixels(kinds):
    assert differences(kinds, lambda path: decode(path.read_bytes())) == {}
    assert differences(kinds, lambda path: decode(memoryview(path.read_bytes()))) == {}
    assert differences(kinds, read_image) == {}
    for path, _ in kinds:
        check_header(path.read_bytes())


def test_the_python_client_gives_the_same_pixels(kinds):
    read = runpy.run_path(str(CLIENTS / "classify.py"), run_name="client")["read"]
    assert differences(kinds, read) == {}


def test_records_of_every_kind(kinds, tmp_path):
    """Encoded anew, as --quality does, and then read as training and evaluation read them."""
    packed = pack(kinds[0].path.parent.parent, tmp_path / "a",
                  PackOptions(quality=100, shuffle=False))
    assert packed.class_names == ["one class"]
    assert verify(packed.record_file).faults == []
    paths = [line.split("\t")[2] for line in (tmp_path / "a.lst").read_text().splitlines()]
    expected = {path.name: pixels for path, pixels in kinds}
    with RecordFile(packed.record_file) as records:
        assert len(records) == len(kinds)
        for position, path in enumerate(paths):
            found = decode(records.read(position).payload).astype(int)
            pixels = expected[Path(path).name]
            encoded = io.BytesIO()
            Image.fromarray(pixels).save(encoded, "JPEG", quality=100, subsampling=2)
            lost = np.abs(np.array(Image.open(encoded)).astype(int) - pixels).mean()
            assert np.abs(found - pixels).mean() < lost + 0.5, path


def test_records_that_hold_the_files_own_bytes(kinds, tmp_path):
    folder = tmp_path / "source" / "one class"
    folder.mkdir(parents=True)
    copied = [kind for kind in kinds if kind.path.suffix in COPIED]
    for path, _ in copied:
        shutil.copy(path, folder)
    packed = pack(tmp_path / "source", tmp_path / "a", PackOptions(shuffle=False))
    assert verify(packed.record_file).faults == []
    expected = {path.name: EvaluationTransform(SIZE)(pixels) for path, pixels in copied}
    paths = [line.split("\t")[2] for line in (tmp_path / "a.lst").read_text().splitlines()]
    with RecordFile(packed.record_file) as records:
        batches = list(EvaluationLoader(records, EvaluationTransform(SIZE), 16, classes=1))
    images = np.concatenate([batch.images for batch in batches])
    assert len(images) == len(copied) == len(paths)
    for path, image in zip(paths, images):
        np.testing.assert_array_equal(image, expected[Path(path).name], err_msg=path)


def predicted(exported: Path, kinds: list[ImageKind]) -> dict[str, dict[str, float]]:
    done = run_tool("scripts/predict.py", "--model", exported, "--json", "--no-cuda",
                    *[path for path, _ in kinds])
    return {answer["image"]: {one["label"]: one["probability"] for one in answer["top"]}
            for answer in json.loads(done.stdout)}


@pytest.mark.slow
def test_prediction_and_clients_say_the_same(kinds, exported, tmp_path):
    answers = predicted(exported, kinds)
    assert len(answers) == len(kinds)
    alike = answers[str(kinds[0].path)]
    turned = answers[str(kinds[0].path.with_name("exif6.png"))]
    assert max(abs(alike[label] - turned[label]) for label in alike) > 0.02  # it does matter

    client = shutil.copy(CLIENTS / "classify.py", tmp_path)
    program = tmp_path / "classify"
    built = subprocess.run(["make", "-C", CLIENTS, f"PYTHON={sys.executable}",
                            f"OUTPUT={program}"], capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    check([sys.executable, client, exported], kinds, answers, 1e-4)
    # What MXNet decodes, turned as EXIF data says; its OpenCV is another, so CMYK differs by one.
    read = [kind for kind in kinds if kind.path.suffix in COPIED and " of 16" not in kind.path.name]
    assert len(read) == 37
    check([program, exported], read, answers, 0.01)
    for path, _ in kinds:
        if path.suffix in COPIED and " of 16" not in path.name:
            continue
        done = subprocess.run([program, exported, path], capture_output=True, text=True, timeout=60)
        reason = "12 bits in 16" if path.suffix == ".png" else "not JPEG, PNG or BMP"
        assert (done.returncode, done.stdout) == (2, ""), path
        assert f"{path} is no image that MXNet reads: it" in done.stderr
        assert reason in done.stderr


def check(command: list, kinds: list[ImageKind], answers: dict[str, dict],
          tolerance: float) -> None:
    """A client's answers, against those of predict.py."""
    done = subprocess.run([*map(str, command), *(str(path) for path, _ in kinds)],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(kinds)
    for line in lines:
        path, *found = line.split("\t")
        shares = {"abcde".index(words.split()[0]): float(words.split()[1].rstrip("%")) / 100
                  for words in found}
        assert shares == pytest.approx(answers[path], abs=tolerance), path
