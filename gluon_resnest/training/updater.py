"""One update of the weights: forward, backward, exchange of gradients, optimizer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from mxnet.gluon import HybridBlock

Arrays = Sequence[mx.nd.NDArray]
Losses = Mapping[str, mx.nd.NDArray]  # "loss" and its parts, each (N,)

# Arrays that one call of multi_sum_sq takes: MXNet keeps their addresses on the stack.
_AT_ONCE = 200


class Updater:
    """Computes gradients of batches and applies them.

    Parameters
    ----------
    net
        With initialised parameters.
    losses
        Runs the network on inputs and targets: :meth:`~.task.Task.losses`.
    optimizer
        A Gluon trainer whose `step` averages the gradients over the workers.
    accumulate
        Parts in which a batch is computed, one after the other: the memory is that of a part, the
        gradient that of the batch. (Batch normalisation takes its statistics from each part.)
    clip_norm
        Largest norm of the gradient, averaged over the global batch, all parameters together;
        0 for any.
    amp
        Whether the loss is scaled, for gradients in float16.
    """

    def __init__(
        self,
        net: HybridBlock,
        losses: Callable[[Arrays, Arrays], Losses],
        optimizer: gluon.Trainer,
        accumulate: int = 1,
        clip_norm: float = 0.0,
        amp: bool = False,
    ) -> None:
        self.net, self.losses, self.optimizer = net, losses, optimizer
        self.accumulate, self.clip_norm, self.amp = accumulate, clip_norm, amp
        self.parameters = {name: parameter
                           for name, parameter in net._collect_params_with_prefix().items()
                           if parameter.grad_req != "null"}
        if accumulate > 1:
            for parameter in self.parameters.values():
                parameter.grad_req = "add"

    def forward(
        self, inputs: Arrays, targets: Arrays, smallest_batch: int
    ) -> tuple[Losses, Callable[[], None]]:
        """Ask for the losses of a batch; calling the second value asks for its gradients.

        Two calls, so that what is done with the losses can be queued before the backward pass:
        they can then be read while the gradients are being computed.

        Parameters
        ----------
        inputs, targets
            Arrays whose first axis is that of the samples.
        smallest_batch
            Samples of the worker that has fewest in this step. All workers compute in as many
            parts: where normalisation sums over the workers, one more pass would wait for ever.
        """
        if self.accumulate == 1:
            losses, scaled = self._part(inputs, targets)
            return losses, scaled.backward
        for parameter in self.parameters.values():
            parameter.zero_grad()
        count = min(self.accumulate, smallest_batch)
        bounds = np.linspace(0, len(inputs[0]), count + 1).astype(int)
        parts, backward = [], None
        for start, stop in zip(bounds.tolist(), bounds[1:].tolist()):
            if backward is not None:
                backward()
            losses, scaled = self._part([array[start:stop] for array in inputs],
                                        [array[start:stop] for array in targets])
            parts.append(losses)
            backward = scaled.backward
        return {name: mx.nd.concat(*(part[name] for part in parts), dim=0)
                for name in parts[0]}, backward

    def _part(self, inputs: Arrays, targets: Arrays) -> tuple[Losses, mx.nd.NDArray]:
        """Losses, and what the backward pass begins at."""
        with autograd.record():
            losses = self.losses(inputs, targets)
            if not self.amp:
                return losses, losses["loss"]
            from mxnet.contrib import amp

            with amp.scale_loss(losses["loss"], self.optimizer) as scaled:
                return losses, scaled

    def exchange(self, timed: bool = False) -> float | None:
        """Sum the gradients over the workers.

        If it is `timed`, wait before and afterwards, and return the seconds in between: those of
        the exchange itself and of waiting for the slowest worker.
        """
        if not timed:
            self.optimizer.allreduce_grads()
            return None
        mx.nd.waitall()
        started = time.perf_counter()
        self.optimizer.allreduce_grads()
        mx.nd.waitall()
        return time.perf_counter() - started

    def update(self, lr: float, images: float) -> None:
        """Update the weights with the learning rate `lr`, once the gradients were exchanged.

        `images` is the global batch over the number of workers: Horovod sums over the ranks and
        divides by their number, so each image of the global batch weighs the same.
        """
        self.optimizer.set_learning_rate(lr)
        if self.clip_norm:
            self._clip(images)
        self.optimizer.update(images)

    def gradient_norm(self, images: float) -> mx.nd.NDArray:
        """Norm (1,) of the gradient averaged over the global batch, once it was exchanged.

        Horovod may leave a sum over the ranks in the arrays and the division to the optimizer; the
        trainer's own scale knows which (and the loss scale of mixed precision).
        """
        gradients = [parameter.grad() for parameter in self.parameters.values()]
        parts = [mx.nd.multi_sum_sq(*gradients[i : i + _AT_ONCE],
                                    num_arrays=len(gradients[i : i + _AT_ONCE]))
                 for i in range(0, len(gradients), _AT_ONCE)]
        total = mx.nd.concat(*parts, dim=0).sum()
        return total.sqrt() * abs(self.optimizer._scale / images)

    def _clip(self, images: float) -> None:
        """Scale the gradients down to the norm, where they exceed it; nothing is waited for."""
        norm = self.gradient_norm(images)
        share = mx.nd.minimum(self.clip_norm / mx.nd.maximum(norm, 1e-30), 1.0)
        for parameter in self.parameters.values():
            gradient = parameter.grad()
            mx.nd.broadcast_mul(gradient, share.reshape((1,) * gradient.ndim), out=gradient)

    # ---- state of the optimizer, as arrays ----

    def states(self) -> dict[str, mx.nd.NDArray]:
        """The optimizer's arrays by structural name: momentum, and float32 weights under AMP.

        They are made here if no update has made them yet.
        """
        optimizer = self.optimizer
        if not optimizer._kv_initialized:
            optimizer._init_kvstore()
        (updater,) = optimizer._updaters
        found: dict[str, mx.nd.NDArray] = {}
        for name, parameter in self.parameters.items():
            index = optimizer._param2idx[parameter.name]
            if index not in updater.states:
                updater.states[index] = updater.optimizer.create_state_multi_precision(
                    index, parameter.data())
                updater.states_synced[index] = True
            for number, array in enumerate(_flat(updater.states[index])):
                if array is not None:
                    found[name if number == 0 else f"{name}:{number}"] = array
        return found

    def updates(self) -> int | dict[str, int]:
        """How often each parameter was updated, by structural name; one number if all alike.

        Adam and its kin correct their first steps by it.
        """
        counts = self.optimizer._optimizer._index_update_count
        by_name = {name: counts.get(self.optimizer._param2idx[parameter.name], 0)
                   for name, parameter in self.parameters.items()}
        different = set(by_name.values())
        return by_name if len(different) > 1 else different.pop()

    def set_updates(self, saved: int | dict[str, int]) -> None:
        """Take what :meth:`updates` gave."""
        optimizer = self.optimizer._optimizer
        for name, parameter in self.parameters.items():
            count = saved.get(name, 0) if isinstance(saved, dict) else saved
            optimizer._index_update_count[self.optimizer._param2idx[parameter.name]] = count
        optimizer.num_update = max(optimizer._index_update_count.values(), default=0)

    def loss_scale(self) -> dict[str, Any] | None:
        """State of mixed precision's loss scale, for JSON; None without."""
        scaler = getattr(self.optimizer, "_amp_loss_scaler", None)
        return scaler and {name: getattr(scaler, name) for name in SCALER_FIELDS}

    def set_loss_scale(self, saved: dict[str, Any] | None) -> None:
        """Take the state that :meth:`loss_scale` gave."""
        scaler = getattr(self.optimizer, "_amp_loss_scaler", None)
        if scaler is not None and saved is not None:
            for name in SCALER_FIELDS:
                setattr(scaler, name, saved[name])


def _flat(state: Any) -> Iterator[Any]:
    """Arrays of an optimizer's state, which may be tuples of tuples."""
    if isinstance(state, (tuple, list)):
        for part in state:
            yield from _flat(part)
    else:
        yield state


SCALER_FIELDS = ("_loss_scale", "_next_loss_scale", "_unskipped")

