"""From a batch of the loader to what the network and the loss take."""

from __future__ import annotations

import mxnet as mx
import numpy as np

from gluon_resnest.data.augment.random_streams import mixup_generator
from gluon_resnest.data.loading.position import Position
from gluon_resnest.layers import Normalize
from gluon_resnest.tasks.classification.mixup import (
    draw_lambdas,
    mix_with_reverse,
    smoothed_labels,
)
from gluon_resnest.tasks.classification.recipe import Recipe


class Preparation:
    """Normalisation, smoothed labels and mixup of a recipe, on the device `ctx`.

    Attributes
    ----------
    normalize
        From pixels (N, H, W, 3) uint8 to the network's input (N, 3, H, W) float32.
    """

    def __init__(self, recipe: Recipe, rank: int, ctx: mx.Context) -> None:
        self._recipe, self._rank, self._ctx = recipe, rank, ctx
        self.normalize = Normalize()
        self.normalize.hybridize(static_alloc=True)

    def __call__(
        self, images: np.ndarray, labels: np.ndarray, position: Position
    ) -> tuple[mx.nd.NDArray, mx.nd.NDArray]:
        """Inputs (N, 3, H, W) and target distributions (N, K), mixed if they are to be.

        Parameters
        ----------
        images, labels
            (N, H, W, 3) uint8, and (N,) class numbers.
        position
            Of the batch in the run; mixup's weights are drawn from it.
        """
        recipe, ctx = self._recipe, self._ctx
        inputs = self.normalize(mx.nd.array(images, ctx=ctx, dtype=np.uint8))
        targets = mx.nd.array(
            smoothed_labels(labels, recipe.classes, recipe.label_smoothing, recipe.smoothing_rule),
            ctx=ctx)
        if recipe.mixup_alpha > 0 and position.epoch < recipe.epochs - recipe.mixup_off_epoch:
            rng = mixup_generator(recipe.seed, position.epoch, position.steps, self._rank)
            lambdas = mx.nd.array(
                draw_lambdas(len(labels), recipe.mixup_alpha, rng, recipe.mixup_lambda), ctx=ctx)
            inputs = mix_with_reverse(inputs, lambdas)
            targets = mix_with_reverse(targets, lambdas)
        return inputs, targets
