"""JSON that a stranger may have written: bounded, and read by every parser in one way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gluon_resnest.plain_text import encoding_of

_MOST_DIGITS = 15  # so that a float64 holds every number, too


class RefusedError(ValueError):
    """A file is not as this package writes it; the text says why."""


def read_json(path: Path, largest: int, deepest: int) -> Any:
    """The content of a JSON file.

    Parameters
    ----------
    largest
        Bytes that it may have.
    deepest
        Lists and objects that may be in each other.

    Raises
    ------
    RefusedError
        It is not JSON, is larger or deeper, repeats a key in one object, or holds a number that
        other parsers may read otherwise.
    OSError
        It cannot be read.
    """
    if path.exists() and not path.is_file():
        raise RefusedError("it is not a regular file")
    with open(path, "rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise RefusedError(f"it has more than {largest} bytes")
    try:
        text = content.decode(encoding_of(content))
        read = json.loads(text, object_pairs_hook=_without_repeated_keys, parse_int=_integer,
                          parse_float=_float, parse_constant=_no_number)
    except RecursionError:
        raise RefusedError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise RefusedError("it is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise RefusedError(f"it is not JSON: {error}") from None
    _check_depth(read, deepest)
    return read


def shown(value: Any) -> str:
    """A value of a stranger's file, short enough for an error, in one line."""
    text = (f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
            if isinstance(value, (list, dict)) else ascii(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_depth(value: Any, depth: int) -> None:
    if isinstance(value, (dict, list)):
        if depth == 0:
            raise RefusedError("it is nested too deeply")
        for one in value.values() if isinstance(value, dict) else value:
            _check_depth(one, depth - 1)


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise RefusedError(f"it holds a number of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if len(text) > 40 or abs(value) > 1e30:
        raise RefusedError(f"it holds the number {shown(text)}")
    return value


def _no_number(text: str) -> None:
    raise RefusedError(f"it holds {text}, which is not JSON")


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise RefusedError("it has a key twice in one object")
    return found
