"""Whether the classes of a record file are those that are expected."""

from __future__ import annotations

from collections.abc import Sequence

from gluon_resnest.data.records import RecordFile
from gluon_resnest.errors import InputError


def check_classes(records: RecordFile, classes: int) -> None:
    """Compare the number of classes with the class list beside the record file, if there is one.

    Raises
    ------
    InputError
        The list has another number of names.
    """
    names = records.class_names
    if names is not None and len(names) != classes:
        raise InputError(
            f"{records.path} has {len(names)} classes by its class list "
            f"{records.path.with_suffix('.classes.txt').name}, but the network has {classes}; "
            f"give --classes {len(names)}"
        )


def check_class_names(records: RecordFile, expected: Sequence[str] | None) -> None:
    """Compare the class list beside the record file, if there is one, with the names expected.

    Raises
    ------
    InputError
        They differ: labels would mean other classes. The message names the first difference.
    """
    names = records.class_names
    if names is None or expected is None or names == list(expected):
        return
    check_classes(records, len(expected))
    label = next(i for i, (name, other) in enumerate(zip(names, expected)) if name != other)
    raise InputError(f"label {label} of {records.path} is '{names[label]}' by its class list, but "
                     f"'{expected[label]}' is expected: pack it from the same class folders as "
                     "the training images")
