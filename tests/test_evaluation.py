"""Accuracy: against NumPy, each image once, and no score for a broken network."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from gluon_resnest.tasks.classification.evaluation import evaluate, label_ranks


def batches_of(images, labels, size):
    return [(images[i:i + size], labels[i:i + size]) for i in range(0, len(labels), size)]


@pytest.mark.parametrize("size", [1, 4, 7, 23])
def test_equals_numpy(size, rng):
    logits = rng.standard_normal((23, 9)).astype(np.float32)
    labels = rng.integers(0, 9, 23)
    pixels = np.arange(23, dtype=np.uint8).reshape(23, 1, 1, 1)  # each image is its own number

    def forward(batch):
        assert len(batch) == size or size == 23
        return logits[batch.ravel().astype(int)]

    result = evaluate(forward, batches_of(pixels, labels, size), 23, batch_size=size)
    order = np.argsort(-logits, axis=1)
    assert result.images == 23
    assert result.top1 == pytest.approx(100 * np.mean(order[:, 0] == labels))
    assert result.top5 == pytest.approx(100 * np.mean((order[:, :5] == labels[:, None]).any(1)))
    expected = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(23), labels].mean()
    assert result.loss == pytest.approx(expected, rel=1e-9)


def test_parts_of_several_workers_add_up(rng):
    """Two workers' sums, reduced, are those of one; an uneven split and an empty worker too."""
    logits, labels = rng.standard_normal((10, 4)), rng.integers(0, 4, 10)
    pixels = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)

    def forward(batch):
        return logits[batch.ravel().astype(int)]

    whole = evaluate(forward, batches_of(pixels, labels, 4), 10)
    sums = []
    for part in (slice(0, 7), slice(7, 10), slice(10, 10)):
        with pytest.raises(StopIteration):
            evaluate(forward, batches_of(pixels[part], labels[part], 4), 10,
                     reduce=lambda values: sums.append(values) or next(iter(())))
    total = evaluate(forward, [], 10, reduce=lambda _: sum(sums))
    assert (total.images, total.top1_hits, total.top5_hits) == (
        whole.images, whole.top1_hits, whole.top5_hits)
    assert total.loss == pytest.approx(whole.loss, rel=1e-6)


def test_a_missing_image_is_an_error_not_a_bias():
    with pytest.raises(RuntimeError, match="evaluated 3 images of 4"):
        evaluate(lambda batch: np.zeros((len(batch), 2)),
                 [(np.zeros((3, 1, 1, 3), np.uint8), np.zeros(3, int))], 4)


@pytest.mark.parametrize("row", [[0, 0, 0], [np.nan, np.nan, np.nan], [1, np.nan, 0]])
def test_ties_and_nan_do_not_score(row):
    assert label_ranks(np.array([row], dtype=float), np.array([0]))[0] > 0


def test_ranks():
    logits = np.array([[3, 2, 1, 0], [3, 2, 1, 0]], dtype=float)
    np.testing.assert_array_equal(label_ranks(logits, np.array([0, 2])), [0, 2])
