#!/usr/bin/env python
"""Convert trained weights between GluonCV, the ResNeSt repository, timm and this package.

The input's format is known by its content: .params files of Gluon, exported -0000.params files,
PyTorch state dicts (.pth, .pt) and .safetensors. Nothing in it is executed, and neither PyTorch
nor GluonCV is needed. Every array is matched by name and shape, and must be finite.
"""

from __future__ import annotations

from gluon_resnest import command_line
from gluon_resnest.errors import InputError
from gluon_resnest.models import get_model
from gluon_resnest.models.weights.files import (
    classes_in,
    input_channels_in,
    match_arrays,
    read_params,
    save_arrays,
)

EXAMPLES = """
  python scripts/convert_weights.py resnest50-528c19ca.pth resnest50.params --model resnest50
  python scripts/convert_weights.py runs/best.params timm.pth --model resnest101 --classes 10
"""
LAYOUTS = {".params": "gluon", ".pth": "pytorch", ".pt": "pytorch"}


def main() -> None:
    parser = command_line.parser(__doc__, EXAMPLES)
    parser.add_argument("input", type=command_line.path, metavar="IN",
                        help="file of weights to read")
    parser.add_argument("output", type=command_line.path, metavar="OUT",
                        help="file to write")
    parser.add_argument("--model", required=True, metavar="NAME",
                        help="name of the network here, such as resnest50 (timm's resnest50d)")
    parser.add_argument("--to", choices=sorted(set(LAYOUTS.values())),
                        help="gluon: .params for GluonCV, the ResNeSt repository and this package; "
                             "pytorch: .pth for timm and the ResNeSt repository, which name alike "
                             "(default: by OUT's suffix)")
    parser.add_argument("--classes", type=int, metavar="N",
                        help="number of classes (default: what IN has)")
    args = parser.parse_args()
    layout = args.to or LAYOUTS.get(args.output.suffix)
    if layout is None:
        raise InputError(f"{args.output} ends in none of {', '.join(LAYOUTS)}: say --to gluon or "
                         "--to pytorch")

    arrays = read_params(args.input)
    net = get_model(args.model, classes=args.classes or classes_in(arrays, args.input),
                    in_channels=input_channels_in(arrays, args.input))
    matched = match_arrays(net, arrays, args.input)
    save_arrays(matched, args.output, layout)
    values = sum(array.size for array in matched.values())
    print(f"{args.output}: {len(matched)} arrays ({values:,} values) of {args.model} with "
          f"{net.classes} classes, from {args.input}, for {layout}")


if __name__ == "__main__":
    command_line.run(main)
