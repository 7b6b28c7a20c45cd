"""What every picture is made with: the figure, its colours, text that fits, and the file.

matplotlib is imported where it is used: most users of the package draw nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gluon_resnest.atomic import replacing
from gluon_resnest.errors import InputError
from gluon_resnest.plain_text import printable

# Okabe and Ito's palette, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY_BLUE, VERMILION, YELLOW, BLACK = "#56B4E9", "#D55E00", "#F0E442", "#000000"
LINE_COLOURS = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY_BLUE, BLACK)  # yellow is too light
AREA_COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY_BLUE, VERMILION, YELLOW, BLACK)
LINE_GREY, TEXT_GREY = "#666666", "#555555"

PAGE_DPI = 100
_LONGEST_TEXT = 300  # characters of a line that are measured at all


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of width x height inches, whose parts make room for each other."""
    return _figure(width, height, layout="constrained")


def _figure(width: float, height: float, **options: Any) -> Any:
    # matplotlib's object interface needs no display and leaves no global state behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, picture: Path, dpi: int = PAGE_DPI, margin: float | None = None) -> None:
    """Write a picture, whole or not at all, in the format of its suffix; PNG if it has none.

    Parameters
    ----------
    margin
        Inches to leave around what is drawn; None for the figure as large as it is.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    kind = picture.suffix.lower().lstrip(".") or "png"
    bounds = {} if margin is None else {"bbox_inches": "tight", "pad_inches": margin}
    with replacing(picture) as temporary, missing_letters_allowed():
        figure.savefig(temporary, dpi=dpi, format=kind, **bounds)


@contextmanager
def missing_letters_allowed() -> Iterator[None]:
    """No warning where the font lacks a letter of a name: the box that is drawn will do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def check_picture(flag: str, path: Path) -> None:
    """Check that a PNG can be written to `path`, before the work that leads to it.

    Raises
    ------
    InputError
        `path` does not end in .png, is a folder, or its folder cannot be made.
    """
    if path.suffix.lower() != ".png" or path.is_dir():
        raise InputError(f"{flag} {path} must be a file that ends in .png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {path} cannot be written: {error.strerror}") from None


def literal(text: str) -> str:
    """`text` as matplotlib must be given it, so that it shows each letter as it is."""
    return printable(text).replace("$", r"\$")  # else what is between two $ is mathematics


def one_line(text: str) -> str:
    """`text` with a single space for any run of white space."""
    return " ".join(text.split())


class Page:
    """A figure that is laid out in pixels, from its lower left corner.

    Parameters
    ----------
    width, height
        In pixels.

    Attributes
    ----------
    figure : matplotlib.figure.Figure
        To draw on.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        # A little more than whole pixels, since matplotlib cuts their number, not rounds it.
        self.figure = _figure((width + 0.01) / PAGE_DPI, (height + 0.01) / PAGE_DPI, dpi=PAGE_DPI)
        self._renderer = self.figure.canvas.get_renderer()

    def panel(self, left: float, base: float, width: float, height: float) -> Any:
        """Axes at this place."""
        return self.figure.add_axes((left / self.width, base / self.height,
                                     width / self.width, height / self.height))

    def write(self, text: str, left: float, base: float, width: float, size: float,
              **style: Any) -> None:
        """Write one line whose baseline begins at (left, base), cut to `width`: see `fitted`."""
        self.figure.text(left / self.width, base / self.height,
                         self.fitted(text, width, size, style.get("weight", "normal")),
                         fontsize=size, va="baseline", **style)

    def fitted(self, text: str, width: float, size: float, weight: str = "normal") -> str:
        """`text` as one literal line, with an ellipsis for what `width` pixels have no room for.

        Parameters
        ----------
        size
            Of the font, in points.
        """
        from matplotlib.font_manager import FontProperties

        font = FontProperties(size=size, weight=weight)

        def fits(text: str) -> bool:
            return self._renderer.get_text_width_height_descent(text, font, False)[0] <= width

        text = printable(one_line(text)[:_LONGEST_TEXT])
        with missing_letters_allowed():
            if fits(text):
                return literal(text)
            fitting, too_many = 0, len(text)
            while too_many - fitting > 1:
                middle = (fitting + too_many) // 2
                if fits(f"{text[:middle]}…"):
                    fitting = middle
                else:
                    too_many = middle
        return literal(f"{text[:fitting].rstrip()}…") if fitting else ""

    def pixels(self) -> np.ndarray:
        """The page as uint8 of shape (height, width, 3)."""
        with missing_letters_allowed():
            self.figure.canvas.draw()
        return np.array(self.figure.canvas.buffer_rgba())[..., :3]
