"""What is packed: folders with links and odd names, and lists that nobody should trust."""

from __future__ import annotations

import csv
import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import randomize, run_tool
from PIL import Image

import gluon_resnest
from gluon_resnest.data.images.image_files import find_images
from gluon_resnest.data.records.image_list import list_images
from gluon_resnest.data.records.packing import PackOptions, pack
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.data.records.verification import verify
from gluon_resnest.errors import InputError
from gluon_resnest.models import save_weights

# Spaces around, of several kinds, characters of two bytes and of four, and what shells dislike.
ODD_NAMES = (" ant ", "'bee' \"queen\"", "crème\u00a0brûlée", "Größe 50 %", "\u3000犬\u3000",
             "~,;$(x)*", "👩\u200d🔬 lab", "line\\nfeed")


def picture(path: Path, value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 30, 3), value, np.uint8)).save(path)
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes of two images each."""
    for name in ("ant/1.png", "ant/2.png", "bee/1.png", "bee/more/2.png"):
        picture(tmp_path / "photos" / name)
    return tmp_path / "photos"


def packed_paths(source: Path, folder: Path) -> list[str]:
    pack(source, folder / "out", PackOptions(shuffle=False, overwrite=True))
    assert verify(folder / "out.rec").faults == []
    return [line.split("\t")[2] for line in (folder / "out.lst").read_text().splitlines()]


# ---- links ----


@pytest.mark.parametrize(("place", "target"), [
    ("bee/loop", "."), ("bee/more/up", ".."), ("bee/more/all", "../.."), ("bee/root", "/"),
    ("bee/loop.png", "loop.png"), ("bee/more/absolute", "{photos}"), ("bee/same", "more")])
def test_a_link_that_leads_round_is_left_out(photos, place, target, tmp_path):
    plain = packed_paths(photos, tmp_path)
    assert plain == ["ant/1.png", "ant/2.png", "bee/1.png", "bee/more/2.png"]
    (photos / place).symlink_to(target.format(photos=photos))
    if place == "bee/loop.png":  # an image by its name, so it is missed
        with pytest.raises(InputError, match=r"cannot read image .*loop\.png: Too many levels"):
            pack(photos, tmp_path / "b")
    else:
        assert packed_paths(photos, tmp_path) == plain
    found = [str(file.path.relative_to(photos)) for file in find_images([photos])]
    assert found == sorted([*plain, "bee/loop.png"] if place == "bee/loop.png" else plain)


def test_links_to_images_elsewhere_are_packed(photos, tmp_path):
    picture(tmp_path / "elsewhere" / "deep" / "3.png")
    (photos / "cat").symlink_to(tmp_path / "elsewhere")
    (photos / "ant" / "4.png").symlink_to(tmp_path / "elsewhere" / "deep" / "3.png")
    expected = ["ant/1.png", "ant/2.png", "ant/4.png", "bee/1.png", "bee/more/2.png",
                "cat/deep/3.png"]
    assert packed_paths(photos, tmp_path) == expected
    assert [str(file.path.relative_to(photos)) for file in find_images([photos])] == expected
    assert (tmp_path / "out.classes.txt").read_text() == "ant\nbee\ncat\n"


def test_a_class_that_is_a_link_to_its_own_folder_has_no_images(photos, tmp_path):
    (photos / "all").symlink_to(".")
    with pytest.raises(InputError, match=r"class folder .*photos/all has no images"):
        pack(photos, tmp_path / "out")


def test_a_link_to_nothing_is_one_line(photos, tmp_path):
    (photos / "ant" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(InputError, match=r"cannot read image .*gone\.png: No such file"):
        pack(photos, tmp_path / "out")


def test_folders_as_deep_as_the_system_allows(photos, tmp_path):
    place = os.open(photos / "bee", os.O_RDONLY)
    for _ in range(1500):  # more than Python can call itself
        os.mkdir("d", dir_fd=place)
        below = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)
    try:
        assert packed_paths(photos, tmp_path) == ["ant/1.png", "ant/2.png", "bee/1.png",
                                                  "bee/more/2.png"]
    finally:
        os.removedirs(photos / "bee" / "/".join(["d"] * 1500))  # pytest's own cleaning cannot


# ---- names ----


def test_what_is_packed_can_be_packed_again(tmp_path):
    for number, name in enumerate(ODD_NAMES):
        picture(tmp_path / "photos" / name / f" {name} .png", 10 * number)
    first = pack(tmp_path / "photos", tmp_path / "first")
    again = pack(tmp_path / "first.lst", tmp_path / "again", PackOptions(shuffle=False),
                 root=tmp_path / "photos")
    assert sorted(ODD_NAMES) == first.class_names == again.class_names
    for ending in ("rec", "idx", "lst", "classes.txt"):
        assert (tmp_path / f"first.{ending}").read_bytes() == (
            tmp_path / f"again.{ending}").read_bytes()
    with RecordFile(tmp_path / "again.rec") as records:
        assert records.class_names == sorted(ODD_NAMES)
        assert [records.read(i).payload for i in range(len(records))] == [
            (tmp_path / "photos" / line.split("\t")[2]).read_bytes()
            for line in (tmp_path / "first.lst").read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.mark.parametrize("name", ["a\tb", "a\nb", "\rab", "a\x85b", "a\u2028b", "a\x1cb",
                                  os.fsdecode(b"a\xffb")])
@pytest.mark.parametrize("form", ["{}/1.png", "ant/{}.png", "ant/{}/1.png"])
def test_names_that_a_line_cannot_hold_are_refused(photos, name, form, tmp_path):
    picture(photos / form.format(name))
    with pytest.raises(InputError, match="characters that a list cannot hold") as caught:
        pack(photos, tmp_path / "out")
    assert str(caught.value).isprintable()


def test_a_class_of_spaces_is_refused(photos, tmp_path):
    picture(photos / " " / "1.png")
    with pytest.raises(InputError, match="has a name of spaces alone; rename it"):
        pack(photos, tmp_path / "out")


@pytest.mark.slow
def test_predictions_name_the_files(tmp_path):
    """The paths in the CSV open the files, whatever these are called."""
    net = gluon_resnest.get_model("resnest14", classes=2)
    net.initialize()
    randomize(net, 1, branch_gamma=(0.1, 0.3))
    save_weights(net, tmp_path / "a.params")
    names = [*ODD_NAMES, "tab\there", "line\nfeed", '"quoted", twice']
    files = sorted(picture(tmp_path / "photos" / f"{name}.png") for name in names)
    done = run_tool("scripts/predict.py", "--model", "resnest14", "--params",
                    tmp_path / "a.params", "--test-size", 64, "--csv", "--top-k", 1, "--no-cuda",
                    tmp_path / "photos")
    rows = list(csv.DictReader(io.StringIO(done.stdout, newline="")))
    assert [Path(row["image"]) for row in rows] == files


# ---- hostile lists ----


@pytest.mark.parametrize(("line", "words"), [
    ("²\t0\ta.png", "index '²' is not a whole number from 0 to 999999999999999999"),
    ("٣\t0\ta.png", "index '٣' is not a whole number"),
    ("-1\t0\ta.png", "index '-1' is not a whole number"),
    ("1.0\t0\ta.png", "index '1.0' is not a whole number"),
    ("9" * 5000 + "\t0\ta.png", "index '" + "9" * 60 + "'... is not a whole number"),
    (f"{2**64}\t0\ta.png", f"index '{2**64}' is not a whole number"),
    (f"{10**18}\t0\ta.png", f"index '{10**18}' is not a whole number"),
    ("1\t1e39\ta.png", "label '1e39' is not a class, a whole number from 0 to 999,999"),
    ("1\t1e30\ta.png", "label '1e30' is not a class"),
    ("1\t-1\ta.png", "label '-1' is not a class"),
    ("1\t0.5\ta.png", "label '0.5' is not a class"),
    ("1\t1000000\ta.png", "label '1000000' is not a class"),
    ("1\t" + "9" * 5000 + "\ta.png", "label '" + "9" * 60 + "'... is not a class"),
    ("1\tnan\ta.png", "label 'nan' is not a class"),
    ("1\t²\ta.png", "label '²' is not a class"),
    ("1\t1_0\ta.png", "label '1_0' is not a class"),
    ("1\t0\ta\0.png", "zero byte"),
    ("1\t0\t" + "a" * 5000, "has 5,000 characters, more than the 4,096 that a file's may have"),
    ("1\t0\t ", "no path in"),
    ("1\t0", "2 fields in '1\\t0' instead of 3"),
    ("x" * 100_000, "1 fields in '" + "x" * 60 + "...' instead of 3"),
])
def test_a_line_that_is_none_is_named(line, words, photos, tmp_path):
    listing = tmp_path / "a.lst"
    listing.write_text(f"0\t0\tant/1.png\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        pack(listing, tmp_path / "out", root=photos)
    assert words in str(caught.value)
    if "zero byte" not in words:
        assert f"{listing}, line 2: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not (tmp_path / "out.rec").exists()


def test_the_largest_numbers_that_are_packed_can_be_read(photos, tmp_path):
    listing = tmp_path / "a.lst"
    listing.write_text(f"{10**18 - 1}\t999999.000000\tant/1.png\n 7\t 3 \tbee/1.png\n")
    pack(listing, tmp_path / "out", PackOptions(shuffle=False), root=photos)
    assert verify(tmp_path / "out.rec").faults == []
    with RecordFile(tmp_path / "out.rec") as records:
        assert [records.read(i)[:2] for i in (0, 1)] == [(10**18 - 1, 999_999.0), (7, 3.0)]
    assert list_images(tmp_path / "out.lst", photos).images == list_images(listing, photos).images


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "huge"])
@pytest.mark.parametrize("options", [PackOptions(), PackOptions(quality=90)])
def test_a_path_that_is_no_image_file_neither_waits_nor_fills_memory(kind, options, photos,
                                                                   tmp_path):
    path, words = {"pipe": (photos / "pipe.png", "is not a regular file"),
                   "device": (Path("/dev/zero"), "is not a regular file"),
                   "folder": (photos / "ant", "Is a directory|is not a regular file"),
                   "huge": (photos / "huge.png", "its 10,000,000,000 bytes are more than an image")
                   }[kind]
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "huge":
        with open(path, "wb") as file:
            file.truncate(10_000_000_000)
    (tmp_path / "a.lst").write_text(f"0\t0\tant/1.png\n1\t0\t{path}\n")
    start = time.monotonic()
    with pytest.raises(InputError, match=f"{path}.*({words})"):
        pack(tmp_path / "a.lst", tmp_path / "out", options, root=photos)
    assert time.monotonic() - start < 10


def test_a_source_that_is_neither_folder_nor_file(tmp_path):
    with pytest.raises(InputError, match="source /dev/zero is neither a folder nor a regular file"):
        pack("/dev/zero", tmp_path / "out")


@pytest.mark.parametrize("label", [-1.0, 0.5, 1e30, float("nan"), float("inf"), 1e6])
def test_labels_that_are_no_class_are_faults_of_a_record(label, photos, tmp_path):
    (tmp_path / "a.lst").write_text("0\t0\tant/1.png\n1\t1\tbee/1.png\n")
    pack(tmp_path / "a.lst", tmp_path / "out", PackOptions(shuffle=False), root=photos)
    (tmp_path / "out.classes.txt").unlink()
    with open(tmp_path / "out.rec", "r+b") as file:
        file.seek(12)
        file.write(np.float32(label).tobytes())
    (fault,) = verify(tmp_path / "out.rec").faults
    assert (fault.position, fault.reason) == (
        0, f"has label {np.float32(label):g}, which is no class")
