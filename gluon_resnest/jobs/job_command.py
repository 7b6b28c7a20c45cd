"""What a training command says about itself: its run directory and its program."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from gluon_resnest.errors import InputError

LAUNCHERS = ("horovodrun", "mpirun", "mpiexec", "srun")  # the first is a Python script itself
_INTERPRETER = re.compile(r"(python|pypy)[0-9.]*")
_FLAGS_WITH_VALUE = ("-X", "-W")  # of Python


def words_of(command: Sequence[str]) -> list[str]:
    """Words of a command; after a word that is a line for a shell (`bash -c`) those in it."""
    words = []
    for word in command:
        words.append(word)
        if any(map(str.isspace, word)):
            try:
                words += shlex.split(word)
            except ValueError:
                pass  # no line for a shell
    return words


def run_directory_of(words: Sequence[str]) -> Path:
    """Value of ``--save-dir`` in the words of a training command.

    Raises
    ------
    InputError
        There is none, or another flag would keep a second start from going on.
    """
    value = None
    for word, following in zip(words, [*words[1:], ""]):
        flag, equals, attached = word.partition("=")
        if flag == "--save-dir":
            value = attached if equals else following
        if flag == "--overwrite":
            raise InputError("--overwrite in the command would delete the run at each restart: "
                             "leave it out, or delete the folder yourself")
        if flag == "--resume" and (attached if equals else following) == "never":
            raise InputError("--resume never in the command would refuse each restart: leave it "
                             "out")
    if not value:
        raise InputError("--save-dir is missing in the command: without it each restart would "
                         "begin anew, in a folder of its own")
    return Path(value)


def program_of(words: Sequence[str]) -> str | None:
    """The Python program that a command runs, however deep within launchers: script or module."""
    for index, word in enumerate(words):
        if _INTERPRETER.fullmatch(Path(word).name):
            program = _program_after(words[index + 1:])
            if program is not None and Path(program).name not in LAUNCHERS:
                return program
    return next((word for word in words if word.endswith(".py")), None)


def runs(arguments: Sequence[str], program: str | None) -> bool:
    """Whether these are the arguments of an interpreter that runs `program`."""
    return (program is not None and _INTERPRETER.fullmatch(Path(arguments[0]).name) is not None
            and _program_after(arguments[1:]) == program)


def _program_after(words: Sequence[str]) -> str | None:
    """Script or module that Python runs when `words` follow its name."""
    rest = iter(words)
    for word in rest:
        if word == "-m":
            return next(rest, None)
        if word == "-c":
            return None
        if word in _FLAGS_WITH_VALUE:
            next(rest, None)
        elif not word.startswith("-"):
            return word
    return None
