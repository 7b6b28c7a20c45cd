"""A record file with every fault that copying and packing can leave: training goes on."""

from __future__ import annotations

import gc
import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from gluon_resnest.data.augment.transforms import EvaluationTransform, TrainTransform
from gluon_resnest.data.loading.labelled_images import EvaluationLoader, TrainLoader
from gluon_resnest.data.loading.sampling import Leg
from gluon_resnest.data.records.bad_records import BadRecords
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.data.records.verification import verify
from gluon_resnest.errors import InputError
from gluon_resnest.models import get_model, save_weights
from gluon_resnest.training.bad_record_log import BadRecordLog
from gluon_resnest.workers import Workers
from tests.conftest import run_horovod, run_tool

COUNT = 48
GARBAGE, EMPTY, CUT_JPEG, FLIPPED_MAGIC, LOST_MIDDLE, CUT_FILE = 5, 11, 17, 23, 29, COUNT - 1
BAD = sorted([GARBAGE, EMPTY, CUT_JPEG, FLIPPED_MAGIC, LOST_MIDDLE, CUT_FILE])


def encoded(image: np.ndarray, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).resize((160, 120)).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def write(folder: Path, with_index: bool) -> Path:
    """Digits of two classes, written by MXNet: six bad records, and unusual ones that are fine."""
    digits, labels = load_digits(n_class=2, return_X_y=True)
    digits = (digits[:COUNT].reshape(-1, 8, 8) * 15.9).astype(np.uint8)
    writer = mx.recordio.MXIndexedRecordIO(str(folder / "a.idx"), str(folder / "a.rec"), "w")
    offsets = []
    for i, (digit, label) in enumerate(zip(digits, labels)):
        content = {1: encoded(digit, "PNG"), 2: encoded(digit, mode="L"),
                   3: encoded(digit, mode="CMYK"), 4: encoded(digit, "BMP"), EMPTY: b"",
                   GARBAGE: bytes(range(256)) * 3}.get(i, encoded(digit))
        if i == CUT_JPEG:
            content = content[: len(content) // 2]
        if i == LOST_MIDDLE:
            middle = len(content) * 2 // 3
            content = content[:middle] + bytes(200) + content[middle + 200 :]
        offsets.append(writer.tell())
        header = mx.recordio.IRHeader(0, float(label), 100 + i, 0)
        writer.write_idx(100 + i, mx.recordio.pack(header, content))
    writer.close()
    path = folder / "a.rec"
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, offsets[FLIPPED_MAGIC], 0xBADBAD)
    path.write_bytes(content[: (offsets[-1] + len(content)) // 2 | 1])  # not a multiple of 4
    if not with_index:
        (folder / "a.idx").unlink()
    return path


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("faulty"), with_index=True)


def listed(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "bad_records.jsonl").read_text().splitlines()]


TRAINING = ("train_imagenet.py", "--model", "resnest14", "--input-size", "32", "--batch-size", "8",
            "--num-epochs", "3", "--warmup-epochs", "0", "--classes", "2", "--no-cuda",
            "--data-nthreads", "2")


def test_verify_finds_all(faulty: Path) -> None:
    report = verify(faulty)
    assert sorted({fault.key - 100 for fault in report.faults}) == BAD
    assert len(report.faults) == len(BAD)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "sharding"), [(1, "fixed"), (2, "fixed"), (2, "global")])
def test_training_lists_each_once_and_finishes(
    faulty: Path, tmp_path: Path, ranks: int, sharding: str
) -> None:
    command = (*TRAINING, "--rec-train", faulty, "--max-bad-records", "0.2",
               "--sharding", sharding, "--save-dir", tmp_path / "run")
    done = run_tool(*command) if ranks == 1 else run_horovod(*command, ranks=ranks)
    assert (tmp_path / "run" / "last.params").exists()
    entries = listed(tmp_path / "run")
    assert sorted(entry["position"] for entry in entries) == BAD
    assert all(entry["key"] == 100 + entry["position"] for entry in entries)
    reasons = {entry["position"]: entry["reason"] for entry in entries}
    assert "magic number 0x00badbad" in reasons[FLIPPED_MAGIC]
    assert "the file ends" in reasons[CUT_FILE]
    assert "is no image: its 0 bytes" in reasons[EMPTY]
    assert "is no image: its 768 bytes" in reasons[GARBAGE]
    assert "damaged JPEG: Premature end" in reasons[CUT_JPEG]
    assert "damaged JPEG" in reasons[LOST_MIDDLE]
    assert "another one takes its place" in done.stdout + done.stderr
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in steps if entry["event"] == "epoch"] == [1, 2, 3]


@pytest.mark.slow
def test_without_an_index_training_lists_them_too(tmp_path: Path) -> None:
    path = write(tmp_path, with_index=False)
    run_tool(*TRAINING, "--rec-train", path, "--max-bad-records", "0.2", "--save-dir",
             tmp_path / "run")
    assert (tmp_path / "a.idx").exists()
    assert sorted(entry["key"] - 100 for entry in listed(tmp_path / "run")) == BAD


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_above_the_share_the_run_stops_with_the_list(
    faulty: Path, tmp_path: Path, ranks: int
) -> None:
    command = (*TRAINING, "--rec-train", faulty, "--save-dir", tmp_path / "run")
    if ranks == 1:
        done = run_tool(*command, code=2)
        assert done.stderr.count("error: ") == 1
    else:
        done = run_horovod(*command, ranks=2, code=1)
    assert "of 48, and --max-bad-records 0.001 allows 0" in done.stderr + done.stdout
    assert listed(tmp_path / "run")
    assert not (tmp_path / "run" / "last.params").exists()
    # The list is no run: the next one begins in the same folder, with a list of its own.
    done = run_tool(*command, code=2)
    assert "holds a run already" not in done.stderr
    positions = [entry["position"] for entry in listed(tmp_path / "run")]
    assert len(positions) == len(set(positions))


def test_validation_refuses_unless_told_otherwise(faulty: Path, tmp_path: Path) -> None:
    evaluation = ("scripts/evaluate.py", "--model", "resnest14", "--params", tmp_path / "w.params",
                  "--rec-val", faulty, "--test-size", "32", "--classes", "2", "--no-cuda")
    net = get_model("resnest14", classes=2)
    net.initialize()
    save_weights(net, tmp_path / "w.params")
    done = run_tool(*evaluation, code=2)
    assert "--skip-bad-records" in done.stderr
    done = run_tool(*evaluation, "--skip-bad-records", "--json")
    found = json.loads(done.stdout)
    assert found["images"] == COUNT - len(BAD)
    assert found["skipped"] == len(BAD)
    assert done.stderr.count("left out: record ") == len(BAD)


@pytest.mark.slow
def test_memory_does_not_grow(faulty: Path) -> None:
    """Resident memory of a process after 5 and after 20 epochs, with all augmentation."""
    program = f"""
import gluon_resnest
from gluon_resnest.data.loading.labelled_images import TrainLoader
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.data.augment.transforms import TrainTransform

def resident():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024

records = RecordFile({str(faulty)!r})
loader = TrainLoader(records, TrainTransform(64), 8, classes=2, threads=2, max_bad_records=1)
for epoch in range(20):
    for repeat in range(5):
        assert sum(len(batch.labels) for batch in loader.epoch(5 * epoch + repeat)) == {COUNT}
    if epoch == 4:
        early = resident()
assert len(loader.bad_records) == {len(BAD)}
print(early, resident())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          timeout=300, check=True, env=dict(os.environ))
    early, late = map(float, done.stdout.split())
    assert late - early < 4, f"{early} MiB after 5 rounds of epochs, {late} after 20"


def test_a_bad_record_holds_no_batch(faulty: Path) -> None:
    """An exception refers to the frames that it went through, and these to the pixels."""
    with RecordFile(faulty) as records:
        loader = TrainLoader(records, TrainTransform(32), 8, classes=2, threads=2,
                             max_bad_records=1)
        for epoch in range(3):
            for _ in loader.epoch(epoch):
                pass
        gc.collect()
        assert len(loader.bad_records) == len(BAD)
        taken = 3  # the one in use and two ahead
        free = {name: len(arrays) for name, arrays in loader._memory._free.items()}
        assert free == {"images": taken, "labels": taken}


def test_a_record_that_could_be_read_again_is_counted_again(faulty: Path) -> None:
    """As on a disk that failed once: the second evaluation is of all images."""
    with RecordFile(faulty) as records:
        loader = EvaluationLoader(records, EvaluationTransform(32), 8, classes=2, threads=2,
                                  skip_bad_records=True)
        loader.bad_records[0] = records.bad(0, "cannot be read")
        images = sum(len(batch.labels) for batch in loader)
        assert sorted(loader.bad_records) == BAD
        assert images + len(loader.bad_records) == COUNT


def test_lost_headers_are_no_smaller_file(tmp_path: Path) -> None:
    """Without an index and without headers, nobody knows how many images there were."""
    path = write(tmp_path, with_index=False)
    content = bytearray(path.read_bytes())
    content[80_000:100_000] = bytes(20_000)
    path.write_bytes(content)
    for _ in range(2):
        with RecordFile(path) as records:
            assert len(records.gaps) == 1
            with pytest.raises(InputError, match=r"may hold records that are lost.*--skip-bad"):
                EvaluationLoader(records, EvaluationTransform(32), 8, classes=2)
            EvaluationLoader(records, EvaluationTransform(32), 8, classes=2, skip_bad_records=True)
        assert not path.with_suffix(".idx").exists()


def test_replacements_are_the_same_for_any_ranks_and_after_a_resumption(faulty: Path) -> None:
    settings = {"classes": 2, "threads": 2, "max_bad_records": 1, "sharding": "global"}
    with RecordFile(faulty) as records:
        def loader(batch: int, rank: int = 0, world: int = 1) -> TrainLoader:
            return TrainLoader(records, TrainTransform(32), batch, rank, world, **settings)

        alone = [batch.images for batch in loader(8).epoch(1)]
        ranks = [loader(4, rank, 2).epoch(1) for rank in range(2)]
        assert all(np.array_equal(images, np.concatenate([part.images for part in parts]))
                   for images, *parts in zip(alone, *ranks))
        for iterator in ranks:
            iterator.close()
        later = [batch.images for batch in loader(8).epoch(1, (Leg(1, 8, 4),))]
        assert all(map(np.array_equal, later, alone[4:]))
        assert len(later) == len(alone) - 4


class TestBadRecords:
    def test_counts_each_once_and_tells_each_once(self, faulty: Path) -> None:
        with RecordFile(faulty) as records:
            found = BadRecords(records, share=3 / COUNT)
            for _ in range(2):
                for position in (3, 4, 3):
                    found.add(records.bad(position, "is bad"))
            assert len(found) == 2
            assert [fault.position for fault in found.take_untold()] == [3, 4]
            assert found.take_untold() == []
            found.know([4, 7])
            assert 7 in found
            assert found.take_untold() == []
            with pytest.raises(InputError, match=r"4 of 48, and --max-bad-records 0\.0625 allows"):
                found.add(records.bad(8, "is bad"))

    @pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
    def test_share_that_is_none(self, faulty: Path, share: float) -> None:
        with RecordFile(faulty) as records:
            with pytest.raises(InputError, match="--max-bad-records"):
                BadRecords(records, share)

    def test_what_was_cut_off_stops_a_run_before_it_begins(self, tmp_path: Path) -> None:
        path = write(tmp_path, with_index=True)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
        with RecordFile(path) as records:
            lost = len(records.unreachable)
            assert 8 < lost < 20
            with pytest.raises(InputError, match=f"{lost} of 48.*the file ends before it"):
                TrainLoader(records, TrainTransform(32), 8, classes=2)
            assert len(BadRecords(records, share=0.5)) == lost

    def test_a_log_of_ranks(self, faulty: Path, tmp_path: Path) -> None:
        """What another rank told of is written once, and known to all from then on."""
        class Two(Workers):
            size = 2

            def gather(self, value: list) -> list:
                return [value, [{"position": 9, "key": 109, "reason": "is bad", "epoch": 1,
                                 "rank": 1}] if value else []]

        with RecordFile(faulty) as records:
            found = BadRecords(records, share=1)
            log = BadRecordLog(tmp_path / "bad_records.jsonl", found, Two())
            found.add(records.bad(3, "is bad"))
            log.share(0)
            other = BadRecords(records, share=1)  # of a rank that met the same ones, and stops
            for position in (9, 3, 5):
                other.add(records.bad(position, "is bad"))
            two = Two()
            two.rank = 1
            BadRecordLog(tmp_path / "bad_records.jsonl", other, two).give_up(1)
        assert [entry["position"] for entry in listed(tmp_path)] == [3, 9, 5]
        assert listed(tmp_path)[-1]["rank"] == 1
