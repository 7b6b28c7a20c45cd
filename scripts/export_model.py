#!/usr/bin/env python
"""Write a trained network as files that run without this package, and prove them equal to it.

The files are read back and must give the network's own logits, or nothing is written. model.json,
beside them, says what a client has to know: preprocessing, class names, input and output.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from gluon_resnest import command_line
from gluon_resnest.classifier import Classifier, is_exported, load_classifier
from gluon_resnest.data.images.made_photographs import photographs
from gluon_resnest.deploy.card import read_card
from gluon_resnest.deploy.check_images import check_crops, drawn_crops
from gluon_resnest.deploy.exporting import FORMATS, LEAST_AGREEMENT, Description, export
from gluon_resnest.deploy.symbol import GRAPHS
from gluon_resnest.errors import InputError

EXAMPLES = """
  python scripts/export_model.py --model resnest50 --params resnest50.params --output exported
  python scripts/export_model.py --model resnest50 --params resnest50.params --format onnx \\
      --pixels --images val.rec --output exported-onnx
  python scripts/export_model.py --model resnest50 --params resnest50.params --format onnx-int8 \\
      --calibration train.rec --images val.rec --output exported-int8
  python scripts/predict.py --model exported photo.jpg
"""

# Without --images; drawn, not photographed.
_DRAWN = 9


def crops_to_check(args: argparse.Namespace, classifier: Classifier) -> tuple[np.ndarray, str]:
    """Crops that the files are checked with, and in words what they are."""
    if args.images is None:
        drawn = list(photographs(min(_DRAWN, args.image_count)))
        return drawn_crops(drawn, classifier.transform), f"{len(drawn)} drawn pictures"
    crops = check_crops(args.images, classifier.transform, args.image_count)
    return crops, f"{len(crops)} images of {args.images.name}"


def main() -> None:
    parser = command_line.parser(__doc__, EXAMPLES)
    command_line.add_network_flags(parser)
    parser.add_argument("--format", choices=list(FORMATS), default="symbol",
                        help="symbol: NAME-symbol.json and NAME-0000.params, for MXNet (default); "
                             "onnx: NAME.onnx, for ONNX Runtime and others; int8 and onnx-int8: "
                             "the same with 8-bit arithmetic, see --calibration")
    parser.add_argument("--graph", choices=GRAPHS, default="deployed",
                        help="of a symbol. deployed: rewritten for inference, with normalisation "
                             "folded into the convolutions (default); plain: the network as it "
                             "was trained")
    parser.add_argument("--pixels", action="store_true",
                        help="bake the normalisation in: clients send uint8 crops (N, H, W, 3)")
    parser.add_argument("--images", type=command_line.path, metavar="PATH",
                        help="images that the files are checked with: a .rec, or a folder "
                             "(default: drawn pictures)")
    parser.add_argument("--image-count", type=command_line.positive, default=64, metavar="N",
                        help="at most so many of them (default: %(default)s)")
    parser.add_argument("--calibration", type=command_line.path, metavar="PATH",
                        help="training images, a .rec or a folder, from which the 8-bit formats "
                             "take their ranges")
    parser.add_argument("--calibration-count", type=command_line.positive, default=128,
                        metavar="N", help="at most so many of them (default: %(default)s)")
    parser.add_argument("--least-agreement", type=command_line.share, default=LEAST_AGREEMENT,
                        metavar="SHARE", help="of the images must get the network's class in the "
                                              "8-bit formats (default: %(default)s)")
    parser.add_argument("--output", type=command_line.path, required=True, metavar="DIR",
                        help="folder for the files; made if it is not there")
    args = parser.parse_args()
    if is_exported(args.model):
        raise InputError(f"--model {args.model} is exported already: give a name such as resnest50")
    if args.graph != "deployed" and args.format != "symbol":
        raise InputError(f"--graph {args.graph} is for --format symbol, not {args.format}")

    classifier = load_classifier(args.model, args.params, args.classes, args.test_size,
                                 args.crop_ratio, args.class_names)
    crops, words = crops_to_check(args, classifier)
    description = Description(classifier.name, classifier.input_size, classifier.crop_ratio,
                              classifier.class_names, args.params, words)
    calibration = None
    if args.calibration is not None:
        if "int8" not in args.format:
            raise InputError(f"--calibration is for --format int8 or onnx-int8, not {args.format}")
        calibration = check_crops(args.calibration, classifier.transform, args.calibration_count)
    paths = export(classifier.net, args.output, description, crops, args.format, args.graph,
                   args.pixels, calibration, args.least_agreement)
    for path in paths:
        print(path)
    agreement = read_card(args.output)[0]["agreement"]
    print(f"agrees with the network on {words}: same class for {agreement['top1_agreement']:.2%}, "
          f"logits differ by {agreement['largest_relative_difference']:.2g} of the largest at most",
          file=sys.stderr)


if __name__ == "__main__":
    command_line.run(main)
