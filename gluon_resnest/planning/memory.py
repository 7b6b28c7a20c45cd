"""Memory that a worker needs, by what it is for: an estimate, before anything is allocated.

docs/cluster.md compares it with what was measured.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod

from mxnet.gluon import HybridBlock

from gluon_resnest.data.loading.loader import BATCHES_AHEAD
from gluon_resnest.planning.activations import FLOAT, activations, inference_maps
from gluon_resnest.planning.planned import Planned

# A process on a CPU: Python, MXNet, OpenCV and what is compiled for the network. 260 MB after the
# imports; 360 to 470 MB is what training runs took beyond the sum of the other parts.
PROCESS = 400_000_000

# What MXNet's operators take for themselves on a CPU, in turns: MXNET_CPU_TEMP_COPY is 4. The
# largest of them copies a whole map into another layout.
_TEMPORARY_COPIES = 4

# Default of Horovod's fusion buffer, which is on the device (HOROVOD_FUSION_THRESHOLD).
_FUSION_BUFFER = 128 * 2**20


@dataclass(frozen=True)
class WorkerMemory:
    """Bytes of a worker, by what they are for.

    On a GPU all but `images_ahead`, `checkpoint` and `process` are the device's.

    Attributes
    ----------
    weights, gradients, momentum, ema
        Of the parameters, in float32; the running statistics count as weights.
    activations
        What the forward pass keeps for the backward pass.
    passing
        Maps and gradients of maps that come and go.
    workspace
        Buffers of operators, on a CPU. On a GPU cuDNN asks for what it likes, which nobody knows
        before: none here.
    teacher
        Weights and maps of the network that is learned from.
    fusion_buffer
        In which Horovod collects gradients, with several workers.
    inputs
        The batch in use, in its several forms.
    images_ahead
        Batches that are being prepared.
    checkpoint
        The copy that rank 0 writes in the background.
    process
        Python and the libraries. A CUDA context is not counted.
    """

    weights: int
    gradients: int
    momentum: int
    ema: int
    activations: int
    passing: int
    workspace: int
    teacher: int
    fusion_buffer: int
    inputs: int
    images_ahead: int
    checkpoint: int
    process: int

    @property
    def host(self) -> int:
        """What a GPU leaves to the host."""
        return self.images_ahead + self.checkpoint + self.process

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def as_dict(self) -> dict[str, int]:
        """The parts, and their sums: ``device`` is the total without ``host``."""
        sums = {"host": self.host, "device": self.total - self.host, "total": self.total}
        return {**asdict(self), **sums}


def memory_of(planned: Planned, world_size: int = 1, for_cpu: bool = True) -> WorkerMemory:
    """Estimate for a worker; rank 0, which needs the most.

    Parameters
    ----------
    planned
        What is trained. Mixed precision (`amp`) is left out: the estimate is then an upper bound.
    world_size
        Number of workers.
    for_cpu
        On a CPU; or on a GPU, where the total is a lower bound, without the workspace and the
        process.
    """
    recipe = planned.recipe
    weights, trained = _parameter_bytes(planned.network)
    momentum = planned.optimizer_arrays * trained
    ema = weights if recipe.ema else 0
    part = -(-recipe.batch_size // recipe.accumulate)
    maps = activations(planned.network, (part, *planned.sample), for_cpu)
    pixels = recipe.batch_size * prod(planned.sample)
    return WorkerMemory(
        weights=weights, gradients=trained, momentum=momentum, ema=ema,
        activations=maps.kept, passing=maps.passing,
        workspace=_TEMPORARY_COPIES * maps.largest if for_cpu else 0,
        teacher=_teacher(planned, part, for_cpu),
        fusion_buffer=_FUSION_BUFFER if world_size > 1 else 0,
        # In uint8, and in float32: normalised, mixed, and in reverse for the mixing.
        inputs=pixels * (1 + 3 * FLOAT),
        images_ahead=pixels * (BATCHES_AHEAD + 1),
        checkpoint=weights + momentum + ema,
        process=PROCESS if for_cpu else 0)


def _parameter_bytes(net: HybridBlock) -> tuple[int, int]:
    """Of all parameters, and of those that are trained."""
    sizes = [(FLOAT * prod(parameter.shape), parameter.grad_req != "null")
             for parameter in net.collect_params().values()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def _teacher(planned: Planned, batch: int, for_cpu: bool) -> int:
    if planned.teacher is None:
        return 0
    return _parameter_bytes(planned.teacher)[0] + inference_maps(
        planned.teacher, (batch, *planned.sample), for_cpu)
