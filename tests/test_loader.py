"""Loaders: every image once, the same whatever the threads, and nothing left behind."""

from __future__ import annotations

import gc
import struct
import threading
import time
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from gluon_resnest.data.augment.random_streams import sample_generator
from gluon_resnest.data.augment.transforms import EvaluationTransform, TrainTransform
from gluon_resnest.data.class_names import check_classes
from gluon_resnest.data.loading.labelled_images import EvaluationLoader, TrainLoader
from gluon_resnest.data.loading.position import Position
from gluon_resnest.data.loading.sampling import Sampling
from gluon_resnest.data.records.packing import PackOptions, pack
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.errors import InputError

COUNT = 37


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> RecordFile:
    """37 crops of two photographs, 2 classes."""
    source = tmp_path_factory.mktemp("photos")
    photos = load_sample_images().images
    for i in range(COUNT):
        photo = photos[i % 2]
        folder = source / ("china", "flower")[i % 2]
        folder.mkdir(exist_ok=True)
        crop = photo[5 * i : 5 * i + 150, 10 * i : 10 * i + 200]
        Image.fromarray(crop).save(folder / f"{i:02d}.jpg", quality=95)
    pack(source, source / "a", PackOptions(seed=1))
    return RecordFile(source / "a.rec")


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> None:
    before = set(threading.enumerate())
    yield
    gc.collect()
    left = [thread for thread in threading.enumerate() if thread not in before]
    assert left == []


def make_train_loader(records: RecordFile, **changed: object) -> TrainLoader:
    settings = {"batch_size": 8, "seed": 5, "classes": 2, "threads": 2, **changed}
    transform = settings.pop("transform", TrainTransform(64))
    return TrainLoader(records, transform, **settings)


def collect(batches: object) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*batches)
    return np.concatenate(images), np.concatenate(labels)


def test_batches_are_uint8_pixels_and_int64_labels(records: RecordFile) -> None:
    loader = make_train_loader(records)
    assert len(loader) == 5
    sizes = []
    for images, labels in loader.epoch(0):
        sizes.append(len(labels))
        assert images.shape == (len(labels), 64, 64, 3)
        assert images.dtype == np.uint8
        assert images.flags["C_CONTIGUOUS"]
        assert labels.shape == (len(labels),)
        assert labels.dtype == np.int64
    assert sizes == [8, 8, 7, 7, 7]


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_samples_depend_on_seed_epoch_and_position_alone(
    records: RecordFile, threads: int
) -> None:
    """Bit-equal to each record decoded by MXNet and augmented alone, with any number of threads."""
    loader = make_train_loader(records, threads=threads, prefetch=threads)
    images, labels = collect(loader.epoch(3))
    positions = np.concatenate(Sampling(COUNT, seed=5).batches(3, 8, 0, 1))
    reader = mx.recordio.MXIndexedRecordIO(
        str(records.path.with_suffix(".idx")), str(records.path), "r")
    for image, label, position in zip(images, labels, positions):
        header, payload = mx.recordio.unpack(reader.read_idx(reader.keys[position]))
        decoded = mx.image.imdecode(payload).asnumpy()
        ours = loader.transform(decoded, sample_generator(5, 3, int(position)))
        # The decoders are two builds of libjpeg-turbo: equal, or a level apart before the jitter.
        assert np.abs(image.astype(int) - ours).mean() < 1
        assert label == header.label
    reader.close()
    again, _ = collect(make_train_loader(records, threads=1).epoch(3))
    assert np.array_equal(images, again)


def test_epochs_and_seeds_differ(records: RecordFile) -> None:
    first, _ = collect(make_train_loader(records).epoch(0))
    second, _ = collect(make_train_loader(records).epoch(1))
    other, _ = collect(make_train_loader(records, seed=6).epoch(0))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_training_sees_every_image_once(records: RecordFile, world: int) -> None:
    """With a view that ignores the draws, so that the images can be told apart."""
    whole = TrainTransform(48, auto_augment=False, color_jitter=0, lighting=0, flip=False,
                           area=(1, 1), ratio=(4 / 3, 4 / 3))
    loaders = [make_train_loader(records, transform=whole, rank=rank, world=world)
               for rank in range(world)]
    assert len({len(loader) for loader in loaders}) == 1
    seen = np.concatenate([collect(loader.epoch(0))[0] for loader in loaders])
    expected, _ = collect(make_train_loader(records, transform=whole).epoch(0))
    assert len(np.unique(expected.reshape(COUNT, -1), axis=0)) == COUNT
    assert np.array_equal(np.unique(seen.reshape(COUNT, -1), axis=0),
                          np.unique(expected.reshape(COUNT, -1), axis=0))


@pytest.mark.parametrize(("world", "batch"), [(1, 8), (1, 100), (2, 5), (3, 1), (40, 4)])
def test_evaluation_sees_every_image_once_in_order(
    records: RecordFile, world: int, batch: int
) -> None:
    transform = EvaluationTransform(56)
    images, labels = [], []
    for rank in range(world):
        loader = EvaluationLoader(records, transform, batch, rank, world, classes=2, threads=2)
        batches = list(loader)
        assert len(batches) == len(loader)
        images += [image for batch_images, _ in batches for image in batch_images]
        labels += [int(label) for _, batch_labels in batches for label in batch_labels]
    assert len(images) == COUNT
    reader = mx.recordio.MXIndexedRecordIO(
        str(records.path.with_suffix(".idx")), str(records.path), "r")
    for image, label, key in zip(images, labels, reader.keys):
        header, payload = mx.recordio.unpack(reader.read_idx(key))
        expected = transform(mx.image.imdecode(payload).asnumpy())
        assert np.abs(image.astype(int) - expected).mean() < 0.5
        assert label == header.label
    reader.close()


def test_an_evaluation_loader_can_be_iterated_again(records: RecordFile) -> None:
    loader = EvaluationLoader(records, EvaluationTransform(32), 16, classes=2, threads=2)
    first, second = collect(loader), collect(loader)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


class CountingTransform(TrainTransform):
    """Counts its calls; the frozen base keeps the count out of its fields."""

    calls: list[int]

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        self.calls.append(1)
        return super().__call__(image, rng)


def test_prepares_no_more_than_it_may(records: RecordFile) -> None:
    """While the first batch is in use, two more are made, and the rest wait."""
    transform = CountingTransform(32)
    object.__setattr__(transform, "calls", [])
    batches = make_train_loader(records, transform=transform, prefetch=2).epoch(0)
    next(batches)
    deadline = time.monotonic() + 10
    while len(transform.calls) < 8 + 8 + 7 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(transform.calls) == 8 + 8 + 7
    batches.close()
    assert len(transform.calls) == 8 + 8 + 7


def test_stopping_early_ends_the_threads(records: RecordFile) -> None:
    loader = make_train_loader(records, threads=4)
    for _ in loader.epoch(0):
        assert any("batch" in thread.name for thread in threading.enumerate())
        break
    gc.collect()
    assert not any("batch" in thread.name for thread in threading.enumerate())


class TestBadRecords:
    """The error comes to the consumer, and names the record's key and file."""

    def write(self, tmp_path: Path, records: RecordFile, key: int, label: float,
              payload: bytes | None) -> RecordFile:
        """The records with one more, written by MXNet."""
        writer = mx.recordio.MXIndexedRecordIO(
            str(tmp_path / "b.idx"), str(tmp_path / "b.rec"), "w")
        for i in range(COUNT):
            record = records.read(i)
            header = mx.recordio.IRHeader(0, record.label, record.key, 0)
            writer.write_idx(record.key, mx.recordio.pack(header, record.payload))
        header = mx.recordio.IRHeader(0, label, key, 0)
        content = records.read(0).payload if payload is None else payload
        writer.write_idx(key, mx.recordio.pack(header, content))
        writer.close()
        return RecordFile(tmp_path / "b.rec")

    @pytest.mark.parametrize("payload", [b"", b"\xff\xd8\xff garbage", bytes(500)])
    def test_no_image(self, tmp_path: Path, records: RecordFile, payload: bytes) -> None:
        with self.write(tmp_path, records, 77, 1, payload) as bad:
            with pytest.raises(InputError, match=r"b\.rec: 1 of 38, .* --max-bad-records 0\.001 "
                                                 r"allows 0 \(record 77 is no image"):
                collect(make_train_loader(bad).epoch(0))
            with pytest.raises(InputError, match=r"record 77 of .*b\.rec .* is no image.*"
                                                 r"--skip-bad-records"):
                collect(EvaluationLoader(bad, EvaluationTransform(32), 8, classes=2, threads=2))

    @pytest.mark.parametrize("label", [2, 999_999])
    def test_label_of_another_number_of_classes(
        self, tmp_path: Path, records: RecordFile, label: float
    ) -> None:
        """That is no damage: all training stops, whatever the share."""
        message = rf"record 77 of .*b\.rec has label {label:g}, .* 0 to 1; .*--classes"
        with self.write(tmp_path, records, 77, label, None) as bad:
            with pytest.raises(InputError, match=message):
                collect(make_train_loader(bad, max_bad_records=1).epoch(0))

    @pytest.mark.parametrize("label", [-1, 0.5, float("nan"), 1e30])
    def test_label_that_is_damaged(
        self, tmp_path: Path, records: RecordFile, label: float
    ) -> None:
        with self.write(tmp_path, records, 77, label, None) as bad:
            with pytest.raises(InputError, match=r"record 77 has label .*, which is no class"):
                collect(make_train_loader(bad).epoch(0))
            loader = make_train_loader(bad, max_bad_records=0.03)
            _, labels = collect(loader.epoch(0))
            assert len(labels) == COUNT + 1
            assert set(labels) == {0, 1}
            assert len(loader.bad_records) == 1

    def test_damage_is_replaced_alike_by_all(self, tmp_path: Path, records: RecordFile) -> None:
        """By another record of the shard, the same for any threads, and in another epoch another;
        the other samples stay what they are."""
        with self.write(tmp_path, records, 77, 1, None) as good:
            offset = int((tmp_path / "b.idx").read_text().splitlines()[5].split()[1])
            whole = TrainTransform(48, auto_augment=False, color_jitter=0, lighting=0, flip=False,
                                   area=(1, 1), ratio=(4 / 3, 4 / 3))
            settings = {"transform": whole, "max_bad_records": 0.03}
            expected = [collect(make_train_loader(good, **settings).epoch(epoch))[0]
                        for epoch in range(4)]
            content = bytearray((tmp_path / "b.rec").read_bytes())
            struct.pack_into("<I", content, offset, 0)
            (tmp_path / "b.rec").write_bytes(content)
        with RecordFile(tmp_path / "b.rec") as bad:
            loader = make_train_loader(bad, threads=3, **settings)
            replacements = []
            for epoch in range(4):
                images, _ = collect(loader.epoch(epoch))
                alone, _ = collect(make_train_loader(bad, threads=1, **settings).epoch(epoch))
                assert np.array_equal(images, alone)
                changed = np.flatnonzero((images != expected[epoch]).any(axis=(1, 2, 3)))
                order = np.concatenate(Sampling(COUNT + 1, seed=5).batches(epoch, 8, 0, 1))
                assert order[changed].tolist() == [5]
                replacements.append(images[changed[0]])
            assert all((expected[0] == image).all(axis=(1, 2, 3)).any() for image in replacements)
            assert len(np.unique(replacements, axis=0)) > 1
            (fault,) = loader.bad_records.take_untold()
            assert fault.position == 5
            assert fault.key == bad.key(5)
            assert "magic number 0x00000000" in fault.reason
            assert loader.bad_records.take_untold() == []

    def test_evaluation_leaves_out_what_it_is_told_to(
        self, tmp_path: Path, records: RecordFile
    ) -> None:
        with self.write(tmp_path, records, 77, 1, b"garbage") as bad:
            loader = EvaluationLoader(bad, EvaluationTransform(32), 4, classes=2, threads=2,
                                      skip_bad_records=True)
            images, _ = collect(loader)
            whole = EvaluationLoader(records, EvaluationTransform(32), 4, classes=2, threads=2)
            assert np.array_equal(images, collect(whole)[0])
            assert [fault.key for fault in loader.bad_records.values()] == [77]


class TestResumption:
    """The stream of samples goes on as if nothing had happened."""

    @pytest.mark.parametrize("sharding", ["fixed", "global"])
    def test_at_any_step(self, records: RecordFile, sharding: str) -> None:
        loader = make_train_loader(records, sharding=sharding)
        images, labels = collect(loader.epoch(1))
        sizes = loader.sampling.sizes(8, 1)
        for steps in range(1, len(loader)):
            position = Position(1).advance(loader.sampling, 8, 1, steps)
            again = make_train_loader(records, sharding=sharding, threads=steps)
            rest_images, rest_labels = collect(again.epoch(1, position.legs))
            assert np.array_equal(rest_images, images[sizes[:steps].sum():])
            assert np.array_equal(rest_labels, labels[sizes[:steps].sum():])

    @pytest.mark.parametrize("world", [2, 4])
    def test_global_sharding_does_not_depend_on_the_ranks(
        self, records: RecordFile, world: int
    ) -> None:
        """The same pixels in each step, in the same order, with the same global batch."""
        alone = make_train_loader(records, sharding="global", batch_size=8)
        expected = [batch.images for batch in alone.epoch(2)]
        ranks = [make_train_loader(records, sharding="global", batch_size=8 // world, rank=rank,
                                   world=world).epoch(2) for rank in range(world)]
        steps = [np.concatenate([batch.images for batch in step]) for step in zip(*ranks)]
        for iterator in ranks:
            iterator.close()
        assert len(steps) == len(expected)
        assert all(np.array_equal(*pair) for pair in zip(steps, expected))


def test_a_bug_in_a_transform_keeps_its_traceback(records: RecordFile) -> None:
    class Broken(TrainTransform):
        def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            raise ZeroDivisionError("a bug")

    loader = make_train_loader(records, transform=Broken(32))
    with pytest.raises(RuntimeError, match=r"record \d+ of .*a\.rec") as caught:
        next(loader.epoch(0))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.__cause__.__traceback__ is not None


def test_a_class_list_that_contradicts_is_refused(records: RecordFile) -> None:
    check_classes(records, 2)
    with pytest.raises(InputError, match=r"a\.rec has 2 classes .* has 1000; give --classes 2"):
        make_train_loader(records, classes=1000)
    with pytest.raises(InputError, match=r"a\.rec has 2 classes .* has 3, .*--classes-of TRAIN"):
        EvaluationLoader(records, EvaluationTransform(32), 8, classes=3)


def test_more_workers_than_images_are_refused(records: RecordFile) -> None:
    with pytest.raises(InputError, match=r"37 training images are too few for 50 workers"):
        make_train_loader(records, rank=3, world=50)
