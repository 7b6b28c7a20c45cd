"""DropBlock: dropout of blocks of a feature map (Ghiasi et al., 2018; paper, "Regularization")."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator

import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.gluon import Block, HybridBlock, Parameter, ParameterDict

from gluon_resnest.layers.tracing import BUILDING, blocks_of, is_symbol_for_others, traced_with

# Nothing is divided by a smaller share of kept cells: a finite scale, also in float16.
SMALLEST_SHARE = 2.0**-15


class DropBlock(HybridBlock):
    r"""Sets square blocks of activations to zero in training; the identity in inference.

    Every channel of every image draws seeds of its own, at rate gamma, on its map widened to
    (H + `block_size` - 1, W + `block_size` - 1); a cell is dropped if a seed lies in the block
    around it. So each cell, at a border too, looks at `block_size` ** 2 possible seeds, and with

    .. math:: \gamma = 1 - (1 - p)^{1 / \mathrm{block\_size}^2}

    is dropped with probability p exactly, on any map. (Ghiasi et al., equation 1, place seeds
    where whole blocks fit, at rate :math:`\frac{p}{\mathrm{block\_size}^2} \frac{H W}
    {(H - \mathrm{block\_size} + 1) (W - \mathrm{block\_size} + 1)}`. That neglects overlaps and
    has no value for a map smaller than the block.) Borders clip blocks: with a block of 3, a map
    of 1x1 is dropped as a whole.

    What is kept of an image is multiplied by its number of cells C H W over those kept (Ghiasi et
    al., algorithm 1; the published networks have one mask for the whole batch), so that no image
    depends on its neighbours in the batch, nor a step on how a batch is dealt to workers.

    MXNet traces a graph once, for training and inference. So whether it is training is found
    *in* the graph (an `if` around ``autograd.is_training()`` would be settled by the first call),
    and the probability is an input of it, which :meth:`set_drop_prob` changes without a new trace.
    That input is no parameter to anyone but MXNet's tracer: neither ``collect_params()`` nor
    files know of it, and it needs no initialisation. Called with a symbol
    (``net(mx.sym.var("data"))``), the layer puts its present probability into the symbol instead.

    Parameters
    ----------
    drop_prob
        Expected share p of dropped cells, 0 <= p < 1.
    block_size
        Side of a block, in cells.

    Raises
    ------
    ValueError
        For a probability or a block size out of range.

    Shapes
    ------
    Input and output (N, C, H, W), of the same type; any H and W.
    """

    def __init__(self, drop_prob: float, block_size: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if block_size < 1 or block_size != int(block_size):
            raise ValueError(f"block_size {block_size} must be a whole number, at least 1")
        self._block_size = int(block_size)
        self._dtype = "float32"
        self._left_out = False
        self.seed_rate = _SeedRate(f"{self.prefix}seed_rate")
        self.set_drop_prob(drop_prob)

    @property
    def drop_prob(self) -> float:
        return self._drop_prob

    def set_drop_prob(self, drop_prob: float) -> None:
        """Drop a share `drop_prob` from the next call on; traced graphs follow, as they are."""
        if not 0 <= drop_prob < 1:
            raise ValueError(f"drop_prob {drop_prob} must be at least 0 and less than 1")
        self._drop_prob = float(drop_prob)
        self.seed_rate.set(1 - (1 - self._drop_prob) ** (1 / self._block_size**2))

    def hybrid_forward(self, F, x, seed_rate):
        if self._left_out:
            return x
        if is_symbol_for_others(F):  # who have no value for our variable
            if self._drop_prob == 0:
                return x
            seed_rate = F.full((1,), self.seed_rate.value)
        # Dropout leaves its input alone in inference only; in training it gives 0 or the double.
        training = F.broadcast_not_equal(F.Dropout(seed_rate, p=0.5, cudnn_off=True), seed_rate)
        rate = F.reshape(F.broadcast_mul(seed_rate, training), shape=(1, 1, 1, 1))
        survives = F.broadcast_lesser_equal(self._blockwise_maximum_of_noise(F, x), 1 - rate)
        share = F.mean(F.Pooling(survives, global_pool=True, pool_type="avg", kernel=(1, 1)),
                       axis=1, keepdims=True)  # (N, 1, 1, 1)
        # Exactly 1 where nothing can drop, however the average of ones is rounded.
        scale = 1 + F.broadcast_mul(rate > 0, 1 / F.maximum(share, SMALLEST_SHARE) - 1)
        mask = F.broadcast_mul(survives, scale)
        if self._dtype != "float32":
            mask = F.cast(mask, dtype=self._dtype)
        return F.elemwise_mul(x, F.BlockGrad(mask))

    def _blockwise_maximum_of_noise(self, F, x):
        """(N, C, H, W): for each cell, the maximum of its block of independent U(0, 1)."""
        side = self._block_size
        x = F.BlockGrad(x)
        if self._dtype != "float32":  # noise in steps of 2^-11 would be too coarse
            x = F.cast(x, dtype="float32")
        # Only shapes count here: padding all of x would take longer than drawing the noise. (Not
        # by `slice`: MXNet 1.9.1 dies of it on a convolution's output, if that is recorded.)
        maps = F.Pooling(x, global_pool=True, kernel=(1, 1), pool_type="avg")  # (N, C, 1, 1)
        widened = F.Pooling(F.slice_axis(x, axis=1, begin=0, end=1), kernel=(side, side),
                            pad=(side - 1, side - 1))  # (N, 1, H + side - 1, W + side - 1)
        noise = F.random.uniform_like(F.broadcast_add(maps, widened))
        return F.Pooling(noise, kernel=(side, side), pool_type="max")

    def cast(self, dtype: Any) -> None:
        """Take and give `dtype`; masks are still drawn in float32."""
        super().cast(dtype)
        self._dtype = np.dtype(dtype).name

    def collect_params(self, select: str | None = None) -> ParameterDict:
        """None: but a graph that is being built finds its input here, and nobody else does."""
        params = super().collect_params(select)
        if not self._left_out and BUILDING.active:
            params.update({self.seed_rate.name: self.seed_rate})
        return params

    def _collect_params_with_prefix(self, prefix: str = "") -> dict[str, Parameter]:
        """None: files of weights neither hold a seed rate nor need one."""
        return {}

    def __repr__(self) -> str:
        return f"DropBlock(drop_prob={self._drop_prob:g}, block_size={self._block_size})"


def set_drop_prob(net: Block, drop_prob: float) -> None:
    """Set the probability of every :class:`DropBlock` in `net`."""
    for layer in blocks_of(net, DropBlock):
        layer.set_drop_prob(drop_prob)


def scheduled_drop_prob(step: int, total_steps: int, final: float) -> float:
    """Probability at `step` (0 ... `total_steps`): from 0 to `final`, linearly (Ghiasi et al.).

    The published scripts set ``final * (epoch + 1) / epochs`` once an epoch; here the last step
    of an epoch has that value, and the steps before lead up to it.
    """
    if not 0 <= step <= total_steps or total_steps < 1:
        raise ValueError(f"step {step} must be at least 0 and at most total_steps {total_steps}")
    return final * step / total_steps


@contextmanager
def without_dropblock(net: Block) -> Iterator[Block]:
    """Within it, `net` is traced without DropBlock: no operator of it is in an exported graph.

    Traced graphs are dropped on entry and exit, so run `net` once inside before ``net.export``.
    Calls by other threads wait. If `net` is part of a larger hybridized block, give that one: its
    graph is not known here.
    """
    with traced_with(net, DropBlock, "_left_out"):
        yield net


class _SeedRate(Parameter):
    """One number (1,), the same on every device, there when it is asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(name, grad_req="null", shape=(1,), differentiable=False)
        self.value = 0.0
        self._arrays: dict[mx.Context, mx.nd.NDArray] = {}

    def set(self, value: float) -> None:
        self.value = value
        with autograd.pause():
            # In place: a graph with static_shape starts over if it meets another array. The
            # engine keeps the order of calls, so those under way still see the old value.
            for array in self._arrays.values():
                array[:] = value

    def data(self, ctx: mx.Context | None = None) -> mx.nd.NDArray:
        ctx = ctx or mx.current_context()
        if ctx not in self._arrays:
            self._arrays[ctx] = mx.nd.full((1,), self.value, ctx=ctx)
        return self._arrays[ctx]

    def _reduce(self) -> mx.nd.NDArray:
        return self.data(mx.cpu())
