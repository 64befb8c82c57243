"""Kernel lifts: exact at the landmarks, right on average, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import pairwise

from perfalign_jax import kernels, lift

KERNELS = ("gaussian", "laplacian", "polynomial", "arc_cosine")


@pytest.fixture(scope="module")
def rows():
    x = np.random.default_rng(3).normal(size=(60, 4)) * [1, 2, 3, 0.5] + 5
    return x.astype(np.float32)


def standardised(fitted, x):
    return np.asarray(lift.apply(fitted.scaling, x), np.float64)


def reference(fitted, x, kernel):
    """The kernel of all rows with all, by scikit-learn or its definition, in float64."""
    s, b = standardised(fitted, x), float(fitted.bandwidth)
    if kernel == "gaussian":
        return pairwise.rbf_kernel(s, gamma=1 / (2 * b**2))
    if kernel == "laplacian":
        return np.exp(-pairwise.euclidean_distances(s) / b)
    if kernel == "polynomial":
        return pairwise.polynomial_kernel(s, degree=3, gamma=1 / b**2, coef0=1)
    augmented = np.column_stack([s / b, np.ones(len(s))])
    product = augmented @ augmented.T
    lengths = np.sqrt(np.diag(product))
    angle = np.arccos(np.clip(product / np.outer(lengths, lengths), -1, 1))
    return np.outer(lengths, lengths) / np.pi * (np.sin(angle) + (np.pi - angle) * np.cos(angle))


@pytest.mark.parametrize("kernel", KERNELS)
def test_with_all_rows_as_landmarks_inner_products_are_the_kernel(rows, kernel):
    fitted = kernels.fit_nystroem(rows, kernel=kernel)
    features = np.asarray(lift.apply(fitted, rows), np.float64)
    expected = reference(fitted, rows, kernel)
    # The arc's cosine near 1 loses half the digits of float32, and so does the root of a spectrum
    # cut at the rounding of the matrix.
    assert np.abs(features @ features.T - expected).max() < 3e-3 * np.abs(expected).max()


def test_the_bandwidth_is_the_median_distance_times_the_factor(rows):
    one, two = (kernels.fit_nystroem(rows, factor=f) for f in (1.0, 2.0))
    apart = pairwise.euclidean_distances(standardised(one, rows))[np.triu_indices(60, 1)]
    assert float(one.bandwidth) == pytest.approx(np.median(apart), rel=1e-5)
    assert float(two.bandwidth) == pytest.approx(2 * float(one.bandwidth), rel=1e-6)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_equal_rows_are_no_distance_apart(rows, array):
    same = np.where(np.arange(60)[:, None] < 50, rows[:1], rows)
    fitted = kernels.nystroem_of(array(same), "laplacian", 1.0, None)
    assert float(fitted.bandwidth) == 1  # more than half of the pairs are equal


@pytest.mark.parametrize("by", ["even", "kmeans", "leverage"])
def test_few_landmarks_approximate_the_kernel(rows, by):
    few = 30
    if by != "even":
        few = kernels.choose_landmarks(rows, key=jax.random.key(0), count=30, by=by, factor=2.0)
        assert np.abs(np.mean(few, axis=0) - rows.mean(axis=0)).max() < 2  # in the rows' units
    fitted = kernels.fit_nystroem(rows, landmarks=few, factor=2.0)
    assert fitted.landmarks.shape == (30, 4)
    features = np.asarray(lift.apply(fitted, rows), np.float64)
    assert np.abs(features @ features.T - reference(fitted, rows, "gaussian")).max() < 0.05


@pytest.mark.parametrize("kernel", KERNELS[:2])
def test_random_features_are_the_kernel_on_average(rows, kernel):
    fitted = kernels.fit_fourier(rows, key=jax.random.key(0), count=20_000, kernel=kernel)
    features = np.asarray(lift.apply(fitted, rows), np.float64)
    exact = kernels.fit_nystroem(rows, kernel=kernel)
    # Five standard errors of a mean of 20,000 terms of variance at most one.
    error = np.abs(features @ features.T - reference(exact, rows, kernel)).max()
    assert error < 5 / np.sqrt(20_000)


def test_many_rows_are_lifted_in_blocks_alike(rows):
    fitted = kernels.fit_nystroem(rows, landmarks=10)
    many = np.tile(rows, (100, 1))  # more than a block
    features = np.asarray(lift.apply(fitted, many))
    assert np.allclose(features[-60:], np.asarray(lift.apply(fitted, rows)), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"kernel": "cosine"}, ValueError, "kernel must be one of"),
        ({"factor": 0.0}, ValueError, "factor must be above zero"),
        ({"landmarks": 0}, ValueError, "landmarks must be at least 1"),
        ({"landmarks": np.ones((3, 2), "f4")}, ValueError, r"landmarks must have shape \(m, 4\)"),
    ],
)
def test_bad_options_are_named(rows, options, error, words):
    with pytest.raises(error, match=words):
        kernels.fit_nystroem(rows, **options)


def test_bad_rows_are_named(rows):
    with pytest.raises(ValueError, match="at least two rows"):
        kernels.fit_nystroem(rows[:1])
    fitted = kernels.fit_nystroem(rows)
    with pytest.raises(ValueError, match=r"x must have shape \(n, 4\)"):
        lift.apply(fitted, rows[:, :3])
    alike = kernels.fit_nystroem(np.ones((5, 2), np.float32))  # one likeness
    assert np.count_nonzero(np.abs(alike.weights).sum(axis=0)) == 1
