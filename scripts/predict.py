#!/usr/bin/env python
"""Label image files with a trained network, or with exported files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gluon_resnest import command_line
from gluon_resnest.classifier import Classifier, load_classifier
from gluon_resnest.data.decoding import decode
from gluon_resnest.errors import InputError
from gluon_resnest.training.distributed import Workers, device

EXAMPLES = """
  python scripts/predict.py --model resnest50 --params resnest50.params photo.jpg
  python scripts/predict.py --model exported/resnest50-symbol.json --json *.jpg
"""


def read_crop(path: Path, classifier: Classifier) -> np.ndarray:
    """The network's crop (S, S, 3), uint8, of an image file."""
    try:
        return classifier.transform(decode(path.read_bytes()))
    except OSError as error:
        raise InputError(f"cannot read image {path}: {error.strerror}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def main() -> None:
    parser = command_line.parser(__doc__, EXAMPLES)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    command_line.add_network_flags(parser)
    parser.add_argument("--top-k", type=command_line.positive, default=5, metavar="K",
                        help="classes to show (default: 5)")
    command_line.add_batch_flags(parser, 32, "images at a time (default: 32)")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead")
    args = parser.parse_args()

    classifier = load_classifier(args.model, args.params, args.classes, args.test_size,
                                 args.crop_ratio, args.class_names,
                                 device(Workers(), args.no_cuda))
    answers = []
    for start in tqdm(range(0, len(args.images), args.batch_size), "predicting", unit="batch",
                      disable=len(args.images) <= args.batch_size):
        batch = [read_crop(path, classifier)
                 for path in args.images[start:start + args.batch_size]]
        for probabilities in classifier.probabilities(np.stack(batch)):
            best = np.argsort(-probabilities, kind="stable")[: args.top_k]
            answers.append([{"class": classifier.class_name(label), "label": int(label),
                             "probability": float(probabilities[label])} for label in best])
    if args.json:
        print(json.dumps([{"image": str(path), "top": top}
                          for path, top in zip(args.images, answers)], indent=2))
        return
    for path, top in zip(args.images, answers):
        print(path)
        for row in top:
            print(f"  {100 * row['probability']:6.2f} %  {row['class']}")


if __name__ == "__main__":
    command_line.run(main)
