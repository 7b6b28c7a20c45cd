"""Who takes part in the contest of input pipelines: ours, our decoder, and other libraries."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable

from benchmarks import environments
from benchmarks.contest import PROGRAMS, Contestant
from gluon_resnest import runtime

AUGMENTATIONS = ("crop", "recipe", "evaluation")
OURS, DECODER = "ours", "decode"


@dataclass(frozen=True)
class PipelineCase:
    """What is timed: an epoch over `records`, a .rec, in batches of (N, size, size, 3) pixels.

    Attributes
    ----------
    threads
        Or processes, of every contestant that can have several.
    classes
        Labels of the records are below.
    """

    records: str
    augmentation: str
    input_size: int
    batch_size: int
    threads: int
    classes: int


@dataclass(frozen=True)
class PipelinePeer:
    """A library's input pipeline.

    Attributes
    ----------
    program
        Of :data:`PROGRAMS`.
    environment
        Of :mod:`environments`; None is this Python's.
    forms
        For a number of threads, each form's label and what it adds to the task; the best counts.
    remarks
        What is different from the others, by augmentation.
    own_team
        It decodes in threads of OpenMP. Where it does not, OpenMP gets one: Gluon's workers, each
        with a team for next to nothing, would take four times as long.
    """

    program: str
    environment: str | None
    forms: Callable[[int], dict[str, dict[str, Any]]]
    remarks: dict[str, str]
    own_team: bool = False


def _torch_forms(library: str) -> Callable[[int], dict[str, dict[str, Any]]]:
    return lambda threads: {
        f"{library}, 1 process": {"library": library, "workers": 0},
        f"{library}, {_workers(threads)}": {"library": library, "workers": threads}}


def _workers(number: int) -> str:
    return f"{number} worker{'s' if number != 1 else ''}"


PEERS = {
    "imagerecorditer": PipelinePeer(
        "run_image_record_iter.py", None,
        lambda threads: {
            "imagerecorditer": {"dtype": "float32", "ctx": "gpu"},
            "imagerecorditer, uint8": {"dtype": "uint8", "ctx": "gpu"},
            "imagerecorditer, ctx cpu": {"dtype": "float32", "ctx": "cpu"},
            "imagerecorditer, ctx cpu, uint8": {"dtype": "uint8", "ctx": "cpu"}},
        {"recipe": "without AutoAugment, which it lacks"}, own_team=True),
    "gluon": PipelinePeer(
        "run_gluon_loader.py", "gluoncv",
        lambda threads: {f"gluon, {_workers(number)}": {"workers": number}
                         for number in (0, threads)}, {}),
    "torchvision": PipelinePeer(
        "run_torchvision.py", "torch", _torch_forms("torchvision"),
        {"recipe": "without lighting, which it lacks"}),
    "timm": PipelinePeer(
        "run_torchvision.py", "torch", _torch_forms("timm"),
        {"recipe": "AutoAugment on the crop, not on the whole image; without lighting"}),
}


def available_peers() -> list[str]:
    """Peers that this version of Python can run."""
    return [name for name, peer in PEERS.items()
            if peer.environment is None or environments.fits(peer.environment)]


def our_contestants(case: PipelineCase) -> list[Contestant]:
    """Our pipeline, and the reading and decoding of its records alone with as many threads."""
    return [_contestant(case, label, "run_our_pipeline.py", sys.executable,
                        {"peer": label, "part": part}, case.threads)
            for label, part in ((OURS, "pipeline"), (DECODER, "decode"))]


def peer_contestants(case: PipelineCase, names: Sequence[str]) -> list[Contestant]:
    """Each form of each peer in `names`; environments are made where they are missing."""
    found = []
    for name in names:
        peer = PEERS[name]
        python = environments.python(peer.environment) if peer.environment else sys.executable
        team = case.threads if peer.own_team else 1
        found += [_contestant(case, label, peer.program, python, {"peer": name, **added}, team)
                  for label, added in peer.forms(case.threads).items()]
    return found


def _contestant(
    case: PipelineCase, label: str, program: str, python: str | Path, added: dict[str, Any],
    team: int,
) -> Contestant:
    return Contestant(label, Path(python), PROGRAMS / program, {**asdict(case), **added},
                      runtime.child_environment(team))
