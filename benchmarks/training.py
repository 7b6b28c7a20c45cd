"""What the trainer costs beside a bare loop, and how two workers compare with one by one."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import photograph_records, tables
from benchmarks.contest import ContestError
from benchmarks.machine import machine
from gluon_resnest import command_line, runtime
from gluon_resnest.models import check_input_size, find_variant

DESCRIPTION = """Training by this package's trainer, in turns with the bare loop of forward, \
backward and update,
in the same processes, on the same batches. With --np each worker of the bare loop is on its own."""

EXAMPLES = """
  python scripts/benchmark.py training --model resnest50 --batch-size 8
  python scripts/benchmark.py training --model resnest14 --batch-size 16 --np 2
"""

READING = """
reading:
  trainer          everything: loader, exchange of gradients, checks, schedule, progress, metrics
  bare loop        forward, backward, update, the loss read one step late; with --np N the sum of
                   N workers that exchange nothing, running at the same time
  ratio            median of the ratios of neighbouring turns, and the range of these
  idle             what each process takes of a core while it does nothing (Horovod's thread looks
                   for work): the bare loop would be faster by about that without Horovod
Neither has mixup, validation or checkpoints.
"""

_PROGRAM = Path(__file__).parent / "programs" / "run_trainer.py"
_MINUTES = 30


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="resnest14", metavar="NAME",
                        help="network (default: %(default)s)")
    parser.add_argument("--input-size", type=command_line.positive, default=224, metavar="PX",
                        help="side of the crop (default: %(default)s)")
    parser.add_argument("--batch-size", type=command_line.positive, default=8, metavar="N",
                        help="images a worker (default: %(default)s)")
    parser.add_argument("--np", type=command_line.positive, default=1, metavar="N",
                        help="workers on this machine, under horovodrun (default: %(default)s)")
    parser.add_argument("--turn", type=command_line.positive, default=10, metavar="N",
                        help="steps of a turn (default: %(default)s)")
    parser.add_argument("--rounds", type=command_line.positive, default=5, metavar="N",
                        help="turns of each kind (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")


def measure(args: argparse.Namespace) -> None:
    """Do what the flags ask for and print it."""
    find_variant(args.model)
    check_input_size(args.input_size, "--input-size")
    found = _run(args)
    where = machine()
    threads = max(1, runtime.usable_cores() // args.np)
    if args.json:
        print(json.dumps({"machine": where, **vars_of(args), "threads": threads, **found},
                         indent=2))
        return
    rows = [[name, f"{median(found['images_per_second'][kind]):.2f}", ratio]
            for name, kind, ratio in (
                ("bare loop", "bare", "1"),
                ("trainer", "trainer", f"{median(found['ratios']):.3f} "
                                       f"({min(found['ratios']):.3f} to "
                                       f"{max(found['ratios']):.3f})"))]
    print(f"{where['cpu']}, {where['cores']} cores\n\n{args.model}, {args.input_size} px, batch "
          f"{args.batch_size}, {args.np} worker(s) with {threads} thread(s) each, "
          f"{args.rounds} turns of {args.turn} steps\n")
    print(tables.table(["", "images/s", "ratio"], rows, [False, True, True], args.markdown))
    print(f"\nidle: {found['idle_share']:.1%} of a core")


def vars_of(args: argparse.Namespace) -> dict[str, Any]:
    names = ("model", "input_size", "batch_size", "np", "turn", "rounds")
    return {name: getattr(args, name) for name in names}


def _run(args: argparse.Namespace) -> dict[str, Any]:
    steps = args.turn * 2 * (args.rounds + 1)
    images = max(photograph_records.COUNT, steps * args.batch_size * args.np)
    records = photograph_records.record_file(images)
    launcher = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(args.np)]
    with tempfile.TemporaryDirectory() as folder:
        command = [*(launcher if args.np > 1 else []), sys.executable, str(_PROGRAM), str(records),
                   f"{folder}/run", args.model, str(args.input_size), str(args.batch_size),
                   str(args.turn), str(2 * args.rounds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False,
                              env=runtime.child_environment(None), timeout=60 * _MINUTES)
    lines = [line.partition("{") for line in done.stdout.splitlines() if '"ratios"' in line]
    if done.returncode or not lines:
        raise ContestError(f"the trainer ended with code {done.returncode}: see above")
    _, brace, rest = lines[-1]
    return json.loads(brace + rest)
