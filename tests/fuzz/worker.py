"""Runs a fuzzer's target on the files that its standard input names: see fuzzing.py."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.util
import json
import os
import resource
import sys
import traceback
from pathlib import Path

MOST_MEGABYTES = 1024
# Where an input would take all of the machine, it gets a MemoryError instead.
_LIMIT = 6 << 30


def main(file: str, function: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the target prints is no answer
    faulthandler.enable()
    sys.path[:0] = [str(Path(file).parent), str(Path(file).parents[1])]
    spec = importlib.util.spec_from_file_location("fuzzed", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzzed"] = module
    spec.loader.exec_module(module)
    from gluon_resnest.errors import InputError

    target = getattr(module, function)
    resource.setrlimit(resource.RLIMIT_DATA, (_LIMIT, _LIMIT))
    print('"ready"', file=answers, flush=True)
    for line in sys.stdin:
        before = _reset_peak()
        outcome, reason = "accepted", ""
        try:
            target(Path(json.loads(line)))
        except InputError as error:
            outcome, reason = "refused", str(error)
        except Exception:
            outcome, reason = "failure", "".join(traceback.format_exc()[-3000:])
        if outcome == "refused" and ("\n" in reason or len(reason) > 2000):
            outcome, reason = "failure", f"not one short line: {reason[:3000]!r}"
        taken = _peak() - before
        if outcome != "failure" and taken > MOST_MEGABYTES:
            outcome, reason = "failure", f"took {taken:.0f} MB ({reason})"
        print(json.dumps([outcome, reason]), file=answers, flush=True)


def _reset_peak() -> float:
    """Start a new peak; MB in use now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> float:
    """Largest resident memory since the last reset, MB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
