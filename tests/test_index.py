"""The index of a record file: lines that are refused, and a missing one that is rebuilt.

The reference is the index that MXNet wrote.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from test_records import MAGIC_BYTES, overwrite, random_items, write_with_mxnet

from gluon_resnest.data.records import index as index_module
from gluon_resnest.data.records.record_file import BadRecord, RecordFile
from gluon_resnest.errors import InputError

ITEMS = (*random_items(6, seed=1), (40, 1.0, b"ab" * 20 + MAGIC_BYTES * 2 + b"c"), (41, 2.0, b""),
         (43, 0.0, b"last"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_with_mxnet(tmp_path / "a", list(ITEMS[:6]))


def refuse(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        RecordFile(path)
    assert "\n" not in str(caught.value)
    assert "remove it and it is rebuilt" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "number"),
    [("3 200", 3), ("3\t200\t1", 3), ("3\tx", 3), ("<html>", 3), ("", 3), ("10\t-4", 3),
     ("3\t2 0\t", 3), ("3\t\t200", 3), ("\t200", 3), ("3\t", 3), ("3\t2.5", 3),
     ("3\t1" + "0" * 18, 3), (" 3\t200", 3), ("3\t200\r7", 3), ("x\t0", 1)],
)
def test_malformed_index_names_the_line(path: Path, line: str, number: int) -> None:
    index = path.with_suffix(".idx")
    lines = index.read_text().splitlines()
    lines[number - 1] = line
    index.write_bytes("\n".join(lines).encode() + b"\n")
    refuse(path, rf"a\.idx, line {number}: ")


def test_cut_index_is_malformed(path: Path) -> None:
    index = path.with_suffix(".idx")
    index.write_text(index.read_text()[: index.read_text().rindex("\t")])
    refuse(path, r"a\.idx, line 6: '16' is not 'key <tab> offset'")


def test_a_huge_file_is_no_index(path: Path) -> None:
    """Of a hole of 10 GB, which would be read into memory."""
    os.truncate(path.with_suffix(".idx"), 10_000_000_000)
    refuse(path, r"a\.idx has more than 1,073,741,824 bytes, which is no index")


def test_line_ends_of_other_systems(path: Path) -> None:
    index = path.with_suffix(".idx")
    index.write_bytes(index.read_bytes().replace(b"\n", b"\r\n"))
    for text in (index.read_bytes(), index.read_bytes()[:-2], index.read_bytes()[:-1]):
        index.write_bytes(text)
        with RecordFile(path) as records:
            assert [tuple(records.read(i)) for i in range(6)] == list(ITEMS[:6])


def test_an_imagenet_sized_index(tmp_path: Path) -> None:
    """1,281,167 entries; the file is sparse between the records that are looked at."""
    count, distance = 1281167, 110_000
    path = write_with_mxnet(tmp_path / "a", [(0, 5.0, b"image")])
    record = path.read_bytes()
    with path.open("r+b") as file:
        for position in np.linspace(0, count - 1, 16).astype(int).tolist():
            file.seek(position * distance)
            file.write(record)
    path.with_suffix(".idx").write_text(
        "".join(f"{i}\t{i * distance}\n" for i in range(count)))
    started = time.perf_counter()
    records = RecordFile(path)
    assert time.perf_counter() - started < 2  # 0.2 s on an idle core
    assert len(records) == count
    assert records.read(count - 1) == (count - 1, 5.0, b"image")
    assert len(records.unreachable) == 0
    with pytest.raises(BadRecord, match=r"record 5 of .* magic number 0x00000000"):
        records.read(5)
    records.close()
    del records
    tracemalloc.start()
    records = RecordFile(path)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 21 * count
    records.close()


class TestMissingIndex:
    """It is rebuilt; the reference is the one that MXNet wrote."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = write_with_mxnet(tmp_path / "a", list(ITEMS))
        path.with_suffix(".idx").rename(tmp_path / "mxnet")
        return path

    def original(self, path: Path) -> list[tuple[int, int]]:
        lines = path.with_name("mxnet").read_text().splitlines()
        return [(int(key), int(offset)) for key, offset in (line.split() for line in lines)]

    def test_equals_the_one_that_mxnet_wrote(self, path: Path, capfd) -> None:
        with RecordFile(path) as records:
            assert [tuple(records.read(i)) for i in range(9)] == list(ITEMS)
        assert path.with_suffix(".idx").read_bytes() == path.with_name("mxnet").read_bytes()
        assert capfd.readouterr().err == (
            f"{path.with_suffix('.idx')} was missing: 9 records found in {path}, index written\n")
        with RecordFile(path) as records:
            assert tuple(records.read(8)) == ITEMS[8]
        assert capfd.readouterr().err == ""

    def test_kept_in_memory_where_it_cannot_be_written(self, path: Path, capfd) -> None:
        path.with_name(f".a.idx.{os.getpid()}.tmp").mkdir()  # in the way of the new file
        with RecordFile(path) as records:
            assert [tuple(records.read(i)) for i in range(9)] == list(ITEMS)
        assert not path.with_suffix(".idx").exists()
        said = capfd.readouterr().err
        assert said.count("\n") == 1
        assert "9 records found" in said
        assert "index kept in memory only: cannot write" in said

    def test_other_ranks_neither_write_nor_speak(
        self, path: Path, capfd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOROVOD_RANK", "1")
        monkeypatch.setenv("HOROVOD_SIZE", "2")
        overwrite(path, self.original(path)[0][1], bytes(4))
        with RecordFile(path) as records:
            assert [tuple(records.read(i)) for i in range(1, 9)] == list(ITEMS[1:])
        assert not path.with_suffix(".idx").exists()
        assert capfd.readouterr().err == ""

    def test_a_named_index_that_is_missing_is_an_error(self, path: Path) -> None:
        with pytest.raises(InputError, match=r"mine\.idx does not exist"):
            RecordFile(path, path.with_name("mine.idx"))
        assert not path.with_name("mine.idx").exists()

    @pytest.mark.parametrize(("position", "at", "value"), [
        (0, 0, b"\0"),                                  # magic of the first record
        (3, 0, b"\x0b"),                                # magic
        (3, 4, struct.pack("<I", 0x1FFFFFFF)),          # length beyond the file
        (2, 4, struct.pack("<I", 5000)),                # length into another record: who knows?
        (6, 0, b"\x0b"),                                # the first of three parts
        (6, 76, b"\x0b"),                               # the second of three parts
        (8, 0, b"\x0b"),                                # magic of the last record
    ])
    def test_a_damaged_record_stays_listed(
        self, path: Path, capfd, position: int, at: int, value: bytes
    ) -> None:
        """By the key in its header, so that nobody takes the file for a smaller one."""
        overwrite(path, self.original(path)[position][1] + at, value)
        is_whole = at != 4
        with RecordFile(path) as records:
            assert (records.gaps == []) == is_whole
            for number, item in enumerate(ITEMS):
                if number == position:
                    with pytest.raises(BadRecord) as caught:
                        records.read(number)
                    assert caught.value.key == item[0]
                else:
                    assert tuple(records.read(number)) == item
        if is_whole:
            written = path.with_suffix(".idx").read_bytes()
            assert written == path.with_name("mxnet").read_bytes()
        assert path.with_suffix(".idx").exists() == is_whole
        assert capfd.readouterr().err.count("\n") == 1

    @pytest.mark.parametrize("value", [8, 6 << 29 | 300])  # a length, and a kind that there is not
    def test_a_place_without_a_header_is_a_gap(self, path: Path, capfd, value: int) -> None:
        """An index without it would pass as that of a whole file: so none is written."""
        original = self.original(path)
        start, end = original[3][1], original[4][1]
        overwrite(path, start + 4, struct.pack("<I", value))
        for _ in range(2):
            with RecordFile(path) as records:
                assert records.gaps == [(start, end - start)]
                rest = [item for number, item in enumerate(ITEMS) if number != 3]
                assert [tuple(records.read(i)) for i in range(8)] == rest
                assert len(records) == 8
            assert not path.with_suffix(".idx").exists()
            said = capfd.readouterr().err
            assert said.count("\n") == 1
            assert f"warning: {end - start:,} bytes at offset {start:,} may hold records" in said

    def test_an_id_beyond_all_keys(self, path: Path) -> None:
        """The record can be read; its key is the largest that an index holds."""
        overwrite(path, self.original(path)[3][1] + 16, b"\xff" * 8)
        for _ in range(2):
            with RecordFile(path) as records:
                assert tuple(records.read(3)) == (10**18 - 1, *ITEMS[3][1:])
                assert len(records) == 9

    def test_two_damaged_places_and_a_cut_end(self, path: Path) -> None:
        original = self.original(path)
        for position in (1, 2, 5):
            overwrite(path, original[position][1], bytes(4))
        path.write_bytes(path.read_bytes()[:-3])
        with RecordFile(path) as records:
            assert [records.key(i) for i in range(len(records))] == [key for key, _ in original]
            for position in (1, 2, 5, 8):
                with pytest.raises(BadRecord):
                    records.read(position)

    def test_finds_a_record_over_the_seam_of_two_chunks(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        overwrite(path, self.original(path)[0][1], bytes(4))
        for chunk in (4, 8, 12, 64):
            monkeypatch.setattr(index_module, "_CHUNK", chunk)
            path.with_suffix(".idx").unlink(missing_ok=True)
            with RecordFile(path) as records:
                assert [tuple(records.read(i)) for i in range(1, 9)] == list(ITEMS[1:])

    def test_several_processes_at_once(self, path: Path) -> None:
        program = ("import sys; from gluon_resnest.data.records.record_file import RecordFile\n"
                   "records = RecordFile(sys.argv[1])\n"
                   "print([records.key(i) for i in range(len(records))])")
        running = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(path)], text=True, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "HOROVOD_RANK": str(rank), "HOROVOD_SIZE": "3"})
            for rank in range(3)
        ]
        outcomes = [process.communicate(timeout=100) for process in running]
        for rank, (out, err) in enumerate(outcomes):
            assert out == f"{[item[0] for item in ITEMS]}\n", err
            assert not err or rank == 0
        assert path.with_suffix(".idx").read_bytes() == path.with_name("mxnet").read_bytes()
        assert len(list(path.parent.iterdir())) == 3

    @pytest.mark.parametrize("content", [b"\x89PNG" * 500, bytes(4000), b"abc"])
    def test_what_is_no_record_file(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.rec holds no image record: it is not RecordIO"):
            RecordFile(path)
        assert not path.with_suffix(".idx").exists()
