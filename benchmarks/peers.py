"""Who takes part: our networks in their forms, and those of other libraries."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import environments
from benchmarks.contest import PROGRAMS, Contestant
from gluon_resnest import runtime
from gluon_resnest.errors import InputError
from gluon_resnest.models import find_variant
from gluon_resnest.planning.cost import summary

MODES = ("forward", "training")
FORMS = ("gluon", "deployed")
_SGEMM_SIZES = (1024, 2048, 4096)
# A weight's gradient and an input's cost as much as the layer itself.
_PASSES = {"forward": 1, "training": 3}

_TIMM_NAMES = {
    "resnest14": "resnest14d",
    "resnest26": "resnest26d",
    "resnest50": "resnest50d",
    "resnest101": "resnest101e",
    "resnest200": "resnest200e",
    "resnest269": "resnest269e",
    "resnest50_fast_4s2x40d": "resnest50d_4s2x40d",
    "resnest50_fast_1s4x24d": "resnest50d_1s4x24d",
}
_GLUONCV_NAMES = ("resnest14", "resnest26", "resnest50", "resnest101", "resnest200", "resnest269")


@dataclass(frozen=True)
class Library:
    """Where networks come from: the program that runs them, and the environment for it.

    `environment` None is this Python's; `own_threads` leaves their number to the library.
    """

    program: str
    environment: str | None
    modes: tuple[str, ...] = MODES
    own_threads: bool = False
    profiled: bool = True


LIBRARIES = {
    "ours": Library("run_ours.py", None),
    "gluoncv": Library("run_gluoncv.py", "gluoncv"),
    "gluoncv-default": Library("run_gluoncv.py", "gluoncv", own_threads=True),
    "timm": Library("run_timm.py", "torch", profiled=False),
    "onnxruntime": Library("run_onnxruntime.py", "torch", modes=("forward",), profiled=False),
    "gluoncv-export": Library("run_gluoncv_export.py", "gluoncv", modes=("forward",),
                              profiled=False),
}
# Of `scripts/benchmark.py export`.
EXPORTED = Library("run_our_export.py", None, modes=("forward",))


@dataclass(frozen=True)
class Case:
    """What is timed: one call on a batch of (batch_size, 3, input_size, input_size)."""

    model: str
    mode: str
    batch_size: int
    input_size: int
    threads: int


@dataclass(frozen=True)
class Peer:
    """A library, and the network of its own that it is to run instead of the case's model."""

    library: str
    network: str | None = None

    @property
    def label(self) -> str:
        return f"{self.library}:{self.network}" if self.network else self.library

    @classmethod
    def parse(cls, text: str) -> Peer:
        """The peer of ``--peer LIBRARY[:NETWORK]``."""
        library, _, network = text.partition(":")
        if library not in LIBRARIES:
            raise InputError(f"unknown peer '{text}': choose from {', '.join(LIBRARIES)}, with "
                             "or without :NETWORK")
        if library == "ours":
            if not network:
                raise InputError("peer 'ours' needs a network, such as ours:resnest50_0s1x64d; "
                                 "--model takes part anyway")
            find_variant(network)
        return cls(library, network or None)


def our_contestants(case: Case, network: str, label: str, forms: Sequence[str]) -> list[Contestant]:
    """A network of this package once in each of the `forms` that can do the case's task."""
    return [
        _contestant(case, LIBRARIES["ours"], label if form == "gluon" else f"{label} {form}",
                    {"network": network, "form": form}, network)
        for form in forms if form == "gluon" or case.mode == "forward"
    ]


def peer_contestants(case: Case, peer: Peer, forms: Sequence[str]) -> list[Contestant]:
    """What `peer` sends into the contest: nothing where it cannot do the case's task."""
    library = LIBRARIES[peer.library]
    if case.mode not in library.modes:
        return []
    if peer.network is not None:
        if peer.library == "ours":
            return our_contestants(case, peer.network, peer.label, forms)
        return [_contestant(case, library, peer.label,
                            {"network": peer.network, "variant": None}, None)]
    variant, network = find_variant(case.model), case.model
    if library.environment == "torch":
        if case.model not in _TIMM_NAMES:
            raise InputError(f"timm has no network like {case.model}: leave {peer.label} out or "
                             f"name one of timm's, as in --peer {peer.label}:resnest50d")
        network = _TIMM_NAMES[case.model]
    by_class = library.environment == "gluoncv" and case.model not in _GLUONCV_NAMES
    return [_contestant(case, library, peer.label,
                        {"network": network, "variant": asdict(variant) if by_class else None},
                        case.model)]


def exported(case: Case, form: str, images: int) -> Contestant:
    """Our export of the case's model in one of `gluon_resnest.deploy.FORMATS`.

    `images`: number of pictures that it is checked with, and calibrated on.
    """
    return _contestant(case, EXPORTED, f"ours {form}",
                       {"network": case.model, "form": form, "images": images}, case.model)


def sgemm(threads: int) -> Contestant:
    """The product of two matrices: what the machine can do with so many threads."""
    return Contestant("sgemm", Path(sys.executable), PROGRAMS / "run_sgemm.py",
                      {"sizes": _SGEMM_SIZES}, runtime.child_environment(threads))


def _contestant(
    case: Case, library: Library, label: str, task: dict[str, Any], counted: str | None
) -> Contestant:
    """A contestant of `library`; `counted` is our model with the same operations."""
    python = sys.executable
    if library.environment:
        python = environments.python(library.environment)
    flop = None
    if counted:
        cost = summary(counted, case.input_size, case.batch_size)
        flop = 2.0 * cost.multiply_adds * _PASSES[case.mode]
    threads = None if library.own_threads else case.threads
    return Contestant(label, Path(python), PROGRAMS / library.program, {**asdict(case), **task},
                      runtime.child_environment(threads), flop)
