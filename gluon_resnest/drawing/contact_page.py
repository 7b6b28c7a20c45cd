"""Pages of tiles with their captions: contact sheets, drawn and saved."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.transforms import IdentityTransform
from PIL import Image

from gluon_resnest.atomic import replacing
from gluon_resnest.data.augment.crops import Box, resample
from gluon_resnest.data.augment.random_streams import Source
from gluon_resnest.data.augment.transforms import TrainTransform
from gluon_resnest.drawing.contact_sheet import (
    LIGHTING_DEVIATIONS,
    Tile,
    color_tiles,
    crops_tile,
    operation_tiles,
)
from gluon_resnest.drawing.figure import PAGE_DPI, TEXT_GREY, Page
from gluon_resnest.errors import InputError

# A sheet should load at once, also in a pull request.
LARGEST_JPEG = 1_000_000
JPEG_QUALITIES = (92, 85, 75, 60)

# The page. All lengths are in pixels, from its upper left corner.

MARGIN, GAP, SECTION_GAP = 24, 14, 18
TITLE, HEADING, LINE = 52, 50, 17
LEAST_WIDTH = 760
PHOTO, PHOTO_COLUMNS, COLOR_COLUMNS = 210, 7, 5
LEAST_SAMPLE, WIDEST_ROW, LEGEND_COLUMNS = 200, 1450, 6
COLORS = ("#ffd400", "#ff4040", "#00d0ff", "#40e040", "#ff60e0", "#ff9020", "#ffffff", "#8080ff")


class Section(NamedTuple):
    """Tiles in rows under a heading; no picture is larger than `width` x `height`."""

    heading: str
    note: str
    tiles: Sequence[Tile]
    columns: int
    width: int
    height: int

    def caption_height(self) -> int:
        return LINE * max(-(-len(tile.boxes) // LEGEND_COLUMNS) or 1 + len(tile.notes)
                          for tile in self.tiles)

    def size(self) -> tuple[int, int]:
        """Width and height on the page."""
        rows = -(-len(self.tiles) // self.columns)
        across, down = self.width + GAP, self.height + self.caption_height() + GAP
        return self.columns * across - GAP, HEADING + rows * down + SECTION_GAP


def fit(tile: Tile, width: int, height: int) -> Tile:
    """A tile with its picture inside width x height: shrunk smoothly, or enlarged in whole steps.

    So a picture that is small enough keeps every pixel's value.
    """
    rows, columns = tile.pixels.shape[:2]
    zoom = min(width // columns, height // rows)
    if zoom >= 1:
        pixels = tile.pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)
    else:
        scale = min(width / columns, height / rows)
        pixels = resample(tile.pixels, max(1, round(columns * scale)),
                          max(1, round(rows * scale)), bicubic=True)
    scales = (pixels.shape[1] / columns, pixels.shape[0] / rows) * 2
    boxes = tuple(Box(*(round(side * scale) for side, scale in zip(box, scales)))
                  for box in tile.boxes)
    return tile._replace(pixels=pixels, boxes=boxes)


def operations_page(
    image: np.ndarray, transform: TrainTransform, generators: Sequence[Source]
) -> list[list[Section]]:
    """Rows of sections that show what the transform does to one image.

    Parameters
    ----------
    image
        uint8 of shape (H, W, 3).
    transform
        Whose strengths and size are shown.
    generators
        Each draws a crop.
    """
    height = max(1, min(PHOTO, round(PHOTO * image.shape[0] / image.shape[1])))
    untouched = Tile("untouched", image, (f"{image.shape[1]} × {image.shape[0]} pixels",))
    rows = []
    if transform.auto_augment:
        rows.append([Section(
            "AutoAugment", "each operation of the ImageNet policy at each of its magnitudes",
            [fit(tile, PHOTO, height) for tile in [untouched, *operation_tiles(image)]],
            PHOTO_COLUMNS, PHOTO, height)])
    colors = Section(
        "Colour", f"jitter {transform.color_jitter:g} at its ends, lighting "
        f"{transform.lighting:g} at {LIGHTING_DEVIATIONS} deviations",
        [fit(tile, PHOTO, height) for tile in [untouched, *color_tiles(image, transform)]],
        COLOR_COLUMNS, PHOTO, height)
    span = PHOTO_COLUMNS - COLOR_COLUMNS
    wide, tall = span * (PHOTO + GAP) - GAP, 2 * (height + LINE + GAP)
    crops = fit(crops_tile(image, transform, generators), wide, tall)
    section = Section("Crops", f"for {transform.size} pixels, by their share of the image",
                      [crops], 1, wide, crops.pixels.shape[0])
    return [*rows, [colors, section]]


def samples_page(
    tiles: Sequence[Tile], note: str, mixed: Sequence[Tile] = ()
) -> list[list[Section]]:
    """Rows of sections with training samples, each pixel as the network sees it."""
    size = tiles[0].pixels.shape[0]
    shown = size * -(-LEAST_SAMPLE // size)
    most = max(1, WIDEST_ROW // (shown + GAP))
    columns = -(-len(tiles) // -(-len(tiles) // most))  # of as few rows, the most even
    rows = [Section("Training samples", note, [fit(tile, shown, shown) for tile in tiles],
                    columns, shown, shown)]
    if mixed:
        rows.append(Section("Mixup", "these samples as one batch, mixed with the batch in reverse",
                            [fit(tile, shown, shown) for tile in mixed], columns, shown, shown))
    return [[section] for section in rows]


def render(title: str, rows: Sequence[Sequence[Section]]) -> np.ndarray:
    """The page as pixels (H, W, 3), uint8: sections of a row side by side."""
    sizes = [[section.size() for section in row] for row in rows]
    width = 2 * MARGIN + max(
        LEAST_WIDTH, *(sum(across + GAP for across, _ in row) - GAP for row in sizes))
    height = 2 * MARGIN + TITLE + sum(max(down for _, down in row) for row in sizes)
    sheet = _Sheet(width, height)
    sheet.write(title, MARGIN, MARGIN, width - 2 * MARGIN, size=15, weight="bold")
    top = MARGIN + TITLE
    for row, measures in zip(rows, sizes):
        left = MARGIN
        for section, (across, _) in zip(row, measures):
            last = section is row[-1]
            sheet.place(section, left, top, width - MARGIN - left if last else across)
            left += across + GAP
        top += max(down for _, down in measures)
    return sheet.drawn()


class _Sheet:
    """Pixels of the pictures, and a page that writes and draws over them."""

    def __init__(self, width: int, height: int) -> None:
        self.page = Page(width, height)
        self.pixels = np.full((height, width, 3), 255, dtype=np.uint8)

    def drawn(self) -> np.ndarray:
        """Both, uint8 of shape (height, width, 3)."""
        self.page.figure.figimage(self.pixels)
        return self.page.pixels()

    def place(self, section: Section, left: int, top: int, width: int) -> None:
        """A section, its heading at most `width` wide."""
        self.write(section.heading, left, top, width, size=12, weight="bold")
        self.write(section.note, left, top + 22, width, size=9.5, color=TEXT_GREY)
        for number, tile in enumerate(section.tiles):
            row, column = divmod(number, section.columns)
            x = left + column * (section.width + GAP)
            y = top + HEADING + row * (section.height + section.caption_height() + GAP)
            rows, columns = tile.pixels.shape[:2]
            self.pixels[y : y + rows, x : x + columns] = tile.pixels
            below = y + section.height + 4
            if tile.boxes:
                self.outline(tile, x, y, below, section.width)
                continue
            self.write(tile.title, x, below, section.width, size=9, weight="bold")
            for line, text in enumerate(tile.notes, start=1):
                self.write(text, x, below + LINE * line, section.width, size=8.5, color=TEXT_GREY)

    def outline(self, tile: Tile, left: int, top: int, below: int, width: int) -> None:
        """Rectangles over a picture, and a legend with the share of it that each takes."""
        rows, columns = tile.pixels.shape[:2]
        height = len(self.pixels)
        boxes = sorted(tile.boxes, key=lambda box: box.width * box.height, reverse=True)

        def draw(x: float, y: float, box_width: float, box_height: float, **style: Any) -> None:
            self.page.figure.add_artist(Rectangle(
                (x, height - y - box_height), box_width, box_height,
                transform=IdentityTransform(), **style))

        for number, (box, color) in enumerate(zip(boxes, itertools.cycle(COLORS))):
            place = (left + box.left + 1.5, top + box.top + 1.5, box.width - 3, box.height - 3)
            draw(*place, fill=False, color="black", linewidth=3.2)
            draw(*place, fill=False, color=color, linewidth=1.6)
            row, column = divmod(number, LEGEND_COLUMNS)
            x, y = left + column * width // LEGEND_COLUMNS, below + LINE * row
            draw(x, y + 3, 11, 11, facecolor=color, edgecolor="black", linewidth=0.8)
            share = f"{100 * box.width * box.height / (rows * columns):.0f} %"
            self.write(share, x + 17, y, width // LEGEND_COLUMNS - 19, size=9)

    def write(self, text: str, x: int, y: int, width: int, size: float, **style: Any) -> None:
        """A line whose upper left corner is (x, y), cut with an ellipsis where it is too wide."""
        base = len(self.pixels) - y - round(size * PAGE_DPI / 72)
        self.page.write(text, x, base, width, size, **style)


def save(picture: np.ndarray, path: Path) -> None:
    """Write pixels (H, W, 3) as a PNG, exactly, or as a JPEG of about 1 MB at most.

    Raises
    ------
    InputError
        The name ends in neither .png nor .jpg, or the file cannot be written.
    """
    check_output(path)
    image = Image.fromarray(picture)
    with replacing(path) as temporary:
        if path.suffix.lower() == ".png":
            image.save(temporary, "PNG", optimize=True)
            return
        for quality in JPEG_QUALITIES:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality, subsampling=0)
            if len(buffer.getvalue()) <= LARGEST_JPEG:
                break
        temporary.write_bytes(buffer.getvalue())


def check_output(path: Path) -> None:
    """See :func:`save`; early, so that nothing is drawn in vain."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise InputError(f"--output {path} must end in .jpg or .png")
