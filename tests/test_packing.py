"""pack_records.py against im2rec.py, MXNet's readers, and sources that cannot be packed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import cv2
import mxnet as mx
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from gluon_resnest.data.records import packing
from gluon_resnest.data.records.packing import PackOptions, pack
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.data.records.recordio import MAGIC
from gluon_resnest.errors import InputError

SCRIPT = Path(__file__).parents[1] / "scripts" / "pack_records.py"
PHOTOS = dict(zip(("china", "flower"), load_sample_images().images))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Folder of two classes: crops of two photographs, one of them in a folder further down."""
    source = tmp_path / "photos"
    for name, photo in PHOTOS.items():
        (source / name / "more").mkdir(parents=True)
        for i in range(8):
            crop = Image.fromarray(photo[10 * i : 10 * i + 120, 20 * i : 20 * i + 160])
            crop.save(source / name / ("more" if i == 5 else ".") / f"{i}.JPEG", quality=90)
    (source / "china" / ".DS_Store").write_bytes(b"left by a file manager")
    return source


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Folder of ten classes with 200 handwritten digits as PNG."""
    data = load_digits()
    for i, (image, label) in enumerate(zip(data.images[:200], data.target[:200])):
        folder = tmp_path / "digits" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype(np.uint8)).save(folder / f"{i:04d}.png")
    return tmp_path / "digits"


def read_with_mxnet(prefix: Path) -> list[tuple[int, float, bytes]]:
    reader = mx.recordio.MXIndexedRecordIO(f"{prefix}.idx", f"{prefix}.rec", "r")
    unpacked = [mx.recordio.unpack(reader.read_idx(key)) for key in reader.keys]
    reader.close()
    return [(header.id, header.label, payload) for header, payload in unpacked]


def read_list(prefix: Path) -> list[tuple[int, float, str]]:
    lines = Path(f"{prefix}.lst").read_text().splitlines()
    fields = [line.split("\t") for line in lines]
    return [(int(key), float(label), path) for key, label, path in fields]


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The image after Pillow has encoded and decoded it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def test_mxnet_reads_the_files_bytes(photos: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "out" / "train"
    packed = pack(photos, prefix)
    read, listed = read_with_mxnet(prefix), read_list(prefix)
    assert packed.images == len(read) == 16
    assert packed.size == Path(f"{prefix}.rec").stat().st_size
    assert [(key, label) for key, label, _ in read] == [item[:2] for item in listed]
    for (_, label, payload), (_, _, path) in zip(read, listed):
        assert payload == (photos / path).read_bytes()
        assert path.startswith(("china/", "flower/")[int(label)])
    assert Path(f"{prefix}.classes.txt").read_text() == "china\nflower\n"
    assert {path for *_, path in listed} >= {"china/more/5.JPEG", "flower/0.JPEG"}
    assert sorted(path.name for path in prefix.parent.iterdir()) == [
        "train.classes.txt", "train.idx", "train.lst", "train.rec"]


def test_gluon_and_image_record_iter_read_the_file(photos: Path, tmp_path: Path) -> None:
    pack(photos, tmp_path / "a")
    dataset = mx.gluon.data.vision.ImageRecordDataset(str(tmp_path / "a.rec"))
    assert sorted(float(label) for _, label in dataset) == [0.0] * 8 + [1.0] * 8
    assert dataset[0][0].shape == (120, 160, 3)
    iterator = mx.io.ImageRecordIter(
        path_imgrec=str(tmp_path / "a.rec"), path_imgidx=str(tmp_path / "a.idx"),
        data_shape=(3, 100, 100), batch_size=4, preprocess_threads=1)
    labels = np.concatenate([batch.label[0].asnumpy() for batch in iterator])
    assert labels.tolist() == [label for _, label, _ in read_with_mxnet(tmp_path / "a")]


def test_equals_im2rec_byte_for_byte(photos: Path, tmp_path: Path) -> None:
    """From one list, in the list's order, with MXNet's own tool."""
    pack(photos, tmp_path / "a")
    listing = (tmp_path / "a.lst").read_bytes()
    (tmp_path / "b.lst").write_bytes(listing)
    im2rec = Path(mx.__file__).parent / "tools" / "im2rec.py"
    subprocess.run(
        [sys.executable, "-W", "ignore", im2rec, "--pass-through", tmp_path / "b", photos],
        check=True, capture_output=True, timeout=120)
    assert (tmp_path / "a.rec").read_bytes() == (tmp_path / "b.rec").read_bytes()
    assert (tmp_path / "a.idx").read_bytes() == (tmp_path / "b.idx").read_bytes()
    # And a list of ours or im2rec's can be packed again.
    pack(tmp_path / "b.lst", tmp_path / "c", PackOptions(shuffle=False), root=photos)
    for ending in ("rec", "idx", "lst", "classes.txt"):
        assert Path(f"{tmp_path / 'c'}.{ending}").read_bytes() == (
            tmp_path / f"a.{ending}").read_bytes()


def test_shuffled_once_by_the_seed(digits: Path, tmp_path: Path) -> None:
    pack(digits, tmp_path / "plain", PackOptions(shuffle=False))
    labels = [label for _, label, _ in read_list(tmp_path / "plain")]
    assert labels == sorted(labels)
    assert [key for key, _, _ in read_list(tmp_path / "plain")] == list(range(200))
    for name, seed, threads in (("a", 0, 1), ("b", 0, 8), ("c", 1, 8)):
        pack(digits, tmp_path / name, PackOptions(seed=seed, threads=threads))
    a, b, c = (Path(tmp_path / f"{name}.rec").read_bytes() for name in "abc")
    assert a == b != c
    # Each half, a worker's shard, has all ten classes.
    labels = [label for _, label, _ in read_list(tmp_path / "a")]
    assert set(labels[:100]) == set(labels[100:]) == set(range(10))
    assert sorted(read_list(tmp_path / "a")) == read_list(tmp_path / "plain")


def test_resize_shrinks_the_shorter_side_and_never_enlarges(photos: Path, tmp_path: Path) -> None:
    pack(photos, tmp_path / "small", PackOptions(resize=60, shuffle=False))
    for (_, _, payload), (_, _, path) in zip(
        read_with_mxnet(tmp_path / "small"), read_list(tmp_path / "small")
    ):
        image = Image.open(io.BytesIO(payload))
        assert image.format == "JPEG"
        assert image.size == (80, 60)
        # Halved exactly: the mean of four pixels, as Pillow's reduce() takes it.
        expected = as_jpeg(Image.open(photos / path).convert("RGB").reduce(2), quality=95)
        assert np.abs(np.asarray(image, int) - np.asarray(expected, int)).mean() < 1
    pack(photos, tmp_path / "same", PackOptions(resize=120, shuffle=False))
    pack(photos, tmp_path / "plain", PackOptions(shuffle=False))
    assert (tmp_path / "same.rec").read_bytes() == (tmp_path / "plain.rec").read_bytes()


def test_quality_encodes_every_image_anew(digits: Path, tmp_path: Path) -> None:
    pack(digits, tmp_path / "jpeg", PackOptions(quality=70, shuffle=False))
    pack(digits, tmp_path / "png", PackOptions(shuffle=False))
    for jpeg, png in zip(read_with_mxnet(tmp_path / "jpeg"), read_with_mxnet(tmp_path / "png")):
        image = Image.open(io.BytesIO(jpeg[2]))
        expected = as_jpeg(Image.open(io.BytesIO(png[2])).convert("RGB"), quality=70)
        assert image.quantization == expected.quantization
        assert np.abs(np.asarray(image, int) - np.asarray(expected, int)).mean() < 1


def test_cuts_an_image_that_holds_the_magic_number(tmp_path: Path) -> None:
    magic = MAGIC.to_bytes(4, "little")
    (tmp_path / "source" / "a").mkdir(parents=True)
    picture = cv2.imencode(".bmp", np.zeros((2, 3, 3), np.uint8))[1].tobytes()  # 4 x 19 + 2 bytes
    contents = [picture + b"ab" + magic * 2 + b"xyz" + magic + b"a" + magic,
                picture + b"ab" + magic, picture]
    for i, content in enumerate(contents):
        (tmp_path / "source" / "a" / f"{i}.jpg").write_bytes(content)
    pack(tmp_path / "source", tmp_path / "a", PackOptions(shuffle=False))
    assert [payload for *_, payload in read_with_mxnet(tmp_path / "a")] == contents
    with RecordFile(tmp_path / "a.rec") as records:
        assert [records.read(i).payload for i in range(3)] == contents


def test_a_list_gets_class_names_only_from_one_folder_a_class(photos: Path, tmp_path: Path) -> None:
    listing = tmp_path / "mine.lst"
    listing.write_text("4\t1.0\tflower/0.JPEG\n\n9\t0\tchina/1.JPEG\n")
    assert pack(listing, tmp_path / "a", root=photos).class_names == ["china", "flower"]
    (tmp_path / "photos").rename(tmp_path / "train")
    listing.write_text("4\t1.0\ttrain/flower/0.JPEG\n5\t0\ttrain/china/more/5.JPEG\n")
    options = PackOptions(overwrite=True)
    assert pack(listing, tmp_path / "a", options).class_names == ["china", "flower"]
    assert (tmp_path / "a.classes.txt").read_text() == "china\nflower\n"
    listing.write_text("4\t1.0\ttrain/flower/0.JPEG\n9\t1\ttrain/china/1.JPEG\n")
    assert pack(listing, tmp_path / "a", options).class_names is None
    assert not (tmp_path / "a.classes.txt").exists()  # the one of the files before


class TestUnusableSources:
    """Each is one line that names the place, and leaves nothing behind."""

    def expect(self, source: Path, message: str, options: PackOptions | None = None,
               root: Path | None = None) -> None:
        output = source.parent / "out"
        with pytest.raises(InputError, match=message) as caught:
            pack(source, output / "train", options, root)
        assert "\n" not in str(caught.value)
        assert not output.exists() or not list(output.iterdir())

    def test_missing_source(self, tmp_path: Path) -> None:
        self.expect(tmp_path / "nowhere", "nowhere does not exist")

    def test_no_class_folders(self, tmp_path: Path) -> None:
        (tmp_path / "source").mkdir()
        (tmp_path / "source" / "1.jpg").write_bytes(b"\xff\xd8\xff")
        self.expect(tmp_path / "source", "has no class folders")

    def test_empty_class_folder(self, photos: Path) -> None:
        (photos / "empty").mkdir()
        self.expect(photos, r"class folder .*photos/empty has no images")

    def test_file_of_another_kind(self, photos: Path) -> None:
        (photos / "flower" / "notes.txt").write_text("a note")
        self.expect(photos, r"flower/notes\.txt is not an image by its name")

    @pytest.mark.parametrize("options", [PackOptions(), PackOptions(resize=50),
                                         PackOptions(quality=80, threads=4)])
    def test_file_that_is_no_image(self, photos: Path, options: PackOptions) -> None:
        (photos / "flower" / "3.JPEG").write_text("<html>404</html>")
        self.expect(photos, r"flower/3\.JPEG.* (is|are) not an image", options)

    def test_empty_file(self, photos: Path) -> None:
        (photos / "flower" / "3.JPEG").write_bytes(b"")
        for options in (PackOptions(), PackOptions(resize=50)):
            self.expect(photos, r"flower/3\.JPEG: is empty \(0 bytes\)", options)

    def test_listed_file_that_is_missing(self, photos: Path) -> None:
        listing = photos.parent / "a.lst"
        listing.write_text("0\t0\tchina/0.JPEG\n1\t1\tflower/99.JPEG\n")
        self.expect(listing, r"cannot read image .*flower/99\.JPEG: No such file", root=photos)

    @pytest.mark.parametrize("line", ["0\tchina/0.JPEG", "x\t1\tflower/0.JPEG", "1\tcat\ta.JPEG",
                                      "1\tnan\ta.JPEG", "1\t1\t2\ta.JPEG", "1\t1\t"])
    def test_broken_line_of_a_list(self, photos: Path, line: str) -> None:
        listing = photos.parent / "a.lst"
        listing.write_text(f"0\t0\tchina/0.JPEG\n{line}\n")
        self.expect(listing, r"a\.lst, line 2: ", root=photos)

    def test_index_used_twice(self, photos: Path) -> None:
        listing = photos.parent / "a.lst"
        listing.write_text("5\t0\tchina/0.JPEG\n5\t1\tflower/0.JPEG\n")
        self.expect(listing, r"a\.lst, line 2: index 5 occurs twice", root=photos)

    def test_output_folder_that_cannot_be_made(self, photos: Path) -> None:
        with pytest.raises(InputError, match=r"output folder .*0\.JPEG: File exists"):
            pack(photos, photos / "china" / "0.JPEG" / "train")

    @pytest.mark.parametrize(("options", "flag"), [
        ({"resize": 0}, "--resize 0"), ({"quality": 101}, "--quality 101"),
        ({"threads": 0}, "--data-nthreads 0"), ({"seed": -1}, "--seed -1")])
    def test_unusable_options(self, options: dict, flag: str) -> None:
        with pytest.raises(InputError, match=flag):
            PackOptions(**options)

    def test_interruption_leaves_the_old_files(
        self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pack(photos, tmp_path / "out" / "a")
        before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        plain, calls = packing.image_bytes, []

        def interrupted(path: Path, options: PackOptions) -> bytes:
            calls.append(path)
            if len(calls) == 9:
                raise KeyboardInterrupt
            return plain(path, options)

        monkeypatch.setattr(packing, "image_bytes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pack(photos, tmp_path / "out" / "a", PackOptions(overwrite=True, seed=5))
        after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert after == before


def run_script(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)],
                          capture_output=True, text=True, timeout=120)


def test_script_packs_and_then_refuses_to_overwrite(photos: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "new" / "folder" / "train"
    done = run_script(photos, prefix, "--num-thread", 2, "--seed", 3, "--quality", 90)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("packed 16 images of 2 classes, ")
    assert "pack: image 16/16" in done.stderr  # a plain line, as this is no terminal
    assert "16/16" in done.stderr
    with RecordFile(f"{prefix}.rec") as records:
        assert len(records) == 16
        assert records.class_names == ["china", "flower"]

    before = prefix.with_suffix(".rec").read_bytes()
    refused = run_script(photos, prefix)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith(f"error: {prefix}.rec exists; ")
    assert "--overwrite" in refused.stderr
    assert prefix.with_suffix(".rec").read_bytes() == before
    assert run_script(photos, prefix, "--overwrite", "--no-shuffle").returncode == 0
    assert prefix.with_suffix(".rec").read_bytes() != before


def test_script_verifies(photos: Path, tmp_path: Path) -> None:
    pack(photos, tmp_path / "a", PackOptions(shuffle=False))
    path = tmp_path / "a.rec"
    command = ("--verify", path, "--num-thread", 1)
    done = run_script(*command)
    assert (done.returncode, done.stdout) == (0, "no fault in 16 records\n")

    offsets = [int(line.split()[1]) for line in (tmp_path / "a.idx").read_text().splitlines()]
    with path.open("r+b") as file:
        file.seek(offsets[2])
        file.write(b"\0")
        file.seek(offsets[7] + 12)
        file.write(np.float32(2).tobytes())  # the label: there are two classes
    reasons = ["is damaged: magic number 0xced72300 instead of 0xced7230a",
               "has label 2, which is no class of 0 to 1"]
    done = run_script(*command)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"byte {offsets[2]}, key 2, position 2: {reasons[0]}",
        f"byte {offsets[7]}, key 7, position 7: {reasons[1]}",
        "16 records, 2 faults",
    ]
    (tmp_path / "a.idx").rename(tmp_path / "b.idx")
    done = run_script("--verify", path, "--json", "--classes", 3, "--index", tmp_path / "b.idx")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"file": str(path), "records": 16, "faults": [
        {"position": 2, "key": 2, "offset": offsets[2], "reason": reasons[0]}]}


@pytest.mark.parametrize(("arguments", "message"), [
    (["--verify", "nowhere.rec"], "record file nowhere.rec does not exist"),
    (["--verify", SCRIPT], "holds no image record: it is not RecordIO"),
    (["--verify", "a.rec", "source"], "--verify packs nothing: leave source out"),
    (["source"], "the following arguments are required: SOURCE, OUT_PREFIX"),
    (["source", "out", "--json"], "go with --verify"),
    (["source", "out", "--num-thread", "0"], "'0' must be a whole number of at least 1"),
])
def test_what_the_script_cannot_do_is_one_line(arguments: list, message: str) -> None:
    done = run_script(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_of_the_script_ends_with_examples() -> None:
    done = run_script("--help")
    assert "examples:" in done.stdout
    assert "python scripts/pack_records.py --verify records/train.rec" in done.stdout
