#!/usr/bin/env python
"""Write a trained network as files that MXNet runs without this package.

The files are read back and must give the network's own logits, or nothing is written.
"""

from __future__ import annotations

from pathlib import Path

from gluon_resnest import command_line
from gluon_resnest.classifier import SYMBOL_SUFFIX, load_classifier
from gluon_resnest.deploy.symbol import GRAPHS, export_symbol, sha256
from gluon_resnest.errors import InputError
from gluon_resnest.layers import IMAGENET_MEAN, IMAGENET_STD

EXAMPLES = """
  python scripts/export_model.py --model resnest50 --params resnest50.params --output exported
  python scripts/predict.py --model exported/resnest50-symbol.json photo.jpg
"""


def main() -> None:
    parser = command_line.parser(__doc__, EXAMPLES)
    command_line.add_network_flags(parser)
    parser.add_argument("--format", choices=["symbol"], default="symbol",
                        help="symbol: NAME-symbol.json and NAME-0000.params (default)")
    parser.add_argument("--graph", choices=GRAPHS, default="deployed",
                        help="deployed: rewritten for inference, with normalisation folded into "
                             "the convolutions (default); plain: the network as it was trained")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR",
                        help="folder for the files; made if it is not there")
    args = parser.parse_args()
    if args.model.endswith(SYMBOL_SUFFIX):
        raise InputError(f"--model {args.model} is exported already: give a name such as resnest50")

    classifier = load_classifier(args.model, args.params, args.classes, args.test_size,
                                 args.crop_ratio, args.class_names)
    card = {
        "model": classifier.name,
        "classes": classifier.classes,
        "class_names": classifier.class_names,
        "input_size": classifier.input_size,
        "crop_ratio": classifier.crop_ratio,
        "input": "float32 (N, 3, H, W), RGB, (pixel / 255 - mean) / std",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "output": "float32 (N, classes), logits",
        "weights_sha256": sha256(args.params),
    }
    for path in export_symbol(classifier.net, args.output, classifier.name,
                              classifier.input_size, card, args.graph):
        print(path)


if __name__ == "__main__":
    command_line.run(main)
