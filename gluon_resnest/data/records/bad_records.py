"""Records that cannot be used: what was met, and how many a run puts up with."""

from __future__ import annotations

import math
import threading

from gluon_resnest.data.records.record_file import BadRecord, RecordFile
from gluon_resnest.errors import InputError

# Share of the training records: 1,281 of ImageNet's.
DEFAULT_SHARE = 0.001

_NAMED = 3  # in the error; the list holds all


class BadRecords:
    """The bad records of a file, each once; may be told of them from many threads.

    Parameters
    ----------
    records
        The file. Records that its end cut off count at once.
    share
        Above this share of the records :meth:`add` raises an error.

    Raises
    ------
    InputError
        The share is not between 0 and 1, or more of the records were cut off.
    """

    def __init__(self, records: RecordFile, share: float = DEFAULT_SHARE) -> None:
        if not 0 <= share <= 1:
            raise InputError(f"--max-bad-records {share} must be a share from 0 to 1")
        self._file, self._length, self._share = records.path, len(records), share
        self._faults: dict[int, BadRecord] = {}
        self._untold: list[BadRecord] = []
        self._known: set[int] = set()
        self._lock = threading.Lock()
        for position in records.unreachable.tolist():
            try:
                records.read(position)
            except BadRecord as fault:
                self.add(fault, check=False)
        self.check()

    def __contains__(self, position: int) -> bool:
        return position in self._known

    def __len__(self) -> int:
        return len(self._known)

    def add(self, fault: BadRecord, check: bool = True) -> None:
        """Note a bad record; nothing happens where it is noted already.

        Raises
        ------
        InputError
            There are more than the share allows.
        """
        with self._lock:
            if fault.position in self._known:
                return
            fault = fault.to_keep()
            self._known.add(fault.position)
            self._faults[fault.position] = fault
            self._untold.append(fault)
        if check:
            self.check()

    def know(self, positions: list[int]) -> None:
        """Note records that others have found and told of, such as the other ranks."""
        with self._lock:
            self._known.update(positions)

    def take_untold(self) -> list[BadRecord]:
        """Bad records that were noted since the last call."""
        with self._lock:
            untold, self._untold = self._untold, []
        return untold

    def check(self) -> None:
        """Raise an InputError where more records are bad than the share allows."""
        allowed = math.floor(round(self._share * self._length, 6))
        if len(self) <= allowed:
            return
        first = "; ".join(f"record {fault.key} {fault.reason}"
                          for fault in list(self._faults.values())[:_NAMED])
        raise InputError(
            f"bad records in {self._file}: {len(self)} of {self._length}, and "
            f"--max-bad-records {self._share:g} allows {allowed}{f' ({first})' if first else ''}: "
            f"scripts/pack_records.py --verify {self._file} finds all")
