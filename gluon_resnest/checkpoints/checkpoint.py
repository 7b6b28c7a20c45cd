"""The checkpoints of a run: each there as a whole or not at all, the newest few kept.

A checkpoint is a folder ``step-00001234`` (:mod:`~gluon_resnest.checkpoints.checkpoint_folder`).
Whatever is in the making, or on its way out, has a name that begins with a dot and ends in
``.tmp``: nobody reads it, and :meth:`Checkpoints.clean` removes what a killed process left of it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Callable

from gluon_resnest.atomic import replacing
from gluon_resnest.checkpoints.checkpoint_folder import (
    CheckpointDamage,
    Snapshot,
    is_being_written,
    is_whole,
    looks_whole,
    read_folder,
    sync_folder,
    write_folder,
)
from gluon_resnest.errors import InputError

__all__ = ["Checkpoints", "Snapshot"]

_NAME = re.compile(r"step-([0-9]{8,})")
_OVERHEAD = 1 << 20  # bytes that the state, headers, names and whole blocks add to the numbers

# Two threads of a process would use the same temporary names.
_ONE_AT_A_TIME = threading.Lock()

_REMEDIES = {
    errno.ENOSPC: "make room on that disk, or choose another with --save-dir",
    errno.EDQUOT: "your quota there is used up: make room, or choose another --save-dir",
    errno.EFBIG: "files cannot be as large there: see `ulimit -f`, or choose another --save-dir",
}
_OTHER_REMEDY = "choose a --save-dir that can be written to"


class Checkpoints:
    """The checkpoints of a run, in a folder that nothing else is in.

    Parameters
    ----------
    folder
        ``RUN/checkpoints``; made when the first one is written.
    keep
        How many of the newest are kept.

    Attributes
    ----------
    protected
        Steps that are kept as well, however old. May be replaced by another set at any time.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}: at least the newest checkpoint must be kept")
        self.folder = Path(folder)
        self.keep = keep
        self.protected: Collection[int] = ()

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of a step, whether there is one or not."""
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps of which there are checkpoints, ascending, going by the names alone."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"cannot read {self.folder}: {error.strerror or error}; "
                             "check its path and permissions") from None
        steps = {name: int(match[1]) for name in names if (match := _NAME.fullmatch(name))}
        # Not step-000000001, which nobody here writes.
        return sorted(step for name, step in steps.items() if name == self.path(step).name)

    def newest(self, say: Callable[[str], None]) -> Snapshot | None:
        """The newest checkpoint that is whole, or None where there is none of any kind.

        Parameters
        ----------
        say
            Is told, in a line each, which damaged ones are passed over.

        Raises
        ------
        InputError
            If all are damaged.
        """
        damaged: dict[int, str] = {}
        while True:
            # Anew each time: a run that goes on meanwhile may have deleted the one looked at.
            steps = [step for step in self.steps() if step not in damaged]
            if not steps:
                break
            step = steps.pop()
            try:
                return read_folder(self.path(step), step)
            except CheckpointDamage as damage:
                if step in self.steps():
                    damaged[step] = f"checkpoint {self.path(step)} is damaged ({damage})"
                    if steps:
                        say(f"{damaged[step]}: the one before is taken")
        if not damaged:
            return None
        raise InputError(
            f"none of {len(damaged)} in {self.folder} can be used: {damaged[min(damaged)]}; copy "
            "the folder again from where it came from, or give --overwrite to begin anew")

    def read(self, step: int) -> Snapshot:
        """The checkpoint of a step.

        Raises
        ------
        InputError
            If there is none, or it is damaged.
        """
        steps = self.steps()
        if step not in steps:
            raise InputError(f"{self.folder} has no checkpoint of step {step}: there are "
                             f"{', '.join(map(str, steps)) or 'none'}")
        try:
            return read_folder(self.path(step), step)
        except CheckpointDamage as damage:
            raise InputError(f"checkpoint {self.path(step)} is damaged ({damage}): take another, "
                             "or copy it again from where it came from") from None

    def write(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint, then delete those that are too many; its folder.

        One of that step that is there already is left as it is, or replaced if it is damaged. Of
        the earlier ones the newest stay, so that there are `keep` with this one, and those that
        are :attr:`protected`. Later ones, as a run has that went back, are left alone.

        Raises
        ------
        InputError
            If it cannot be written: nothing is left of it, and the others are as they were.
        ValueError, TypeError
            For names, arrays or a state that the files cannot hold.
        """
        final = self.path(snapshot.step)
        temporary = self.folder / f".{final.name}.{os.getpid()}.tmp"
        with _ONE_AT_A_TIME:
            with _saying_why(final):
                if not (final.exists() and is_whole(final, snapshot.step)):
                    self.folder.mkdir(parents=True, exist_ok=True)
                    self._check_room(snapshot)
                    _remove(temporary)  # of a dead process that had this one's number
                    try:
                        # Killed from here to the renaming: what there is of it is `.tmp`.
                        write_folder(temporary, snapshot)
                        self._put_in_place(temporary, snapshot.step)
                    finally:
                        _remove(temporary)
            self._delete_too_many(snapshot.step)
        return final

    def clean(self) -> None:
        """Remove what dead processes left of checkpoints that they were writing or deleting."""
        with _ONE_AT_A_TIME:
            for path in self.folder.glob(".*.tmp"):
                if not is_being_written(path):
                    _remove(path)

    def link_weights(self, step: int, path: str | Path, group: str = "weights") -> None:
        """Give a checkpoint's weights a second name: `path` is replaced, whole or not at all.

        `group` may name other arrays of the snapshot than its weights, such as their average.

        Where the file system can do that, both names are of one file. Whoever writes over `path`
        instead of replacing it damages the checkpoint, which shows when that is read.

        Raises
        ------
        InputError
            If there is no such checkpoint, or `path` cannot be written.
        """
        path, weights = Path(path), self.path(step) / f"{group}.params"
        if not weights.is_file():
            raise InputError(f"cannot write {path}: there is no {weights}")
        # In this folder, where clean() would find it.
        temporary = self.folder / f".{path.name}.{os.getpid()}.tmp"
        _remove(temporary)
        try:
            os.link(os.path.realpath(weights), temporary)  # not a link that says where it is
            # Killed here: `path` is what it was.
            os.replace(temporary, path)
        except OSError:  # the file system has no links, or `path` is on another one
            with replacing(path) as copy:
                shutil.copyfile(weights, copy)
        finally:
            # After success too: if both were names of one file already, renaming does nothing.
            _remove(temporary)

    def set_aside_later(self, step: int) -> None:
        """Take the checkpoints of later steps out of the way of a run that goes on from `step`.

        They are damaged, or could not be read for a moment; in either case they are of a run that
        did not happen. :meth:`clean` deletes them at the next start.
        """
        for later in self.steps():
            if later > step:
                with suppress(OSError):
                    os.rename(self.path(later), self._aside(self.path(later)))

    def _put_in_place(self, temporary: Path, step: int) -> None:
        final = self.path(step)
        try:
            os.rename(temporary, final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            if is_whole(final, step):
                return  # another process was faster
            aside = self._aside(final)
            with suppress(FileNotFoundError):  # another process deletes it
                os.rename(final, aside)
            # Killed here: both the damaged and the new one are `.tmp`, and the one before is
            # taken, as it would have been with the damaged one in its place.
            os.rename(temporary, final)
            _remove(aside)
        # Killed here: it is there and whole. If the power fails, too, the new name may be lost,
        # but nothing has been deleted yet, so the one before is there.
        sync_folder(self.folder)

    def _delete_too_many(self, step: int) -> None:
        """A failure is none of the new checkpoint's, which is on the disk: the next one retries."""
        with suppress(OSError, InputError):
            earlier = [other for other in self.steps() if other < step]
            newest = [step, *(other for other in reversed(earlier)
                              if looks_whole(self.path(other), other))][:self.keep]
            if len(newest) < self.keep:
                return
            unwanted = []
            for other in earlier:
                if other < newest[-1] and other not in self.protected:
                    aside = self._aside(self.path(other))
                    with suppress(OSError):  # another process may have been faster
                        os.rename(self.path(other), aside)
                        unwanted.append(aside)
                    # Killed here: the ones so far are `.tmp`, the next ones are whole.
            if unwanted:
                # Before the first file goes: else, if the power fails, half of a checkpoint may
                # be there under its old name. (It would show: a file of the manifest lacks.)
                sync_folder(self.folder)
            for path in unwanted:
                # Killed here: a part of it is left, and `.tmp`.
                _remove(path)

    def _aside(self, path: Path) -> Path:
        """A free name for what nobody is to read any more."""
        aside = self.folder / f".{path.name}.{os.getpid()}.old.tmp"
        _remove(aside)
        return aside

    def _check_room(self, snapshot: Snapshot) -> None:
        """Before anything is written, and in numbers."""
        needed = _OVERHEAD + sum(array.nbytes for arrays in snapshot.arrays.values()
                                 for array in arrays.values())
        disk = shutil.disk_usage(self.folder)
        if disk.free < needed and disk.total > 0:  # some file systems do not know their size
            raise InputError(f"cannot write {self.path(snapshot.step)}: it needs {needed:,} bytes, "
                             f"and {disk.free:,} are free; {_REMEDIES[errno.ENOSPC]}")


@contextmanager
def _saying_why(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno, _OTHER_REMEDY)
        raise InputError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error


def _remove(path: Path) -> None:
    """Remove a file or folder if it is there, as far as that is possible."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
