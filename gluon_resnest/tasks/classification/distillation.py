"""Learning from another network's answers beside the labels (Hinton et al., 2015)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mxnet as mx
from mxnet.gluon import HybridBlock, loss

from gluon_resnest.errors import InputError
from gluon_resnest.models import find_variant, get_model
from gluon_resnest.models.weights.files import classes_in, load_arrays, read_params
from gluon_resnest.models.weights.store import published_weights


class DistillationLoss(HybridBlock):
    r"""Cross entropy with the labels and with a teacher's softened answers.

    .. math:: h \, H(y, \sigma(z)) + (1 - h) \, T^2 \, H(\sigma(t / T), \sigma(z / T))

    with logits z and t of the network and the teacher, temperature T and `hard_weight` h, as in
    GluonCV's training script: the factor T^2 keeps the gradients of both terms comparable.

    Parameters
    ----------
    temperature
        Above 0.
    hard_weight
        Share of the labels, 0 to 1.

    Shapes
    ------
    Logits, target distributions and teacher's logits (N, K); losses (N,).
    """

    def __init__(self, temperature: float, hard_weight: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._temperature = temperature
        self._hard_weight = hard_weight
        self._cross_entropy = loss.SoftmaxCrossEntropyLoss(sparse_label=False)

    def hybrid_forward(self, F, logits, targets, teacher_logits):
        soft_targets = F.softmax(teacher_logits / self._temperature)
        soft = self._cross_entropy(logits / self._temperature, F.BlockGrad(soft_targets))
        hard = self._cross_entropy(logits, targets)
        return self._hard_weight * hard + (1 - self._hard_weight) * self._temperature**2 * soft


def teacher_network(
    name: str, params: str | None, classes: int, ctx: mx.Context
) -> HybridBlock:
    """The network to learn from, with trained weights; its gradients are not computed.

    Parameters
    ----------
    name
        Of a model.
    params
        File of its weights; the published ones without.
    classes
        Number of classes of the run.
    ctx
        Where it computes.

    Raises
    ------
    InputError
        For weights that are not exactly of this network: a classifier that starts afresh, say,
        has nothing to teach.
    """
    path = Path(params) if params else published_weights(find_variant(name))
    arrays = read_params(path)
    known = classes_in(arrays, path)
    if known != classes:
        raise InputError(f"the teacher's weights {path} know {known} classes, the run has "
                         f"{classes}: give --teacher-params with weights trained on the run's")
    teacher = get_model(name, classes=classes)
    load_arrays(teacher, arrays, path, ctx)  # not by get_model, which would adapt them
    teacher.collect_params().setattr("grad_req", "null")
    teacher.hybridize(static_alloc=True)
    return teacher
