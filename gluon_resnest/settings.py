"""A setting in one place: a dataclass field with its flag, its help and its bounds beside it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Callable

from gluon_resnest.errors import InputError
from gluon_resnest.plain_text import shortened


@dataclass(frozen=True)
class Setting:
    """What goes with a field.

    Attributes
    ----------
    help, group
        For ``--help``; a setting without help has no flag of its own.
    flags, off
        Names of the flag, by default ``--field-name``; for a bool, the flag that turns it off,
        and its help if it is to be listed.
    type, metavar, choices, const
        As argparse has them; with `const` the flag may stand without a value.
    least, below, most
        Bounds of a number: at least, less than, at most.
    """

    help: str | None
    group: str
    flags: tuple[str, ...]
    off: tuple[str, str | None] | None
    type: Callable[[str], Any] | None
    metavar: str | None
    choices: Sequence[str] | None
    const: Any
    least: float | None
    below: float | None
    most: float | None


def setting(
    default: Any = MISSING, help: str | None = None, *, group: str = "", flags: Sequence[str] = (),
    off: str | tuple[str, str] | None = None, type: Callable[[str], Any] | None = None,
    metavar: str | None = None, choices: Sequence[str] | None = None, const: Any = None,
    least: float | None = None, below: float | None = None, most: float | None = None,
) -> Any:
    """A dataclass field; the parameters are those of :class:`Setting`."""
    turned_off = (off, None) if isinstance(off, str) else off
    return field(default=default, metadata={"setting": Setting(
        help, group, tuple(flags), turned_off, type, metavar, choices, const, least, below, most)})


def _settings(cls: Any) -> Iterator[tuple[Field, Setting]]:
    return ((one, one.metadata["setting"]) for one in fields(cls) if "setting" in one.metadata)


def flag_of(cls: Any, name: str) -> str:
    """The command line's flag that sets the field `name` of a dataclass."""
    for one, about in _settings(cls):
        if one.name == name and about.flags:
            return about.flags[0]
    return f"--{name.replace('_', '-')}"


def add_settings(parser_group: Any, cls: Any, *names: str, group: str | None = None,
                 defaults: bool = True) -> None:
    """Add the flags of a dataclass's settings to a group of a parser.

    Parameters
    ----------
    names, group
        Fields; or all of a group.
    defaults
        Whether a flag that is not given has the field's default; otherwise it is None.
    """
    for one, about in _settings(cls):
        if about.help is None or not (one.name in names or about.group == group):
            continue
        default = None if one.default is MISSING or not defaults else one.default
        _add_flag(parser_group, cls, one, about, default)


def _add_flag(parser_group: Any, cls: Any, one: Field, about: Setting, default: Any) -> None:
    names = about.flags or (flag_of(cls, one.name),)
    given: dict[str, Any] = {"dest": one.name, "default": default, "help": about.help}
    if str(one.type).startswith("bool") and about.type is None:
        parser_group.add_argument(*names, action="store_true", **given)
        if about.off is not None:
            off, help_off = about.off
            parser_group.add_argument(off, action="store_false", **{
                **given, "help": help_off or argparse.SUPPRESS})
        return
    kind = about.type or {"int": int, "float": float}.get(str(one.type).partition(" ")[0])
    parser_group.add_argument(
        *names, type=kind, metavar=about.metavar, choices=about.choices, const=about.const,
        nargs=None if about.const is None else "?", **given)


def check_bounds(settings: Any) -> None:
    """Check that each number of a dataclass is within the bounds of its setting.

    Raises
    ------
    InputError
        Naming the flag and the value.
    """
    for one, about in _settings(settings):
        value, flag = getattr(settings, one.name), flag_of(settings, one.name)
        if value is None:
            continue
        if about.least is not None and not (value >= about.least and math.isfinite(value)):
            raise InputError(f"{flag} {value} must be a number of at least {about.least}")
        if about.below is not None and value >= about.below:
            raise InputError(f"{flag} {value} is too large: give less than {about.below}")
        if about.most is not None and value > about.most:
            raise InputError(f"{flag} {shortened(value)} is too large: give at most "
                             f"{about.most:,}")
