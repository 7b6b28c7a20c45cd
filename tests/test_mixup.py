"""Label smoothing and mixup against the paper's formulas."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest

from gluon_resnest.tasks.classification.mixup import draw_lambdas, mix_with_reverse, smoothed_labels


def test_smoothing_by_the_papers_formula():
    targets = smoothed_labels(np.array([1, 3]), 5, 0.1)
    np.testing.assert_allclose(targets, [[0.025, 0.9, 0.025, 0.025, 0.025],
                                         [0.025, 0.025, 0.025, 0.9, 0.025]], rtol=1e-6)


def test_smoothing_as_gluoncvs_script():
    targets = smoothed_labels(np.array([0]), 4, 0.1, "gluoncv")
    np.testing.assert_allclose(targets, [[0.925, 0.025, 0.025, 0.025]], rtol=1e-6)


@pytest.mark.parametrize("rule", ["paper", "gluoncv"])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5])
def test_targets_are_distributions(rule, epsilon, rng):
    targets = smoothed_labels(rng.integers(0, 7, 20), 7, epsilon, rule)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)


def test_lambda_by_sample_and_by_batch(rng):
    by_sample = draw_lambdas(20_000, 0.2, rng)
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    assert by_sample.mean() == pytest.approx(0.5, abs=0.015)
    assert by_sample.var() == pytest.approx(1 / (4 * 1.4), abs=0.005)
    assert len(np.unique(draw_lambdas(32, 0.2, rng, "batch"))) == 1


@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (4, 10), (1, 2)])
def test_mixes_each_with_its_mirror(shape, rng):
    batch = rng.standard_normal(shape).astype(np.float32)
    lambdas = rng.random(shape[0]).astype(np.float32)
    mixed = mix_with_reverse(mx.nd.array(batch), mx.nd.array(lambdas)).asnumpy()
    for i in range(shape[0]):
        expected = lambdas[i] * batch[i] + (1 - lambdas[i]) * batch[shape[0] - 1 - i]
        np.testing.assert_allclose(mixed[i], expected, atol=1e-6)


def test_unknown_rules_are_errors(rng):
    with pytest.raises(ValueError, match="rule 'papre'"):
        smoothed_labels(np.array([0]), 4, 0.1, "papre")
    with pytest.raises(ValueError, match="per 'image'"):
        draw_lambdas(3, 0.2, rng, "image")
