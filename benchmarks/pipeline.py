"""`scripts/benchmark.py data`: its flags, and what it prints."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import photograph_records
from benchmarks.contest import contest
from benchmarks.machine import machine
from benchmarks.our_pipeline import Stages, stages
from benchmarks.pipeline_peers import (
    AUGMENTATIONS,
    DECODER,
    OURS,
    PEERS,
    PipelineCase,
    available_peers,
    our_contestants,
    peer_contestants,
)
from benchmarks.results import PipelineResult, pipeline_results
from benchmarks.tables import table
from gluon_resnest import command_line, runtime
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.errors import InputError

DESCRIPTION = """\
Time input pipelines: from a record file to batches that a network can be given, on the CPU.

Each contestant is a process of its own. After a warm-up they take turns, A, B, C, A, B, C ...,
and ratios are taken round by round, so that a machine that drifts slows all alike. A turn is an
epoch, from a new iterator to its end: nothing is prepared before it, and nobody works on after
it. CPU time is that of the process and of the workers that it starts.

  crop        random resized crop and flip
  recipe      the paper's: AutoAugment, crop, flip, jitter 0.4, lighting 0.1
  evaluation  resize to size/0.875, centre crop

Contestants; the peers (--peer) in environments that are made on first use and kept in the cache
folder:

  ours             this package's loader, uint8: the network normalises
  decode           its decoder alone, with as many threads: the limit
  imagerecorditer  MXNet's iterator in C++, float32 (not normalised) and uint8; as it is, with half
                   of the cores at most, and with ctx='cpu', where OpenMP takes all
  gluon            Gluon's DataLoader with GluonCV's transforms, float32, AutoAugment on Pillow;
                   in the process itself and with --threads workers
  torchvision      its transforms on Pillow in torch's DataLoader, float32; likewise
  timm             timm's transforms, uint8; likewise

Each pipeline applies the recipe as its own library has it; what that lacks is said below the table.
"""

EXAMPLES = """
  python scripts/benchmark.py data
  python scripts/benchmark.py data --augmentation recipe --peer gluon torchvision
  python scripts/benchmark.py data --rec-train records/val.rec --rounds 3 --markdown
  python scripts/benchmark.py data --peer        (no peers: ours and its decoder)
  python scripts/benchmark.py data --augmentation recipe --stages
"""

READING = """
columns:
  images/s         median over the rounds
  +- %             half the distance between the quartiles of the rounds
  CPU ms           of an image, all threads and processes together
  time / ours      median of the rounds' ratios (least-most): 2 is half as fast as ours
  CPU time / ours  the same of CPU time: how many times as fast ours is a core
  % of decode      images/s over those of our decoder alone
"""

_SMALLEST_SIZE = 8
_BUSY = 0.02  # of a contestant's CPU time, in the turns of others
_ANY_CLASS = 2**24  # labels are counted, not used: no list of classes, no limit


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--augmentation", choices=AUGMENTATIONS, default="crop",
                        help="what is done to an image (default: %(default)s)")
    parser.add_argument("--rec-train", type=command_line.path, metavar="FILE",
                        help="a .rec with its .idx beside it; an epoch of it is a turn, so a few "
                             "thousand images are best (default: photograph-like JPEGs of about "
                             f"500x375 and 105 KB, {photograph_records.COUNT:,} of them, made "
                             "once)")
    parser.add_argument("--input-size", type=command_line.positive, default=224, metavar="PX",
                        help="side of the square result (default: %(default)s)")
    parser.add_argument("--batch-size", type=command_line.positive, default=64, metavar="N",
                        help="images in a batch (default: %(default)s)")
    parser.add_argument("--threads", type=command_line.threads, metavar="N",
                        help="threads, or worker processes, of each contestant (default: one a "
                             "core)")
    parser.add_argument("--peer", nargs="*", choices=tuple(PEERS), metavar="NAME",
                        help=f"of {', '.join(PEERS)} (default: all that this version of Python "
                             "can run)")
    parser.add_argument("--rounds", type=command_line.positive, default=5, metavar="N",
                        help="turns of each contestant (default: %(default)s)")
    parser.add_argument("--stages", action="store_true",
                        help="print the time of each step of ours instead, in one thread")
    layout = parser.add_mutually_exclusive_group()
    layout.add_argument("--json", action="store_true",
                        help="print JSON instead, with each turn's seconds")
    layout.add_argument("--markdown", action="store_true", help="print the table in Markdown")


def measure(args: argparse.Namespace) -> None:
    """Do what the flags ask for and print it.

    With ``--json`` one object: ``machine``, the fields of :class:`PipelineCase`, ``images``,
    ``rounds``, and ``contestants`` (:meth:`PipelineResult.as_dict`) with ``best``
    (:func:`best_forms`) or, with ``--stages``, ``steps`` and ``loader`` in ms.
    """
    if args.stages and args.peer:
        raise InputError(f"--stages is of our own pipeline: leave --peer {' '.join(args.peer)} out")
    if args.input_size < _SMALLEST_SIZE:
        raise InputError(f"--input-size {args.input_size} is too small: at least {_SMALLEST_SIZE}")
    case, images = _case(args)
    where = machine()
    kilobytes = Path(case.records).stat().st_size / images / 1e3
    heading = (f"{where['cpu']}, {where['cores']} cores\n\n{case.augmentation}, "
               f"{case.input_size} px, batch {case.batch_size}, {_number(args.rounds, 'round')} of "
               f"{images:,} images ({Path(case.records).name}, {kilobytes:.0f} KB each), ")
    if args.stages:
        taken = stages(case, args.rounds)
        found: dict[str, Any] = asdict(taken)
        heading, text = heading + _number(1, "thread"), _stages_text(taken, args.markdown)
    else:
        names = available_peers() if args.peer is None else list(dict.fromkeys(args.peer))
        contestants = [*our_contestants(case), *peer_contestants(case, names)]
        lines = pipeline_results(contest(contestants, args.rounds), images, OURS, DECODER)
        found = {"contestants": [line.as_dict() for line in lines], "best": best_forms(lines)}
        heading += _number(case.threads, "thread")
        left_out = [name for name in PEERS if args.peer is None and name not in names]
        text = _contest_text(lines, case.augmentation, left_out, args.markdown)
    if args.json:
        print(json.dumps({"machine": where, **asdict(case), "images": images,
                          "rounds": args.rounds, **found}, indent=2))
    else:
        print(f"{heading}\n\n{text}" if args.markdown else f"{heading}\n{text}")


def _number(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' if number != 1 else ''}"


def _case(args: argparse.Namespace) -> tuple[PipelineCase, int]:
    """What is timed, and its number of images."""
    path = args.rec_train or photograph_records.record_file()
    with RecordFile(path) as records:
        names, images = records.class_names, len(records)
    if not path.with_suffix(".idx").is_file():
        raise InputError(f"{path} has no {path.stem}.idx beside it, which the peers read by: copy "
                         "it there, or pack the images again with scripts/pack_records.py")
    if args.batch_size > images:
        raise InputError(f"--batch-size {args.batch_size} is more than the {images:,} images of "
                         f"{path}")
    threads = args.threads or runtime.usable_cores()
    return PipelineCase(str(path.resolve()), args.augmentation, args.input_size, args.batch_size,
                        threads, len(names) if names else _ANY_CLASS), images


def best_forms(lines: Sequence[PipelineResult]) -> dict[str, dict[str, Any]]:
    """For each peer, how many times as fast ours is as the peer's best form.

    Returns
    -------
    dict
        By peer: ``time_ratio`` with the form of most images a second, ``time_form``; and
        ``cpu_ratio`` with the form of least CPU time, ``cpu_form``.
    """
    found: dict[str, dict[str, Any]] = {}
    for peer in dict.fromkeys(line.record.contestant.task["peer"] for line in lines):
        if peer not in PEERS:
            continue
        forms = [line for line in lines if line.record.contestant.task["peer"] == peer]
        fastest = min(forms, key=lambda line: line.time_ratio.median)
        cheapest = min(forms, key=lambda line: line.cpu_ratio.median)
        found[peer] = {"time_ratio": fastest.time_ratio.median,
                       "time_form": fastest.record.contestant.label,
                       "cpu_ratio": cheapest.cpu_ratio.median,
                       "cpu_form": cheapest.record.contestant.label}
    return found


def _contest_text(
    lines: Sequence[PipelineResult], augmentation: str, left_out: Sequence[str], markdown: bool
) -> str:
    titles = ["contestant", "images/s", "+- %", "CPU ms", "time / ours", "CPU time / ours",
              "% of decode"]
    rows = [[line.record.contestant.label, f"{line.images_per_second:,.0f}",
             f"{line.spread * 100:.1f}", f"{line.cpu_ms:.2f}", str(line.time_ratio),
             str(line.cpu_ratio), f"{line.decode_share * 100:.0f}"] for line in lines]
    best = [f"{peer} at its best: time / ours {one['time_ratio']:.2f} ({one['time_form']}), CPU "
            f"time / ours {one['cpu_ratio']:.2f} ({one['cpu_form']})"
            for peer, one in best_forms(lines).items()]
    below = [*best, *_remarks(lines, augmentation, left_out), *_versions(lines)]
    separator = "\n\n" if markdown else "\n"
    return separator.join([table(titles, rows, [False, *[True] * 6], markdown),
                           ("\n" if not markdown else "  \n").join(below)])


def _remarks(
    lines: Sequence[PipelineResult], augmentation: str, left_out: Sequence[str]
) -> Iterable[str]:
    """What is not alike, or not as it should be."""
    for peer in dict.fromkeys(line.record.contestant.task["peer"] for line in lines):
        if peer in PEERS and augmentation in PEERS[peer].remarks:
            yield f"{peer}: {PEERS[peer].remarks[augmentation]}"
    for line in lines:
        label = line.record.contestant.label
        threads = line.record.facts.get("decoding_threads")
        if threads is not None and threads != line.record.contestant.task["threads"]:
            yield (f"{label}: decodes in {_number(threads, 'thread')}, for it takes half of the "
                   "cores at most")
        if line.idle_share > _BUSY:
            yield (f"{label}: worked in the others' turns, {line.idle_share:.0%} of its CPU time; "
                   "the figures above are not to be trusted")
    if left_out:
        yield f"left out, for another version of Python: {', '.join(left_out)}"


def _versions(lines: Sequence[PipelineResult]) -> Iterable[str]:
    """Of each library in each environment once: the forms of a peer have the same."""
    told = set()
    for line in lines:
        versions = ", ".join(map(" ".join, line.record.facts["versions"].items()))
        peer = line.record.contestant.task["peer"]
        if versions not in told:
            told.add(versions)
            yield f"{peer}: {versions}"


def _stages_text(taken: Stages, markdown: bool) -> str:
    rows = [[name, f"{ms:.3f}", f"{ms / taken.sum * 100:.1f}"]
            for name, ms in [*taken.steps.items(), ("sum", taken.sum), ("loader", taken.loader)]]
    text = table(["step", "ms an image", "% of the sum"], rows, [False, True, True], markdown)
    return "\n".join([text, *([""] if markdown else []), (
        "Each step was called by itself; AutoAugment, and jitter with lighting, are what they add "
        "to the crop.\nThe loader hands samples to its thread and collects batches besides, and "
        "may do several steps in one.")])
