"""Image files of any origin: what is read, what is refused, and what predict.py makes of both."""

from __future__ import annotations

import csv
import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, randomize
from PIL import Image, ImageFile

import gluon_resnest
from gluon_resnest.data.images.decoding import decode
from gluon_resnest.data.images.image_files import MOST_PIXELS, find_images, read_image
from gluon_resnest.errors import InputError
from gluon_resnest.models import save_weights


@pytest.fixture(scope="module")
def pixels(photos):
    return np.ascontiguousarray(photos[0][:61, 100:183])


def saved(folder: Path, name: str, image: np.ndarray, **options) -> Path:
    Image.fromarray(image).save(folder / name, **options)
    return folder / name


def oriented(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


# ---- what is read ----


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "ppm", "jp2"])
def test_lossless_formats_give_the_pixels(suffix, pixels, tmp_path):
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path, f"a.{suffix}", pixels, **options)
    np.testing.assert_array_equal(read_image(path), pixels)
    misnamed = path.rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_image(misnamed), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_orientation(suffix, orientation, pixels, tmp_path):
    options = {"jpg": {"quality": 90}, "webp": {"lossless": True}}.get(suffix, {})
    path = saved(tmp_path, f"a.{suffix}", pixels, exif=oriented(orientation), **options)
    # By the standard: where row 0 and column 0 of the file belong in the picture.
    turn = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1],
            4: lambda a: a[::-1], 5: lambda a: a.transpose(1, 0, 2),
            6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
            8: lambda a: np.rot90(a)}[orientation]
    found = read_image(path).astype(int)
    assert found.shape == turn(pixels).shape
    assert np.abs(found - turn(pixels)).mean() < (12 if suffix == "jpg" else 1e-9)
    if suffix in ("jpg", "png"):
        np.testing.assert_array_equal(found, decode(path.read_bytes()))


def test_sixteen_bits_are_scaled(rng, tmp_path):
    values = rng.integers(0, 65536, (40, 30), dtype=np.uint16)
    color = rng.integers(0, 65536, (40, 30, 3), dtype=np.uint16)
    for suffix in ("png", "tif"):
        cv2.imwrite(str(tmp_path / f"grey.{suffix}"), values)
        cv2.imwrite(str(tmp_path / f"color.{suffix}"), color[..., ::-1])
        for name, expected in (("grey", values[..., None].repeat(3, axis=2)), ("color", color)):
            found = read_image(tmp_path / f"{name}.{suffix}")
            assert found.dtype == np.uint8
            assert np.abs(found - expected / 257).max() <= 1


def test_cmyk_jpeg(pixels, tmp_path):
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "a.jpg", quality=98)
    expected = np.array(Image.open(tmp_path / "a.jpg").convert("RGB"))
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - expected).max() <= 2


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_first_frame_of_an_animation(suffix, tmp_path):
    red, blue = (Image.new("RGB", (30, 20), color) for color in ((255, 0, 0), (0, 0, 255)))
    options = {"lossless": True} if suffix == "webp" else {}
    red.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[blue, red], **options)
    found = read_image(tmp_path / f"a.{suffix}")
    assert found.shape == (20, 30, 3)
    assert (found == [255, 0, 0]).all()


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_transparency_is_left_out(suffix, pixels, rng, tmp_path):
    alpha = rng.integers(0, 256, pixels.shape[:2], dtype=np.uint8)
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    path = saved(tmp_path, f"a.{suffix}", np.dstack([pixels, alpha]), **options)
    np.testing.assert_array_equal(read_image(path), pixels)


def test_pictures_of_one_and_of_very_many_columns(tmp_path):
    assert read_image(saved(tmp_path, "a.png", np.full((1, 1, 3), 7, np.uint8))).tolist() == [
        [[7, 7, 7]]]
    assert read_image(saved(tmp_path, "b.png", np.zeros((3, 20_000), np.uint8))).shape == (
        3, 20_000, 3)


# ---- what is refused ----


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("lenient", [False, True])  # as importing gluoncv.data leaves Pillow
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tif", "ppm", "jp2"])
def test_a_cut_file_is_one_clear_line(suffix, lenient, pixels, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    path = cut(saved(tmp_path, f"ä.{suffix}", pixels))
    with pytest.raises(InputError, match=r"ä\.\w+: its [\d,]+ bytes are a damaged") as error:
        read_image(path)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""  # nothing of libpng's own
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


def strange_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no images, and words of the answer."""
    folder.mkdir(exist_ok=True)
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("no image")
    (folder / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(folder / "float.tif")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    Image.new("1", (12_000, 12_000)).save(folder / "large.png")
    os.mkfifo(folder / "pipe.png")
    return {name: (folder / name, words) for name, words in {
        "empty.jpg": "is empty (0 bytes)", "text.png": "not an image of a known format (JPEG, PNG",
        "script.eps": "not an image of a known format", "float.tif": "has 32 bits a channel",
        "bomb.png": "its 20000 x 20000 pixels are more than the 134,217,728",
        "large.png": "its 12000 x 12000 pixels are more than", "pipe.png": "not a regular file",
        "none.png": "No such file"}.items()}


def test_strange_files_are_one_clear_line(tmp_path):
    for path, words in strange_files(tmp_path).values():
        with pytest.raises(InputError) as error:
            read_image(path)
        assert words in str(error.value)
        assert str(path) in str(error.value)
    with pytest.raises(InputError, match="no name of a file"):
        read_image(Path("a\0b.png"))


def test_the_limit_is_on_pixels(pixels, tmp_path):
    path = saved(tmp_path, "a.png", pixels)
    assert read_image(path, most_pixels=61 * 83).shape == (61, 83, 3)
    with pytest.raises(InputError, match="its 83 x 61 pixels are more than the 5,062"):
        read_image(path, most_pixels=61 * 83 - 1)


def test_a_bomb_costs_no_memory(tmp_path):
    """In a process of its own: peak memory before and after files that ask for gigabytes."""
    Image.new("1", (20_000, 20_000)).save(tmp_path / "a.png")
    Image.new("L", (20_000, 20_000)).save(tmp_path / "b.gif")
    # Of a JPEG only the header's size is changed: it is refused before anything else is read.
    content = io.BytesIO()
    Image.new("RGB", (16, 16)).save(content, "JPEG")
    frame = content.getvalue()
    at = frame.index(b"\xff\xc0") + 5
    (tmp_path / "c.jpg").write_bytes(frame[:at] + b"\xfd\xe8\xfd\xe8" + frame[at + 4:])
    program = f"""
import resource
from pathlib import Path
from gluon_resnest.data.images.image_files import read_image
from gluon_resnest.errors import InputError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before, refused = peak(), 0
for path in sorted(Path({str(tmp_path)!r}).iterdir()):
    try:
        read_image(path)
    except InputError:
        refused += 1
print(refused, peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True,
                          timeout=120, check=True)
    refused, grown = done.stdout.split()
    assert int(refused) == 3
    assert float(grown) < 32  # MiB; decoded it would be 1200
    assert MOST_PIXELS * 3 < 1 << 29


# ---- folders ----


def test_folders_are_searched(pixels, tmp_path):
    for name in ("b/2.PNG", "b/1.jpg", "a/x/3.webp", ".hidden/4.png", "b/.5.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/x/up").symlink_to(tmp_path)  # would never end
    (tmp_path / "none").mkdir()
    found = find_images([tmp_path / "b/notes.txt", tmp_path, tmp_path / "none"])
    assert [file.path.relative_to(tmp_path).as_posix() for file in found] == [
        "b/notes.txt", "a/x/3.webp", "b/1.jpg", "b/2.PNG", "none"]
    assert [file.fault is None for file in found] == [True] * 4 + [False]
    assert f"folder {tmp_path / 'none'} has no images: give one with files that end in .bmp" in (
        found[-1].fault)


# ---- the command line ----


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    net = gluon_resnest.get_model("resnest14", classes=3)
    net.initialize()
    randomize(net, branch_gamma=(0.1, 0.3))
    save_weights(net, folder / "w.params")
    (folder / "classes.txt").write_text("cat\nSiberian husky, a dog of the far north\n犬\n")
    return folder / "w.params"


@pytest.fixture
def predict(weights, capfd, monkeypatch):
    """Run predict.py in this process: (exit code, stdout, stderr)."""
    def call(*arguments):
        command = ["scripts/predict.py", "--model", "resnest14", "--params", weights,
                   "--test-size", 64, "--batch-size", 2, "--no-cuda", *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        code = 0
        try:
            runpy.run_path(str(ROOT / "scripts/predict.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        return (code, *capfd.readouterr())

    return call


@pytest.fixture
def mixed(pixels, tmp_path):
    """A folder of three images, the last with a line break in its name, and strange files."""
    folder = tmp_path / "mixed"
    strange = strange_files(folder)
    saved(folder, "a.png", pixels)
    saved(folder, "写真.jpg", pixels)
    saved(folder, "z\nz.png", pixels[:1, :1])
    return folder, {name: words for name, (_, words) in strange.items()
                    if name not in ("none.png", "script.eps")}


def test_bad_files_are_listed_and_the_others_labelled(predict, mixed):
    folder, strange = mixed
    code, out, err = predict(folder)
    assert code == 2
    lines = out.splitlines()
    assert [line.split("  ")[0].strip() for line in lines] == [
        f"{folder}/a.png", f"{folder}/z\\nz.png", f"{folder}/写真.jpg"]
    assert all(line.count(" %") == 3 and " then " in line for line in lines)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(strange)
    for name, words in strange.items():
        assert sum(f"{folder}/{name}" in line and words in line for line in errors) == 1
    assert "Traceback" not in err
    assert "Warning" not in err


def test_json_and_csv_say_the_same(predict, mixed):
    folder, strange = mixed
    code, out, _ = predict("--json", "--top-k", 2, folder, folder / "gone.jpg")
    answers = json.loads(out)
    assert code == 2
    assert len(answers) == 4 + len(strange)
    good = [answer for answer in answers if "error" not in answer]
    assert all(set(answer) == {"image", "top"} and len(answer["top"]) == 2 for answer in good)
    assert all(answer["top"] == [] for answer in answers if "error" in answer)
    assert answers[-1]["image"] == str(folder / "gone.jpg")
    assert "No such file" in answers[-1]["error"]
    code, out, _ = predict("--csv", "--top-k", 2, folder, folder / "gone.jpg")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 2
    assert list(rows[0]) == ["image", "rank", "class", "label", "probability", "error"]
    assert [row["error"] for row in rows if row["error"]] == [
        answer["error"] for answer in answers if "error" in answer]
    assert [(row["class"], int(row["label"]), float(row["probability"])) for row in rows
            if row["rank"]] == [(one["class"], one["label"], pytest.approx(one["probability"]))
                                for answer in good for one in answer["top"]]


def test_all_good_is_code_0(predict, pixels, tmp_path):
    path = saved(tmp_path, "a.png", pixels)
    code, out, err = predict(path, path)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 2
    code, out, _ = predict("--json", path)
    probabilities = [one["probability"] for one in json.loads(out)[0]["top"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)


def test_explaining_from_the_command_line(predict, pixels, tmp_path):
    (tmp_path / "b").mkdir()
    one, two = (saved(folder, "写真 $x$.jpg", pixels) for folder in (tmp_path, tmp_path / "b"))
    code, _, err = predict("--explain", tmp_path / "why", one, two)
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "why").iterdir()) == [
        "写真 $x$-2.png", "写真 $x$.png"]
    code, _, err = predict("--explain", one, one)
    assert code == 2
    assert f"--explain {one} cannot be a folder for pictures" in err
    assert err.count("\n") == 1


def test_exported_files_cannot_be_explained(tool, monkeypatch):
    from gluon_resnest import classifier

    exported = classifier.Classifier("resnest14", None, 2, None, 64, 0.875)
    monkeypatch.setattr(classifier, "load_classifier", lambda *_: exported)
    code, err = tool("scripts/predict.py", "--model", "folder", "--explain", "why", "a.png")
    assert code == 2
    assert err == ("error: --explain needs the trained network, and folder is exported: give "
                   "--model NAME --params FILE of its checkpoint")
