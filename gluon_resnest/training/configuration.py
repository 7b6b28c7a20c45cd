"""Flags from a YAML file: one that a person wrote, or the ``config.yaml`` of a run."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import Any

import yaml

from gluon_resnest.errors import InputError
from gluon_resnest.plain_text import read_text

# Of a run's config.yaml: what a run was, not what one asks for.
_NOT_FLAGS = ("overwrite", "override", "resume")


def read_configuration(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Values of flags, by their destination in `parser`.

    A file has flags by their names, with dashes or underscores and without those in front
    (``base-lr: 0.2``, ``mixup: false``), alone or in the sections of a run's ``config.yaml``,
    ``recipe`` and ``run``.

    Raises
    ------
    InputError
        The file cannot be read, or has an unknown name or a value that its flag does not take.
    """
    values = _flattened(path)
    actions = {action.dest: action for action in parser._actions}
    names = {flag.lstrip("-").replace("-", "_"): action for action in parser._actions
             for flag in action.option_strings}
    found: dict[str, Any] = {}
    for name, value in values.items():
        action = actions.get(name) or names.get(name)
        if action is None or action.dest in ("help", "config"):
            near = difflib.get_close_matches(name, [*actions, *names], n=2)
            hint = f": did you mean {' or '.join(near)}?" if near else " (--help lists the flags)"
            raise InputError(f"{path} has the unknown setting '{name}'{hint}")
        if value is not None:
            converted = _converted(path, name, value, action)
            # `no-mixup: true` is `mixup: false`.
            inverted = isinstance(action, argparse._StoreFalseAction) and name not in actions
            found[action.dest] = not converted if inverted else converted
    if found.get("lr") is not None:
        found.pop("base_lr", None)  # a run's file has both, and the one given goes before
    return found


def _flattened(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_text(path, "-c"))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"-c {path} is not YAML: {reason}") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"-c {path} must have settings such as 'lr: 0.05', one a line")
    values: dict[str, Any] = {}
    for name, value in content.items():
        if name in ("recipe", "run") and isinstance(value, dict):
            values.update(value)
        elif not (name == "workers" and "run" in content):
            values[name] = value
    values = {name.replace("-", "_"): value for name, value in values.items()}
    if isinstance(content.get("run"), dict):
        for name in _NOT_FLAGS:
            values.pop(name, None)
        start = values.pop("pretrained", False)
        values["use_pretrained" if start is True else "params"] = start or None
    return values


def _converted(path: Path, name: str, value: Any, action: argparse.Action) -> Any:
    """The value as its flag gives it."""
    if isinstance(action, (argparse._StoreTrueAction, argparse._StoreFalseAction)):
        if not isinstance(value, bool):
            raise InputError(f"{path} has {name}: {value}, which must be true or false")
        return value
    if isinstance(value, (dict, list)):
        raise InputError(f"{path} has {name}: {value}, which must be a single value")
    if value is True and action.const is not None:  # a flag that may stand without a value
        return action.const
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        converted = action.type(str(value)) if action.type else str(value)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise InputError(f"{path} has {name}: {value}, which --{name.replace('_', '-')} does not "
                         f"take ({error})") from None
    if action.choices is not None and converted not in action.choices:
        raise InputError(f"{path} has {name}: {value}, which must be one of "
                         f"{', '.join(map(str, action.choices))}")
    return converted
