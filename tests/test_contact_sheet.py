"""Contact sheets: the pictures are what training makes, the page shows them readably."""

from __future__ import annotations

import itertools
import runpy
from collections import Counter
from pathlib import Path

import cv2
import mxnet as mx
import numpy as np
import pytest
from conftest import ROOT
from matplotlib.figure import Figure
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from gluon_resnest.data.augment.autoaugment import draw_operations
from gluon_resnest.data.augment.crops import Box
from gluon_resnest.data.augment.operations import Operation
from gluon_resnest.data.augment.random_streams import sample_generator
from gluon_resnest.data.augment.transforms import TrainTransform, TrainView
from gluon_resnest.data.loading.labelled_images import TrainLoader
from gluon_resnest.data.loading.sampling import Sampling
from gluon_resnest.data.records.packing import PackOptions, pack
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.drawing import contact_page, contact_sheet
from gluon_resnest.tasks.classification.mixup import mix_with_reverse

CHINA, FLOWER = load_sample_images().images  # (427, 640, 3), uint8
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "show_augmentation.py"))
CLASSES = ("flower: $5 or $6", "temple")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 crops of two photographs, 2 classes."""
    source = tmp_path_factory.mktemp("photos")
    for i in range(11):
        folder = source / CLASSES[i % 2]
        folder.mkdir(exist_ok=True)
        crop = (FLOWER, CHINA)[i % 2][5 * i : 5 * i + 250, 10 * i : 10 * i + 300]
        Image.fromarray(crop).save(folder / f"{i:02d}.jpg", quality=95)
    pack(source, source / "a", PackOptions(seed=1))
    return source / "a.rec"


@pytest.fixture
def show(monkeypatch, capsys):
    """Run the script in this process; its exit code and what it printed."""
    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["show_augmentation.py", *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(ROOT / "scripts" / "show_augmentation.py"), run_name="__main__")
        except SystemExit as error:
            code = error.code
        return code, "".join(capsys.readouterr())

    return run


# Caption -> Pillow's picture, with the paper's magnitudes: level / 10 of the operation's range.
PILLOW = {
    "ShearX ±0.15": lambda photo: photo.transform(
        photo.size, Image.Transform.AFFINE, (1, 0.15, 0, 0, 1, 0), Image.Resampling.BICUBIC),
    **{f"Rotate ±{angle}°": lambda photo, angle=angle: photo.rotate(angle)
       for angle in (9, 24, 27)},
    **{f"Solarize from {level}": lambda photo, level=level: ImageOps.solarize(photo, level)
       for level in (52, 77, 128, 154, 180)},
    "Posterize to 1 bit": lambda photo: ImageOps.posterize(photo, 1),
    "Posterize to 2 bits": lambda photo: ImageOps.posterize(photo, 2),
    "Contrast ×1.54": lambda photo: ImageEnhance.Contrast(photo).enhance(1.54),
    **{f"Color ×{factor:.2f}": lambda photo, factor=factor: ImageEnhance.Color(photo).enhance(
        factor) for factor in (0.1, 0.46, 0.82, 1.54)},
    "Sharpness ×1.36": lambda photo: ImageEnhance.Sharpness(photo).enhance(1.36),
    "AutoContrast": ImageOps.autocontrast,
    "Equalize": ImageOps.equalize,
    "Invert": ImageOps.invert,
}


def test_operation_tiles_are_pillows() -> None:
    tiles = {tile.title: tile.pixels for tile in contact_sheet.operation_tiles(CHINA)}
    assert list(tiles) == list(PILLOW)
    for title, pixels in tiles.items():
        expected = np.asarray(PILLOW[title](Image.fromarray(CHINA)))
        assert pixels.shape == expected.shape
        # Where an operation interpolates, a level apart is allowed.
        most = 1 if title.startswith("Shear") else 0
        assert np.abs(pixels.astype(int) - expected).max() <= most, title


def test_shares_are_those_of_drawn_images(rng: np.random.Generator) -> None:
    images = 20_000
    counts = Counter()
    for _ in range(images):
        counts.update({Operation(name, abs(magnitude)) for name, magnitude in draw_operations(rng)})
    shares = contact_sheet.policy_shares()
    assert set(counts) == set(shares)
    for operation, share in shares.items():
        deviation = (share * (1 - share) / images) ** 0.5
        assert abs(counts[operation] / images - share) < 4.5 * deviation, operation


def test_color_tiles_are_the_formulas() -> None:
    photo = CHINA.astype(np.float64)
    luminance = photo @ [0.299, 0.587, 0.114]
    first = np.array([-0.5675, -0.5808, -0.5836]) * 55.46
    expected = {}
    for factor in 0.6, 1.4:
        expected[f"brightness ×{factor:.2f}"] = photo * factor
        expected[f"contrast ×{factor:.2f}"] = photo * factor + (1 - factor) * luminance.mean()
        expected[f"saturation ×{factor:.2f}"] = photo * factor + (1 - factor) * luminance[..., None]
    expected["lighting −0.30"] = photo - 0.3 * first
    expected["lighting +0.30"] = photo + 0.3 * first
    tiles = {tile.title: tile.pixels
             for tile in contact_sheet.color_tiles(CHINA, TrainTransform(224))}
    assert set(tiles) == set(expected)
    for title, pixels in tiles.items():
        assert np.abs(pixels - np.clip(expected[title], 0, 255)).max() <= 1, title
    plain = TrainTransform(224, color_jitter=0, lighting=0)
    assert list(contact_sheet.color_tiles(CHINA, plain)) == []
    strong = contact_sheet.color_tiles(CHINA, TrainTransform(224, color_jitter=2))
    assert next(strong).title == "brightness ×0.00"


def test_crops_are_outlined_where_they_are() -> None:
    """On a black photo of the panel's size, so that the rectangles' colours stand out."""
    transform = TrainTransform(64, auto_augment=False)
    black = np.zeros((290, 434, 3), dtype=np.uint8)
    generators = [np.random.default_rng(seed) for seed in range(3)]
    rows = contact_page.operations_page(black, transform, generators)
    (tile,) = rows[-1][-1].tiles
    assert tile.boxes == tuple(transform.draw(np.random.default_rng(seed), 290, 434).box
                               for seed in range(3))
    page = contact_page.render("black", rows)
    left = contact_page.MARGIN + contact_page.COLOR_COLUMNS * (210 + contact_page.GAP)
    top = contact_page.MARGIN + contact_page.TITLE + contact_page.HEADING
    photo = page[top : top + 290, left : left + 434]
    found = photo.any(axis=2)
    expected = np.zeros_like(found)
    for x, y, width, height in tile.boxes:
        cv2.rectangle(outline := np.zeros(found.shape, np.uint8), (x, y),
                      (x + width - 1, y + height - 1), 1, 5)
        expected |= outline.astype(bool)
    assert found.any(axis=0).sum() > 100
    assert not (found & ~expected).any()
    for x, y, width, height in tile.boxes:
        assert found[y + height // 2, x : x + 4].any()
        assert found[y + height // 2, x + width - 4 : x + width].any()
        assert found[y : y + 4, x + width // 2].any()
        assert found[y + height - 4 : y + height, x + width // 2].any()


@pytest.mark.parametrize("size", [48, 320])
def test_samples_are_what_the_loader_yields(records: Path, size: int) -> None:
    args = SCRIPT["parse_arguments"](["samples", "--rec-train", str(records), "--input-size",
                                      str(size), "--seed", "5", "--epoch", "3"])
    recipe, transform = SCRIPT["resolve"](args)
    tiles, _ = SCRIPT["samples"](args, recipe, transform, 24)
    loader = TrainLoader(RecordFile(records), TrainTransform(size), 4, seed=5, classes=2)
    order = np.concatenate(Sampling(11, 5).batches(3, 4, 0, 1)).tolist()
    images, labels = (np.concatenate(part) for part in zip(*loader.epoch(3)))
    assert [tile.title for tile in tiles] == [f"record {position}" for position in range(11)]
    for position, image, label in zip(order, images, labels):
        assert np.array_equal(tiles[position].pixels, image)
        assert tiles[position].notes[0] == CLASSES[label]


def test_one_photo_is_shown_in_successive_epochs(tmp_path: Path) -> None:
    Image.fromarray(CHINA).save(tmp_path / "china.png")
    args = SCRIPT["parse_arguments"](["samples", "--image", str(tmp_path / "china.png"), "--index",
                                      "7", "--epoch", "2", "--no-auto-aug", "--lighting", "0"])
    recipe, transform = SCRIPT["resolve"](args)
    tiles, _ = SCRIPT["samples"](args, recipe, transform, 3)
    plain = TrainTransform(224, auto_augment=False, lighting=0)
    for epoch, tile in zip((2, 3, 4), tiles):
        assert tile.title == f"epoch {epoch}"
        assert np.array_equal(tile.pixels, plain(CHINA, sample_generator(0, epoch, 7)))


def test_captions_say_what_was_drawn() -> None:
    view = TrainView((Operation("Rotate", -24), Operation("Posterize", 1)), Box(0, 0, 320, 213),
                     True, (), None)
    assert contact_sheet.describe(view, 427, 640) == (
        "Rotate −24°, Posterize to 1 bit", "crop 25 %, mirrored")
    for rng in map(np.random.default_rng, range(50)):
        view = TrainTransform(224).draw(rng, 427, 640)
        operations, crop, jitters = contact_sheet.describe(view, 427, 640)
        assert operations.count(",") == max(0, len(view.operations) - 1)
        assert (operations == "no operation") == (view.operations == ())
        assert ("mirrored" in crop) == view.flipped
        factors = dict(view.jitters)
        assert jitters == (f"B {factors['brightness']:.2f}, C {factors['contrast']:.2f}, "
                           f"S {factors['saturation']:.2f}")


@pytest.mark.parametrize("count", [1, 4, 5])
def test_mixup_is_that_of_training(rng: np.random.Generator, count: int) -> None:
    pixels = rng.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    lambdas = rng.beta(0.2, 0.2, count).astype(np.float32)
    tiles = [contact_sheet.Tile(f"record {i}", image) for i, image in enumerate(pixels)]
    mixed = contact_sheet.mixed_tiles(tiles, lambdas)
    expected = mix_with_reverse(mx.nd.array(pixels), mx.nd.array(lambdas)).asnumpy()
    assert np.abs(np.stack([tile.pixels for tile in mixed]) - expected).max() <= 0.5001
    first, last = f"{lambdas[0]:.2f} × record 0", f"{1 - lambdas[0]:.2f} × record {count - 1}"
    assert mixed[0].notes == (f"{first} + {last}",)


def pictures_on(page: np.ndarray, section: contact_page.Section, top: int) -> list[np.ndarray]:
    """The section's pictures, cut from the page at its left margin."""
    down = section.height + section.caption_height() + contact_page.GAP
    places = [(top + contact_page.HEADING + number // section.columns * down,
               contact_page.MARGIN + number % section.columns * (section.width + 14))
              for number in range(len(section.tiles))]
    return [page[y : y + section.height, x : x + section.width] for y, x in places]


def test_a_png_holds_the_samples_pixel_by_pixel(records: Path, tmp_path: Path, show) -> None:
    output = tmp_path / "sheet.png"
    code, said = show("samples", "--rec-train", records, "--index", 2, "--count", 9, "--mixup",
                      "--output", output)
    page = np.asarray(Image.open(output))
    assert code == 0
    assert said.startswith(f"{output}: {page.shape[1]} x {page.shape[0]} pixels")
    loader = TrainLoader(RecordFile(records), TrainTransform(224), 16, classes=2)
    (images, _), = loader.epoch(0)
    order = Sampling(11).batches(0, 16, 0, 1)[0]
    samples = [contact_sheet.Tile(f"record {i}", images[order.tolist().index(i)], ("",) * 4)
               for i in range(2, 11)]
    lambdas = np.random.default_rng([0, 0, 0, 0, 3]).beta(0.2, 0.2, 9)
    mixed = contact_sheet.mixed_tiles(samples, lambdas.astype(np.float32))
    rows = contact_page.samples_page(samples, "", mixed)
    top = contact_page.MARGIN + contact_page.TITLE
    for (section,) in rows:
        for tile, picture in zip(section.tiles, pictures_on(page, section, top)):
            assert np.array_equal(tile.pixels, picture)
        top += section.size()[1]
    assert page.shape[0] == top + contact_page.MARGIN


@pytest.mark.parametrize(("shape", "crops"), [
    ((427, 640), 6), ((640, 427), 14), ((32, 40), 1), ((20, 640), 6), ((1, 1), 6), ((640, 3), 6)])
def test_nothing_overlaps(monkeypatch, shape: tuple[int, int], crops: int) -> None:
    figures = []

    class Recorded(Figure):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            figures.append(self)

    monkeypatch.setattr("matplotlib.figure.Figure", Recorded)
    photo, transform = cv2.resize(FLOWER, shape[::-1]), TrainTransform(64)
    sample = contact_sheet.sample_tile("record 1", photo, transform, np.random.default_rng(1))
    samples = [sample._replace(notes=("a long name of a class, 日本, " * 9, *sample.notes))] * 7
    generators = [np.random.default_rng(seed) for seed in range(crops)]
    for rows in (contact_page.operations_page(photo, transform, generators),
                 contact_page.samples_page(samples, "note " * 99, samples[:3])):
        page = contact_page.render("title $1 " * 50, rows)
        renderer = figures[-1].canvas.get_renderer()
        extents = [text.get_window_extent(renderer) for text in figures[-1].texts if
                   text.get_text()]
        assert len(extents) > 10
        for extent in extents:
            assert extent.x0 > 0
            assert extent.y0 > 0
            assert extent.x1 < page.shape[1]
            assert extent.y1 < page.shape[0]
        for first, second in itertools.combinations(extents, 2):
            assert not first.padded(-1).overlaps(second.padded(-1))
        assert any(text.get_text().endswith("…") for text in figures[-1].texts)


def test_a_small_picture_is_enlarged_in_whole_steps() -> None:
    small = contact_sheet.Tile("", CHINA[:30, :40], (), (Box(1, 2, 3, 4),))
    fitted = contact_page.fit(small, 130, 130)
    assert np.array_equal(fitted.pixels, np.kron(CHINA[:30, :40], np.ones((3, 3, 1), np.uint8)))
    assert fitted.boxes == (Box(3, 6, 9, 12),)


def test_a_jpeg_is_light_and_like_the_page(tmp_path: Path, show) -> None:
    Image.fromarray(CHINA).save(tmp_path / "china.jpg", quality=95)
    code, _ = show("operations", "--image", tmp_path / "china.jpg", "--output", tmp_path / "o.jpg")
    assert code == 0
    assert 50_000 < (tmp_path / "o.jpg").stat().st_size < 1_000_000
    # What would still be too large has the lowest of the qualities.
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3)).astype(np.uint8)
    contact_page.save(noise, tmp_path / "noise.jpg")
    Image.fromarray(noise).save(tmp_path / "60.jpg", quality=60, subsampling=0)
    assert (tmp_path / "noise.jpg").read_bytes() == (tmp_path / "60.jpg").read_bytes()
    contact_page.save(CHINA, tmp_path / "c.jpeg")
    read = np.asarray(Image.open(tmp_path / "c.jpeg")).astype(int)
    assert np.abs(read - CHINA).mean() < 3
    contact_page.save(CHINA, tmp_path / "c.PNG")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "c.PNG")), CHINA)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("operations",), "give one of --image and --rec-train"),
        (("operations", "--image", "a.jpg", "--rec-train", "a.rec"), "give one of --image and"),
        (("neither",), "invalid choice: 'neither'"),
        (("operations", "--image", "none.jpg"), "cannot read image none.jpg: No such file"),
        (("operations", "--image", "/dev/null"), "/dev/null: is not a regular file"),
        (("samples", "--rec-train", "none.rec"), "none.rec"),
        (("samples", "--rec-train", "RECORDS", "--index", "11"),
         "--index 11 is beyond the end of RECORDS, which has 11 records"),
        (("operations", "--rec-train", "RECORDS", "--index", "99"), "--index 99 is beyond"),
        (("samples", "--image", "a.jpg", "--count", "241"), "--count 241 is more than a sheet"),
        (("samples", "--image", "a.jpg", "--count", "0"), "'0' must be a whole number"),
        (("samples", "--image", "a.jpg", "--output", "a.gif"), "--output a.gif must end in"),
        (("samples", "--image", "a.jpg", "--model", "resnest"), "resnest"),
        (("samples", "--image", "a.jpg", "--color-jitter", "-1"), "--color-jitter -1.0 must be"),
        (("samples", "--image", "a.jpg", "--seed", "-1"), "--seed -1 must be"),
        (("samples", "--image", "a.jpg", "--mixup", "--mixup-alpha", "0"), "--mixup-alpha 0"),
        (("operations", "--image", "a.jpg", "--mixup"), "--mixup is for the sheet of samples"),
        (("samples", "--rec-train", "RECORDS", "--output", "/dev/null/a.png"), "cannot write"),
    ],
)
def test_bad_input_is_one_line(
    records: Path, show, monkeypatch, tmp_path: Path, arguments: tuple, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = show(*(str(records) if each == "RECORDS" else each for each in arguments))
    assert code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert message.replace("RECORDS", str(records)) in said
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_record_is_named(tmp_path: Path, show) -> None:
    (tmp_path / "list.lst").write_text("7\t0\ta.jpg\n")
    content = cv2.imencode(".jpg", CHINA)[1].tobytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    pack(tmp_path / "list.lst", tmp_path / "a")
    code, said = show("samples", "--rec-train", tmp_path / "a.rec", "--output", tmp_path / "a.png")
    assert code == 2
    assert f"error: record 7 of {tmp_path / 'a.rec'}" in said
