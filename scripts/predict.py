#!/usr/bin/env python
"""Label image files, and those in folders, with a trained network or with exported files.

Files that cannot be used are listed on stderr and the others are labelled; the exit code is then 2.
"""

from __future__ import annotations

import csv
import json
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gluon_resnest import command_line
from gluon_resnest.classifier import Classifier, load_classifier
from gluon_resnest.data.images.image_files import ImageFile, find_images, read_image
from gluon_resnest.drawing.explanation_picture import check_folder, draw_explanation, picture_paths
from gluon_resnest.errors import InputError
from gluon_resnest.explaining import explain
from gluon_resnest.plain_text import printable
from gluon_resnest.progress_bar import progress_bar
from gluon_resnest.workers import Workers, device

EXAMPLES = """
  python scripts/predict.py --model resnest50 --params resnest50.params photo.jpg
  python scripts/predict.py --model resnest50 --params resnest50.params --explain why photos
  python scripts/predict.py --model exported/resnest50-symbol.json --json *.jpg
  python scripts/predict.py --model exported --csv --top-k 1 photos > labels.csv
"""

COLUMNS = ("image", "rank", "class", "label", "probability", "error")


def predictions(
    files: Sequence[ImageFile], classifier: Classifier, batch_size: int, top_k: int,
    pictures: Sequence[Path] | None,
) -> list[dict[str, Any]]:
    """Of each file its answer {"image", "top"}, and an "error" where there is one."""
    answers: list[dict[str, Any]] = [{"image": str(file.path), "top": []} for file in files]
    batch: list[tuple[int, np.ndarray]] = []

    def label_batch() -> None:
        crops = np.stack([crop for _, crop in batch])
        for (place, crop), probabilities in zip(batch, classifier.probabilities(crops)):
            best = np.argsort(-probabilities, kind="stable")[:top_k]
            answers[place]["top"] = [
                {"class": classifier.class_name(int(label)), "label": int(label),
                 "probability": float(probabilities[label])} for label in best]
            if pictures is not None:
                draw_explanation(explain(classifier.net, crop), pictures[place],
                                 files[place].path.name, classifier.net.variant,
                                 classifier.class_name, top_k)
        batch.clear()

    with progress_bar(total=len(files), desc="predicting", unit="image", leave=True,
                      enabled=len(files) > batch_size or pictures is not None) as progress:
        for place, file in enumerate(files):
            try:
                if file.fault is not None:
                    raise InputError(file.fault)
                batch.append((place, classifier.transform(read_image(file.path))))
            except InputError as error:
                answers[place]["error"] = printable(str(error))
                progress.update()
            if batch and (len(batch) == batch_size or place == len(files) - 1):
                done = len(batch)
                label_batch()
                progress.update(done)
    return answers


def answers_table(answers: Sequence[dict[str, Any]]) -> Iterator[str]:
    """One line an image that was labelled: file, class, percent, and the next classes."""
    rows = [(printable(answer["image"]), *((one["class"], 100 * one["probability"])
                                           for one in answer["top"]))
            for answer in answers if answer["top"]]
    images = max((_width(row[0]) for row in rows), default=0)
    names = max((_width(row[1][0]) for row in rows), default=0)
    for image, (name, percent), *others in rows:
        line = f"{_padded(image, images)}  {_padded(name, names)}  {percent:6.2f} %"
        if others:
            line += "   then " + "; ".join(f"{name} {percent:.2f} %" for name, percent in others)
        yield line


def _width(text: str) -> int:
    """Columns of a terminal: Chinese characters take two, combining accents none."""
    return sum(0 if unicodedata.combining(letter) else
               2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def write_csv(answers: Sequence[dict[str, Any]]) -> None:
    """A line for each class of each image; of an image that failed, one with its error."""
    if not sys.stdout.isatty():  # a file, whose names must not depend on this machine's locale
        sys.stdout.reconfigure(encoding="utf-8")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for answer in answers:
        # As it is, for whoever opens the file. Bytes that are no text cannot be written, though.
        image = answer["image"].encode("utf-8", "backslashreplace").decode("utf-8")
        for rank, one in enumerate(answer["top"], start=1):
            writer.writerow([image, rank, one["class"], one["label"], one["probability"], ""])
        if "error" in answer:
            writer.writerow([image, "", "", "", "", answer["error"]])


def main() -> None:
    parser = command_line.parser(__doc__, EXAMPLES)
    parser.add_argument("images", nargs="+", type=command_line.path, metavar="IMAGE",
                        help="image files, and folders that are searched for them with all below")
    command_line.add_network_flags(parser)
    parser.add_argument("--top-k", type=command_line.positive, default=5, metavar="K",
                        help="classes to show (default: 5)")
    command_line.add_batch_flags(parser, 32, "images at a time (default: 32)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON list instead of a table")
    form.add_argument("--csv", action="store_true",
                      help=f"print CSV instead, with the columns {', '.join(COLUMNS)}")
    parser.add_argument("--explain", type=command_line.path, metavar="DIR",
                        help="write a picture of each image there: what speaks for its class "
                             "where, and which splits the network attends to")
    args = parser.parse_args()

    classifier = load_classifier(args.model, args.params, args.classes, args.test_size,
                                 args.crop_ratio, args.class_names,
                                 device(Workers(), args.no_cuda))
    if args.explain is not None:
        if classifier.net is None:
            raise InputError(f"--explain needs the trained network, and {args.model} is exported: "
                             "give --model NAME --params FILE of its checkpoint")
        check_folder(args.explain)
    files = find_images(args.images)
    pictures = (None if args.explain is None else
                picture_paths((file.path for file in files), args.explain))
    answers = predictions(files, classifier, args.batch_size, args.top_k, pictures)
    if args.json:
        print(json.dumps(answers, indent=2))
    elif args.csv:
        write_csv(answers)
    else:
        for line in answers_table(answers):
            print(line)
    sys.stdout.flush()  # in the order of a terminal also where both go into one file
    errors = [answer["error"] for answer in answers if "error" in answer]
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        sys.exit(InputError.exit_code)


if __name__ == "__main__":
    command_line.run(main)
