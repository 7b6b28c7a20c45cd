"""The demo's picture: held-out photographs with the labels they get, and the learning curve."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gluon_resnest import command_line
from gluon_resnest.classifier import load_classifier
from gluon_resnest.data.images.image_files import read_image
from gluon_resnest.drawing.run_plots import draw_curves
from gluon_resnest.errors import InputError

ROWS, COLUMNS = 3, 5
EXAMPLES = """
  python demo/picture.py demo/run demo/data/photos/val demo/run/demo.png
"""


def held_out_photos(folder: Path, count: int, seed: int) -> list[Path]:
    """Photographs of all classes in turn, chosen by a seed, not by how well they went."""
    classes = [sorted(path.glob("*.png")) for path in sorted(folder.glob("*")) if path.is_dir()]
    if not classes or not all(classes):
        raise InputError(f"{folder} has no class folders of PNG files: run `make demo`")
    generator = random.Random(seed)
    chosen = [generator.sample(files, min(count, len(files))) for files in classes]
    return [file for group in zip(*chosen) for file in group][:count]


def draw(run: Path, photos: Path, output: Path, seed: int) -> None:
    files = held_out_photos(photos, ROWS * COLUMNS, seed)
    images = [read_image(file) for file in files]
    classifier = load_classifier(str(run / "exported" / "resnest14-symbol.json"))
    probabilities = classifier.probabilities(
        np.stack([classifier.transform(image) for image in images]))

    figure = Figure(figsize=(13, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subfigures(1, 2, width_ratios=(1.7, 1))
    for axes, file, image, chances in zip(left.subplots(ROWS, COLUMNS).flat, files, images,
                                          probabilities):
        axes.imshow(image)
        axes.axis("off")
        predicted = classifier.class_name(int(chances.argmax()))
        right_answer = predicted == file.parent.name
        axes.set_title(f"{predicted}, {100 * chances.max():.0f} %"
                       + ("" if right_answer else f"\n(is {file.parent.name})"),
                       fontsize=8.5, color="tab:green" if right_answer else "tab:red")
    left.suptitle("held-out photographs, labelled by the exported files")
    draw_curves(right.subplots(2, 1), run / "metrics.jsonl")
    right.suptitle("learning curve")
    figure.savefig(output, dpi=100)
    print(f"{output}: {len(files)} held-out photographs and the learning curve")


def main() -> None:
    parser = command_line.parser(__doc__, EXAMPLES)
    parser.add_argument("run", type=command_line.path, metavar="RUN",
                        help="run directory, with exported/ in it")
    parser.add_argument("photos", type=command_line.path, metavar="FOLDER",
                        help="folder with a folder a class")
    parser.add_argument("output", type=command_line.path, metavar="PNG", help="picture to write")
    parser.add_argument("--seed", type=int, default=0, metavar="N",
                        help="chooses the photographs (default: 0)")
    args = parser.parse_args()
    draw(args.run, args.photos, args.output, args.seed)


if __name__ == "__main__":
    command_line.run(main)
