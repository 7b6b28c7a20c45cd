"""Train, and print the bytes that are allocated after each epoch, as JSON.

    python memory_by_epoch.py LEAK FLAGS OF train_imagenet.py ...

LEAK bytes are kept in each epoch, to see that a leak is found.
"""

from __future__ import annotations

import ctypes
import gc
import json
import runpy
import sys
from pathlib import Path

from gluon_resnest.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]


class MallInfo(ctypes.Structure):
    """What glibc's mallinfo2 returns."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost")]


def allocated() -> int:
    """Bytes that malloc has given out, in all threads' arenas and mapped by themselves.

    Unlike resident memory they do not depend on what malloc keeps for later.
    """
    found = mallinfo2()
    return found.uordblks + found.hblkhd


libc = ctypes.CDLL(None)
if not hasattr(libc, "mallinfo2"):
    print("null")  # glibc before 2.33
    sys.exit()
mallinfo2 = libc.mallinfo2
mallinfo2.restype = MallInfo

leak = int(sys.argv[1])
sys.argv = [str(ROOT / "train_imagenet.py"), *sys.argv[2:]]
finish_epoch = Trainer._finish_epoch
after_epochs: list[int] = []
leaked: list[bytes] = []


def finish_and_measure(trainer: Trainer) -> None:
    finish_epoch(trainer)
    trainer.saver.finish()  # it holds a copy of the weights
    leaked.append(bytes(leak))
    gc.collect()
    after_epochs.append(allocated())


Trainer._finish_epoch = finish_and_measure
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(json.dumps(after_epochs))
