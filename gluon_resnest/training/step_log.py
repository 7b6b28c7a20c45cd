"""What a run says of its steps: a progress line on the terminal, and lines of metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import mxnet as mx

from gluon_resnest.runs.metrics import MetricsLog
from gluon_resnest.training.throughput import memory_mb


class DataClock:
    """Seconds since it was made, and how many of them were spent waiting for data."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.data_seconds = 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    @property
    def share(self) -> float:
        """Share of the time in which the device had to wait, 0 to 1."""
        return self.data_seconds / self.seconds

    def waiting_for(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches, with the time that each is waited for noted."""
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.data_seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch


class StepLog:
    """Rank 0's line of metrics every so many steps, with means over the steps since the last.

    Parameters
    ----------
    metrics
        Where the lines go; None on the other ranks.
    interval
        Steps between two lines.
    workers
        Number of devices.
    ctx
        Device of this worker.
    flops_per_image
        Of a forward and backward pass.
    peak_gflops
        What the device reaches in a large matrix product, or None.
    """

    def __init__(self, metrics: MetricsLog | None, interval: int, workers: int, ctx: mx.Context,
                 flops_per_image: float, peak_gflops: float | None) -> None:
        self._metrics, self._interval, self._workers, self._ctx = metrics, interval, workers, ctx
        self._flops, self._peak = flops_per_image, peak_gflops
        self.start_epoch(DataClock())

    def start_epoch(self, clock: DataClock) -> None:
        """Begin with the clock of another epoch; validation is no part of any line."""
        self.clock = clock
        self.epoch_steps = self._epoch_images = self._steps = self._images = 0
        self._seconds = self._data_seconds = 0.0

    def due(self, step: int) -> bool:
        """Whether `step` gets a line."""
        return step % self._interval == 0

    def add(self, step: int, images: int, **values: Any) -> None:
        """Note a step of `images` over all workers; `values` are those of the line if it is due.

        A value that is None was not measured.
        """
        self._steps += 1
        self.epoch_steps += 1
        self._images += images
        self._epoch_images += images
        if self._metrics is None or not self.due(step):
            return
        seconds = self.clock.seconds - self._seconds
        data_seconds = self.clock.data_seconds - self._data_seconds
        rate = self._images / seconds
        self._metrics.write(
            "step", step=step, **values, images_per_second=rate,
            images_per_second_per_device=rate / self._workers,
            step_seconds=seconds / self._steps, data_seconds=data_seconds / self._steps,
            peak_share=self.peak_share(rate), memory_mb=memory_mb(self._ctx))
        self._steps = self._images = 0
        self._seconds, self._data_seconds = self.clock.seconds, self.clock.data_seconds

    @property
    def images_per_second(self) -> float:
        """On all devices, since the clock of this epoch was started."""
        return self._epoch_images / self.clock.seconds

    def peak_share(self, images_per_second: float) -> float | None:
        """Share of what a device could compute that so many images on all devices are."""
        if not self._peak:
            return None
        return images_per_second / self._workers * self._flops / (self._peak * 1e9)
