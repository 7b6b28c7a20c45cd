#!/usr/bin/env python
"""Measure what networks cost, arithmetic and memory, and what they and the input pipeline take."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks/ is not installed

from benchmarks import exports, network, pipeline, tables, training
from benchmarks.contest import ContestError
from gluon_resnest import command_line
from gluon_resnest.errors import InputError
from gluon_resnest.models import check_input_size, find_variant, list_models
from gluon_resnest.planning.cost import Cost, summary
from gluon_resnest.tasks.classification.ablation import published_weights_accuracy

EXAMPLES = """
  python scripts/benchmark.py cost
  python scripts/benchmark.py cost --model resnest50 resnest50_2s2x40d --input-size 320
  python scripts/benchmark.py cost --model resnest14 --layers
  python scripts/benchmark.py cost --markdown     (the table of docs/models.md)
  python scripts/benchmark.py network --model resnest50 --peer gluoncv timm
  python scripts/benchmark.py data --augmentation recipe
  python scripts/benchmark.py training --np 2
  python scripts/benchmark.py export --peer onnxruntime
"""

# Title of a column, key of `cost_row`, format of its values.
COLUMNS = (
    ("model", "model", "{}"),
    ("px", "input_size", "{}"),
    ("parameters", "parameters", "{:,}"),
    ("GMACs", "gmacs", "{:.3f}"),
    ("activations, M", "mactivations", "{:.2f}"),
    ("published top-1, %", "published_top1", "{:.2f}"),
    ("source", "published_source", "{}"),
)


def cost_row(name: str, cost: Cost) -> dict[str, Any]:
    """One line of the table of variants; the published accuracy is of the model's test size."""
    variant = find_variant(name)
    size = cost.input_shape[-1]
    top1, source = published_weights_accuracy(variant)
    if size != variant.published.test_size:
        top1 = source = None
    return {
        "model": name,
        "input_size": size,
        "parameters": cost.parameters,
        "gmacs": cost.multiply_adds / 1e9,
        "mactivations": cost.activations / 1e6,
        "published_top1": top1,
        "published_source": source,
    }


def results_table(rows: list[dict[str, Any]], markdown: bool) -> str:
    """`rows` as aligned text or in Markdown."""
    cells = [["-" if row[key] is None else shape.format(row[key]) for _, key, shape in COLUMNS]
             for row in rows]
    titles = [title for title, *_ in COLUMNS]
    numeric = [shape != "{}" or key == "input_size" for _, key, shape in COLUMNS]
    if markdown:
        cells = [[f"`{first}`", *rest] for first, *rest in cells]
    return tables.table(titles, cells, numeric, markdown)


def print_costs(args: argparse.Namespace) -> None:
    if args.layers and args.markdown:
        raise InputError("--markdown is for the table of networks: leave it or --layers out")
    if args.input_size is not None:
        check_input_size(args.input_size, "--input-size")
    costs = {name: summary(name, args.input_size) for name in args.model or list_models()}
    rows = [cost_row(name, cost) for name, cost in costs.items()]
    if args.json:
        if args.layers:
            rows = [{**row, "layers": costs[row["model"]].as_dict()["layers"]} for row in rows]
        print(json.dumps(rows, indent=2))
    elif args.layers:
        print("\n\n".join(map(str, costs.values())))
    else:
        print(results_table(rows, args.markdown))


def add_contest(tools: Any, name: str, summary: str, contest: ModuleType) -> None:
    """A subcommand that times contestants in processes of their own, which may die."""

    def measure(args: argparse.Namespace) -> None:
        try:
            contest.measure(args)
        except ContestError as error:
            sys.exit(f"error: {error}")

    tool = tools.add_parser(name, help=summary, description=contest.DESCRIPTION,
                            epilog=f"examples:{contest.EXAMPLES}{contest.READING}".rstrip(),
                            formatter_class=argparse.RawDescriptionHelpFormatter)
    tool.set_defaults(measure=measure)
    contest.add_flags(tool)


def main() -> None:
    parser = command_line.parser(__doc__, EXAMPLES)
    tools = parser.add_subparsers(title="what to measure", metavar="WHAT", required=True)
    cost = tools.add_parser("cost", help="parameters, multiply-adds and activations",
                            description="Parameters, multiply-adds and activations for one image.")
    cost.set_defaults(measure=print_costs)
    cost.add_argument("--model", nargs="+", metavar="NAME", help="networks (default: all)")
    cost.add_argument("--input-size", type=int, metavar="PX",
                      help="side of the square input (default: each model's test size)")
    cost.add_argument("--layers", action="store_true", help="layer by layer")
    form = cost.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead")
    form.add_argument("--markdown", action="store_true",
                      help="print the table in Markdown, as docs/models.md has it")
    add_contest(tools, "network", "time of forward and training step, beside peers", network)
    add_contest(tools, "data", "time of the input pipeline, beside peers", pipeline)
    add_contest(tools, "training", "what the trainer adds to a bare loop, and workers to one",
                training)
    add_contest(tools, "export", "time of exported files, beside what others ship", exports)
    args = parser.parse_args()
    args.measure(args)


if __name__ == "__main__":
    command_line.run(main)
