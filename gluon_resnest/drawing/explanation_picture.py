"""One page about one image: the crop, its classes, the class activation map, the attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gluon_resnest.drawing.figure import AREA_COLOURS, TEXT_GREY, Page, save
from gluon_resnest.errors import InputError
from gluon_resnest.explaining.explanation import Explanation, attention_by_stage
from gluon_resnest.models import Variant

# All lengths are in pixels, from the lower left corner.
WIDTH, HEIGHT = 1300, 500
_SIDE = 300  # of the square that the crop is shown in
_BASE = 76  # of all panels
_CROP, _MAP, _CLASSES, _ATTENTION = 24, 344, 744, 1032  # left ends
_CLASSES_WIDTH, _ATTENTION_WIDTH = 228, 250
_MARGIN = 24

_EVIDENCE = "bwr"  # blue against the class, red for it
_MOST_OPAQUE = 0.7
_LONGEST_NAME = 180  # bytes of a picture's file name, of the 255 that file systems have


def draw_explanation(
    explanation: Explanation,
    picture: Path,
    title: str,
    variant: Variant,
    class_name: Callable[[int], str],
    top_k: int = 5,
) -> None:
    """Draw an explanation as a PNG of 1300 x 500 pixels.

    Parameters
    ----------
    explanation
        From :func:`~.explanation.explain`.
    picture
        The file to write.
    title
        Such as the image's file name; any characters, any length.
    variant
        Of the network.
    class_name
        From a label to its name, of any length.
    top_k
        Classes to show, five at most.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    page = Page(WIDTH, HEIGHT)
    page.write(title, _MARGIN, HEIGHT - 38, WIDTH - 2 * _MARGIN, size=13, weight="bold")
    page.write(_network_in_words(variant, explanation), _MARGIN, HEIGHT - 60,
               WIDTH - 2 * _MARGIN, size=9.5, color=TEXT_GREY)
    _draw_crop(page, explanation)
    _draw_map(page, explanation, class_name)
    _draw_classes(page, explanation, class_name, min(top_k, 5))
    _draw_attention(page, explanation, variant)
    save(page.figure, picture)


def picture_paths(images: Iterable[Path], folder: Path) -> list[Path]:
    """A path in `folder` for the picture of each image: its name, a number where it is not alone.

    `photo.jpg` becomes `photo.png`, a second one from elsewhere `photo-2.png`.
    """
    taken: set[str] = set()
    paths = []
    for image in images:
        # Names may have been made elsewhere: no control characters, no lone surrogates.
        stem = "".join(letter if letter.isprintable() else "_" for letter in image.stem)
        stem = stem.encode()[:_LONGEST_NAME].decode(errors="ignore")
        name, number = stem, 1
        # Some file systems do not tell capitals from small letters.
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        paths.append(folder / f"{name}.png")
    return paths


def check_folder(folder: Path) -> None:
    """Make the folder for pictures, early, so that nothing is computed in vain.

    Raises
    ------
    InputError
        It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--explain {folder} cannot be a folder for pictures "
                         f"({error.strerror}); give another") from None


def _heading(page: Page, left: float, title: str, note: str, width: float) -> None:
    page.write(title, left, _BASE + _SIDE + 28, width, size=10.5, weight="bold")
    page.write(note, left, _BASE + _SIDE + 10, width, size=8.5, color=TEXT_GREY)


def _network_in_words(variant: Variant, explanation: Explanation) -> str:
    height, width = explanation.crop.shape[:2]
    attention = f"radix {variant.radix}" if variant.radix else "radix 0 (no split attention)"
    rows, columns = explanation.class_map.shape
    return (f"{variant.name}: {attention}, cardinality {variant.cardinality}, "
            f"crop {width} × {height} px, last feature map {columns} × {rows}")


def _image_panel(page: Page, left: float, crop: np.ndarray) -> Any:
    """Axes of the crop's shape, in the middle of the square at `left`."""
    height, width = crop.shape[:2]
    scale = _SIDE / max(height, width)
    across, down = width * scale, height * scale
    axes = page.panel(left + (_SIDE - across) / 2, _BASE + (_SIDE - down) / 2, across, down)
    axes.set(xticks=[], yticks=[])
    return axes


def _draw_crop(page: Page, explanation: Explanation) -> None:
    _heading(page, _CROP, "Crop", "what the network sees", _SIDE)
    axes = _image_panel(page, _CROP, explanation.crop)
    # "auto": the panel has the crop's shape already.
    axes.imshow(explanation.crop, aspect="auto", interpolation="antialiased")


def _draw_map(page: Page, explanation: Explanation, class_name: Callable[[int], str]) -> None:
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    _heading(page, _MAP, f"Class activation map: {class_name(explanation.label)}",
                 f"mean {explanation.class_map.mean():+.2f} and bias {explanation.bias:+.2f} "
                 f"= logit {explanation.logits[explanation.label]:.2f}", _SIDE + 76)
    values = explanation.map_on_crop
    # The whole of the scale even where the map is of one sign: 0 is what the colours turn on.
    largest = float(np.abs(explanation.class_map).max()) or 1.0
    norm = Normalize(-largest, largest)
    grey = explanation.crop.mean(axis=2, keepdims=True).repeat(3, axis=2) / 255
    opacity = (_MOST_OPAQUE * np.abs(values) / largest)[..., None]
    colours = matplotlib.colormaps[_EVIDENCE](norm(values))[..., :3]
    axes = _image_panel(page, _MAP, explanation.crop)
    axes.imshow(np.clip((1 - opacity) * grey + opacity * colours, 0, 1), aspect="auto",
                interpolation="antialiased")
    bar = page.figure.colorbar(
        ScalarMappable(norm, _EVIDENCE), cax=page.panel(_MAP + _SIDE + 12, _BASE, 13, _SIDE))
    bar.set_label("against  ←  evidence  →  for", fontsize=8.5, labelpad=2)
    bar.ax.tick_params(labelsize=8)


def _draw_classes(page: Page, explanation: Explanation, class_name: Callable[[int], str],
                  top_k: int) -> None:
    """Each name above its bar, so that a long one has the whole width."""
    probabilities = explanation.probabilities
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    _heading(page, _CLASSES, f"Top {len(best)}" if len(best) < len(probabilities) else "Classes",
                 f"probability, of {len(probabilities)} classes", _CLASSES_WIDTH)
    axes = page.panel(_CLASSES, _BASE, _CLASSES_WIDTH, _SIDE)
    axes.axis("off")
    axes.set(xlim=(0, _CLASSES_WIDTH), ylim=(0, _SIDE))
    row, room = _SIDE / 5, _CLASSES_WIDTH - 66
    for place, label in enumerate(best):
        top = _SIDE - place * row
        chosen = int(label) == explanation.label
        weight = "bold" if chosen else "normal"
        axes.text(0, top - 16, page.fitted(class_name(int(label)), _CLASSES_WIDTH, 9.5,
                                           weight=weight), fontsize=9.5, weight=weight)
        axes.barh(top - 33, room, 15, color="#eeeeee")
        axes.barh(top - 33, room * probabilities[label], 15,
                  color=AREA_COLOURS[0] if chosen else "#8db8d8")
        axes.text(_CLASSES_WIDTH, top - 33, f"{100 * probabilities[label]:.1f} %", fontsize=9.5,
                  ha="right", va="center", weight=weight)


def _draw_attention(page: Page, explanation: Explanation, variant: Variant) -> None:
    stages = attention_by_stage(explanation.attention)
    if not stages:
        _heading(page, _ATTENTION, "Split attention", "none in this network", _ATTENTION_WIDTH)
        axes = page.panel(_ATTENTION, _BASE, _ATTENTION_WIDTH, _SIDE)
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, f"radix {variant.radix}:\nplain blocks, a 3×3 convolution\nin place "
                  "of split attention", ha="center", va="center", fontsize=9.5, color=TEXT_GREY,
                  transform=axes.transAxes)
        return
    radix = len(stages[0].weights)
    _heading(page, _ATTENTION, "Split attention by stage" if radix > 1 else "Attention by stage",
                 "over channels and blocks" if radix > 1
                 else "radix 1: one split, a sigmoid gate", _ATTENTION_WIDTH)
    axes = page.panel(_ATTENTION, _BASE, _ATTENTION_WIDTH, _SIDE)
    step = 0.8 / radix
    for split in range(radix):
        places = [place + step * (split - (radix - 1) / 2) for place in range(len(stages))]
        _draw_boxes(axes, places, [stage.weights[split] for stage in stages], 0.82 * step,
                    AREA_COLOURS[split % len(AREA_COLOURS)])
    if radix > 1:
        axes.axhline(1 / radix, color=TEXT_GREY, linewidth=0.8, linestyle=":", zorder=0)
    axes.set(xlim=(-0.55, len(stages) - 0.45), ylim=(0, 1), xticks=range(len(stages)))
    axes.set_xticklabels([f"stage {stage.stage}" for stage in stages], fontsize=8.5)
    axes.tick_params(axis="y", labelsize=8)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("attention weight" if radix > 1 else "gate", fontsize=8.5, labelpad=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    _draw_attention_legend(page, radix)


def _draw_boxes(axes: Any, places: Sequence[float], groups: Sequence[np.ndarray], width: float,
                colour: str) -> None:
    """Boxes from quartile to quartile, lines from the 5th to the 95th percentile, dots for means.

    A dot is the share that a split receives, and box and line are its spread.
    """
    low, first, middle, third, high = np.array(
        [np.percentile(group, (5, 25, 50, 75, 95)) for group in groups]).T
    axes.vlines(places, low, high, color=colour, linewidth=1.1)
    axes.bar(places, third - first, width, first, color=colour, alpha=0.55, edgecolor=colour)
    axes.hlines(middle, np.subtract(places, width / 2), np.add(places, width / 2), color=colour,
                linewidth=1.5)
    axes.plot(places, [group.mean() for group in groups], "o", color="white",
              markeredgecolor="black", markersize=4, markeredgewidth=0.8, zorder=3)


def _draw_attention_legend(page: Page, radix: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(facecolor=AREA_COLOURS[split % len(AREA_COLOURS)], label=f"split {split + 1}")
        for split in range(min(radix, len(AREA_COLOURS)))] if radix > 1 else []
    if handles:
        page.figure.legend(handles=handles, loc="upper center", ncol=min(4, len(handles)),
                           bbox_to_anchor=((_ATTENTION + _ATTENTION_WIDTH / 2) / WIDTH,
                                           (_BASE - 22) / HEIGHT),
                           frameon=False, fontsize=8.5, handlelength=1, handletextpad=0.4,
                           columnspacing=1, borderpad=0)
    mean = Line2D([], [], marker="o", linestyle="", color="white", markeredgecolor="black",
                  markersize=4, markeredgewidth=0.8,
                  label="mean; box: quartiles, line: 5 to 95 %")
    page.figure.legend(handles=[mean], loc="lower center", frameon=False, fontsize=8,
                       bbox_to_anchor=((_ATTENTION + _ATTENTION_WIDTH / 2) / WIDTH, 12 / HEIGHT),
                       handletextpad=0.2, borderpad=0)
