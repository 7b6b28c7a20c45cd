"""Whether the state in a checkpoint can be one: it may be a stranger's, or of another program.

Its digests guard it against damage, not against whoever wrote them too.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Tuple

from gluon_resnest.errors import InputError
from gluon_resnest.plain_text import shortened
from gluon_resnest.training.updater import SCALER_FIELDS

_LARGEST = 2**63 - 1
_MOST_RANKS = 2**31 - 1
_MOST_LEGS = 1000
_MOST_FIGURES = 1000
_MOST_PARAMETERS = 1_000_000
_LONGEST_NAME = 200  # of a figure

# What a value must be: words for the error, and whether it is.
_Rule = Tuple[str, Callable[[Any], bool]]


def check_state(state: Any, step: int, source: str) -> None:
    """Check types and ranges of a ``state.json``; that it fits the run is looked at elsewhere.

    Parameters
    ----------
    state
        What the file holds.
    step
        Of its checkpoint.
    source
        The file, for the error.

    Raises
    ------
    InputError
        Naming the first entry that cannot be.
    """
    _check(state, "", source, {
        "recipe": _MAPPING, "workers": _count(1, _MOST_RANKS), "progress": _MAPPING,
        "loss_scale": ("null or a section", lambda value: value is None
                       or isinstance(value, dict))})
    _check(state, "", source, {"updates": ("a count of updates, or a section of them by parameter",
                                           _are_updates)}, optional=True)
    for name, value in state["recipe"].items():
        if not (value is None or isinstance(value, (bool, str)) or _is_number(value)):
            raise _wrong(source, f"recipe.{shortened(name)}", value, "a single value")
    if state["loss_scale"] is not None:
        _check(state["loss_scale"], "loss_scale", source,
               {name: _number(0) for name in SCALER_FIELDS})
    check_progress(state["progress"], step, "progress", source)


def check_progress(saved: Any, step: int, name: str, source: str) -> None:
    """The same for what :meth:`~.training.run_state.Progress.as_dict` made."""
    _check(saved, name, source, {"step": _count(step, step), "position": _MAPPING})
    _check(saved, name, source, {
        "sums": _MAPPING, "validated": _count(0), "skipped": _count(0), "rollbacks": _count(0),
        "metrics_lines": _count(0), "best": _FIGURES, "best_ema": _FIGURES}, optional=True)
    _check(saved.get("sums", {}), f"{name}.sums", source, {
        "images": _count(0), "loss_sum": _number(-math.inf), "seconds": _number(0),
        "data_seconds": _number(0)}, optional=True, others=False)
    _check(saved["position"], f"{name}.position", source, {
        "epoch": _count(0), "legs": (f"a list of at most {_MOST_LEGS} lists of three whole "
                                     "numbers of at least 1", _are_legs)})


def _is_number(value: Any) -> bool:
    return (type(value) is int and abs(value) <= _LARGEST) or (
        type(value) is float and math.isfinite(value))


def _count(least: int, most: int = _LARGEST) -> _Rule:
    words = f"{least}" if least == most else f"a whole number of at least {least}" if (
        most == _LARGEST) else f"a whole number from {least} to {most}"
    return words, lambda value: type(value) is int and least <= value <= most


def _number(least: float) -> _Rule:
    words = "a finite number" if least == -math.inf else f"a finite number of at least {least}"
    return words, lambda value: _is_number(value) and value >= least


def _are_figures(value: Any) -> bool:
    """Of a validation: null, or numbers by name; the task looks at what they mean."""
    return value is None or (
        isinstance(value, dict) and 0 < len(value) <= _MOST_FIGURES
        and all(len(name) <= _LONGEST_NAME for name in value)
        and all(number is None or _is_number(number) for number in value.values()))


def _are_updates(value: Any) -> bool:
    if isinstance(value, dict):
        return len(value) <= _MOST_PARAMETERS and all(map(_is_count, value.values()))
    return _is_count(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _are_legs(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= _MOST_LEGS and all(
        isinstance(leg, list) and len(leg) == 3
        and all(type(part) is int and 1 <= part <= _MOST_RANKS for part in leg) for leg in value)


_MAPPING: _Rule = ("a section", lambda value: isinstance(value, dict))
_FIGURES: _Rule = ("null or the figures of a validation, numbers by name", _are_figures)


def _check(saved: Any, path: str, source: str, rules: dict[str, _Rule], optional: bool = False,
           others: bool = True) -> None:
    """Check the entries of a section that there are rules for; `others` may be there too."""
    if not isinstance(saved, dict):
        raise _wrong(source, path or "the whole", saved, "a section")
    prefix = f"{path}." if path else ""
    if not others and not set(saved) <= set(rules):
        unknown = sorted(set(saved) - set(rules))[0]
        raise InputError(f"{source} has the unknown entry {prefix}{shortened(unknown)}{_REMEDY}")
    for name, (words, is_good) in rules.items():
        if name not in saved:
            if optional:
                continue
            raise InputError(f"{source} lacks {prefix}{name}{_REMEDY}")
        if not is_good(saved[name]):
            raise _wrong(source, f"{prefix}{name}", saved[name], words)


_REMEDY = (": it is not what this program writes; copy the checkpoint again from where it came "
           "from, or delete its folder")


def _wrong(source: str, name: str, value: Any, words: str) -> InputError:
    shown = "a section" if isinstance(value, dict) else shortened(repr(value))
    return InputError(f"{source} has {shown} for {name}, which must be {words}{_REMEDY}")
