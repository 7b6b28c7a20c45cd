"""verify() on files that MXNet wrote and that were then damaged: each fault once, no other."""

from __future__ import annotations

import io
import struct
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_records import offsets_of, overwrite, write_with_mxnet

from gluon_resnest.data.records import verification
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.data.records.verification import Fault, Report, verify
from gluon_resnest.errors import InputError

COUNT = 24
DAMAGED, NO_IMAGE = "is damaged: ", "is no image: "


def key_of(position: int) -> int:
    return 3 * position + 1


@pytest.fixture(scope="module")
def images(photos: list[np.ndarray]) -> list[bytes]:
    """JPEGs with and without colour, progressive ones and PNGs, of several sizes."""
    encoded = []
    for i in range(COUNT):
        image = Image.fromarray(photos[i % 2][5 * i : 5 * i + 90 + i, 7 * i : 7 * i + 130])
        if i % 3 == 1:
            image = image.convert("L")
        buffer = io.BytesIO()
        image.save(buffer, "PNG" if i % 4 == 2 else "JPEG", progressive=i % 8 == 1)
        encoded.append(buffer.getvalue())
    return encoded


@pytest.fixture
def items(images: list[bytes]) -> list[tuple[int, object, bytes]]:
    return [(key_of(i), float(i % 5), image) for i, image in enumerate(images)]


def found(report: Report) -> list[tuple[int | None, int | None, int | None]]:
    return [(fault.position, fault.key, fault.offset) for fault in report.faults]


def expect(path: Path, expected: dict[int, str], **options: object) -> Report:
    """`expected`: position -> how its reason begins; the index is right in all else."""
    offsets = offsets_of(path)
    report = verify(path, **options)
    assert found(report) == [(p, key_of(p), offsets[p]) for p in sorted(expected)]
    for fault in report.faults:
        assert fault.reason.startswith(expected[fault.position]), fault
        assert "\n" not in fault.reason
        assert str(path) not in fault.reason
    return report


@pytest.mark.parametrize("threads", [1, 4])
def test_no_fault(tmp_path: Path, items: list, threads: int) -> None:
    """PNG, grey and progressive JPEGs, labels as arrays, parts: all fine."""
    items[3] = (items[3][0], np.array([2.0], np.float32), items[3][2])
    path = write_with_mxnet(tmp_path / "a", items)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    report = verify(path, threads=threads)
    assert report == Report(path, COUNT, [])
    assert str(report) == "no fault in 24 records"
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_image_that_holds_the_magic_number(
    tmp_path: Path, items: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    magic = bytes.fromhex("0a23d7ce")
    whole = [b"1234" + magic * 3 + b"5", magic, b"1234567" + magic, b"12345678" + magic + b"9"]
    damaged = [*whole, b"1234" + magic + b"56789"]
    path = write_with_mxnet(tmp_path / "a", [(key_of(i), 0.0, p) for i, p in enumerate(damaged)])
    monkeypatch.setattr(verification, "decode", lambda payload: None)
    assert verify(path).faults == []
    # 24 bytes of header and 4 of the image before the first cut; then the second part's header.
    overwrite(path, offsets_of(path)[4] + 8 + 28, bytes(4))
    expect(path, {4: DAMAGED + "magic number 0x00000000"})
    overwrite(path, offsets_of(path)[1] + 4, struct.pack("<I", 1 << 29 | 23))
    expect(path, {1: DAMAGED + "a part of it has 23 bytes", 4: DAMAGED})
    overwrite(path, offsets_of(path)[1] + 4, struct.pack("<I", 1 << 29 | 24))
    path.with_suffix(".idx").unlink()
    assert found(verify(path))[1:] == [(None, key_of(4), path.stat().st_size - 8 - 28 - 8 - 8)]


class TestOneFault:
    """RecordDamage to one place is one fault, with the key that was given to MXNet's writer."""

    @pytest.mark.parametrize(("position", "payload", "reason"), [
        (0, b"\x00garbage" * 60, NO_IMAGE),
        (5, b"\xff\xd8\xff and no more", NO_IMAGE),
        (11, b"", "is empty"),
        (23, b"x", NO_IMAGE),
    ])
    def test_no_image(
        self, tmp_path: Path, items: list, position: int, payload: bytes, reason: str
    ) -> None:
        items[position] = (*items[position][:2], payload)
        expect(write_with_mxnet(tmp_path / "a", items), {position: reason})

    @pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
    def test_image_cut_in_the_middle(self, tmp_path: Path, items: list, share: float) -> None:
        """Colour, grey and progressive JPEGs, and PNGs; MXNet decodes the JPEGs without a word."""
        cut = (0, 1, 2, 4, 9)
        for position in cut:
            payload = items[position][2]
            items[position] = (*items[position][:2], payload[: int(share * len(payload))])
        expect(write_with_mxnet(tmp_path / "a", items), dict.fromkeys(cut, NO_IMAGE))

    @pytest.mark.parametrize(("label", "reason"), [
        (float("nan"), "has label nan, which is no class"),
        (float("inf"), "has label inf, which is no class"),
        (2.5, "has label 2.5, which is no class"),
        (-1.0, "has label -1, which is no class"),
        (np.array([1.0, 2.0], np.float32), "has 2 labels: "),
    ])
    def test_label(self, tmp_path: Path, items: list, label: object, reason: str) -> None:
        items[7] = (items[7][0], label, items[7][2])
        expect(write_with_mxnet(tmp_path / "a", items), {7: reason})

    def test_label_beyond_the_classes(self, tmp_path: Path, items: list) -> None:
        items[7] = (items[7][0], 5.0, items[7][2])
        path = write_with_mxnet(tmp_path / "a", items)
        assert verify(path).faults == []
        assert verify(path, classes=6).faults == []
        reason = "has label 5, which is no class of 0 to 4"
        expect(path, {7: reason}, classes=5)
        path.with_suffix(".classes.txt").write_text("a\nb\nc\nd\ne\n")
        expect(path, {7: reason})
        assert verify(path, classes=6).faults == []

    @pytest.mark.parametrize("position", [0, 9, 23])
    @pytest.mark.parametrize(("at", "value", "reason"), [
        (0, b"\x0b", "magic number 0xced7230b instead of 0xced7230a"),
        (4, struct.pack("<I", 7), "7 bytes are too few"),
        (4, struct.pack("<I", 4 << 29 | 500), "no record begins"),
        (4, struct.pack("<I", 0x1FFFFFFF), ""),
    ])
    def test_header(self, tmp_path: Path, items: list, position: int, at: int, value: bytes,
                    reason: str) -> None:
        path = write_with_mxnet(tmp_path / "a", items)
        overwrite(path, offsets_of(path)[position] + at, value)
        expect(path, {position: DAMAGED + reason})

    def test_length_too_small(self, tmp_path: Path, items: list) -> None:
        """What follows belongs to no record: named with the record, not as another fault."""
        path = write_with_mxnet(tmp_path / "a", items)
        start, end = offsets_of(path)[4:6]
        overwrite(path, start + 4, struct.pack("<I", 1024))
        report = expect(path, {4: NO_IMAGE})
        assert report.faults[0].reason.endswith(
            f"behind it {end - start - 8 - 1024} bytes belong to no record")

    @pytest.mark.parametrize("position", [4, 21])
    @pytest.mark.parametrize("further", [1, 2])
    def test_length_as_of_several_records(
        self, tmp_path: Path, items: list, position: int, further: int
    ) -> None:
        """The image decodes, and what is behind it in the record is the next one."""
        path = write_with_mxnet(tmp_path / "a", items)
        start, end = (offsets_of(path)[i] for i in (position, position + further))
        overwrite(path, start + 4, struct.pack("<I", end - start - 8 + 60))
        expect(path, {position: DAMAGED})
        path.with_suffix(".idx").rename(tmp_path / "index")
        fault = Fault(None, key_of(position), start,
                      "is damaged: its length is wrong, for another record begins within it")
        assert verify(path).faults[1:] == [fault]
        if further == 2:  # and it ends where a record does: only what it holds shows it
            overwrite(path, start + 4, struct.pack("<I", end - start - 8))
            assert verify(path).faults[1:] == [replace(fault, position=position)]
            (tmp_path / "index").rename(path.with_suffix(".idx"))
            expect(path, {position: DAMAGED})

    def test_bytes_behind_the_last_record(self, tmp_path: Path, items: list) -> None:
        path = write_with_mxnet(tmp_path / "a", items)
        size = path.stat().st_size
        for rest in (b"\0", b"abcdefg", bytes(4096), b"\xff\xd8\xff\xe0" * 300):
            overwrite(path, size, rest)
            fault = Fault(None, None, size,
                          f"{len(rest)} bytes belong to no record: they are behind the last")
            assert verify(path).faults == [fault]
            path.with_suffix(".idx").rename(tmp_path / "index")
            assert verify(path).faults[1:] == [fault]
            (tmp_path / "index").rename(path.with_suffix(".idx"))
            with path.open("r+b") as file:
                file.truncate(size)

    def test_bytes_between_records(self, tmp_path: Path, items: list) -> None:
        path = write_with_mxnet(tmp_path / "a", items)
        content, offsets = path.read_bytes(), offsets_of(path)
        path.write_bytes(content[: offsets[6]] + bytes(64) + content[offsets[6] :])
        path.with_suffix(".idx").write_text("".join(
            f"{key_of(i)}\t{offset + 64 * (i >= 6)}\n" for i, offset in enumerate(offsets)))
        assert verify(path).faults == [
            Fault(None, None, offsets[6], "64 bytes belong to no record")]


class TestCutFile:
    @pytest.mark.parametrize("size", [-4, -5, -40, -1])  # on 4 bytes and not
    @pytest.mark.parametrize("indexed", [True, False])
    def test_within_the_last_record(
        self, tmp_path: Path, items: list, size: int, indexed: bool
    ) -> None:
        items[-1] = (*items[-1][:2], items[-1][2][: len(items[-1][2]) // 4 * 4])
        items = items[:-1] if size == -1 else items
        assert size < -1 or len(items[-1][2]) % 4  # -1 is a byte of padding
        path = write_with_mxnet(tmp_path / "a", items)
        offset, position = offsets_of(path)[-1], len(items) - 1
        path.write_bytes(path.read_bytes()[:size])
        if not indexed:
            path.with_suffix(".idx").unlink()
        report = verify(path)
        faults = report.faults if indexed else report.faults[1:]
        listed = position if indexed or size == -1 else None
        assert [(f.position, f.key, f.offset) for f in faults] == [
            (listed, key_of(position), offset)]
        reason = "is cut: 1 bytes of padding" if size == -1 else (
            f"is damaged: the file ends {-size} bytes early")
        assert faults[0].reason.startswith(reason)

    @pytest.mark.parametrize("extra", [0, 3, 5, 9, 20])
    def test_records_ago(self, tmp_path: Path, items: list, extra: int) -> None:
        path = write_with_mxnet(tmp_path / "a", items)
        size = offsets_of(path)[8] + extra
        path.write_bytes(path.read_bytes()[:size])
        beyond = f"lies beyond the end of the file ({size} bytes)"
        expected = dict.fromkeys(range(8, COUNT), beyond)
        if extra >= 8:
            expected[8] = DAMAGED + "the file ends "
        expect(path, expected)


class TestIndex:
    @pytest.fixture
    def path(self, tmp_path: Path, items: list) -> Path:
        return write_with_mxnet(tmp_path / "a", items)

    def write(self, path: Path, entries: list[tuple[int, int]]) -> None:
        path.with_suffix(".idx").write_text("".join(f"{k}\t{o}\n" for k, o in entries))

    def entries(self, path: Path) -> list[tuple[int, int]]:
        return [(key_of(i), offset) for i, offset in enumerate(offsets_of(path))]

    def test_missing(self, path: Path) -> None:
        path.with_suffix(".idx").unlink()
        report = verify(path)
        assert report == Report(path, COUNT, [
            Fault(None, None, None, "is missing: there is no a.idx")])
        assert not path.with_suffix(".idx").exists()
        with pytest.raises(InputError, match=r"mine\.idx does not exist"):
            verify(path, path.with_name("mine.idx"))

    def test_keys_and_offsets_that_repeat(self, path: Path) -> None:
        entries = self.entries(path)
        changed = list(entries)
        changed[3] = (entries[3][0], entries[8][1])   # record 8 twice, record 3 not at all
        changed[2] = (entries[5][0], entries[2][1])   # another record's key
        changed.append(entries[20])                   # a line twice
        self.write(path, changed)
        assert verify(path).faults == [
            Fault(2, *changed[2], "has the same key as position 5"),
            Fault(None, *entries[3], "is not listed in the index"),
            Fault(3, entries[3][0], entries[8][1], "is listed again: position 8 has its offset"),
            Fault(COUNT, *entries[20], "is listed again: position 20 has its offset"),
        ]

    def test_keys_that_are_not_the_records_own(self, path: Path) -> None:
        entries = self.entries(path)
        changed = list(entries)
        changed[2], changed[4] = (entries[4][0], entries[2][1]), (entries[2][0], entries[4][1])
        self.write(path, changed)
        reason = "has another key in its own header: "
        assert verify(path).faults == [
            Fault(2, *changed[2], f"{reason}{key_of(2)}"),
            Fault(4, *changed[4], f"{reason}{key_of(4)}"),
        ]

    def test_records_that_are_not_listed(self, path: Path) -> None:
        entries = self.entries(path)
        self.write(path, [entry for i, entry in enumerate(entries) if i not in (0, 9, 23)])
        report = verify(path)
        assert report.records == COUNT - 3
        assert report.faults == [
            Fault(None, *entries[i], "is not listed in the index") for i in (0, 9, 23)]

    def test_another_order(
        self, path: Path, images: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is read and faults come in the file's order, with the positions of the index."""
        entries = self.entries(path)[::-1]
        for offset in (entries[20][1], entries[4][1]):
            overwrite(path, offset, bytes(4))
        self.write(path, entries)
        assert found(verify(path)) == [(20, *entries[20]), (4, *entries[4])]
        read = []
        monkeypatch.setattr(verification, "decode", lambda payload: read.append(bytes(payload)))
        verify(path, threads=1)
        assert read == [image for i, image in enumerate(images) if i not in (3, 19)]

    def test_offsets_where_nothing_begins(self, path: Path) -> None:
        entries = self.entries(path)
        changed = list(entries)
        changed[5] = (entries[5][0], entries[5][1] + 1)
        changed[6] = (entries[6][0], entries[6][1] + 40)
        changed[7], changed[8] = (entries[7][0], 10**12), (entries[8][0], 10**12)
        self.write(path, changed)
        faults = verify(path).faults
        assert [(f.position, f.offset) for f in faults] == [
            (None, entries[5][1]), (5, entries[5][1] + 1),
            (None, entries[6][1]), (6, entries[6][1] + 40),
            (None, entries[7][1]), (None, entries[8][1]), (7, 10**12), (8, 10**12)]
        assert [f.reason[:24] for f in faults] == [
            "is not listed in the ind", "is damaged: its offset i",
            "is not listed in the ind", "is damaged: magic number",
            "is not listed in the ind", "is not listed in the ind",
            "lies beyond the end of t", "lies beyond the end of t"]

    def test_of_another_file(self, path: Path, items: list) -> None:
        other = write_with_mxnet(path.with_name("b"), items[::-1])
        with pytest.raises(InputError, match=r"b\.idx belongs to another record file"):
            verify(path, other.with_suffix(".idx"))


def every_fault(path: Path, items: list) -> tuple[Path, dict[int, str]]:
    """A file with each fault of toolchain.md, section E.1, and of labels; where they are."""
    for position, label, payload in (
        (10, None, b"garbage, not an image"), (3, None, b""),
        (4, None, items[4][2][: len(items[4][2]) // 2]), (8, 77.0, None), (9, float("nan"), b"x"),
        (15, np.array([1, 2, 3], np.float32), None),
    ):
        key, old_label, old_payload = items[position]
        items[position] = (key, old_label if label is None else label,
                           old_payload if payload is None else payload)
    path = write_with_mxnet(path, items)
    offsets = offsets_of(path)
    for position in (11, 12, 20):
        overwrite(path, offsets[position] + 2, b"\0")
    path.write_bytes(path.read_bytes()[: offsets[21] + 101])
    magic = DAMAGED + "magic number 0xce00230a"
    return path, {
        3: "is empty", 4: NO_IMAGE, 8: "has label 77, ", 9: "has label nan, ", 10: NO_IMAGE,
        11: magic, 12: magic, 15: "has 3 labels", 20: magic, 21: DAMAGED + "the file ends ",
        22: "lies beyond", 23: "lies beyond",
    }


def test_every_fault_in_one_file(tmp_path: Path, items: list) -> None:
    path, expected = every_fault(tmp_path / "a", items)
    offsets = offsets_of(path)
    faults = verify(path, classes=5, threads=3).faults
    # Record 9 has two: its label and its image.
    positions = sorted([*expected, 9])
    assert [f.position for f in faults] == positions
    assert [(f.key, f.offset) for f in faults] == [(key_of(p), offsets[p]) for p in positions]
    seen = {f.position: f.reason for f in reversed(faults)}
    assert all(seen[position].startswith(reason) for position, reason in expected.items())
    assert [f.reason[:12] for f in faults if f.position == 9] == ["has label na", NO_IMAGE[:12]]

    # What reading says is what verifying says.
    with RecordFile(path) as records:
        for position in range(COUNT):
            if position in (11, 12, 15, 20, 21):
                with pytest.raises(InputError) as caught:
                    records.read(position)
                assert caught.value.reason == seen[position]


def test_every_fault_without_the_index(tmp_path: Path, items: list) -> None:
    path, expected = every_fault(tmp_path / "a", items)
    offsets = offsets_of(path)
    path.with_suffix(".idx").unlink()
    report = verify(path, classes=5)
    there = [p for p in sorted([*expected, 9]) if p < 22]
    assert [(f.key, f.offset) for f in report.faults] == [
        (None, None), *((key_of(p), offsets[p]) for p in there)]
    assert report.faults[0].reason == "is missing: there is no a.idx"
    # Positions are of the index that would be rebuilt: without what is no record.
    lost = (11, 12, 20, 21)
    assert [f.position for f in report.faults[1:]] == [
        None if p in lost else p - sum(one < p for one in lost) for p in there]
    assert report.records == 22 - len(lost)


def test_memory_is_bounded(tmp_path: Path, items: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many records, no more of them are under way than 4 a thread."""
    path = write_with_mxnet(tmp_path / "a", [(i, 0.0, b"x") for i in range(200)])
    hold, at_once = threading.Event(), []
    submit = verification.ThreadPoolExecutor.submit
    finished = []

    def count(self, *args: object) -> object:
        future = submit(self, *args)
        future.add_done_callback(finished.append)
        at_once.append(len(at_once) + 1 - len(finished))
        if len(at_once) == 8:
            hold.set()  # with every thread waiting until here
        return future

    def decode(payload: memoryview) -> None:
        assert hold.wait(30)

    monkeypatch.setattr(verification.ThreadPoolExecutor, "submit", count)
    monkeypatch.setattr(verification, "decode", decode)
    assert verify(path, threads=2).faults == []
    assert len(at_once) == 200
    assert max(at_once) == 8
