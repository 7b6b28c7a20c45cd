"""Feeds a reader many inputs of a seed, in processes of its own, and counts what comes of each.

A reader is a module beside this one with ``make(rng, folder)``, which writes an input and returns
its path, and ``read(path)``. An outcome is clean (an InputError of one short line), accepted, or a
failure: another exception, a signal, more than 10 seconds or 1 GB. `GLUON_FUZZ_INPUTS` sets the
number of inputs, `GLUON_TEST_SEED` the seed.
"""

from __future__ import annotations

import importlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
SECONDS, BYTES, LETTERS = 10, 1_000_000_000, 1000


def fuzz(reader: str, seed: int, inputs: int) -> tuple[Counter, list[str]]:
    """Counts of the outcomes, and the failures, each with the number of its input."""
    inputs = int(os.environ.get("GLUON_FUZZ_INPUTS", inputs))
    counts, failures, first = Counter(), [], 0
    while first < inputs:
        done = subprocess.run(
            [sys.executable, __file__, reader, str(seed), str(first), str(inputs)],
            capture_output=True, text=True, errors="replace", timeout=60 + inputs * SECONDS,
            env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"})
        for line in done.stdout.splitlines():
            number, _, outcome = line.partition(" ")
            if not number.isdigit():
                continue
            first = int(number) + 1
            counts[outcome if outcome in ("clean", "accepted") else "failure"] += 1
            if outcome not in ("clean", "accepted"):
                failures.append(f"input {line}")
        if done.returncode != 0:
            counts["failure"] += 1
            failures.append(f"input {first}: the process ended with {done.returncode}: "
                            f"{done.stderr[-500:]}")
            first += 1
    return counts, failures


def _outcome(reader, rng: random.Random, folder: Path) -> str:
    from gluon_resnest.errors import InputError

    path = reader.make(rng, folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.alarm(SECONDS)  # ends this process
    try:
        reader.read(path)
        outcome = "accepted"
    except InputError as error:
        line = " ".join(str(error).split())
        outcome = "clean" if 0 < len(line) < LETTERS else f"an error of {len(line)} letters"
    except BaseException:
        outcome = " | ".join(traceback.format_exc().splitlines()[-3:])
    finally:
        signal.alarm(0)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return outcome if grown < BYTES else f"{grown / 1e6:.0f} MB of memory"


def _main() -> None:
    name, seed, first, last = sys.argv[1], *map(int, sys.argv[2:])
    reader = importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, last):
            rng = random.Random(f"{seed} {number}")
            print(number, _outcome(reader, rng, Path(folder)), flush=True)


if __name__ == "__main__":
    _main()
