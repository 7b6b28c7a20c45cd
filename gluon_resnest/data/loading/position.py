"""Where a run stands in its data, as a value that can be saved and gone on from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from gluon_resnest.data.loading.sampling import Leg, Sampling, joined
from gluon_resnest.errors import InputError
from gluon_resnest.plain_text import shortened


@dataclass(frozen=True)
class Position:
    """Where a run stands: an epoch, counted from 0, and the legs of it that are behind.

    A value: advancing gives another position.
    """

    epoch: int = 0
    legs: tuple[Leg, ...] = ()

    @property
    def steps(self) -> int:
        """Steps of this epoch that are behind."""
        return sum(leg.steps for leg in self.legs)

    def advance(
        self, sampling: Sampling, batch_size: int, world: int, steps: int = 1
    ) -> Position:
        """The position `steps` steps later, in the same epoch (see :meth:`next_epoch`).

        Raises
        ------
        ValueError
            The epoch has fewer steps left.
        """
        if not 0 <= steps <= sampling.steps(batch_size, world, self.legs):
            raise ValueError(f"{steps} steps from {self} are beyond the end of the epoch")
        if steps == 0:
            return self
        return replace(self, legs=tuple(joined([*self.legs, Leg(world, batch_size, steps)])))

    def next_epoch(self) -> Position:
        """The beginning of the next epoch."""
        return Position(self.epoch + 1)

    def as_dict(self, sampling: Sampling) -> dict[str, Any]:
        """For JSON, with what the position depends on: :meth:`from_dict` compares it."""
        return {"epoch": self.epoch, "legs": [list(leg) for leg in self.legs],
                "length": sampling.length, "seed": sampling.seed, "sharding": sampling.sharding}

    @classmethod
    def from_dict(cls, saved: Any, sampling: Sampling, source: str = "the position") -> Position:
        """A position that :meth:`as_dict` made, perhaps read from JSON.

        Parameters
        ----------
        saved
            What was saved.
        sampling
            Of the run that goes on.
        source
            Where it comes from, for the errors.

        Raises
        ------
        InputError
            It is no position, or one of another file, seed or sharding.
        """
        if not isinstance(saved, dict):
            raise InputError(f"{source} must be a dictionary, not {_shown(saved)}")
        expected = cls().as_dict(sampling)
        if set(saved) != set(expected):
            wrong = ", ".join(sorted(map(str, set(saved) ^ set(expected))))
            raise InputError(f"{source} must have the entries {', '.join(expected)}, and no "
                             f"others: see {shortened(wrong)}")
        for name in ("length", "seed", "sharding"):
            if type(saved[name]) is not type(expected[name]) or saved[name] != expected[name]:
                raise InputError(
                    f"{source} is of a run with {name} {_shown(saved[name])}, but this one has "
                    f"{expected[name]!r}: go on with the same --rec-train, --seed and --sharding")
        if not _is_count(saved["epoch"], 0):
            raise InputError(f"{source} has epoch {_shown(saved['epoch'])}, which must be a "
                             "whole number of at least 0")
        if not isinstance(saved["legs"], (list, tuple)):
            raise InputError(f"{source} has legs {_shown(saved['legs'])}, which must be a list")
        for leg in saved["legs"]:
            if not (isinstance(leg, (list, tuple)) and len(leg) == len(Leg._fields)
                    and all(_is_count(value, 1) for value in leg)):
                raise InputError(f"{source} has the leg {_shown(leg)}, which must be three whole "
                                 "numbers of at least 1: workers, batch size and steps")
        legs = tuple(joined([Leg(*leg) for leg in saved["legs"]]))
        try:
            if legs:
                sampling.steps(legs[-1].batch_size, legs[-1].world, legs)
        except InputError as error:
            raise InputError(f"{source} has legs {_shown(saved['legs'])} that cannot be: {error}"
                             ) from None
        return cls(saved["epoch"], legs)


def _shown(value: Any) -> str:
    return shortened(repr(value))


def _is_count(value: Any, least: int) -> bool:
    return type(value) is int and value >= least
