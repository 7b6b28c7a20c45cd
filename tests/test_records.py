"""RecordFile against MXNet's own RecordIO writer, and against damaged files."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from gluon_resnest.data.records import recordio
from gluon_resnest.data.records.packing import write_record
from gluon_resnest.data.records.record_file import BadRecord, RecordFile
from gluon_resnest.errors import InputError

MAGIC_BYTES = bytes.fromhex("0a23d7ce")  # dmlc-core, recordio.h: kMagic


def write_with_mxnet(prefix: Path, items: list[tuple[int, object, bytes]]) -> Path:
    """Write (key, label or labels, payload) with MXNet's writer; the path of the .rec."""
    writer = mx.recordio.MXIndexedRecordIO(f"{prefix}.idx", f"{prefix}.rec", "w")
    for key, label, payload in items:
        writer.write_idx(key, mx.recordio.pack(mx.recordio.IRHeader(0, label, key, 0), payload))
    writer.close()
    return Path(f"{prefix}.rec")


def random_items(count: int, seed: int = 0) -> list[tuple[int, float, bytes]]:
    rng = np.random.default_rng(seed)
    return [
        (3 * i + 1, float(rng.integers(0, 1000)), rng.bytes(int(rng.integers(0, 3000))))
        for i in range(count)
    ]


def test_reads_what_mxnet_wrote(tmp_path: Path) -> None:
    items = random_items(50)
    with RecordFile(write_with_mxnet(tmp_path / "a", items)) as records:
        assert len(records) == 50
        assert [tuple(records.read(i)) for i in range(50)] == items
        assert [records.key(i) for i in range(50)] == [item[0] for item in items]


def test_reads_labels_packed_as_an_array(tmp_path: Path) -> None:
    items = [(7, np.array([3.0], np.float32), b"image"), (8, 4.0, b"another")]
    with RecordFile(write_with_mxnet(tmp_path / "a", items)) as records:
        assert records.read(0) == (7, 3.0, b"image")
        assert records.read(1) == (8, 4.0, b"another")


@pytest.mark.parametrize(
    "payload",
    [
        MAGIC_BYTES,
        b"abcd" + MAGIC_BYTES + b"efg",
        b"abc" + MAGIC_BYTES + b"not at a multiple of four",
        MAGIC_BYTES * 5,
        b"ab" + MAGIC_BYTES + b"cd" + MAGIC_BYTES,
        b"start" * 4 + MAGIC_BYTES + b"middle__" + MAGIC_BYTES + b"end",
    ],
)
def test_joins_records_that_hold_the_magic_number(tmp_path: Path, payload: bytes) -> None:
    items = [(0, 1.0, payload), (1, 2.0, b"next")]
    with RecordFile(write_with_mxnet(tmp_path / "a", items)) as records:
        assert records.read(0) == items[0]
        assert records.read(1) == items[1]


def test_position_follows_the_index_in_any_order(tmp_path: Path) -> None:
    items = random_items(9)
    path = write_with_mxnet(tmp_path / "a", items)
    lines = path.with_suffix(".idx").read_text().splitlines()
    order = [4, 8, 0, 3]
    other = tmp_path / "some.idx"
    other.write_text("\n".join(lines[i] for i in order))  # no newline at the end either
    with RecordFile(path, other) as records:
        assert [tuple(records.read(i)) for i in range(4)] == [items[i] for i in order]


def test_threads_pickles_and_forks_read_alike(tmp_path: Path) -> None:
    items = random_items(40)
    records = RecordFile(write_with_mxnet(tmp_path / "a", items))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(records.read, list(range(40)) * 5)) == items * 5
    copy = pickle.loads(pickle.dumps(records))
    records.close()
    assert tuple(copy.read(39)) == items[39]
    copy.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_goes_on_reading(tmp_path: Path) -> None:
    items = random_items(10)
    with RecordFile(write_with_mxnet(tmp_path / "a", items)) as records:
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=lambda: sender.send(
            [(key, label, bytes(payload)) for key, label, payload in map(records.read, range(10))]))
        child.start()
        assert receiver.recv() == items
        child.join(10)
        assert child.exitcode == 0
        assert tuple(records.read(3)) == items[3]


def test_class_names_come_from_the_list_beside_the_file(tmp_path: Path) -> None:
    with RecordFile(write_with_mxnet(tmp_path / "a", random_items(2))) as records:
        assert records.class_names is None
        (tmp_path / "a.classes.txt").write_text("tench\ngoldfish, Carassius\n", encoding="utf-8")
        assert records.class_names == ["tench", "goldfish, Carassius"]
        (tmp_path / "a.classes.txt").write_text("tench\n\nshark\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"a\.classes\.txt has an empty line"):
            _ = records.class_names


def test_payload_is_no_copy_and_numpy_takes_it_without_one(tmp_path: Path) -> None:
    with RecordFile(write_with_mxnet(tmp_path / "a", [(0, 1.0, b"x" * 4096)])) as records:
        payload = records.read(0).payload
    pixels = np.frombuffer(payload, np.uint8)
    assert pixels.tobytes() == b"x" * 4096
    # One object holds the record as it was read; both are views of it, 32 bytes of headers on.
    assert len(payload.obj) == 4096 + 32
    start = np.frombuffer(payload.obj, np.uint8).__array_interface__["data"][0]
    assert pixels.__array_interface__["data"][0] == start + 32


def test_one_system_call_reads_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the index is in another order than the file; two read what is over a MiB."""
    items = [*random_items(8), (99, 1.0, bytes(3 << 20)), (100, 2.0, b"last")]
    path = write_with_mxnet(tmp_path / "a", items)
    lines = path.with_suffix(".idx").read_text().splitlines()
    path.with_suffix(".idx").write_text("\n".join(reversed(lines)))
    calls, pread = [], os.pread
    with RecordFile(path) as records:
        monkeypatch.setattr(os, "pread", lambda *args: calls.append(args[1]) or pread(*args))
        for position in range(10):
            calls.clear()
            assert tuple(records.read(position)) == items[9 - position]
            assert len(calls) == (3 if items[9 - position][0] == 99 else 1)
            assert sum(calls) < 5 << 20


def offsets_of(path: Path) -> list[int]:
    """Offsets in the index that MXNet wrote."""
    lines = path.with_suffix(".idx").read_text().splitlines()
    return [int(line.split("\t")[1]) for line in lines]


def overwrite(path: Path, offset: int, value: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(value)


class TestDamagedRecords:
    """The file opens, the records that are damaged say so, the others are as they were."""

    ITEMS = (*random_items(19, seed=3), (99, 7.0, b"two bytes of padding.."))

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return write_with_mxnet(tmp_path / "a", self.ITEMS)

    def expect(self, path: Path, bad: dict[int, str], unreachable: list[int]) -> None:
        """`bad`: position -> part of the reason."""
        offsets = offsets_of(path)
        with RecordFile(path) as records:
            assert records.unreachable.tolist() == unreachable
            assert records.unreachable.dtype == np.int64
            for position, item in enumerate(self.ITEMS):
                if position not in bad:
                    assert tuple(records.read(position)) == item
                    continue
                with pytest.raises(BadRecord) as caught:
                    records.read(position)
                fault, message = caught.value, str(caught.value)
                assert (fault.position, fault.key) == (position, item[0])
                assert bad[position] in fault.reason
                assert str(path) not in fault.reason
                assert message.startswith(f"record {item[0]} of {path} (position {position}, "
                                          f"byte {offsets[position]}) {fault.reason}; ")
                assert "scripts/pack_records.py" in message
                assert "\n" not in message

    def test_cut_at_every_byte_of_the_last_two_records(self, path: Path) -> None:
        content, offsets = path.read_bytes(), offsets_of(path)
        for size in [*range(offsets[18], offsets[18] + 40), offsets[19] - 1,
                     *range(offsets[19], offsets[19] + 40, 3), len(content) - 3,
                     len(content) - 2, len(content) - 1]:
            path.write_bytes(content[:size])
            bad = {}
            for position in (18, 19):
                end = offsets[position] + 32 + len(self.ITEMS[position][2])
                if size < offsets[position] + 8:
                    bad[position] = "is damaged: the file ends "
                elif size < end:
                    bad[position] = f"is damaged: the file ends {end - size} bytes early"
            self.expect(path, bad, [p for p in (18, 19) if offsets[p] + 8 > size])

    def test_cut_in_half(self, path: Path) -> None:
        offsets = offsets_of(path)
        path.write_bytes(path.read_bytes()[: offsets[10]])
        late = list(range(10, 20))
        self.expect(path, dict.fromkeys(late, "is damaged: the file ends before it"), late)

    def test_some_of_several_kinds(self, path: Path) -> None:
        offsets = offsets_of(path)
        overwrite(path, offsets[2], b"\x0b")
        overwrite(path, offsets[5] + 3, bytes(1))
        overwrite(path, offsets[7] + 4, struct.pack("<I", 5))
        overwrite(path, offsets[9] + 4, struct.pack("<I", offsets[11] - offsets[9]))
        overwrite(path, offsets[12] + 4, struct.pack("<I", 2 << 29 | 500))
        overwrite(path, offsets[14] + 4, struct.pack("<I", 1 << 29 | 24))
        overwrite(path, offsets[16] + 8, struct.pack("<I", 100_000))
        overwrite(path, offsets[18] + 8, struct.pack("<I", 3))
        self.expect(path, {
            2: "magic number 0xced7230b instead of 0xced7230a",
            5: "magic number 0x00d7230a",
            7: "5 bytes are too few for its header",
            9: "reaches into the next record",
            12: "no record begins at its offset",
            14: "magic number",
            16: "end within its 100000 labels",
            18: "has 3 labels",
        }, [])

    def test_misaligned_and_foreign_offsets(self, path: Path) -> None:
        index = path.with_suffix(".idx")
        lines = index.read_text().splitlines()
        lines[3] = f"{self.ITEMS[3][0]}\t{offsets_of(path)[3] + 2}"
        lines[4] = f"{self.ITEMS[4][0]}\t{10**17}"
        lines[6] = f"{self.ITEMS[6][0]}\t{offsets_of(path)[6] + 4}"
        index.write_text("\n".join(lines))
        self.expect(path, {3: "not a multiple of 4", 4: "ends before it", 6: "magic number"},
                    [3, 4])

    def test_a_damaged_length_is_not_read_as_far_as_it_says(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        offsets, calls, pread = offsets_of(path), [], os.pread
        overwrite(path, offsets[4] + 4, struct.pack("<I", (1 << 29) - 1))
        with path.open("r+b") as file:
            file.truncate(1 << 30)
        with RecordFile(path) as records:
            monkeypatch.setattr(os, "pread", lambda *args: calls.append(args[1]) or pread(*args))
            with pytest.raises(BadRecord, match="536870911 reaches into the next record"):
                records.read(4)
        assert sum(calls) == offsets[5] - offsets[4] + 4

    def test_error_for_a_record_that_is_no_image(self, path: Path) -> None:
        with RecordFile(path) as records:
            fault = records.bad(3, "is no image:\n its bytes")
        for copy in (fault, pickle.loads(pickle.dumps(fault))):
            assert (copy.position, copy.key, copy.reason) == (3, 10, "is no image: its bytes")
            assert str(copy).startswith(f"record 10 of {path} (position 3, byte ")
            assert isinstance(copy, InputError)

    def test_a_closed_file_is_a_bug(self, path: Path) -> None:
        records = RecordFile(path)
        records.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            records.read(0)


class TestUnusableFiles:
    """Each fault is one line that names the file and the remedy."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return write_with_mxnet(tmp_path / "a", random_items(6, seed=1))

    def expect(self, path: Path, message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            RecordFile(path)
        assert not isinstance(caught.value, BadRecord)
        assert "\n" not in str(caught.value)
        assert "a.rec" in str(caught.value) or "a.idx" in str(caught.value)
        assert "pack_records.py" in str(caught.value)

    def test_missing_record_file(self, path: Path) -> None:
        path.unlink()
        self.expect(path, r"a\.rec does not exist")

    def test_empty_files(self, path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(b"")
        self.expect(path, r"a\.rec is empty")
        path.write_bytes(content)
        path.with_suffix(".idx").write_text("\n")
        self.expect(path, r"a\.idx is empty")

    def test_not_record_io(self, path: Path) -> None:
        path.write_bytes(b"\xff\xd8\xff\xe0" * (path.stat().st_size // 4))
        self.expect(path, r"6 of 6 records .* record 1 of .*a\.rec \(byte 0\) is damaged: magic "
                          "number 0xe0ffd8ff instead of 0xced7230a")

    def test_index_of_another_file(self, path: Path) -> None:
        write_with_mxnet(path.with_name("b"), random_items(40, seed=2))
        path.with_suffix(".idx").write_bytes(path.with_name("b.idx").read_bytes())
        self.expect(path, r"of \d+ records looked at .*if .*a\.idx belongs to another file")
        path.with_suffix(".idx").write_text("0\t1000000\n1\t2000000\n")
        self.expect(path, r"none of the 2 records in index .*a\.idx lies within .*a\.rec")

    def test_refused_where_most_records_are_damaged(self, path: Path) -> None:
        offsets = offsets_of(path)
        for count, position in enumerate((5, 1, 3), start=1):
            overwrite(path, offsets[position], bytes(4))
            with RecordFile(path) as records:
                assert len(records) == 6, count
        overwrite(path, offsets[2], bytes(4))
        self.expect(path, "4 of 6 records looked at cannot be used: record 4 of")

    def test_several_labels(self, tmp_path: Path) -> None:
        items = [(5, np.array([1.0, 2.0], np.float32), b"image")]
        path = write_with_mxnet(tmp_path / "a", items)
        self.expect(path, r"record 5 of .*a\.rec .* has 2 labels")


def many_parts(path: Path, parts: int) -> Path:
    """A record file whose second record has many parts, each of them a magic number apart."""
    with path.open("wb") as file:
        offsets = [0, write_record(file, 0, 0.0, b"image")]
        write_record(file, 1, 0.0, MAGIC_BYTES * parts)
    path.with_suffix(".idx").write_text("".join(f"{i}\t{at}\n" for i, at in enumerate(offsets)))
    return path


def test_parts_may_not_add_up_to_more_than_an_image(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(recordio, "_MOST_BYTES", 100)
    with RecordFile(many_parts(tmp_path / "a.rec", 30)) as records:
        assert records.read(0).payload == b"image"
        with pytest.raises(BadRecord, match="its parts are longer than any image"):
            records.read(1)


def test_many_parts_take_no_longer_than_their_bytes(tmp_path) -> None:
    with RecordFile(many_parts(tmp_path / "a.rec", 100_000)) as records:
        start = time.monotonic()
        assert records.read(1).payload == MAGIC_BYTES * 100_000
        assert time.monotonic() - start < 20  # a second; it was minutes with their squares
