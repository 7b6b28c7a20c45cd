"""Every fault of a record file and its index, found by reading all of it.

First a scan of the headers says where the records are. The index is held against that, and what
lies between records is put down to the record it was. Then threads read and decode each image.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from gluon_resnest.data.images.decoding import decode
from gluon_resnest.data.records.index import (
    Scan,
    check_any,
    read_index,
    records_in_gap,
    scan_records,
)
from gluon_resnest.data.records.packing import packing_threads
from gluon_resnest.data.records.record_file import reachable_records, read_class_names, record_spans
from gluon_resnest.data.records.recordio import (
    RecordDamage,
    check_length,
    image_id,
    is_class,
    open_file,
    parse_image,
    read_record,
)
from gluon_resnest.errors import InputError
from gluon_resnest.progress_bar import progress_bar


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes
    ----------
    position, key
        Of the record in the index, or the id in the record's own header where the index does not
        list it; None for what is no record.
    offset
        Where in the record file, in bytes; None for a fault of the index as a whole.
    reason
        What is wrong, as a sentence goes on that begins with the record.
    """

    position: int | None
    key: int | None
    offset: int | None
    reason: str

    def __str__(self) -> str:
        place = (("byte", self.offset), ("key", self.key), ("position", self.position))
        named = ", ".join(f"{name} {value}" for name, value in place if value is not None)
        return f"{named or 'index'}: {self.reason}"


@dataclass(frozen=True)
class Report:
    """What :func:`verify` found: the records that were looked at, and the faults in file order."""

    file: Path
    records: int
    faults: list[Fault]

    def as_dict(self) -> dict:
        """Of text, numbers, lists and None alone."""
        return {"file": str(self.file), "records": self.records,
                "faults": [asdict(fault) for fault in self.faults]}

    def __str__(self) -> str:
        if not self.faults:
            return f"no fault in {self.records:,} records"
        return f"{self.records:,} records, {len(self.faults):,} " + (
            "faults" if len(self.faults) > 1 else "fault")


def verify(
    path: str | Path,
    index: str | Path | None = None,
    classes: int | None = None,
    threads: int | None = None,
) -> Report:
    """Find every fault of a record file: of its structure, its index, its labels and its images.

    Nothing is written.

    Parameters
    ----------
    path
        The `.rec` file.
    index
        Its `.idx` file; by default the one beside it. If that is missing, that is a fault, and
        the records are those that a scan of the file finds.
    classes
        Labels must be below this; by default the number of names in `PREFIX.classes.txt`, and
        without that any whole number from 0 on will do.
    threads
        Records read and decoded at a time; by default as many as there are cores.

    Raises
    ------
    InputError
        Nothing can be verified: a file is missing, empty or malformed, or the index belongs to
        another record file.
    """
    path = Path(path)
    if classes is None:
        names = read_class_names(path)
        classes = len(names) if names else None
    descriptor, size = open_file(path)
    try:
        beside = path.with_suffix(".idx")
        is_missing = index is None and not beside.exists()
        entries = None if is_missing else read_index(Path(index or beside))
        scan = scan_records(path, descriptor, size)
        check_any(scan, path)
        keys, offsets = entries or (scan.keys, scan.offsets)
        check = _Check(descriptor, size, keys, offsets, scan, classes)
        if is_missing:
            check.add(None, None, None, f"is missing: there is no {beside.name}")
        elif check.is_foreign():
            raise InputError(
                f"index {index or beside} belongs to another record file: most of its offsets are "
                f"no records of {path}; copy both again")
        check.index_entries()
        check.images(threads or packing_threads())
        check.gaps()  # last, for these look at what was found in the records before them
    finally:
        os.close(descriptor)
    return Report(path, len(keys), check.faults())


class _Check:
    """One verification: the index's entries, the scan, and the faults found so far."""

    def __init__(self, descriptor: int, size: int, keys: np.ndarray, offsets: np.ndarray,
                 scan: Scan, classes: int | None) -> None:
        self.descriptor, self.size, self.scan, self.classes = descriptor, size, scan, classes
        self.keys, self.offsets = keys, offsets
        self.reachable = reachable_records(offsets, size)
        self.listed = np.isin(scan.offsets, offsets)
        self.to_read = np.zeros(0, np.int64)
        self._same_key: dict[int, int] = {}
        self._faults: list[Fault] = []

    def add(self, position: int | None, key: int | None, offset: int | None, reason: str) -> None:
        self._faults.append(Fault(position, key, offset, reason))

    def faults(self) -> list[Fault]:
        """In file order, those of one place by position."""
        def place(fault: Fault) -> tuple[int, int]:
            return (-1 if fault.offset is None else fault.offset,
                    -1 if fault.position is None else fault.position)

        return sorted(self._faults, key=place)

    def is_foreign(self) -> bool:
        """Most entries are no records of the file, and most of its records are not listed."""
        return 2 * self.listed.sum() < min(len(self.offsets), len(self.listed))

    def index_entries(self) -> None:
        """What the index says, against the scan; leaves in `to_read` what is worth reading."""
        # Of several entries for one record the rightful one is that with the record's own key.
        place = np.minimum(np.searchsorted(self.scan.offsets, self.offsets),
                           len(self.scan.offsets) - 1)
        is_own = (self.scan.offsets[place] == self.offsets) & (self.scan.keys[place] == self.keys)
        same_place = _repeated(self.offsets, np.lexsort((~is_own, self.offsets)))
        self._same_key = _repeated(self.keys, np.lexsort((~is_own, self.keys)))
        for position in np.flatnonzero(~self.reachable).tolist():
            self._add_entry(position, "is damaged: its offset is not a multiple of 4"
                            if self.offsets[position] % 4 else
                            f"lies beyond the end of the file ({self.size} bytes)")
        for position, other in same_place.items():
            if self.reachable[position]:
                self._add_entry(position, f"is listed again: position {other} has its offset")
        for position, other in self._same_key.items():
            if same_place.get(position) != other:
                self._add_entry(position, f"has the same key as position {other}")
        for found in np.flatnonzero(~self.listed).tolist():
            self.add(None, int(self.scan.keys[found]), int(self.scan.offsets[found]),
                     "is not listed in the index")
        is_read = self.reachable.copy()
        is_read[list(same_place)] = False
        order = np.argsort(self.offsets, kind="stable")
        self.to_read = order[is_read[order]]

    def _add_entry(self, position: int, reason: str) -> None:
        self.add(position, int(self.keys[position]), int(self.offsets[position]), reason)

    def images(self, threads: int) -> None:
        """Read and decode the records, in file order, a few at a time."""
        spans = record_spans(self.offsets, self.reachable, self.size)
        waiting: deque[tuple[int, Future[list[str]]]] = deque()
        progress = progress_bar(total=len(self.to_read), unit="record", desc="verify", leave=True)
        cv2.setNumThreads(0)  # the threads are ours
        with ThreadPoolExecutor(threads) as pool, progress:
            def finish_first() -> None:
                position, reasons = waiting.popleft()
                for reason in reasons.result():
                    self._add_entry(position, reason)
                progress.update()

            try:
                for position in self.to_read:
                    if len(waiting) == 4 * threads:
                        finish_first()
                    waiting.append((int(position), pool.submit(
                        self._reasons, int(self.offsets[position]), int(spans[position]),
                        None if position in self._same_key else int(self.keys[position]))))
                while waiting:
                    finish_first()
            finally:
                for _, future in waiting:
                    future.cancel()

    def _reasons(self, offset: int, span: int, key: int | None) -> list[str]:
        """What is wrong with one record's header, label and image."""
        try:
            content, end = read_record(self.descriptor, offset, span)
            check_length(content, end - offset)
            label, payload = parse_image(content)
        except RecordDamage as damage:
            return [str(damage)]
        reasons = []
        if key is not None and key != image_id(content):
            reasons.append(f"has another key in its own header: {image_id(content)}")
        if not is_class(label):
            reasons.append(f"has label {label:g}, which is no class")
        elif self.classes is not None and label >= self.classes:
            reasons.append(f"has label {label:g}, which is no class of 0 to {self.classes - 1}")
        if not len(payload):
            reasons.append("is empty: it holds no image")
        else:
            try:
                decode(payload)
            except InputError as error:
                reasons.append(f"is no image: {' '.join(str(error).split())}")
        return reasons

    def gaps(self) -> None:
        """What lies between the records, where no entry of the index has accounted for it."""
        entries = np.sort(self.offsets[self.offsets % 4 == 0])
        no_images = {fault.offset: number for number, fault in enumerate(self._faults)
                     if fault.reason.startswith(("is no image", "is empty"))}
        for offset, count in self.scan.gaps:
            low, high = np.searchsorted(entries, (offset, offset + count))
            lost = []
            if low == high:
                lost, _ = records_in_gap(self.descriptor, offset, offset + count, self.size)
            for key, place, reason in lost:
                self.add(None, key, place, reason)
            if lost or low < high:  # or it was found when the entry's record was read
                continue
            before = int(self.scan.offsets[np.searchsorted(self.scan.offsets, offset) - 1])
            number = no_images.get(before) if before < offset else None
            text = f"{count} bytes belong to no record"
            if number is not None:  # its length is too small, and it goes on there
                fault = self._faults[number]
                self._faults[number] = replace(fault, reason=f"{fault.reason}; behind it {text}")
            elif offset + count == self.size:
                self.add(None, None, offset, f"{text}: they are behind the last")
            else:
                self.add(None, None, offset, text)
        if self.scan.missing_padding:
            last, key = int(self.scan.offsets[-1]), int(self.scan.keys[-1])
            positions = np.flatnonzero(self.offsets == last).tolist()
            self.add(positions[0] if positions else None, key, last,
                     f"is cut: {self.scan.missing_padding} bytes of padding are missing behind "
                     "it, and MXNet's readers refuse the file")


def _repeated(values: np.ndarray, order: np.ndarray) -> dict[int, int]:
    """Position of each value that another position has, too -> that one, first in `order`."""
    ordered = values[order]
    repeats = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    firsts = np.searchsorted(ordered, ordered[repeats])
    return dict(zip(order[repeats].tolist(), order[firsts].tolist()))
