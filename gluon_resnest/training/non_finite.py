"""Losses and gradients that are NaN or infinite: where they come from, and what is done."""

from __future__ import annotations

from typing import Any, Callable

import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.gluon import Block, HybridBlock

from gluon_resnest.runs.metrics import MetricsLog
from gluon_resnest.training.run_arrays import RunArrays
from gluon_resnest.training.run_state import Progress
from gluon_resnest.training.saving import Saver
from gluon_resnest.training.step_sums import StepSums
from gluon_resnest.training.updater import Arrays, Updater
from gluon_resnest.workers import SharedFault, Workers

# In a row; more are no accident.
MOST_SKIPS = 10
# In all: each costs what was trained since the checkpoint.
MOST_ROLLBACKS = 5


class NonFinite:
    """Looks at each step's losses before the weights are updated, and keeps to a policy.

    Losses are looked at in every step, gradients now and then, as that takes a pass over all of
    them. (A loss can stay finite with broken weights: ReLU makes 0 of NaN.) ``"abort"`` ends the
    run. ``"skip"`` leaves the update out, and looks at the gradients every time. ``"rollback"``
    goes back to the arrays of the newest checkpoint, and on with the images that
    are next: the same ones would lead to the same place. All workers decide alike: what they
    decide by has been summed over them.

    Parameters
    ----------
    policy
        One of :data:`~.options.NAN_POLICIES`.
    updater, arrays, workers, saver
        Of the run.
    warn
        Says what the user should see.
    """

    def __init__(self, policy: str, updater: Updater, arrays: RunArrays, workers: Workers,
                 saver: Saver, warn: Callable[[str], None]) -> None:
        self._policy, self._updater, self._arrays = policy, updater, arrays
        self._workers, self._saver, self._warn = workers, saver, warn
        self._in_a_row = 0
        # A forward pass spoils the running statistics, which a skipped step must not change.
        self._statistics = arrays.statistics() if policy == "skip" else []
        self._kept = [array.copy() for array in self._statistics]

    def before_step(self) -> None:
        """To be called before each forward pass."""
        for array, copy in zip(self._statistics, self._kept):
            array.copyto(copy)

    def is_usable(self, sums: StepSums, progress: Progress, inputs: Arrays, targets: Arrays,
                  loss: mx.nd.NDArray, norm: float | None, lr: float,
                  metrics: MetricsLog | None) -> bool:
        """Whether the weights may be updated; to be called once the gradients were exchanged.

        `loss` (N,) is this worker's; `norm` is that of the gradient, if it is time to look at it.

        Raises
        ------
        SharedFault
            By policy, or because it happens too often.
        """
        offender = self._offender(sums, inputs, targets, loss, norm)
        if offender is None:
            self._in_a_row = 0
            return True
        self._in_a_row += 1
        step, count = progress.step, sums.not_finite
        what = (f"loss is NaN or infinite for {count} sample{'s' if count > 1 else ''}" if count
                else "a gradient is NaN or infinite")
        text = f"{what} at step {step} (learning rate {lr:.4g}); the first such tensor: {offender}"
        if self._policy == "skip" and self._in_a_row <= MOST_SKIPS:
            progress.skipped += 1
            for array, copy in zip(self._statistics, self._kept):
                copy.copyto(array)
            self._warn(f"{text}: the step is skipped ({progress.skipped} until now)")
            if metrics is not None:
                metrics.write("skipped_step", step=step, tensor=offender)
            return False
        if self._policy == "rollback" and progress.rollbacks < MOST_ROLLBACKS:
            self._roll_back(text, progress, metrics)
            return False
        also = {"skip": f", for the {MOST_SKIPS + 1}th time in a row",
                "rollback": f", after {MOST_ROLLBACKS} returns to a checkpoint"}
        raise SharedFault(f"{text}{also.get(self._policy, '')}: the run diverged; go on from its "
                          "last checkpoint with a lower --lr and --override, or look at what "
                          "--nan-policy and --clip-norm do")

    def _offender(self, sums: StepSums, inputs: Arrays, targets: Arrays, loss: mx.nd.NDArray,
                  norm: float | None) -> str | None:
        """The tensor to name, the same on every worker, or None if all is well."""
        net = self._updater.net
        if sums.not_finite:
            offender = first_offender(
                net, inputs, lambda: self._updater.losses(inputs, targets), self._workers)
            return said_by_all(self._workers, offender, loss.asnumpy())
        # Under mixed precision the loss scaler skips such steps itself, as a matter of course.
        if norm is None or self._updater.amp or np.isfinite(norm):
            return None
        # The gradients were summed: every worker sees the same ones.
        return (first_broken_weights(net) or first_broken_gradient(self._updater)
                or "norm of the gradient")

    def _roll_back(self, text: str, progress: Progress, metrics: MetricsLog | None) -> None:
        snapshot = self._saver.newest()
        to_step = self._workers.gather(snapshot and snapshot.step)[0]
        if to_step is None:
            raise SharedFault(f"{text}: the run diverged before its first checkpoint; try a lower "
                              "--lr")
        self._arrays.set(snapshot and snapshot.arrays)
        progress.rollbacks += 1
        self._warn(f"{text}: the weights go back to those of step {to_step} "
                   f"({progress.rollbacks} of {MOST_ROLLBACKS} times)")
        if metrics is not None:
            metrics.write("rollback", step=progress.step, to_step=to_step, tensor=text)


def first_offender(net: HybridBlock, inputs: Arrays, run: Callable[[], Any],
                   workers: Workers) -> str | None:
    """The first tensor of a forward pass in training that is no finite number throughout.

    Weights come first: what is wrong with them was wrong before. Then the input and the layers'
    outputs in the order in which they are computed. The network is run layer by layer by `run`,
    and its running statistics change with it. Every worker must call it: all run the network or
    none, since normalisation may sum over the workers.

    Returns
    -------
    str
        Such as ``weights layer1.0.conv1.weight`` or ``output of layer3.1.conv2 (Conv2D)``; None
        where all is finite.
    """
    weights = first_broken_weights(net)
    if weights is not None:
        return weights
    broken = not all(_finite(array) for array in inputs)
    if any(workers.gather(broken)):
        return "input batch" if broken else None
    found: list[str] = []

    def look(name: str):
        def hook(block: Block, _: Any, output: Any) -> None:
            if not found and isinstance(output, mx.nd.NDArray) and not _finite(output):
                found.append(f"output of {name or 'the network'} ({type(block).__name__})")
        return hook

    handles = [block.register_forward_hook(look(name)) for name, block in _blocks(net, "")]
    active = net._active
    net.hybridize(False)  # a traced graph calls no hooks
    try:
        with autograd.train_mode():
            run()
    finally:
        for handle in handles:
            handle.detach()
        net.hybridize(active, static_alloc=True)
    return found[0] if found else None


def first_broken_weights(net: HybridBlock) -> str | None:
    """The first learnt parameter, in the order of the layers, that is no finite number."""
    for name, parameter in net._collect_params_with_prefix().items():
        if parameter.grad_req != "null" and not _finite(parameter.data()):
            return f"weights {name}"
    return None


def first_broken_gradient(updater: Updater) -> str | None:
    """The gradient, of those that are no finite numbers, that the backward pass met first."""
    for name, parameter in reversed(list(updater.parameters.items())):
        if not _finite(parameter.grad()):
            return f"gradient of {name}"
    return None


def said_by_all(workers: Workers, offender: str | None, losses: np.ndarray) -> str:
    """What every worker's :func:`first_offender` and losses come to, in words for all of them."""
    broken = int((~np.isfinite(losses)).sum())
    everyone = workers.gather((offender, broken))
    ranks = [rank for rank, (_, count) in enumerate(everyone) if count]
    named = [text for text, count in everyone if text and (count or not ranks)]
    tensor = named[0] if named else "the loss itself"
    if workers.size > 1 and ranks:
        shown = ", ".join(map(str, ranks[:8])) + ("..." if len(ranks) > 8 else "")
        return f"{tensor} (on rank {shown})"
    return tensor


def _blocks(block: Block, path: str):
    """Every block below, and then `block` itself, with its structural name."""
    for name, child in block._children.items():
        yield from _blocks(child, f"{path}.{name}" if path else name)
    yield path, block


def _finite(array: mx.nd.NDArray) -> bool:
    return bool(np.isfinite(array.asnumpy()).all())
