"""Learning rate by iteration: linear warm-up, then half a cosine (paper, "Training Strategy")."""

from __future__ import annotations

import math
from dataclasses import dataclass

REFERENCE_BATCH = 256


def linear_scaling_rule(global_batch: int, base_lr: float = 0.1) -> float:
    """Peak learning rate eta = B / 256 * eta_base for a global batch of B images (paper)."""
    return base_lr * global_batch / REFERENCE_BATCH


@dataclass(frozen=True)
class Schedule:
    """Learning rate at each update.

    Rises linearly from `warmup_lr` at step 0 to `peak_lr` at `warmup_steps`, then falls as half a
    cosine to 0 at `total_steps`.
    """

    peak_lr: float
    total_steps: int
    warmup_steps: int = 0
    warmup_lr: float = 0.0

    def __call__(self, step: int) -> float:
        """Learning rate of the update number `step`, counted from 1; 0 is before the first."""
        if step < self.warmup_steps:
            return self.warmup_lr + (self.peak_lr - self.warmup_lr) * step / self.warmup_steps
        if step >= self.total_steps:
            return 0.0
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.peak_lr * (1 + math.cos(math.pi * progress)) / 2
