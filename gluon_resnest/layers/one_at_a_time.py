"""Blocks that several threads may call, the first time too."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import Any, Iterator

from mxnet.gluon import Block, HybridBlock


class OneAtATime(HybridBlock):
    """A block that runs the calls of several threads one after another.

    Gluon traces a hybridized block when it is first called. Meanwhile the scopes of names and the
    unfinished graph are attributes of the block, so a second thread that calls it fails, or takes
    a graph that is not complete. Here it waits. A call returns once its operators are in the
    engine's queue, so what waits is that, not the computing.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._call_lock = threading.RLock()  # a block may be called while it is traced

    def __call__(self, *args: Any) -> Any:
        with self._call_lock:
            return super().__call__(*args)

    def hybridize(self, *args: Any, **kwargs: Any) -> None:
        with self._call_lock:
            super().hybridize(*args, **kwargs)


@contextmanager
def without_other_calls(net: Block) -> Iterator[Block]:
    """Within it, other threads that call `net`, or a :class:`OneAtATime` in it, wait."""
    locks = []
    net.apply(lambda block: locks.append(block._call_lock) if isinstance(block, OneAtATime)
              else None)
    with ExitStack() as stack:
        # Blocks are visited before the block that holds them, and called after it.
        for lock in reversed(locks):
            stack.enter_context(lock)
        yield net
