"""`scripts/benchmark.py network`: its flags, the cases they ask for, and what it prints."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import product
from typing import Any

from benchmarks.contest import Contestant, contest, profiles
from benchmarks.machine import machine
from benchmarks.peers import (
    FORMS,
    LIBRARIES,
    MODES,
    Case,
    Peer,
    our_contestants,
    peer_contestants,
    sgemm,
)
from benchmarks.results import ContestResult, operator_rows, results
from benchmarks.tables import table
from gluon_resnest import command_line, runtime
from gluon_resnest.errors import InputError
from gluon_resnest.models import check_input_size, find_variant

DESCRIPTION = """\
Time a network's forward pass and training step on the CPU, beside peers.

Each contestant is a process of its own. After a warm-up they take turns, A, B, C, A, B, C ...,
and ratios are taken round by round, so that a machine that drifts slows all alike. A turn lasts
0.3 s (50 calls at most) or one call. Weights are random; images, (N, 3, PX, PX), are in memory
already.

  forward    network(images), until the output is there
  training   forward, softmax cross-entropy, backward and an SGD update with momentum

Peers (--peer), each in an environment that is made on first use and kept in the cache folder:

  gluoncv          GluonCV 0.10.5 on MXNet, without DropBlock, with --threads
  gluoncv-default  the same without OMP_NUM_THREADS: MXNet then takes half of the processors
  timm             timm 1.0.31 on PyTorch 2.13, eager
  onnxruntime      timm's network, exported, in ONNX Runtime 1.32; forward only
  ours:NETWORK     another network of this package

A peer runs its own version of --model; LIBRARY:NETWORK names any other network that it has.
"""

EXAMPLES = """
  python scripts/benchmark.py network
  python scripts/benchmark.py network --model resnest50 --peer gluoncv timm onnxruntime
  python scripts/benchmark.py network --mode training --batch-size 8 --peer gluoncv-default
  python scripts/benchmark.py network --peer gluoncv:resnet50_v1b ours:resnest50_0s1x64d
  python scripts/benchmark.py network --model resnest50 resnest101 --peer timm --json
  python scripts/benchmark.py network --mode forward --batch-size 8 --profile --peer gluoncv
"""

READING = """
columns:
  ms               median over the rounds of one call
  +- %             half the distance between the quartiles of the rounds
  time / ours      median of the rounds' ratios (least-most): 2 is half as fast as ours
  GFLOP/s          two operations a multiply-add, three times as many in a training step
  % of sgemm       of MXNet's rate on square matrices, measured in the same rounds
  peak MB          largest resident memory of the process, the library itself included
"""

_BATCH_SIZES = {"forward": (1, 8), "training": (8,)}
_FORMS = {"forward": FORMS, "training": ("gluon",)}


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", nargs="+", default=["resnest50"], metavar="NAME",
                        help="networks of this package (default: resnest50)")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=MODES,
                        help="what to time (default: both)")
    parser.add_argument("--batch-size", nargs="+", type=command_line.positive, metavar="N",
                        help="images in a call (default: 1 and 8 for forward, 8 for training)")
    parser.add_argument("--input-size", type=int, default=224, metavar="PX",
                        help="side of the square images (default: %(default)s)")
    parser.add_argument("--threads", type=command_line.threads, metavar="N",
                        help="of every contestant but gluoncv-default (default: one a core)")
    parser.add_argument("--peer", nargs="+", default=[], metavar="LIBRARY[:NETWORK]",
                        help=f"of {', '.join(LIBRARIES)} (default: none)")
    parser.add_argument("--form", nargs="+", choices=FORMS,
                        help="of our networks: gluon, the hybridized network, and deployed, the "
                             "graph for inference (default: both for forward, gluon for training)")
    parser.add_argument("--rounds", type=command_line.positive, default=9, metavar="N",
                        help="turns of each contestant (default: %(default)s)")
    parser.add_argument("--profile", action="store_true",
                        help="print the time of each operator instead; of MXNet's networks only")
    layout = parser.add_mutually_exclusive_group()
    layout.add_argument("--json", action="store_true",
                        help="print JSON instead, with each call's seconds")
    layout.add_argument("--markdown", action="store_true", help="print tables in Markdown")


def measure(args: argparse.Namespace) -> None:
    """Do what the flags ask for and print it, each case as soon as it is there.

    With ``--json`` one object in the end: ``machine``, and ``cases``, each with the fields of
    :class:`Case`, ``rounds`` and ``contestants`` (:meth:`ContestResult.as_dict`; the last is
    sgemm) or, with ``--profile``, ``operators`` (:func:`operator_rows`).
    """
    # All of them before the first is timed: a wrong name shows now, and environments get made.
    planned = [(case, *_contestants(case, args)) for case in _cases(args)]
    where = machine()
    cases = []
    if not args.json:
        print(f"{where['cpu']}, {where['cores']} cores")
    for case, contestants, ours in planned:
        heading = (f"{case.model}, {case.mode}, batch {case.batch_size}, {case.input_size} px, "
                   f"{case.threads} thread{'s' if case.threads > 1 else ''}")
        if args.profile:
            rows = operator_rows(profiles(contestants))
            found, text = {"operators": rows}, _profile_text(rows, contestants, args.markdown)
        else:
            *records, rate = contest([*contestants, sgemm(case.threads)], args.rounds)
            lines = results(records, ours, rate)
            found = {"rounds": args.rounds, "contestants": [line.as_dict() for line in lines]}
            heading += f", {args.rounds} rounds"
            text = _contest_text(lines, ours, args.markdown)
        cases.append({**vars(case), **found})
        if not args.json:
            print(f"\n{heading}\n\n{text}" if args.markdown else f"\n{heading}\n{text}",
                  flush=True)
    if args.json:
        print(json.dumps({"machine": where, "cases": cases}, indent=2))


def _cases(args: argparse.Namespace) -> list[Case]:
    check_input_size(args.input_size, "--input-size")
    for name in args.model:
        find_variant(name)
    if "training" in args.mode and 1 in (args.batch_size or ()):
        raise InputError("--batch-size 1 cannot be trained: the attention's batch normalisation "
                         "would see one value a channel; give at least 2, or --mode forward")
    threads = args.threads or runtime.usable_cores()
    return [Case(model, mode, batch_size, args.input_size, threads)
            for model, mode in product(args.model, args.mode)
            for batch_size in args.batch_size or _BATCH_SIZES[mode]]


def _contestants(case: Case, args: argparse.Namespace) -> tuple[list[Contestant], list[str]]:
    """Who takes part in `case`, and the labels of our forms among them."""
    forms = args.form or _FORMS[case.mode]
    ours = our_contestants(case, case.model, "ours", forms)
    if not ours:
        raise InputError(f"--form {' '.join(forms)} is for --mode forward, not {case.mode}")
    peers = [Peer.parse(text) for text in args.peer]
    for peer in peers if args.profile else ():
        if not LIBRARIES[peer.library].profiled:
            raise InputError(f"--profile shows MXNet's operators: leave --peer {peer.label} out")
    everyone = [*ours, *(one for peer in peers for one in peer_contestants(case, peer, forms))]
    labels = [contestant.label for contestant in everyone]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice:
        raise InputError(f"{twice} takes part twice: name each peer once")
    return everyone, [contestant.label for contestant in ours]


def _contest_text(lines: Sequence[ContestResult], ours: Sequence[str], markdown: bool) -> str:
    *lines, rate = lines
    titles = ["contestant", "network", "ms", "+- %", *(f"time / {label}" for label in ours),
              "GFLOP/s", "% of sgemm", "peak MB"]
    rows = [[line.record.contestant.label, line.record.contestant.task["network"],
             f"{line.seconds * 1e3:.1f}", f"{line.spread * 100:.1f}",
             *(str(line.ratios[label]) for label in ours),
             "-" if line.gflops is None else f"{line.gflops:.1f}",
             "-" if line.sgemm_share is None else f"{line.sgemm_share:.0%}".rstrip("%"),
             f"{line.record.peak_mb:,.0f}"] for line in lines]
    facts = rate.record.facts
    versions = {name: version for line in lines
                for name, version in line.record.facts["versions"].items()}
    return "\n".join([
        table(titles, rows, [False, False, *[True] * (len(titles) - 2)], markdown),
        *([""] if markdown else []),
        f"sgemm: {rate.gflops:.1f} GFLOP/s ({facts['operator']}, {facts['size']} x "
        f"{facts['size']}); {', '.join(map(' '.join, versions.items()))}"])


def _profile_text(
    rows: Sequence[dict[str, Any]], contestants: Sequence[Contestant], markdown: bool
) -> str:
    labels = [contestant.label for contestant in contestants]
    titles = ["operator"]
    for label in labels:
        titles += [f"{label}: ms", "%", "calls"]
    cells = [[row["operator"], *(cell for label in labels for cell in _operator_cells(row, label))]
             for row in rows]
    totals = ["total"]
    for label in labels:
        present = [row[label] for row in rows if label in row]
        totals += [f"{sum(one['ms'] for one in present):.2f}", "100.0",
                   f"{sum(one['count'] for one in present):g}"]
    return "\n".join([
        table(titles, [*cells, totals], [False, *[True] * (len(titles) - 1)], markdown),
        *([""] if markdown else []),
        "Operators ran one at a time here, each in a turn of its own: as users run the network it "
        "is faster."])


def _operator_cells(row: dict[str, Any], label: str) -> tuple[str, str, str]:
    if label not in row:
        return "-", "-", "-"
    one = row[label]
    return f"{one['ms']:.2f}", f"{one['share'] * 100:.1f}", f"{one['count']:g}"
