"""The reliability diagram of an assessed network: how far its probabilities can be trusted."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gluon_resnest.drawing.figure import (
    BLUE,
    LINE_GREY,
    VERMILION,
    literal,
    new_figure,
    save,
)
from gluon_resnest.tasks.classification.assessment import BINS, Assessment


def draw_calibration(assessment: Assessment, picture: Path, title: str) -> None:
    """Draw a reliability diagram as a PNG: accuracy by confidence, and the images in each bin."""
    figure = new_figure(5.6, 6.4)
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1)})
    there = assessment.bin_images > 0
    middles = (np.arange(BINS) + 0.5) / BINS
    accuracy, confidence = (sums[there] / assessment.bin_images[there] for sums in
                            (assessment.bin_hits, assessment.bin_confidence))
    upper.bar(middles[there], accuracy, 0.92 / BINS, color=BLUE, label="accuracy of the bin")
    upper.plot(confidence, confidence, "_", color=VERMILION, markersize=16, markeredgewidth=2,
               label="its mean confidence")
    upper.plot([0, 1], [0, 1], ":", color=LINE_GREY, linewidth=1, label="calibrated")
    upper.set(ylim=(0, 1.02), xlim=(0, 1), ylabel="share of hits")
    upper.set_title(f"expected calibration error {assessment.calibration_error:.2f} % "
                    f"({BINS} bins)", fontsize=10)
    upper.legend(fontsize=8.5, loc="upper left")
    lower.bar(middles, assessment.bin_images, 0.92 / BINS, color="#999999")
    lower.set(xlabel="confidence: probability of the top-1 class", ylabel="images")
    if assessment.bin_images.max() > 0:
        lower.set_yscale("log")
        lower.set_ylim(bottom=0.7)
    figure.suptitle(literal(title))
    save(figure, picture, 100, margin=0.15)
