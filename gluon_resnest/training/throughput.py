"""What a device can do, what it does, and what memory that takes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import mxnet as mx

# Side of the square matrices: large enough for all threads, done in a fraction of a second.
_SIDE = {"cpu": 1536, "gpu": 8192}
_ROUNDS = 4


def peak_gflops(ctx: mx.Context) -> float:
    """Billions of operations a second of a large matrix product in float32, the best of some.

    A practical peak: what MXNet reaches here today, not what a data sheet promises.
    """
    side = _SIDE[ctx.device_type]
    left = mx.nd.random.uniform(shape=(side, side), ctx=ctx)
    best = float("inf")
    for _ in range(_ROUNDS):
        mx.nd.waitall()
        started = time.perf_counter()
        mx.nd.dot(left, left).wait_to_read()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best / 1e9


def memory_mb(ctx: mx.Context) -> float | None:
    """Memory in use, in MB (10^6 bytes): the device's, or this process's on a CPU."""
    if ctx.device_type == "gpu":
        free, total = mx.context.gpu_memory_info(ctx.device_id)
        return (total - free) / 1e6
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
