"""What every command-line tool of the package shares: flags, exit codes, one-line errors."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Callable

from gluon_resnest import runtime
from gluon_resnest.errors import InputError

USAGE_ERROR = 2


def run(main: Callable[[], None]) -> None:
    """Run a tool's `main`; print an :class:`InputError` as one line and exit with code 2.

    Under `horovodrun` every rank meets the same error, so rank 0 prints it, unless the error says
    that it is of one rank only.
    """
    try:
        main()
    except InputError as error:
        if error.only_here or runtime.launched_rank() == 0:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)


def parser(description: str, examples: str) -> argparse.ArgumentParser:
    """An argument parser whose `--help` ends with examples that can be typed."""
    return argparse.ArgumentParser(
        description=description,
        epilog=f"examples:\n{examples.rstrip()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_switch(group, name: str, dest: str, help_on: str, aliases: tuple[str, ...] = ()) -> None:
    """`--name` and `--no-name`; None where neither is given, so that the recipe decides."""
    group.add_argument(f"--{name}", *aliases, dest=dest, action="store_true", default=None,
                       help=help_on)
    group.add_argument(f"--no-{name}", dest=dest, action="store_false", default=None,
                       help=argparse.SUPPRESS)


def add_network_flags(group) -> None:
    """Flags that name a trained network: evaluate.py, predict.py and export_model.py."""
    group.add_argument("--model", required=True, metavar="NAME",
                       help="name of the network, such as resnest50, or the path of an exported "
                            "NAME-symbol.json")
    group.add_argument("--params", type=Path, metavar="FILE",
                       help=".params file of its weights (an exported symbol has its own)")
    group.add_argument("--classes", type=int, metavar="N",
                       help="number of classes (default: what the weights have)")
    group.add_argument("--input-size", type=int, metavar="PX",
                       help="side of the square crop (default: the model's test size)")
    group.add_argument("--crop-ratio", type=float, metavar="R",
                       help="crop size over the resized short side (default: 0.875)")


def add_device_flags(group, batch_size: int | None, batch_help: str) -> None:
    """Flags of where and how fast to run."""
    group.add_argument("--batch-size", type=int, default=batch_size, metavar="N", help=batch_help)
    group.add_argument("--data-nthreads", type=int, metavar="N",
                       help="threads that decode images (default: one a core of this worker)")
    group.add_argument("--no-cuda", action="store_true", help="use the CPU even if there is a GPU")
