"""Settings as fields: flags, defaults and bounds come from one place."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import pytest

from gluon_resnest.errors import InputError
from gluon_resnest.settings import add_settings, check_bounds, flag_of, setting


@dataclass(frozen=True)
class Kiln:
    temperature: float = setting(900.0, "of the kiln (default: %(default)g)", group="heat",
                                 metavar="C", least=20, most=1300)
    humidity: float = setting(0.5, "of the air", group="air", flags=("--wet", "--damp"), below=1,
                              const=0.9)
    shelves: int | None = setting(None, "how many", group="heat", least=1)
    fan: bool = setting(True, "let it run", group="air", off=("--no-fan", "let it rest"))
    door: str = setting("shut", "of the kiln", group="heat", choices=("shut", "open"))
    serial: str = "unknown"


def parse(*arguments: str, **how) -> dict:
    parser = argparse.ArgumentParser()
    add_settings(parser, Kiln, **(how or {"group": "heat"}))
    return vars(parser.parse_args(arguments))


def test_a_groups_flags_have_the_fields_types_and_defaults():
    assert parse() == {"temperature": 900.0, "shelves": None, "door": "shut"}
    assert parse("--temperature", "40", "--shelves", "3", "--door", "open") == {
        "temperature": 40.0, "shelves": 3, "door": "open"}
    with pytest.raises(SystemExit):
        parse("--shelves", "2.5")
    with pytest.raises(SystemExit):
        parse("--door", "ajar")


def test_switches_other_names_and_flags_without_a_value():
    assert parse(group="air", defaults=False) == {"humidity": None, "fan": None}
    assert parse("--damp", "0.2", "--no-fan", group="air") == {"humidity": 0.2, "fan": False}
    assert parse("--wet", group="air") == {"humidity": 0.9, "fan": True}
    assert flag_of(Kiln, "humidity") == "--wet"
    assert flag_of(Kiln, "serial") == "--serial"


@pytest.mark.parametrize(("changes", "words"), [
    ({"temperature": 19}, "--temperature 19 must be a number of at least 20"),
    ({"temperature": float("nan")}, "--temperature nan must be a number of at least 20"),
    ({"temperature": 1e9}, "--temperature 1000000000.0 is too large: give at most 1,300"),
    ({"humidity": 1}, "--wet 1 is too large: give less than 1"),
    ({"shelves": 0}, "--shelves 0 must be a number of at least 1"),
])
def test_bounds_are_named_with_the_flag(changes, words):
    with pytest.raises(InputError) as error:
        check_bounds(Kiln(**changes))
    assert str(error.value) == words
    check_bounds(Kiln())
