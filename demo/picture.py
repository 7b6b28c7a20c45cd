"""The demo's picture: what speaks for "defective" in held-out cells, and how well that goes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gluon_resnest import command_line
from gluon_resnest.classifier import Classifier, load_classifier
from gluon_resnest.data.images.image_files import read_image
from gluon_resnest.drawing.run_plots import draw_curves
from gluon_resnest.errors import InputError
from gluon_resnest.explaining import Explanation, explain
from gluon_resnest.runs.run_directory import CONFIG, LAST
from gluon_resnest.strict_yaml import read_yaml
from gluon_resnest.tasks.classification.assessment import Assessment, Assessor
from gluon_resnest.tasks.classification.roc import roc_curve

DEFECTIVE = "defective"
EXAMPLES_A_ROW = 4
BLUE, RED, GREY = "#0072B2", "#D55E00", "#666666"
BATCH = 32
EXAMPLES = """
  python demo/picture.py demo/run demo/data/photos demo/run/demo.png
"""


def load_run(run: Path) -> Classifier:
    """The network of a run after its last epoch, with the run's test size."""
    recipe = read_yaml(run / CONFIG, "settings")["recipe"]
    return load_classifier(recipe["model"], run / LAST, input_size=recipe["test_size"],
                           crop_ratio=recipe["crop_ratio"])


def crops_in(folder: Path, classifier: Classifier) -> np.ndarray:
    """All photographs of a folder as the network sees them, uint8 of shape (N, H, W, 3)."""
    files = sorted(folder.glob("*.png"))
    if not files:
        raise InputError(f"{folder} has no PNG files: run `make demo`")
    return np.stack([classifier.transform(read_image(file)) for file in files])


def logits_of(crops: np.ndarray, classifier: Classifier) -> np.ndarray:
    return np.concatenate([classifier(crops[start:start + BATCH])
                           for start in range(0, len(crops), BATCH)])


def draw(run: Path, photos: Path, output: Path, seed: int) -> None:
    classifier = load_run(run)
    names = list(classifier.class_names or ())
    if DEFECTIVE not in names or len(names) != 2:
        raise InputError(f"{run} was not trained to find defective cells: run `make demo`")
    defective = names.index(DEFECTIVE)
    folders = {"0": photos / "val" / names[1 - defective], "1/3": photos / "doubtful/one_third",
               "2/3": photos / "doubtful/two_thirds", "1": photos / "val" / DEFECTIVE}
    crops = {label: crops_in(folder, classifier) for label, folder in folders.items()}
    logits = {label: logits_of(those, classifier) for label, those in crops.items()}
    # The log of the odds: probabilities near 1 would be ties.
    scores = {label: those[:, defective] - those[:, 1 - defective]
              for label, those in logits.items()}
    assessor = Assessor(names)
    for label, name in (("0", names[1 - defective]), ("1", DEFECTIVE)):
        assessor.observe(logits[label], np.full(len(logits[label]), names.index(name)))
    found = assessor.assessment()

    figure = Figure(figsize=(13.4, 12.4), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subfigures(2, 1, height_ratios=(2.25, 1))
    _draw_examples(upper, classifier, crops, scores, defective, random.Random(seed))
    panels = lower.subplots(1, 4, gridspec_kw={"width_ratios": (1.1, 1.1, 1, 1.1)})
    draw_curves(panels[:2], run / "metrics.jsonl")
    _draw_roc(panels[2], scores, found)
    _draw_probabilities(panels[3], scores)
    figure.savefig(output, dpi=100)
    print(f"{output}: what speaks for {DEFECTIVE}, and how well that goes")
    print(_figures(found))


def _figures(found: Assessment) -> str:
    images = int(found.images.sum())
    return (f"{images} cells of modules that were not trained on: accuracy "
            f"{100 * found.hits.sum() / images:.1f} %, balanced accuracy "
            f"{found.balanced_accuracy:.1f} %, ROC AUC {found.roc_auc:.3f}")


# ---- examples ----


def _draw_examples(figure: Any, classifier: Classifier, crops: dict[str, np.ndarray],
                   scores: dict[str, np.ndarray], defective: int,
                   generator: random.Random) -> None:
    """Cells that were recognised and cells that weren't, drawn by lot, each with its map."""
    rows = (("defective, recognised", "1", True, RED), ("defective, missed", "1", False, GREY),
            ("functional, recognised", "0", False, BLUE), ("functional, false alarm", "0", True,
                                                           GREY))
    chosen = []
    for _, label, positive, _ in rows:
        places = np.flatnonzero((scores[label] > 0) == positive).tolist()
        drawn = sorted(generator.sample(places, min(EXAMPLES_A_ROW, len(places))))
        chosen.append((len(places),
                       [explain(classifier.net, crops[label][place], defective)
                        for place in drawn]))
    # One scale for all, or weak evidence would look like strong evidence.
    largest = max(float(np.abs(one.class_map).max()) for _, row in chosen for one in row)
    strips = figure.subfigures(len(rows), 1)
    for (title, label, _, colour), (count, row), strip in zip(rows, chosen, strips):
        strip.suptitle(f"{title}: {count} of {len(scores[label])}", x=0.005, ha="left",
                       fontsize=11, color=colour, weight="bold")
        panels = strip.subplots(1, 2 * EXAMPLES_A_ROW)
        for panel in panels:
            panel.axis("off")
        for number, explanation in enumerate(row):
            photo, overlay = panels[2 * number:2 * number + 2]
            photo.imshow(explanation.crop)
            overlay.imshow(_overlaid(explanation, largest))
            overlay.set_title(f"{100 * explanation.probabilities[defective]:.0f} % defective",
                              fontsize=9, pad=4)
    figure.suptitle("held-out cells, and beside each what speaks for \"defective\" (red) "
                    "and against it (blue)", fontsize=12.5)


def _overlaid(explanation: Explanation, largest: float) -> np.ndarray:
    """The photograph under its class activation map, (H, W, 3) of 0 to 1."""
    evidence = np.clip(explanation.map_on_crop / largest, -1, 1)[..., None]
    colour = np.where(evidence > 0, (1.0, 0.1, 0.0), (0.0, 0.3, 1.0))
    opacity = 0.65 * np.abs(evidence)
    return (1 - opacity) * explanation.crop / 255 + opacity * colour


# ---- figures ----


def _draw_roc(axes: Any, scores: dict[str, np.ndarray], found: Assessment) -> None:
    both = np.concatenate([scores["0"], scores["1"]])
    positive = np.repeat([False, True], [len(scores["0"]), len(scores["1"])])
    false, true = roc_curve(both, positive)
    axes.plot(false, true, color=RED, linewidth=1.8)
    axes.fill_between(false, true, color=RED, alpha=0.12)
    axes.plot([0, 1], [0, 1], ":", color=GREY, linewidth=1)
    at = [float((scores[label] > 0).mean()) for label in ("0", "1")]
    axes.plot(*at, "o", color="black", markersize=5)
    axes.annotate("at 50 %", at, xytext=(6, -12), textcoords="offset points", fontsize=9)
    axes.text(0.97, 0.06, f"ROC AUC {found.roc_auc:.3f}\nbalanced accuracy "
              f"{found.balanced_accuracy:.1f} %\naccuracy "
              f"{100 * found.hits.sum() / found.images.sum():.1f} %", ha="right", fontsize=9.5)
    axes.set(xlim=(0, 1), ylim=(0, 1.005), xlabel="functional cells with a false alarm",
             ylabel="defective cells found")
    axes.grid(alpha=0.3)


def _draw_probabilities(axes: Any, scores: dict[str, np.ndarray]) -> None:
    """Predicted probabilities by what the experts gave; the doubtful ones were never trained on."""
    generator = np.random.default_rng(0)
    for place, (those, colour) in enumerate(zip(scores.values(), (BLUE, GREY, GREY, RED))):
        chances = 100 / (1 + np.exp(-those.astype(np.float64)))
        axes.plot(place + generator.uniform(-0.3, 0.3, len(chances)), chances, ".", color=colour,
                  markersize=3.5, alpha=0.6)
        axes.hlines(np.median(chances), place - 0.38, place + 0.38, color="black", linewidth=2)
    axes.axhline(50, color=GREY, linewidth=1, linestyle=":")
    axes.set_xticks(range(4), [f"{label}\n({len(those)})" for label, those in scores.items()])
    axes.set(ylim=(0, 100), xlabel="defect probability by experts",
             ylabel="predicted: defective, %  (bar: median)")


def main() -> None:
    parser = command_line.parser(__doc__, EXAMPLES)
    parser.add_argument("run", type=command_line.path, metavar="RUN", help="run directory")
    parser.add_argument("photos", type=command_line.path, metavar="FOLDER",
                        help="what demo/solar_cells.py prepared")
    parser.add_argument("output", type=command_line.path, metavar="PNG", help="picture to write")
    parser.add_argument("--seed", type=int, default=0, metavar="N",
                        help="chooses the examples (default: 0)")
    args = parser.parse_args()
    draw(args.run, args.photos, args.output, args.seed)


if __name__ == "__main__":
    command_line.run(main)
