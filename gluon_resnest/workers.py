"""The workers of a run: one process alone, or the ranks that Horovod connects."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import mxnet as mx
import numpy as np
from mxnet import gluon

from gluon_resnest import runtime
from gluon_resnest.errors import InputError

DEFAULT_HANG_TIMEOUT = 300.0  # seconds

# How Horovod, Gloo and NCCL tell that a peer has gone.
_ABANDONED = ("Horovod has been shut down", "Connection closed by peer", "Connection reset by peer",
              "NCCL error", "ncclCommAbort")


class SharedFault(InputError):
    """An input error that every worker raises alike, so that one of them says it for all."""


class Abandoned(InputError):
    """Another worker has gone: no fault of the input here, and worth another try."""

    exit_code = 75  # "temporary failure" among the exit codes of sysexits.h


class PeerLost(mx.MXNetError):
    """A collective operation failed, as another worker has gone; its result is rubbish."""


class Workers:
    """A process alone: rank 0 of 1. What Horovod does over ranks is here done with one."""

    rank = 0
    size = 1
    local_rank = 0

    def trainer(
        self, params: gluon.ParameterDict, optimizer: mx.optimizer.Optimizer,
        fp16_allreduce: bool = False,
    ) -> gluon.Trainer:
        """A Gluon trainer whose `step` averages the gradients over the workers.

        `fp16_allreduce` sends them as float16 numbers.
        """
        return gluon.Trainer(params, optimizer, kvstore=None)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Element-wise sum over the workers, in float64."""
        return np.asarray(values, dtype=np.float64)

    def add_up(self, array: mx.nd.NDArray, name: str) -> mx.nd.NDArray:
        """Sum over the workers on the device, in place; nothing is waited for.

        Of a name, one sum at a time may be under way.
        """
        return array

    def broadcast(self, params: gluon.ParameterDict | dict[str, mx.nd.NDArray]) -> None:
        """Give every worker the values of rank 0, in place."""

    def gather(self, value: Any) -> list[Any]:
        """The values of all workers, by rank, on every worker."""
        return [value]

    def close(self) -> None:
        """Wait until every worker is done; a rank that leaves early would end the others."""

    def was_abandoned(self, error: Exception) -> bool:
        """Whether `error` is how MXNet tells that another worker gave up."""
        return False

    def together(self, action: Callable[[], Any]) -> Any:
        """Run `action` on every worker; where one meets an :class:`InputError`, all raise it.

        Without this a rank that stops alone would leave the others waiting for it, and a fault
        of one host, such as a missing file, would go unsaid: rank 0 speaks for all.
        """
        result = fault = None
        try:
            result = action()
        except InputError as error:
            fault = str(error)
        faults = {rank: text for rank, text in enumerate(self.gather(fault)) if text is not None}
        if not faults:
            return result
        rank, text = next(iter(faults.items()))
        everywhere = len(faults) == self.size
        raise SharedFault(text if everywhere else f"{text} (on rank {rank} of {self.size})")

    def average(self, arrays: Sequence[mx.nd.NDArray]) -> None:
        """Give every worker the mean over the workers of each array, in place.

        For the running means and variances of batch normalisation: each rank gathers them from
        its own images, but evaluation and files want one network.
        """
        if self.size == 1 or not arrays:
            return
        values = [array.asnumpy() for array in arrays]
        mean = self.sum(np.concatenate([value.ravel() for value in values])) / self.size
        ends = np.cumsum([value.size for value in values])
        for array, part in zip(arrays, np.split(mean, ends[:-1])):
            array[:] = mx.nd.array(part.reshape(array.shape), dtype=array.dtype)


class HorovodWorkers(Workers):
    """The ranks started by `horovodrun` or `mpirun`."""

    def __init__(self, hang_timeout: float) -> None:
        try:
            import horovod.mxnet as hvd
        except ImportError as error:
            raise InputError(
                f"{runtime.launched_size()} processes were launched, but Horovod cannot be "
                f"imported ({error}): `horovodrun --check-build` must show MXNet; "
                "docs/installation.md says how it is built",
                only_here=True,
            ) from None
        # Not before the watchdogs: these know what they wait for, and say it.
        runtime.prepare_horovod(max(hang_timeout, DEFAULT_HANG_TIMEOUT), mx.context.num_gpus() > 0)
        hvd.init()
        self._hvd = hvd
        self.rank, self.size, self.local_rank = hvd.rank(), hvd.size(), hvd.local_rank()
        self._confirmations = 0

    def trainer(self, params, optimizer, fp16_allreduce=False):
        # Divided before they are summed: sums over many workers may be too large for float16.
        flags = {"compression": self._hvd.Compression.fp16,
                 "gradient_predivide_factor": float(self.size)} if fp16_allreduce else {}
        trainer = self._hvd.DistributedTrainer(params, optimizer, **flags)
        exchange = trainer._allreduce_grads

        def exchange_and_confirm() -> None:
            exchange()
            self._confirm()

        trainer._allreduce_grads = exchange_and_confirm
        return trainer

    def sum(self, values):
        array = mx.nd.array(np.asarray(values, dtype=np.float64), dtype="float64")
        total = self._hvd.allreduce(array, name="sum", op=self._hvd.Sum)
        self._confirm()
        return total.asnumpy()

    def add_up(self, array, name):
        total = self._hvd.allreduce_(array, name=name, op=self._hvd.Sum)
        self._confirm()
        return total

    def broadcast(self, params):
        self._hvd.broadcast_parameters(params, root_rank=0)
        self._confirm()

    def gather(self, value):
        # Not by allgather_object: it would unpickle whatever a failed operation leaves behind.
        content = np.frombuffer(pickle.dumps(value), dtype=np.uint8)
        sizes = self._all(np.array([len(content)], dtype=np.int64), "gather.sizes")
        everyone = np.split(self._all(content, "gather"), np.cumsum(sizes)[:-1])
        return [pickle.loads(part.tobytes()) for part in everyone]

    def _all(self, values: np.ndarray, name: str) -> np.ndarray:
        """The arrays of all workers, one behind the other."""
        found = self._hvd.allgather(mx.nd.array(values, dtype=values.dtype), name=name)
        self._confirm()
        return found.asnumpy()

    def _confirm(self) -> None:
        """Raise :class:`PeerLost` if the operation before has failed.

        MXNet's usual engines raise its error where the result is read. NaiveEngine drops it
        (`NaiveEngine::OnComplete`), and what is read is rubbish. So there the workers count what
        they have done together: a sum that does not come to that is of an operation that failed,
        and after one all others fail too.
        """
        if not runtime.engine_drops_errors():
            return
        self._confirmations += 1
        count = mx.nd.array([self._confirmations], dtype="float64")
        answer = self._hvd.allreduce_(count, name="confirmation", op=self._hvd.Sum).asscalar()
        if answer != self.size * self._confirmations:
            raise PeerLost("another worker has gone: Connection closed by peer")

    def close(self):
        try:
            self.sum(np.zeros(1))
        except mx.MXNetError as error:
            if not self.was_abandoned(error):
                raise
        self._hvd.shutdown()

    def was_abandoned(self, error):
        return isinstance(error, PeerLost) or (
            isinstance(error, mx.MXNetError) and any(words in str(error) for words in _ABANDONED))


def check_alike(workers: Workers, settings: Mapping[str, Any]) -> None:
    """Make sure that all workers have the same data and settings; each opens its own files.

    Raises
    ------
    SharedFault
        Naming the first difference and the rank that has it.
    """
    everyone = workers.gather(dict(settings))
    for rank, theirs in enumerate(everyone):
        for name, value in everyone[0].items():
            if theirs.get(name) != value:
                raise SharedFault(
                    f"rank {rank} has {theirs.get(name)} for '{name.replace('_', ' ')}', rank 0 "
                    f"has {value}: give all hosts the same files and flags")


def connect(hang_timeout: float = DEFAULT_HANG_TIMEOUT) -> Workers:
    """The workers that the launcher started, connected; or this process alone.

    Horovod waits for a silent worker for `hang_timeout` seconds, and at least for five minutes.
    """
    return HorovodWorkers(hang_timeout) if runtime.launched_size() > 1 else Workers()


def device(workers: Workers, no_cuda: bool = False) -> mx.Context:
    """The GPU of this rank on its host, or the CPU where there is none or `no_cuda`."""
    gpus = 0 if no_cuda else mx.context.num_gpus()
    if not gpus:
        return mx.cpu()
    if workers.local_rank >= gpus:
        raise InputError(
            f"local rank {workers.local_rank} has no GPU of its own: this host has {gpus}; start "
            "at most that many ranks on it, or give --no-cuda"
        )
    return mx.gpu(workers.local_rank)
