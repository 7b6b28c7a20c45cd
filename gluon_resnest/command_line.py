"""What every command-line tool of the package shares: flags, exit codes, one-line errors."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from pathlib import Path
from typing import Callable, NoReturn

from gluon_resnest import runtime, standard_streams
from gluon_resnest.errors import InputError
from gluon_resnest.plain_text import shortened

# Of whole numbers; MXNet and file formats count in 32 bits.
_LARGEST = 2**31 - 1
_MOST_THREADS = 1024

# The launcher kills all ranks as soon as one has ended: the one that prints goes first.
_HEAD_START = 2.0


def run(main: Callable[[], None], output_needed: bool = True) -> None:
    """Run a tool's `main`; print an :class:`InputError` as one line and exit with code 2.

    Under `horovodrun` every rank has the same error, so rank 0 prints it, unless the error says
    that it is of one rank only. If nobody reads standard output any more (`| head`), the tool ends
    without a word, unless its output is not needed.
    """
    standard_streams.secure(output_needed)
    try:
        try:
            main()
        finally:
            sys.stdout.flush()  # here, where a fault is one line
    except InputError as error:
        if error.only_here or runtime.launched_rank() == 0:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        else:
            time.sleep(_HEAD_START)
        sys.exit(error.exit_code)
    except standard_streams.OutputLost as error:
        if error.reader_gone:
            sys.exit(128 + signal.SIGPIPE)
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(InputError.exit_code)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, as all others."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (--help explains)")


def parser(description: str, examples: str) -> Parser:
    """A parser whose `--help` ends with examples that can be typed."""
    return Parser(
        description=description,
        epilog=f"examples:\n{examples.rstrip()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def path(text: str) -> Path:
    """Argument type: a path. An empty one would be the current folder, which nobody means."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty: a variable of a script without a "
                                         "value? ('.' is the current folder)")
    if "\0" in text:
        raise argparse.ArgumentTypeError("the path has a zero byte, which no file name can have")
    return Path(text)


def positive(text: str) -> int:
    """Argument type: a whole number of at least 1."""
    return _whole_number(text, 1)


def threads(text: str) -> int:
    """Argument type: a number of threads, of which a process cannot have any number."""
    value = _whole_number(text, 1)
    if value > _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"'{text}' is too large: at most {_MOST_THREADS:,}")
    return value


def not_negative(text: str) -> int:
    """Argument type: a whole number of at least 0."""
    return _whole_number(text, 0)


def path_text(text: str) -> str:
    """Argument type: a path as it was given, for settings that hold text."""
    path(text)
    return text


def _whole_number(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"'{shortened(text)}' must be a whole number of at least "
                                         f"{least}")
    if value > _LARGEST:
        raise argparse.ArgumentTypeError(f"'{shortened(text)}' is too large: at most {_LARGEST:,}")
    return value


def ratio(text: str) -> float:
    """Argument type: a number above 0 and at most 1."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"'{shortened(text)}' must be above 0 and at most 1")
    return value


def share(text: str) -> float:
    """Argument type: a number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{shortened(text)}' must be a share from 0 to 1")
    return value


def not_negative_number(text: str) -> float:
    """Argument type: a number of at least 0."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"'{shortened(text)}' must be a number of at least 0")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


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
    group.add_argument("--params", type=path, metavar="FILE",
                       help=".params file of its weights (an exported symbol has its own)")
    group.add_argument("--classes", type=positive, metavar="N",
                       help="number of classes (default: what the weights have)")
    # --input-size is GluonCV's name for it; --test-size what train_imagenet.py calls the same.
    group.add_argument("--test-size", "--input-size", type=positive, dest="test_size",
                       metavar="PX",
                       help="side of the square crop (default: the model's test size)")
    group.add_argument("--crop-ratio", type=ratio, metavar="R",
                       help="crop size over the resized short side (default: 0.875)")
    group.add_argument("--class-names", type=path, metavar="FILE",
                       help="one name a line (default: classes.txt beside --params)")


def add_batch_flags(group, batch_size: int | None, batch_help: str) -> None:
    """How many images at a time, and where."""
    group.add_argument("--batch-size", type=positive, default=batch_size, metavar="N",
                       help=batch_help)
    group.add_argument("--no-cuda", action="store_true", help="use the CPU even if there is a GPU")


def add_skip_flag(group) -> None:
    group.add_argument("--skip-bad-records", action="store_true",
                       help="leave validation images that cannot be used out of the accuracy, "
                            "and count them (default: refuse)")


def add_thread_flag(group) -> None:
    group.add_argument("--data-nthreads", type=threads, metavar="N",
                       help="threads that decode images (default: one a core of this worker)")
