"""RecordFile against MXNet's own RecordIO writer, and against damaged files."""

from __future__ import annotations

import multiprocessing
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from gluon_resnest.data.records import MAGIC, RecordFile
from gluon_resnest.errors import InputError

MAGIC_BYTES = struct.pack("<I", MAGIC)


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
        child = context.Process(target=lambda: sender.send([records.read(i) for i in range(10)]))
        child.start()
        assert [tuple(record) for record in receiver.recv()] == items
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


def test_an_imagenet_sized_index(tmp_path: Path) -> None:
    """1,281,167 entries; the file is sparse between its first and its last record."""
    count, distance = 1281167, 110_000
    path = write_with_mxnet(tmp_path / "a", [(0, 5.0, b"image")])
    record = path.read_bytes()
    with path.open("r+b") as file:
        file.seek((count - 1) * distance)
        file.write(record)
    path.with_suffix(".idx").write_text(
        "".join(f"{i}\t{i * distance}\n" for i in range(count)))
    with RecordFile(path) as records:
        assert len(records) == count
        assert records.read(count - 1) == (count - 1, 5.0, b"image")


class TestUnusableFiles:
    """Each fault is one line that names the file and the remedy."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return write_with_mxnet(tmp_path / "a", random_items(6, seed=1))

    def expect(self, path: Path, message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            RecordFile(path)
        assert "\n" not in str(caught.value)
        assert "a.rec" in str(caught.value) or "a.idx" in str(caught.value)
        assert "pack_records.py" in str(caught.value)

    def test_missing_record_file(self, path: Path) -> None:
        path.unlink()
        self.expect(path, r"a\.rec does not exist")

    def test_missing_index(self, path: Path) -> None:
        path.with_suffix(".idx").unlink()
        self.expect(path, r"a\.idx does not exist")

    def test_empty_files(self, path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(b"")
        self.expect(path, r"a\.rec (is empty|\(0 bytes\))")
        path.write_bytes(content)
        path.with_suffix(".idx").write_text("\n")
        self.expect(path, r"a\.idx is empty")

    def test_size_that_is_no_multiple_of_four(self, path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-2])
        self.expect(path, "not a multiple of 4")

    def test_cut_between_records(self, path: Path) -> None:
        last = int(path.with_suffix(".idx").read_text().split()[-1])
        path.write_bytes(path.read_bytes()[:last])
        self.expect(path, rf"a\.idx, line 6: offset {last} .* was cut")

    def test_cut_within_the_last_record(self, path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-4])
        self.expect(path, r"record 16 of .*a\.rec .* the file ends \d bytes early")

    def test_not_record_io(self, path: Path) -> None:
        path.write_bytes(b"\xff\xd8\xff\xe0" * (path.stat().st_size // 4))
        self.expect(path, "magic number 0xe0ffd8ff instead of 0xced7230a")

    @pytest.mark.parametrize(
        ("line", "number"),
        [("3 200", 3), ("3\t200\t1", 3), ("3\tx", 3), ("<html>", 3), ("", 3), ("10\t-4", 3)],
    )
    def test_malformed_index_names_the_line(self, path: Path, line: str, number: int) -> None:
        index = path.with_suffix(".idx")
        lines = index.read_text().splitlines()
        lines[number - 1] = line
        index.write_text("\n".join(lines) + "\n")
        self.expect(path, rf"a\.idx, line {number}: ")

    def test_damage_in_the_middle_spares_the_other_records(self, path: Path) -> None:
        items = random_items(6, seed=1)
        offsets = [int(line.split()[1]) for line in path.with_suffix(".idx").read_text().split("\n")
                   if line]
        content = bytearray(path.read_bytes())
        content[offsets[2]] ^= 1
        path.write_bytes(content)
        with RecordFile(path) as records:
            with pytest.raises(InputError, match=r"record 7 of .*a\.rec .* magic number"):
                records.read(2)
            assert [tuple(records.read(i)) for i in (0, 1, 3, 4, 5)] == [*items[:2], *items[3:]]

    def test_several_labels(self, tmp_path: Path) -> None:
        items = [(5, np.array([1.0, 2.0], np.float32), b"image")]
        with pytest.raises(InputError, match=r"record 5 of .*a\.rec has 2 labels"):
            RecordFile(write_with_mxnet(tmp_path / "a", items))
