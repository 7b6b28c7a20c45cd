"""A small part of YAML for files of settings: what people write, and nothing that surprises them.

Mappings, lists, true and false, null, decimal numbers and text. No aliases, which can make a file
of some hundred bytes larger than the memory; no key twice, of which YAML takes the last; no dates,
no hexadecimal, octal or sexagesimal numbers (to YAML 1.1, ``1:30`` is 90): these are text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from gluon_resnest.errors import InputError
from gluon_resnest.plain_text import read_text, shortened

_MOST_BYTES = 1 << 20
_MOST_DIGITS = 40  # of a number; Python takes long to read some thousands
_DEEPEST = 20

_FIRST_OF_NUMBERS = list("-+.0123456789")
_NUMBERS = {
    "int": re.compile(r"[-+]?[0-9]+"),
    "float": re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
                        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"),
}
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list] = {}  # noqa: RUF012 (PyYAML's own way)
    yaml_constructors = {  # noqa: RUF012
        tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag in (None, *(_TAG + name for name in ("null", "bool", "str", "seq", "map")))}
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self._refuse("aliases (*) are not allowed here: write the value again",
                         self.peek_event().start_mark)
        self._depth += 1
        if self._depth > _DEEPEST:
            self._refuse(f"nested more than {_DEEPEST} deep", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in names:
                self._refuse(f"'{shortened(name)}' is there twice: delete one",
                             key.start_mark)
            if name == "<<":
                self._refuse("'<<' merges nothing here: write the values", key.start_mark)
            names.add(name)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> int | float:
        text = self.construct_scalar(node)
        if len(text) > _MOST_DIGITS:
            self._refuse(f"a number of {len(text):,} digits", node.start_mark)
        kind = node.tag[len(_TAG):]
        if not _NUMBERS[kind].fullmatch(text):
            self._refuse(f"'{text}' is no decimal number", node.start_mark)
        return int(text) if kind == "int" else float(
            text.replace(".inf", "inf").replace(".nan", "nan") if "." in text else text)

    @staticmethod
    def _refuse(what: str, where: yaml.Mark) -> None:
        raise InputError(f"line {where.line + 1}: {what}")


for _name, _first in (("null", ["~", "n", "N", ""]), ("bool", list("yYnNtTfFoO"))):
    _pattern = next(pattern for tag, pattern in yaml.SafeLoader.yaml_implicit_resolvers["n"]
                    if tag == _TAG + _name)
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)
for _name, _number in _NUMBERS.items():  # whole numbers first
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_number.pattern})\Z"),
                                  _FIRST_OF_NUMBERS)
    _Loader.add_constructor(_TAG + _name, _Loader.construct_number)


def read_yaml(path: Path, what: str) -> Any:
    """What a file holds.

    Raises
    ------
    InputError
        It cannot be read, or is not of this part of YAML; the message names the line.
    """
    text = read_text(path, what, _MOST_BYTES)
    try:
        return yaml.load(text, _Loader)
    except InputError as error:
        raise InputError(f"{what} {path}, {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"{what} {path} is not YAML: {place}"
                         f"{shortened(error.problem or error.context or 'unreadable')}") from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, TypeError) as error:
        raise InputError(f"{what} {path} is not YAML: {shortened(str(error))}") from None
