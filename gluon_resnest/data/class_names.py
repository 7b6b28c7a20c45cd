"""Whether the classes of a record file are those that are expected."""

from __future__ import annotations

from collections.abc import Sequence

from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.errors import InputError

_MOST_NAMED = 5


def check_classes(records: RecordFile, classes: int) -> None:
    """Compare the number of classes with the class list beside the training file, if there is one.

    Raises
    ------
    InputError
        The list has another number of names.
    """
    names = records.class_names
    if names is not None and len(names) != classes:
        raise InputError(
            f"{_list_of(records)}, but the network has {classes}; give --classes {len(names)}")


def check_several_classes(records: RecordFile) -> None:
    """Refuse a training file with one class by its class list.

    Raises
    ------
    InputError
        Naming the class.
    """
    names = records.class_names
    if names is not None and len(names) == 1:
        raise InputError(
            f"{records.path} has one class, '{names[0]}', by its class list, so there is nothing "
            "to learn: pack a folder that has one folder for each of at least two classes")


def check_evaluated_classes(records: RecordFile, classes: int) -> None:
    """Compare the number of classes with the class list beside a file for evaluation.

    Raises
    ------
    InputError
        The list has another number of names than the network has classes.
    """
    names = records.class_names
    if names is not None and len(names) != classes:
        raise InputError(
            f"{_list_of(records)}, but the network has {classes}, so that labels would mean other "
            "classes: pack it again with --classes-of TRAIN.rec, the training file's classes")


def check_class_names(records: RecordFile, expected: Sequence[str] | None) -> None:
    """Compare the class list beside the record file, if there is one, with the names expected.

    Raises
    ------
    InputError
        They differ: labels would mean other classes. The message names the classes that are
        missing or unknown, or the first that has another label.
    """
    names = records.class_names
    if names is None or expected is None or names == list(expected):
        return
    missing = [name for name in expected if name not in names]
    unknown = [name for name in names if name not in expected]
    if missing and not unknown:
        raise InputError(
            f"{records.path} lacks {_named(missing)} of the {len(expected)} classes expected, so "
            "that its labels mean other classes: pack it again with --classes-of TRAIN.rec, "
            "whose labels it then gets")
    if unknown:
        lacks = f" and lacks {_named(missing)}" if missing else ""
        raise InputError(
            f"{records.path} has {_named(unknown)}, which the network does not know{lacks}: pack "
            "it from the folders of the training images' classes")
    label = next(i for i, (name, other) in enumerate(zip(names, expected)) if name != other)
    raise InputError(f"label {label} of {records.path} is '{names[label]}' by its class list, but "
                     f"'{expected[label]}' is expected: pack it from the same class folders as "
                     "the training images")


def _list_of(records: RecordFile) -> str:
    path = records.path
    return (f"{path} has {len(records.class_names)} classes by its class list "
            f"{path.with_suffix('.classes.txt').name}")


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_MOST_NAMED])
    return shown + (f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")
