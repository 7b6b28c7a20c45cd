"""``bad_records.jsonl``: what a run could not use of its training records, each record once."""

from __future__ import annotations

import contextlib
import fcntl
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gluon_resnest.atomic import open_own
from gluon_resnest.data.records.bad_records import BadRecords
from gluon_resnest.data.records.record_file import BadRecord
from gluon_resnest.errors import InputError
from gluon_resnest.workers import Workers

_SHOWN = 10  # on the terminal; the file has all


class BadRecordLog:
    """Writes what the loaders of all ranks find to one file.

    Rank 0 writes its own at once; those of the others come at the end of an epoch, when all tell
    each other. So with ``--sharding global``, where a record may come to each rank in turn, it is
    listed once too.

    Parameters
    ----------
    path
        Of the file; it appears with the first bad record.
    found
        What this rank's loader has met; None where there can be nothing, on all ranks.
    workers
        Of the run.
    """

    def __init__(self, path: Path, found: BadRecords | None, workers: Workers) -> None:
        self._path, self._found, self._workers = path, found, workers
        self._unshared: list[dict[str, Any]] = []
        self._listed: set[int] = set()
        self._warned = False

    def note(self, epoch: int) -> None:
        """Take what this rank has found until now; called in every step, so mostly nothing."""
        for fault in self._found.take_untold() if self._found is not None else ():
            entry = self._entry(fault, epoch)
            self._unshared.append(entry)
            if self._workers.rank == 0:
                self._write([entry])
                if len(self._listed) <= _SHOWN:
                    tqdm.write(f"warning: record {fault.key} {fault.reason}; another one takes its "
                               f"place, and {self._path} lists it", file=sys.stderr)

    def share(self, epoch: int) -> None:
        """Tell all ranks what each has found, write it, and check the share of all together."""
        if self._found is None:
            return
        self.note(epoch)
        everyone = self._workers.gather(self._unshared)
        self._unshared = []
        self._found.know([entry["position"] for entries in everyone for entry in entries])
        if self._workers.rank == 0:
            self._write([entry for entries in everyone[1:] for entry in entries])
        self._found.check()

    def give_up(self, epoch: int) -> None:
        """Write what this rank alone has found, whatever the rank: the run ends here."""
        with contextlib.suppress(InputError):  # another host may not have the folder
            self.note(epoch)
            if self._workers.rank != 0:
                self._write(self._unshared)

    def _entry(self, fault: BadRecord, epoch: int) -> dict[str, Any]:
        return {"position": fault.position, "key": fault.key, "reason": fault.reason,
                "epoch": epoch + 1, "rank": self._workers.rank}

    def _write(self, entries: list[dict[str, Any]]) -> None:
        """Append those that are not listed yet: ranks may have tried the same replacement."""
        entries = [entry for entry in entries if entry["position"] not in self._listed]
        if not entries:
            return
        try:
            with open(self._path, "a+", encoding="utf-8", opener=open_own) as file:
                # Several ranks write when a run ends; the lock goes with the file.
                with contextlib.suppress(OSError):  # not every file system has locks
                    fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                self._listed.update(json.loads(line)["position"] for line in file)
                for entry in sorted(entries, key=lambda entry: entry["position"]):
                    if entry["position"] not in self._listed:
                        self._listed.add(entry["position"])
                        file.write(json.dumps(entry) + "\n")
        except (OSError, ValueError) as error:
            if not self._warned:  # a list is no reason to end a run of days
                self._warned = True
                tqdm.write(f"warning: cannot write {self._path} ({error})", file=sys.stderr)
