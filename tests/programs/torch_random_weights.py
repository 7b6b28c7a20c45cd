"""The same random weights in any environment, by name: networks of 100 MB need not be stored.

NumPy alone; imported by make_torch_golden.py in PyTorch's environment, and by the tests.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

# Batch of two, one side odd at every stage and the other even at most.
BATCH, HEIGHT, WIDTH = 2, 65, 96


def uniform(name: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    """float32 numbers that depend on the name alone.

    They are made of the generator's raw bits, which NumPy promises to keep; its distributions may
    change from release to release.
    """
    size = int(np.prod(shape, dtype=np.int64))
    raw = np.random.Philox(key=zlib.crc32(name.encode())).random_raw((size + 1) // 2)
    numbers = (raw.view(np.uint32)[:size] >> 8).astype(np.float32)
    numbers *= np.float32((high - low) / 2**24)
    numbers += np.float32(low)
    return numbers.reshape(shape)


def images(channels: int = 3) -> np.ndarray:
    """Input (2, channels, 65, 96)."""
    return uniform("images", (BATCH, channels, HEIGHT, WIDTH), -2, 2)


def random_state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Values for a PyTorch state dict of these names and shapes, none at its default.

    Weights are spread as Kaiming initialisation does; residual branches end with small gammas, so
    that the activations of the deepest network, and its logits, stay near 1.
    """
    state = {}
    blocks = sum(name.endswith(".bn3.weight") for name in shapes)
    for name, shape in shapes.items():
        module, _, kind = name.rpartition(".")
        if kind == "num_batches_tracked":
            state[name] = np.zeros((), np.int64)
        elif kind == "weight" and f"{module}.running_var" not in shapes:
            bound = np.sqrt((1 if module == "fc" else 6) / np.prod(shape[1:]))
            state[name] = uniform(name, shape, -bound, bound)
        elif kind == "weight" and module.endswith("bn3"):
            state[name] = uniform(name, shape, 0.2 / np.sqrt(blocks), 0.8 / np.sqrt(blocks))
        elif kind in ("weight", "running_var"):
            state[name] = uniform(name, shape, 0.5, 1.5)
        else:
            state[name] = uniform(name, shape, -0.3, 0.3)
    return state
