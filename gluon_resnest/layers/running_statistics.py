"""Running means and variances that are read only once they are written, with static_shape too.

A graph of ``hybridize(static_alloc=True, static_shape=True)`` runs several operators as one, and
MXNet 1.9.1 then tells its engine what these read and what they return, but not which inputs they
write (of any ``BatchNorm``). So after a training step nobody waits for the running statistics.
"""

from __future__ import annotations

import mxnet as mx
from mxnet import autograd
from mxnet.gluon import Parameter

from gluon_resnest.layers.tracing import RUNNING


class RunningStatistic(Parameter):
    """A statistic whose readers wait for the training step before.

    Whoever asks for its arrays after a graph was recorded with them gets them behind an operator
    that is declared to write them, though it does nothing. The engine runs it after all that were
    given the arrays to read, among them the gradient that writes them, and before all that read
    them from now on. Nobody waits in Python, and a step in which nobody reads costs nothing.

    An array that was taken before the step does not know of it: call ``data()`` again.
    """

    _may_be_written = False  # by a graph that was recorded since the arrays were last ordered

    @classmethod
    def take_over(cls, parameter: Parameter) -> None:
        """Make `parameter`, which MXNet's layer made, one of this kind."""
        parameter.__class__ = cls

    def _check_and_get(self, arr_list, ctx):
        if arr_list is not None and arr_list is self._data:
            if autograd.is_recording() and RUNNING.active:
                self._may_be_written = True
            elif self._may_be_written:
                self._may_be_written = False
                self._order()
        return super()._check_and_get(arr_list, ctx)

    def _order(self) -> None:
        with autograd.pause():
            for array in self._data:
                mx.nd.identity(array, out=array)

    def cast(self, dtype) -> None:
        """Change the type, of the values after the training step before."""
        if self._data is not None:
            self.list_data()
        super().cast(dtype)
