"""What a program gives to serve.py; standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable


class Refused(Exception):
    """The task cannot be done, by the user's choice; the message is one line for them."""


@dataclass(frozen=True)
class Prepared:
    """A contestant that is ready to be timed.

    Attributes
    ----------
    call
        Runs once what is timed, and returns when its result is there; nothing goes on afterwards.
    facts
        What the results say about it, such as ``versions``; as JSON can hold it.
    profile
        Given a number of calls, makes them and returns one dictionary an operator, with its name
        ``operator``, its ``ms`` and ``count`` in all calls; None where nothing can tell.
    warm_up_calls
        Before the first turn.
    calls
        In a turn; None for as many as fill serve.py's shortest turn.
    counts
        `call` returns how much it handled, such as images, for the driver to check.
    """

    call: Callable[[], Any]
    facts: dict[str, Any]
    profile: Callable[[int], list[dict[str, Any]]] | None = None
    warm_up_calls: int = 3  # the first builds a graph, the second plans its memory
    calls: int | None = None
    counts: bool = False
