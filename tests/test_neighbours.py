"""Retrieval and shared neighbours against plain references, with ties, blocks and units."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import rankdata
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from perfalign_jax import neighbours

FIGURES = {
    "retrieval": lambda a, b: neighbours.retrieval(a, b, at=(1, 3), chunk=7).recall_12,
    "median_rank": lambda a, b: neighbours.retrieval(a, b, at=(1, 3), chunk=7).median_rank_21,
    "mutual_knn": lambda a, b: neighbours.mutual_knn(a, b, neighbors=3, chunk=7),
}
each = pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES.keys())


def draw_pair(rng, n=40, k=3, noise=0.5):
    z = rng.normal(size=(n, k))
    return z, z + noise * rng.normal(size=(n, k))


def partner_ranks(z1, z2):
    return np.array([rankdata(row)[i] for i, row in enumerate(cdist(z1, z2))])


@pytest.mark.parametrize("chunk", [1, 7, 40, 1000])
def test_retrieval_against_rankdata(x64, rng, chunk):
    z1, z2 = draw_pair(rng, noise=1.0)
    result = neighbours.retrieval(z1, z2, at=(1, 4, 50), chunk=chunk)
    for ranks, recall, median in (
        (partner_ranks(z1, z2), result.recall_12, result.median_rank_12),
        (partner_ranks(z2, z1), result.recall_21, result.median_rank_21),
    ):
        # Exact: both count whole samples (without ties), n = 40.
        np.testing.assert_allclose(recall, [(ranks <= a).mean() for a in (1, 4, 50)], rtol=1e-15)
        assert float(median) == np.median(ranks)
    assert result.at == (1, 4, 50)


def test_retrieval_by_cosine_ignores_length(x64, rng):
    z1, z2 = draw_pair(rng, noise=0.3)
    lengths = rng.uniform(0.1, 10, size=(40, 1))
    by_cosine = neighbours.retrieval(z1 * lengths, z2, at=(1,), metric="cosine")
    normed = neighbours.retrieval(normalize(z1), normalize(z2), at=(1,))
    np.testing.assert_array_equal(by_cosine.recall_12, normed.recall_12)


@pytest.mark.parametrize("constant", [0.0, 0.3, -1e5])
@pytest.mark.parametrize("chunk", [4, 10, 16])
def test_collapsed_latents_retrieve_at_chance(constant, chunk):
    z = np.full((10, 3), constant, np.float32)
    result = neighbours.retrieval(z, z, at=(1, 5), chunk=chunk)
    # Chance is at / n; 1e-6 is float32 rounding.
    np.testing.assert_allclose(result.recall_12, [0.1, 0.5], rtol=1e-6)
    np.testing.assert_allclose(result.recall_21, [0.1, 0.5], rtol=1e-6)
    assert float(result.median_rank_12) == float(result.median_rank_21) == 5.5


def test_ties_are_broken_in_expectation(x64, rng):
    # Ten samples of four kinds: the partner is one of its kind, found at random among them.
    kinds = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
    points = rng.normal(size=(4, 5))
    sizes = np.bincount(kinds)[kinds]
    result = neighbours.retrieval(points[kinds], points[kinds] + 1e-9, at=(1, 2), chunk=4)
    np.testing.assert_allclose(
        result.recall_12, [np.mean(1 / sizes), np.mean(np.minimum(2 / sizes, 1))], rtol=1e-12
    )
    assert float(result.median_rank_12) == np.median((sizes + 1) / 2)


def test_retrieval_is_exact_far_from_the_origin(rng):
    # float32 with a common mean of 1e3 and spread 1: without centring, distances drown.
    z = rng.normal(size=(200, 8)).astype(np.float32)
    result = neighbours.retrieval(z + 1000, z + 1000, at=(1,))
    assert float(result.recall_12[0]) == 1


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("chunk", [1, 16, 60])
def test_mutual_neighbours_against_scikit_learn(x64, rng, metric, chunk):
    z1, z2 = rng.normal(size=(60, 4)), rng.normal(size=(60, 6))
    z2[:, :4] += z1
    found = [
        NearestNeighbors(n_neighbors=5, metric=metric, algorithm="brute")
        .fit(z)
        .kneighbors(return_distance=False)
        for z in (z1, z2)
    ]
    shared = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(*found, strict=True)])
    ours = neighbours.mutual_knn(z1, z2, neighbors=5, metric=metric, chunk=chunk)
    np.testing.assert_allclose(ours, shared, rtol=1e-12)


def test_collapsed_latents_share_neighbours_at_chance(rng):
    z = rng.normal(size=(21, 3)).astype(np.float32)
    flat = np.zeros((21, 3), np.float32)
    for a, b in ((flat, flat), (z, flat)):
        # Chance is 4 of the 20 others; 1e-5 is float32 rounding of 21 sums.
        np.testing.assert_allclose(
            neighbours.mutual_knn(a, b, neighbors=4, chunk=8), 0.2, rtol=1e-5
        )


def test_all_neighbours_are_shared(rng):
    z1, z2 = rng.normal(size=(2, 9, 2)).astype(np.float32)
    np.testing.assert_allclose(neighbours.mutual_knn(z1, z2, neighbors=8), 1, rtol=1e-6)


def test_blocks_hold_less_than_all_pairs():
    # The compiled program's own account of its memory, for 20,000 pairs: all pairs of float32
    # would take 1.6 GB.
    shape = jax.ShapeDtypeStruct((20_000, 4), np.float32)
    for function in (neighbours.retrieval, functools.partial(neighbours.mutual_knn, neighbors=3)):
        memory = jax.jit(function).lower(shape, shape).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 150e6


@pytest.mark.parametrize("exponent", [-30, -7, 0, 30])
def test_scale_and_rotation_change_no_rank(x64, rng, exponent):
    z1, z2 = draw_pair(rng, n=12)
    q = 10.0**exponent * np.linalg.qr(rng.normal(size=(3, 3)))[0]
    for figure in FIGURES.values():
        np.testing.assert_allclose(figure(z1 @ q, z2 @ q), figure(z1, z2), rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_retrieval_does_not_depend_on_units(scale, rng):
    z1 = (rng.normal(size=(50, 3)) * scale).astype(np.float32)
    found = neighbours.retrieval(z1, z1, at=(1,))
    assert float(found.recall_12[0]) == 1.0
    other = neighbours.retrieval(z1, z1[rng.permutation(50)], at=(1,))
    assert float(other.recall_12[0]) < 0.2


# Ties up to rounding.


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("shift", [0.0, 30.0, 1000.0])
def test_copies_that_differ_by_rounding_are_tied_in_blocks_of_any_size(rng, shift, metric):
    kinds = rng.integers(0, 40, size=400)
    points = rng.normal(size=(40, 16))[kinds]
    # 1000 apart, cosines see angles of 1e-3 and float32 their squares: no copy is told apart.
    points *= 1 + (metric == "cosine") * shift
    z1, z2 = (
        (
            points + shift + 6e-8 * (points + shift) * rng.choice([-1, 0, 1], size=points.shape)
        ).astype(np.float32)
        for _ in range(2)
    )
    sizes = np.bincount(kinds)[kinds]
    for chunk in (1, 7, 64, 333, 400):
        found = neighbours.retrieval(z1, z2, at=(1, 5), metric=metric, chunk=chunk)
        for recall, median in (
            (found.recall_12, found.median_rank_12),
            (found.recall_21, found.median_rank_21),
        ):
            # 1e-6: float32 rounding of a mean of 400 shares.
            expected = [np.mean(1 / sizes), np.mean(np.minimum(5 / sizes, 1))]
            np.testing.assert_allclose(recall, expected, rtol=1e-6)
            assert float(median) == np.median((sizes + 1) / 2)


def test_latents_equal_up_to_rounding_score_at_chance(x64, rng):
    for constant in (0.3, 1.0, -1e5):
        z1, z2 = constant * (1 + 1e-17 / 0.3 * rng.normal(size=(2, 50, 3)))
        one_bit = np.nextafter(z2, np.where(rng.random(z2.shape) < 0.5, np.inf, -np.inf))
        for a, b in ((z1, z2), (z1, one_bit), (one_bit, one_bit)):
            found = neighbours.retrieval(a, b, at=(1, 5), chunk=16)
            np.testing.assert_allclose(found.recall_12, [0.02, 0.1], rtol=1e-12)
            assert float(found.median_rank_21) == 25.5
            share = neighbours.mutual_knn(a, b, neighbors=7, metric="euclidean")
            np.testing.assert_allclose(share, 7 / 49, rtol=1e-12)


def test_neighbours_that_differ_by_rounding_are_tied(rng):
    # Five copies of 20 points: a sample's nearest four are its copies, the next five a whole kind.
    kinds = np.repeat(np.arange(20), 5)
    points = rng.normal(size=(20, 6))[kinds] + 10
    z1, z2 = (
        (points * (1 + 6e-8 * rng.choice([-1, 0, 1], size=points.shape))).astype(np.float32)
        for _ in range(2)
    )
    # Sharing is certain for the four; of the five tied next, two of each: (2/5)^2 * 5 = 0.8.
    for neighbors, expected in ((4, 1), (6, (4 + 0.8) / 6)):
        for chunk in (1, 7, 64, 100):
            share = neighbours.mutual_knn(
                z1, z2, neighbors=neighbors, metric="euclidean", chunk=chunk
            )
            np.testing.assert_allclose(share, expected, rtol=1e-5)  # rounding of 100 sums


def test_one_far_sample_ties_no_others(rng):
    # The band is each query's own: an outlier widens no other's.
    z = rng.normal(size=(100, 4)).astype(np.float32)
    z[7] = 1e4
    np.testing.assert_array_equal(neighbours.retrieval(z, z, at=(1,)).recall_12, 1)


# What is not finite.


@each
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_figure_of_a_nan_is_nan(rng, figure, value):
    z1, z2 = (z.astype(np.float32) for z in draw_pair(rng, n=20))
    bad = z2.copy()
    bad[5, 1] = value
    for a, b in ((z1, bad), (bad, z1), (bad, bad), (0 * z1, bad), (bad * value, bad * value)):
        assert np.isnan(jax.jit(figure)(a, b)).all()
    clean, spoilt = jax.vmap(figure)(np.stack([z1, z1]), np.stack([z2, bad]))
    np.testing.assert_allclose(clean, figure(z1, z2), rtol=1e-6)  # a batch's other members stand
    assert np.isnan(spoilt).all()


# Transformations and errors.


@each
def test_jit_equals_eager_and_vmap_equals_loop(rng, figure):
    batch = [tuple(z.astype(np.float32) for z in draw_pair(rng, n=20)) for _ in range(3)]
    firsts, seconds = (np.stack(z) for z in zip(*batch, strict=True))
    loop = np.stack([figure(a, b) for a, b in batch])
    # 1e-6: float32 rounding of sums of 20 shares; no rank differs.
    np.testing.assert_allclose(jax.jit(figure)(*batch[0]), loop[0], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(figure)(firsts, seconds), loop, rtol=1e-6)
    assert loop.dtype == np.float32


@each
def test_float64_is_kept(x64, rng, figure):
    assert figure(*draw_pair(rng, n=20)).dtype == np.float64


@each
def test_gradients_are_zero(rng, figure):
    z, other = (a.astype(np.float32) for a in draw_pair(rng, n=20))
    for a, b in ((z, z), (0 * z, 0 * z), (0 * z, z), (z, other)):
        for gradient in jax.grad(lambda a, b: jnp.sum(figure(a, b)), argnums=(0, 1))(a, b):
            np.testing.assert_array_equal(gradient, 0)


GOOD = np.ones((4, 2), np.float32)
NAN = np.where(np.arange(8).reshape(4, 2) == 5, np.nan, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: neighbours.retrieval(GOOD, NAN), ValueError, "z2 must be finite, but row 2"),
        (lambda: neighbours.mutual_knn(NAN, GOOD), ValueError, "z1 must be finite, but row 2"),
        (lambda: neighbours.retrieval(GOOD, GOOD, at=1), TypeError, "at must be a tuple"),
        (lambda: neighbours.retrieval(GOOD, GOOD, at=()), TypeError, "at must be a tuple"),
        (lambda: neighbours.retrieval(GOOD, GOOD, at=(0,)), ValueError, "at[0] must be at least 1"),
        (
            lambda: neighbours.retrieval(GOOD, GOOD, at=(1.5,)),
            TypeError,
            "at[0] must be an integer",
        ),
        (lambda: neighbours.retrieval(GOOD, GOOD, chunk=0), ValueError, "chunk must be at least 1"),
        (
            lambda: neighbours.retrieval(GOOD, GOOD, metric="manhattan"),
            ValueError,
            "metric must be one of 'euclidean', 'cosine', got 'manhattan'",
        ),
        (
            lambda: neighbours.mutual_knn(GOOD, GOOD),
            ValueError,
            "neighbors must be between 1 and 3 (there are 4 samples), got 10",
        ),
        (
            lambda: neighbours.mutual_knn(GOOD[:1], GOOD[:1], neighbors=1),
            ValueError,
            "at least two rows, got 1",
        ),
        (
            lambda: neighbours.mutual_knn(GOOD, GOOD, neighbors=1, metric="dot"),
            ValueError,
            "metric must be one of",
        ),
        (lambda: neighbours.mutual_knn(GOOD, GOOD, neighbors=1, chunk=0), ValueError, "chunk must"),
    ],
)
def test_every_error_says_what_is_wrong(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_clouds_of_two_precisions_are_compared(rng, x64):
    z1, z2 = draw_pair(rng)
    narrow = z1.astype(np.float32)
    for pair in ((narrow, z2), (z2, narrow)):
        assert 0 <= float(neighbours.mutual_knn(*pair, neighbors=3)) <= 1
    assert neighbours.retrieval(narrow, z2).recall_12[0] > 0
