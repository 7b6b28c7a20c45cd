"""Every array that a run's future depends on: off the devices into a snapshot, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mxnet as mx
import numpy as np

from gluon_resnest.errors import InputError
from gluon_resnest.plain_text import shortened
from gluon_resnest.training.ema import MovingAverage
from gluon_resnest.training.updater import Updater
from gluon_resnest.workers import Workers

Arrays = Mapping[str, Mapping[str, np.ndarray]]

# Files of a checkpoint. The first two are weights that any tool of this package loads.
WEIGHTS, AVERAGE = "weights", "ema"
_STATISTICS, _AVERAGE_STATISTICS = "statistics", "ema-statistics"
_OPTIMIZER = "optimizer"


class RunArrays:
    """The arrays of a run on all its workers.

    Weights, the optimizer's arrays and the moving average are the same on every worker. Running
    statistics of batch normalisation are each worker's own until they are averaged: a snapshot
    has everyone's, so that the same number of workers goes on exactly, and their mean, for any
    other number and for whoever loads the weights.
    """

    def __init__(self, updater: Updater, average: MovingAverage | None, workers: Workers) -> None:
        self._updater, self._average, self._workers = updater, average, workers
        self._parameters = updater.net._collect_params_with_prefix()
        self._statistic_names = [name for name, parameter in self._parameters.items()
                                 if parameter.grad_req == "null"]

    def statistics(self) -> list[mx.nd.NDArray]:
        """Running means and variances on this worker, the moving average's too."""
        found = [self._parameters[name].data() for name in self._statistic_names]
        if self._average is not None:
            found += [self._average.arrays[name] for name in self._statistic_names]
        return found

    def copy(self) -> dict[str, dict[str, np.ndarray]] | None:
        """Copies of all arrays, on rank 0; every worker must call it.

        Waits until they are computed. Afterwards training may go on.
        """
        everyone = self._gathered_statistics()
        if self._workers.rank != 0:
            return None
        weights = {name: parameter.data() for name, parameter in self._parameters.items()}
        found = {
            WEIGHTS: self._with_mean(weights, everyone[_STATISTICS]),
            _OPTIMIZER: _copied(self._updater.states()),
            _STATISTICS: everyone[_STATISTICS],
        }
        if self._average is not None:
            found[AVERAGE] = self._with_mean(self._average.arrays, everyone[_AVERAGE_STATISTICS])
            found[_AVERAGE_STATISTICS] = everyone[_AVERAGE_STATISTICS]
        return found

    def _gathered_statistics(self) -> dict[str, dict[str, np.ndarray]]:
        """The statistics of all workers by name, stacked along a first axis."""
        own = [array.asnumpy() for array in self.statistics()]
        everyone = self._workers.gather(own)
        stacked = [np.stack(of_all) for of_all in zip(*everyone)]
        names, count = self._statistic_names, len(self._statistic_names)
        return {_STATISTICS: dict(zip(names, stacked)),
                _AVERAGE_STATISTICS: dict(zip(names, stacked[count:]))}

    @staticmethod
    def _with_mean(
        arrays: Mapping[str, mx.nd.NDArray], statistics: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        return {name: _mean(statistics[name]) if name in statistics else array.asnumpy()
                for name, array in arrays.items()}

    def check(self, arrays: Arrays, source: Path) -> None:
        """Make sure that :meth:`set` can take `arrays`; `source` is for the error.

        Raises
        ------
        InputError
            They are of another network.
        """
        for group in (WEIGHTS, _OPTIMIZER, _STATISTICS):
            if group not in arrays:
                raise InputError(f"{source} lacks {group}.params: copy it again from where it came "
                                 "from, or delete its folder")
        saved = {name: array.shape for name, array in arrays[WEIGHTS].items()}
        wanted = {name: parameter.shape for name, parameter in self._parameters.items()}
        for name in [*wanted, *saved]:
            if saved.get(name) != wanted.get(name):
                raise InputError(
                    f"{source} is of another network: its {name} is {saved.get(name)}, here it is "
                    f"{wanted.get(name)}; to start from its weights, give them with --params and "
                    "choose another --save-dir")
        self._check_others(arrays, source)

    def _check_others(self, arrays: Arrays, source: Path) -> None:
        """The same for what goes with the weights, where there is any of it."""
        shapes = {name: parameter.shape for name, parameter in self._parameters.items()}
        for group in (_OPTIMIZER, AVERAGE, _STATISTICS, _AVERAGE_STATISTICS):
            for name, array in arrays.get(group, {}).items():
                wanted, found = shapes.get(name.partition(":")[0]), array.shape
                if group in (_STATISTICS, _AVERAGE_STATISTICS):  # of each rank
                    found = found[1:] if len(found) and found[0] else None
                if wanted != found:
                    raise InputError(f"{group}.params in {source} has {array.shape} for "
                                     f"{shortened(name)}, which cannot be: copy it again from "
                                     "where it came from, or delete its folder")

    def set(self, arrays: Arrays | None) -> None:
        """Give every worker what :meth:`copy` gave; `arrays` is rank 0's, others give None."""
        workers = self._workers
        names = {key: list(of_file) for key, of_file in (arrays or {}).items()}
        files = workers.gather(names)[0]
        live = {WEIGHTS: {name: parameter.data() for name, parameter in self._parameters.items()},
                _OPTIMIZER: self._updater.states()}
        if self._average is not None:
            # A run that had none, and goes on with one, begins it at its weights.
            live[AVERAGE] = self._average.arrays
        for key, arrays_here in live.items():
            if key == AVERAGE and key not in files:
                continue
            if workers.rank == 0:
                for name, array in arrays_here.items():
                    if name in arrays[key]:  # momentum 0 has none
                        array[:] = mx.nd.array(arrays[key][name], dtype=array.dtype)
            workers.broadcast({f"{key} {name}": array for name, array in arrays_here.items()})
        if self._average is not None and AVERAGE not in files:
            self._average.restart()
        self._set_statistics(arrays)

    def _set_statistics(self, arrays: Arrays | None) -> None:
        """Give each worker its own, if there are as many workers as there were."""
        wanted = (_STATISTICS, _AVERAGE_STATISTICS) if self._average else (_STATISTICS,)
        kept = {key: arrays[key] for key in wanted if key in arrays} if arrays else None
        everyone = self._workers.gather(kept)[0]
        for key, target in ((_STATISTICS, lambda name: self._parameters[name].data()),
                            (_AVERAGE_STATISTICS, lambda name: self._average.arrays[name])):
            for name, values in everyone.get(key, {}).items():
                if len(values) == self._workers.size:
                    array = target(name)
                    array[:] = mx.nd.array(values[self._workers.rank], dtype=array.dtype)


def first_not_finite(arrays: Arrays) -> str | None:
    """Name of the first array with a value that is no finite number."""
    for of_file in arrays.values():
        for name, array in of_file.items():
            if not np.isfinite(array).all():
                return name
    return None


def _copied(arrays: Mapping[str, mx.nd.NDArray]) -> dict[str, np.ndarray]:
    return {name: array.asnumpy() for name, array in arrays.items()}


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis as :meth:`Workers.average` computes it."""
    return (values.astype(np.float64).sum(axis=0) / len(values)).astype(values.dtype)
