"""Flags from a YAML file: one that a person wrote, or the ``config.yaml`` of a run."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import Any

from gluon_resnest.errors import InputError
from gluon_resnest.plain_text import shortened
from gluon_resnest.strict_yaml import read_yaml

# Of a run's config.yaml: what a run was, not what one asks for.
_NOT_FLAGS = ("overwrite", "override", "resume")
_LONGEST_NAME = 100


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
    actions = {action.dest: action for action in parser._actions}
    names = {flag.lstrip("-").replace("-", "_"): action for action in parser._actions
             for flag in action.option_strings}
    found: dict[str, Any] = {}
    given: dict[str, str] = {}
    for name, value in _flattened(path).items():
        action = actions.get(name) or names.get(name)
        if action is None or action.dest in ("help", "config"):
            near = difflib.get_close_matches(name[:_LONGEST_NAME], [*actions, *names], n=2)
            hint = f": did you mean {' or '.join(near)}?" if near else " (--help lists the flags)"
            raise InputError(f"{path} has the unknown setting '{shortened(name)}'{hint}")
        if value is None:
            continue
        if action.dest in given:
            raise InputError(f"{path} has {given[action.dest]} and {name}, which set the same: "
                             "delete one")
        given[action.dest] = name
        converted = _converted(path, name, value, action)
        # `no-mixup: true` is `mixup: false`.
        inverted = isinstance(action, argparse._StoreFalseAction) and name not in actions
        found[action.dest] = not converted if inverted else converted
    if found.get("lr") is not None:
        found.pop("base_lr", None)  # a run's file has both, and the one given goes before
    return found


def _flattened(path: Path) -> dict[str, Any]:
    """Values by name, with those of the sections, and underscores in names."""
    content = read_yaml(path, "-c")
    if not isinstance(content, dict):
        raise InputError(f"-c {path} must have settings such as 'lr: 0.05', one a line")
    values: dict[str, Any] = {}
    for name, value in content.items():
        section = value if name in ("recipe", "run") and isinstance(value, dict) else {name: value}
        if name == "workers" and "run" in content:
            continue
        for setting, of in section.items():
            if not isinstance(setting, str):
                raise InputError(f"-c {path} must have settings such as 'lr: 0.05', one a line; "
                                 f"'{shortened(setting)}' is no name")
            if setting.replace("-", "_") in values:
                raise InputError(f"-c {path} has {shortened(setting)} twice: delete one")
            values[setting.replace("-", "_")] = of
    if isinstance(content.get("run"), dict):
        for name in _NOT_FLAGS:
            values.pop(name, None)
        start = values.pop("pretrained", False)
        values["use_pretrained" if start is True else "params"] = start or None
    return values


def _converted(path: Path, name: str, value: Any, action: argparse.Action) -> Any:
    """The value as its flag gives it."""
    given = f"{path} has {name}: {shortened(value)}"
    if isinstance(value, (dict, list)):
        raise InputError(f"{path} has {'a list' if isinstance(value, list) else 'a section'} for "
                         f"{name}, which must be a single value")
    if isinstance(action, (argparse._StoreTrueAction, argparse._StoreFalseAction)):
        if not isinstance(value, bool):
            raise InputError(f"{given}, which must be true or false")
        return value
    if value is True and action.const is not None:  # a flag that may stand without a value
        return action.const
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        converted = action.type(str(value)) if action.type else str(value)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise InputError(f"{given}, which --{name.replace('_', '-')} does not take "
                         f"({shortened(error, 200)})") from None
    if action.choices is not None and converted not in action.choices:
        raise InputError(f"{given}, which must be one of {', '.join(map(str, action.choices))}")
    return converted
