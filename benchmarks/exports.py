"""`scripts/benchmark.py export`: exported files in their runtimes, beside what others ship."""

from __future__ import annotations

import argparse
import json
from itertools import product
from statistics import median
from typing import Any

from benchmarks.contest import ContestRecord, contest
from benchmarks.machine import machine
from benchmarks.peers import Case, Peer, exported, peer_contestants
from benchmarks.results import ratio, spread
from benchmarks.tables import table
from gluon_resnest import command_line, runtime
from gluon_resnest.deploy import FORMATS
from gluon_resnest.errors import InputError
from gluon_resnest.models import check_input_size, find_variant

DESCRIPTION = """\
Time exported files on the CPU: latency, images a second, size and agreement.

Each contestant is a process of its own that exports its network, with random weights, reads the
files back and runs them on a batch (N, 3, PX, PX) in memory. After a warm-up they take turns, and
ratios are taken round by round.

Peers (--peer), each in an environment that is made on first use and kept in the cache folder:

  gluoncv-export   GluonCV's network, exported by its own export(), in MXNet
  timm             timm in PyTorch, eager: nothing is exported
  onnxruntime      timm's network, exported by PyTorch, in ONNX Runtime
"""

EXAMPLES = """
  python scripts/benchmark.py export
  python scripts/benchmark.py export --model resnest50 --peer gluoncv-export timm onnxruntime
  python scripts/benchmark.py export --form onnx --batch-size 1 --peer onnxruntime --json
"""

READING = """
columns:
  ms               median over the rounds of one call
  +- %             half the distance between the quartiles of the rounds
  time / ours      median of the rounds' ratios (least-most): 2 is half as fast as ours
  MB               of the files
  difference       of the logits from those of the network that was exported, of the largest
"""

PEERS = ("gluoncv-export", "timm", "onnxruntime")
_IMAGES = 48  # pictures to check and calibrate with


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", nargs="+", default=["resnest50"], metavar="NAME",
                        help="networks of this package (default: resnest50)")
    parser.add_argument("--form", nargs="+", choices=list(FORMATS), default=list(FORMATS),
                        help="our formats (default: all)")
    parser.add_argument("--batch-size", nargs="+", type=command_line.positive, default=[1, 8, 16],
                        metavar="N", help="images in a call (default: 1, 8 and 16)")
    parser.add_argument("--input-size", type=int, default=224, metavar="PX",
                        help="side of the square images (default: %(default)s)")
    parser.add_argument("--threads", type=command_line.threads, metavar="N",
                        help="of every contestant (default: one a core)")
    parser.add_argument("--peer", nargs="+", choices=PEERS, default=[], metavar="NAME",
                        help=f"of {', '.join(PEERS)} (default: none)")
    parser.add_argument("--rounds", type=command_line.positive, default=9, metavar="N",
                        help="turns of each contestant (default: %(default)s)")
    layout = parser.add_mutually_exclusive_group()
    layout.add_argument("--json", action="store_true", help="print JSON instead")
    layout.add_argument("--markdown", action="store_true", help="print tables in Markdown")


def measure(args: argparse.Namespace) -> None:
    """Do what the flags ask for and print it."""
    check_input_size(args.input_size, "--input-size")
    for name in args.model:
        find_variant(name)
    if len(set(args.form)) < len(args.form) or len(set(args.peer)) < len(args.peer):
        raise InputError("a contestant takes part twice: name each form and peer once")
    threads = args.threads or runtime.usable_cores()
    where, cases = machine(), []
    if not args.json:
        print(f"{where['cpu']}, {where['cores']} cores, {threads} threads")
    for model, batch in product(args.model, args.batch_size):
        case = Case(model, "forward", batch, args.input_size, threads)
        ours = [exported(case, form, _IMAGES) for form in args.form]
        peers = [one for name in args.peer for one in peer_contestants(case, Peer(name), ())]
        lines = [_line(record, records, [one.label for one in ours])
                 for records in [contest([*ours, *peers], args.rounds)] for record in records]
        cases.append({**vars(case), "rounds": args.rounds, "contestants": lines})
        if not args.json:
            heading = f"{model}, {args.input_size} px, batch {batch}, {args.rounds} rounds"
            print(f"\n{heading}\n\n{_text(lines, args.markdown)}", flush=True)
    if args.json:
        print(json.dumps({"machine": where, "cases": cases}, indent=2))


def _line(record: ContestRecord, records: list[ContestRecord], ours: list[str]) -> dict[str, Any]:
    times = {one.contestant.label: [median(turn) for turn in one.turns] for one in records}
    own = times[record.contestant.label]
    return {
        "contestant": record.contestant.label,
        "network": record.contestant.task["network"],
        "ms": median(own) * 1e3,
        "spread": spread(own),
        "images_per_second": record.contestant.task["batch_size"] / median(own),
        "ratios": {label: vars(ratio(own, times[label])) for label in ours},
        "file_mb": record.facts.get("file_mb"),
        "difference": record.facts.get("difference"),
        "peak_mb": record.peak_mb,
        "versions": record.facts["versions"],
        "seconds": record.turns,
    }


def _text(lines: list[dict[str, Any]], markdown: bool) -> str:
    ours = list(lines[0]["ratios"])
    titles = ["contestant", "ms", "+- %", "images/s", *(f"time / {label}" for label in ours),
              "MB", "difference"]
    rows = [[line["contestant"], f"{line['ms']:.1f}", f"{line['spread'] * 100:.1f}",
             f"{line['images_per_second']:.1f}",
             *(f"{one['median']:.2f} ({one['least']:.2f}-{one['most']:.2f})"
               for one in line["ratios"].values()),
             "-" if line["file_mb"] is None else f"{line['file_mb']:.1f}",
             "-" if line["difference"] is None else f"{line['difference']:.1e}"]
            for line in lines]
    versions = {name: version for line in lines for name, version in line["versions"].items()}
    return "\n".join([table(titles, rows, [False, *[True] * (len(titles) - 1)], markdown),
                      *([""] if markdown else []), ", ".join(map(" ".join, versions.items()))])
