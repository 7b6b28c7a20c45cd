"""What a graph for inference is written with, whatever runtime it is for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from mxnet.gluon import HybridBlock, nn


class Writer(ABC):
    """Operators of a graph in the terms of one runtime.

    Values of the graph are the runtime's own, opaque to those who call this; shapes are (N, C, H,
    W) unless stated. Weights come in as float64 and are kept as float32.
    """

    #: Whether R splits are faster as R convolutions of their own than as slices of one's output.
    separate_splits = False

    @abstractmethod
    def convolve(self, name: str, x: Any, weight: np.ndarray, bias: np.ndarray, like: nn.Conv2D,
                 groups: int | None = None) -> Any:
        """A convolution with these weights; all else as `like` has it, but for `groups`."""

    @abstractmethod
    def normalize(self, norm: HybridBlock, x: Any) -> Any:
        """A normalisation that cannot be folded into a convolution."""

    @abstractmethod
    def dense(self, name: str, x: Any, weight: np.ndarray, bias: np.ndarray) -> Any:
        """From (N, C) to (N, K)."""

    @abstractmethod
    def pooling(self, layer: HybridBlock, x: Any) -> Any:
        """Maximum or average pooling, as a layer of Gluon has it."""

    @abstractmethod
    def mean(self, x: Any) -> Any:
        """Mean over the pixels, (N, C, 1, 1)."""

    @abstractmethod
    def relu(self, x: Any) -> Any: ...

    @abstractmethod
    def sigmoid(self, x: Any) -> Any: ...

    @abstractmethod
    def softmax(self, x: Any, axis: int) -> Any: ...

    @abstractmethod
    def add(self, *values: Any) -> Any:
        """Sum of values of one shape."""

    @abstractmethod
    def subtract(self, x: Any, y: Any) -> Any: ...

    @abstractmethod
    def multiply(self, x: Any, y: Any) -> Any:
        """Product; `y` may be (N, C, 1, 1)."""

    @abstractmethod
    def split(self, x: Any, parts: int) -> list[Any]:
        """Equal parts of the channels."""

    @abstractmethod
    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        """Another shape; 0 keeps a dimension, -1 is what is left."""

    @abstractmethod
    def transpose(self, x: Any, axes: tuple[int, ...]) -> Any: ...

    @abstractmethod
    def total(self, x: Any, axis: int) -> Any:
        """Sum over an axis, which goes."""

    @abstractmethod
    def flatten(self, x: Any) -> Any:
        """From (N, C, 1, 1) to (N, C)."""
